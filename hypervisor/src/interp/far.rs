//! Which instructions are far branches: they load CS, so only who knows the guest's
//! descriptor tables can do them.
//!
//! Law: this is the one list. The interpreter, the hypervisor that does the branch, and the
//! checker that leaves it out all ask here.

use super::flags::{AC, ARITHMETIC, DF, TF};
use iced_x86::{Code, Instruction};

/// NT: nested task.
const NT: u64 = 1 << 14;
/// ID: whether there is a `cpuid`.
const ID: u64 = 1 << 21;

/// Flags that `popf` and `iret` in ring 3 can change.
pub const POPPED: u64 = ARITHMETIC | DF | TF | AC | NT | ID;

/// What a far branch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FarKind {
    /// To an address in the instruction, or in memory.
    Jump,
    /// The same, and pushes where it came from.
    Call,
    /// Pops the address, and so many bytes more.
    Return(u64),
    /// Pops the flags, too; in 64-bit code, also the stack pointer.
    InterruptReturn,
}

/// A far branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Far {
    /// What it does.
    pub kind: FarKind,
    /// Bytes of an address or a stack word.
    pub bytes: u64,
}

impl Far {
    /// The far branch that this instruction is, if it is one.
    #[must_use]
    pub fn of(instruction: &Instruction) -> Option<Self> {
        use FarKind::{Call, InterruptReturn, Jump, Return};
        let more = || Return(instruction.immediate16().into());
        let (kind, bytes) = match instruction.code() {
            Code::Jmp_ptr1616 | Code::Jmp_m1616 => (Jump, 2),
            Code::Jmp_ptr1632 | Code::Jmp_m1632 => (Jump, 4),
            Code::Jmp_m1664 => (Jump, 8),
            Code::Call_ptr1616 | Code::Call_m1616 => (Call, 2),
            Code::Call_ptr1632 | Code::Call_m1632 => (Call, 4),
            Code::Call_m1664 => (Call, 8),
            Code::Retfw => (Return(0), 2),
            Code::Retfd => (Return(0), 4),
            Code::Retfq => (Return(0), 8),
            Code::Retfw_imm16 => (more(), 2),
            Code::Retfd_imm16 => (more(), 4),
            Code::Retfq_imm16 => (more(), 8),
            Code::Iretw => (InterruptReturn, 2),
            Code::Iretd => (InterruptReturn, 4),
            Code::Iretq => (InterruptReturn, 8),
            _ => return None,
        };
        Some(Far { kind, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn kind(bits: u32, code: &[u8]) -> Option<(FarKind, u64)> {
        Far::of(&Decoder::new(bits, code, DecoderOptions::NONE).decode())
            .map(|far| (far.kind, far.bytes))
    }

    #[test]
    fn far_branches_are_known() {
        let jump = [0xea, 0, 0, 0, 0, 0x33, 0];
        assert_eq!(kind(32, &jump), Some((FarKind::Jump, 4)));
        assert_eq!(kind(16, &jump), Some((FarKind::Jump, 2)));
        assert_eq!(kind(64, &jump), None);
        assert_eq!(kind(64, &[0x48, 0xcb]), Some((FarKind::Return(0), 8)));
        assert_eq!(kind(64, &[0xca, 8, 0]), Some((FarKind::Return(8), 4)));
        assert_eq!(kind(64, &[0x66, 0xcb]), Some((FarKind::Return(0), 2)));
        assert_eq!(kind(64, &[0x48, 0xff, 0x2f]), Some((FarKind::Jump, 8)));
        assert_eq!(kind(64, &[0xff, 0x1f]), Some((FarKind::Call, 4)));
        assert_eq!(kind(32, &[0xcf]), Some((FarKind::InterruptReturn, 4)));
        assert_eq!(kind(16, &[0xcf]), Some((FarKind::InterruptReturn, 2)));
        assert_eq!(kind(64, &[0xc3]), None);
    }

    #[test]
    fn popped_flags_are_those_of_ring_3() {
        assert_eq!(POPPED, 0x24_4dd5);
    }
}
