//! What is compiled in one go: a stretch of code within one page.
//!
//! Law: a region is decoded in a straight line from its start, and is one range of
//! bytes. Branches within it are branches of the host. Each instruction stands for
//! itself: no two are merged, none is left out, so that every one of them
//! is a place to stop at.

use crate::interp::{
    code::decoder_options,
    decode::{Decoded, decode},
    exec::system,
    op::Op,
    vector::Plans,
};
use iced_x86::{
    ConditionCode, Decoder, DecoderError, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use std::ops::Range;

/// Instructions in a region.
const INSTRUCTIONS: usize = 160;
/// Instructions in a loop that is translated for in place.
const SMALL_LOOP: usize = 32;
const _: () = assert!((INSTRUCTIONS as u64) < super::LEAST);
/// Bytes of code looked at for one.
pub const BYTES: usize = 768;

/// How an instruction is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does nothing.
    Skip,
    /// By itself, its registers and memory operand replaced.
    Native,
    /// `push` of a register or an immediate, 64 bits.
    Push,
    /// `pop` of a register, 64 bits.
    Pop,
    /// `leave`.
    Leave,
    /// A direct jump.
    Jump,
    /// A conditional jump, by the encoding's number of its condition.
    Branch(u8),
    /// A direct call.
    Call,
    /// A jump to the address in a register or in memory.
    JumpBy,
    /// A call of it.
    CallBy,
    /// A return.
    Return,
    /// By the interpreter; compiled code goes on behind it.
    Interpret,
    /// By the interpreter, which goes on by itself.
    LeaveOut,
}

/// One instruction.
#[derive(Debug, Clone)]
pub struct Item {
    /// Decoded with its offset in the page for its address.
    pub instruction: Instruction,
    /// How it is compiled.
    pub kind: Kind,
    /// The interpreter's operations, among the region's.
    pub ops: Range<usize>,
    /// Instructions from here to the next branch or label, with this one.
    pub rest: u32,
    /// Whether a branch of the region leads here.
    pub label: bool,
    /// Whether a branch from further on leads here.
    pub looped: bool,
    /// Whether code outside may enter here.
    pub entry: bool,
    /// Whether it is part of a small loop, and so likely to be executed many times: its
    /// translation is made in place.
    pub in_place: bool,
}

/// A region, taken apart.
pub struct Parts {
    /// Its instructions.
    pub items: Vec<Item>,
    /// What the interpreter does for some of them.
    pub ops: Vec<Op>,
    /// Bytes in it.
    pub len: usize,
}

impl Parts {
    /// Takes `bytes` apart, which begin at `start` of their page and do not leave
    /// it. `None` if the first instruction is not all there.
    pub fn new(bytes: &[u8], start: u64, plans: &mut Plans) -> Option<Self> {
        let mut decoder = Decoder::with_ip(64, bytes, start, decoder_options());
        let mut parts = Parts {
            items: Vec::new(),
            ops: Vec::new(),
            len: 0,
        };
        // The farthest place that a branch leads to.
        let mut reach = start;
        let mut instruction = Instruction::default();
        while parts.items.len() < INSTRUCTIONS {
            decoder.decode_out(&mut instruction);
            if decoder.last_error() == DecoderError::NoMoreBytes {
                break;
            }
            let kind = parts.add(&instruction, plans);
            parts.len = decoder.position();
            if let Kind::Jump | Kind::Branch(_) = kind {
                let target = instruction.near_branch64();
                if target < start + bytes.len() as u64 {
                    reach = reach.max(target);
                }
            }
            if !goes_on(&instruction) && instruction.next_ip() > reach {
                break;
            }
        }
        parts.find_labels();
        parts.count();
        (!parts.items.is_empty()).then_some(parts)
    }

    fn add(&mut self, i: &Instruction, plans: &mut Plans) -> Kind {
        let decoded = decode(i, false, plans);
        let kind = classify(i, &decoded);
        let from = self.ops.len();
        if kind == Kind::Interpret {
            self.ops.extend(decoded.before);
            self.ops.push(decoded.op);
        }
        self.items.push(Item {
            instruction: *i,
            kind,
            ops: from..self.ops.len(),
            rest: 1,
            label: false,
            looped: false,
            entry: self.items.is_empty(),
            in_place: false,
        });
        kind
    }

