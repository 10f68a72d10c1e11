//! `lar`, `lsl`, `verr` and `verw`: what ring 3 may learn of a descriptor.
//!
//! A processor reads the guest's tables by itself, the KVM engine's own are read in
//! its place, and the interpreter has none: it raises #GP, and the instruction is done
//! here. A selector of nothing is no fault, it only clears ZF.

use super::Vcpu;
use iced_x86::{Code, Instruction, Mnemonic};

const NOT_SYSTEM: u64 = 1 << 44;
const CODE: u64 = 1 << 43;
/// Of a code segment.
const CONFORMING: u64 = 1 << 42;
/// Of a code segment: readable; of a data segment: writable.
const ACCESSIBLE: u64 = 1 << 41;
const GRANULAR: u64 = 1 << 55;
const ZF: u64 = 1 << 6;

/// What the instruction finds: `None` clears ZF, a value is for its register.
fn look(instruction: Mnemonic, descriptor: u64) -> Option<u64> {
    let ring3 = descriptor >> 45 & 3 == 3;
    let conforming =
        descriptor & (NOT_SYSTEM | CODE | CONFORMING) == NOT_SYSTEM | CODE | CONFORMING;
    if !ring3 && !conforming {
        return None;
    }
    let kind = descriptor >> 40 & 0xf;
    let system = descriptor & NOT_SYSTEM == 0;
    match instruction {
        // An LDT, an available and a busy TSS, a call gate.
        Mnemonic::Lar if system && !matches!(kind, 2 | 9 | 11 | 12) => None,
        Mnemonic::Lar => Some(descriptor >> 32 & 0x00ff_ff00),
        Mnemonic::Lsl if system && !matches!(kind, 2 | 9 | 11) => None,
        Mnemonic::Lsl => Some(limit(descriptor)),
        Mnemonic::Verr if !system && (descriptor & CODE == 0 || descriptor & ACCESSIBLE != 0) => {
            Some(0)
        }
        Mnemonic::Verw if !system && descriptor & (CODE | ACCESSIBLE) == ACCESSIBLE => Some(0),
        _ => None,
    }
}

/// The offset of a segment's last byte.
pub(super) fn limit(descriptor: u64) -> u64 {
    let units = descriptor & 0xffff | descriptor >> 32 & 0xf_0000;
    if descriptor & GRANULAR != 0 {
        units << 12 | 0xfff
    } else {
        units
    }
}

impl Vcpu {
    /// Does the instruction. `false` if it is none of these.
    pub(super) fn inspect_selector(&mut self, insn: &Instruction) -> bool {
        let (source, to_register) = match insn.mnemonic() {
            Mnemonic::Lar | Mnemonic::Lsl => (1, true),
            Mnemonic::Verr | Mnemonic::Verw => (0, false),
            _ => return false,
        };
        let Some(selector) = self.selector_at(insn, source) else {
            return false;
        };
        let id = self.shared.id;
        let descriptor = self
            .lock_mm()
            .read_descriptor(&self.tables(), id, selector)
            .filter(|_| selector & !3 != 0);
        let found = descriptor.and_then(|descriptor| look(insn.mnemonic(), descriptor));
        let context = &mut self.state.context;
        context.rflags &= !ZF;
        if let Some(value) = found {
            context.rflags |= ZF;
            if to_register {
                let register = &mut context.gpr[insn.op0_register().number() & 15];
                *register = match insn.code() {
                    Code::Lar_r16_rm16 | Code::Lsl_r16_rm16 => *register & !0xffff | value & 0xffff,
                    _ => value,
                };
            }
        }
        context.rip = insn.next_ip();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux' own: __USER_DS, __USER_CS, and its kernel's code.
    const USER_DATA: u64 = 0x00cf_f300_0000_ffff;
    const USER_CODE: u64 = 0x00af_fb00_0000_ffff;
    const KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;

    #[test]
    fn descriptors_of_ring_3_are_told_of() {
        assert_eq!(look(Mnemonic::Lar, USER_DATA), Some(0x00cf_f300));
        assert_eq!(look(Mnemonic::Lsl, USER_DATA), Some(0xffff_ffff));
        assert_eq!(look(Mnemonic::Lsl, 0x0040_f300_0000_1234), Some(0x1234));
        assert_eq!(look(Mnemonic::Verw, USER_DATA), Some(0));
        assert_eq!(look(Mnemonic::Verr, USER_CODE), Some(0));
        assert_eq!(look(Mnemonic::Verw, USER_CODE), None);
    }

    #[test]
    fn others_are_not() {
        for instruction in [Mnemonic::Lar, Mnemonic::Lsl, Mnemonic::Verr, Mnemonic::Verw] {
            assert_eq!(look(instruction, KERNEL_CODE), None);
            // An interrupt gate.
            assert_eq!(look(instruction, 0x0000_ee00_0000_0000), None);
        }
        // A TSS has a limit; nothing can be read in it.
        assert_eq!(look(Mnemonic::Lsl, 0x0000_eb00_0000_0067), Some(0x67));
        assert_eq!(look(Mnemonic::Verr, 0x0000_eb00_0000_0067), None);
    }
}