    /// The instruction at an offset of the page.
    pub fn at(&self, offset: u64) -> Option<usize> {
        let found = self
            .items
            .binary_search_by_key(&offset, |item| item.instruction.ip());
        found.ok()
    }

    fn find_labels(&mut self) {
        for n in 0..self.items.len() {
            let kind = self.items[n].kind;
            if let Kind::Jump | Kind::Branch(_) | Kind::Call = kind
                && let Some(to) = self.at(self.items[n].instruction.near_branch64())
            {
                self.items[to].label = true;
                self.items[to].entry = true;
                self.items[to].looped |= to <= n;
                self.note_loop(to, n);
            }
            // Where calls, and what the interpreter does, come back to.
            if let Kind::Call | Kind::CallBy | Kind::LeaveOut = kind
                && let Some(next) = self.items.get_mut(n + 1)
            {
                next.entry = true;
            }
        }
    }

    /// A branch leads from `from` to `to`. (A compiler puts what is unlikely behind the
    /// rest, and jumps back from there: that is no loop.)
    fn note_loop(&mut self, to: usize, from: usize) {
        if matches!(self.items[from].kind, Kind::Branch(_)) && (to..to + SMALL_LOOP).contains(&from)
        {
            for item in &mut self.items[to..=from] {
                item.in_place = true;
            }
        }
    }

    fn count(&mut self) {
        for n in (0..self.items.len().saturating_sub(1)).rev() {
            let next = &self.items[n + 1];
            let ends = next.label || next.entry || self.items[n].kind.is_branch();
            if !ends {
                self.items[n].rest = next.rest + 1;
            }
        }
    }
}

impl Kind {
    /// Whether what comes next in the code may not be executed next.
    pub fn is_branch(self) -> bool {
        matches!(
            self,
            Kind::Jump
                | Kind::Branch(_)
                | Kind::Call
                | Kind::JumpBy
                | Kind::CallBy
                | Kind::Return
                | Kind::LeaveOut
        )
    }
}

fn classify(i: &Instruction, decoded: &Decoded) -> Kind {
    use iced_x86::Code as C;
    let unknown = system::unknown as crate::interp::op::Handler;
    if std::ptr::fn_addr_eq(decoded.op.run, unknown) {
        return Kind::LeaveOut;
    }
    let memory = has_memory(i);
    let register = i.op_count() > 0 && i.op0_kind() == OpKind::Register;
    match i.code() {
        C::Push_r64 | C::Pushq_imm8 | C::Pushq_imm32 => Kind::Push,
        C::Push_rm64 if !memory => Kind::Push,
        C::Pop_r64 => Kind::Pop,
        C::Pop_rm64 if !memory => Kind::Pop,
        C::Leaveq => Kind::Leave,
        C::Jmp_rel8_64 | C::Jmp_rel32_64 => Kind::Jump,
        C::Call_rel32_64 => Kind::Call,
        C::Jmp_rm64 if register || is_plain(i) => Kind::JumpBy,
        C::Call_rm64 if register || is_plain(i) => Kind::CallBy,
        C::Retnq | C::Retnq_imm16 => Kind::Return,
        code if code.is_jcc_short_or_near() => match condition(i) {
            Some(condition) => Kind::Branch(condition),
            None => Kind::LeaveOut,
        },
        _ if decoded.ends_block => Kind::LeaveOut,
        _ => match i.mnemonic() {
            Mnemonic::Nop | Mnemonic::Endbr64 => Kind::Skip,
            _ if is_native(i) => Kind::Native,
            _ => Kind::Interpret,
        },
    }
}

/// Whether the next instruction in the code may be the next one executed.
fn goes_on(i: &Instruction) -> bool {
    !matches!(
        i.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    )
}

/// The number of a conditional jump's condition.
fn condition(i: &Instruction) -> Option<u8> {
    use iced_x86::ConditionCode as C;
    let all = [
        C::o,
        C::no,
        C::b,
        C::ae,
        C::e,
        C::ne,
        C::be,
        C::a,
        C::s,
        C::ns,
        C::p,
        C::np,
        C::l,
        C::ge,
        C::le,
        C::g,
    ];
    let number = all.iter().position(|c| *c == i.condition_code())?;
    u8::try_from(number).ok()
}

fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

/// Whether compiled code can make the address of the memory operand.
fn is_plain(i: &Instruction) -> bool {
    let wide = |r: Register| matches!(r, Register::None | Register::RIP) || r.is_gpr64();
    let reachable = i32::try_from(i.memory_displacement64().cast_signed()).is_ok();
    let short = i.memory_displ_size() == 4
        && i.memory_base() == Register::None
        && i.memory_index() == Register::None;
    wide(i.memory_base()) && wide(i.memory_index()) && reachable && !short
}

/// Whether the processor can execute it as it is, registers and memory operand
/// replaced: it raises no exceptions and uses no register that has another
/// home without naming it.
fn is_native(i: &Instruction) -> bool {
    use Mnemonic as M;
    let memory = has_memory(i);
    let high = (0..i.op_count()).any(|n| is_high(i.op_register(n)));
    if high && !has_plain_encoding(i) {
        return false;
    }
    if i.has_lock_prefix() || (memory && !is_plain(i)) || has_absolute_address(i) {
        return false;
    }
    for n in 0..i.op_count() {
        let allowed = match i.op_kind(n) {
            OpKind::Register => i.op_register(n).is_gpr(),
            OpKind::Memory => {
                i.mnemonic() == M::Lea || matches!(i.memory_size().size(), 1 | 2 | 4 | 8)
            }
            _ => true,
        };
        if !allowed {
            return false;
        }
    }
    match i.mnemonic() {
        M::Mov
        | M::Movzx
        | M::Movsx
        | M::Movsxd
        | M::Lea
        | M::Add
        | M::Or
        | M::Adc
        | M::Sbb
        | M::And
        | M::Sub
        | M::Xor
        | M::Cmp
        | M::Test
        | M::Inc
        | M::Dec
        | M::Neg
        | M::Not
        | M::Imul
        | M::Mul
        | M::Shl
        | M::Sal
        | M::Shr
        | M::Sar
        | M::Rol
        | M::Ror
        | M::Rcl
        | M::Rcr
        | M::Shld
        | M::Shrd
        | M::Bsf
        | M::Bsr
        | M::Tzcnt
        | M::Lzcnt
        | M::Popcnt
        | M::Bswap
        | M::Cbw
        | M::Cwde
        | M::Cdqe
        | M::Cwd
        | M::Cdq
        | M::Cqo
        | M::Andn
        | M::Bextr
        | M::Bzhi
        | M::Blsi
        | M::Blsr
        | M::Blsmsk
        | M::Rorx
        | M::Sarx
        | M::Shlx
        | M::Shrx
        | M::Clc
        | M::Stc
        | M::Cmc => true,
        // With memory these lock it, or go beyond their operand.
        M::Xchg | M::Cmpxchg | M::Xadd => !memory,
        M::Bt | M::Bts | M::Btr | M::Btc => !memory || i.op1_kind() == OpKind::Immediate8,
        _ => is_conditional(i),
    }
}

/// Whether it is the second byte of a register.
pub fn is_high(r: Register) -> bool {
    matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Whether it can be encoded without a REX prefix, beside which there are no second bytes:
/// all its registers are at home in the lower ones of the host, under their own names.
fn has_plain_encoding(i: &Instruction) -> bool {
    (0..i.op_count()).all(|n| match i.op_kind(n) {
        OpKind::Register => {
            let r = i.op_register(n);
            let wide = matches!(
                r.full_register(),
                Register::RAX | Register::RDX | Register::RBX
            );
            wide && r.size() < 8
        }
        OpKind::Memory => false,
        _ => true,
    })
}

/// A `mov` whose encoding has no registers for an address.
fn has_absolute_address(i: &Instruction) -> bool {
    use iced_x86::Code as C;
    matches!(
        i.code(),
        C::Mov_AL_moffs8
            | C::Mov_AX_moffs16
            | C::Mov_EAX_moffs32
            | C::Mov_RAX_moffs64
            | C::Mov_moffs8_AL
            | C::Mov_moffs16_AX
            | C::Mov_moffs32_EAX
            | C::Mov_moffs64_RAX
    )
}

/// Whether it is a `cmov` or a `set`.
fn is_conditional(i: &Instruction) -> bool {
    i.condition_code() != ConditionCode::None && !i.code().is_jcc_short_or_near()
}
