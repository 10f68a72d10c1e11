//! What only 32-bit code has: decimal arithmetic, `bound`, `into`, `arpl`, and segment
//! registers on the stack.
//!
//! Law: flags that the manual leaves undefined are cleared.

use super::{compat::reach, segment::SS};
use crate::interp::{
    decode::{Choice, Shape},
    flags::Flags,
    host::{Memory, Word},
    op::{Flow, Handler, Op, Outcome, slot},
    state::{Cpu, Stop, vector},
};
use iced_x86::{Code, Instruction, Register};

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;

/// SF, ZF and PF of a result in AL.
fn result_flags(al: u8) -> u64 {
    let when = |condition: bool, flag: u64| if condition { flag } else { 0 };
    when(al & 0x80 != 0, SF) | when(al == 0, ZF) | when(al.count_ones().is_multiple_of(2), PF)
}

/// AL, and AF and CF as they were.
fn before(cpu: &Cpu) -> (u8, bool, bool) {
    let flags = cpu.flags.to_rflags();
    (cpu.get(slot::RAX), flags & AF != 0, flags & CF != 0)
}

fn finish(cpu: &mut Cpu, al: u8, adjusted: bool, carry: bool) -> Outcome {
    let af = if adjusted { AF } else { 0 };
    cpu.flags = Flags::from_rflags(result_flags(al) | af).with_carry(carry);
    cpu.set(slot::RAX, al);
    Ok(Flow::Next)
}

/// `daa`, or with `SUBTRACT` `das`.
fn decimal<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> Outcome {
    let (old, af, cf) = before(cpu);
    let adjust = |al: u8, by: u8| {
        if SUBTRACT {
            al.overflowing_sub(by)
        } else {
            al.overflowing_add(by)
        }
    };
    let low = old & 15 > 9 || af;
    let high = old > 0x99 || cf;
    let (mut al, mut carry) = (old, false);
    if low {
        let (adjusted, beyond) = adjust(al, 6);
        (al, carry) = (adjusted, cf || beyond);
    }
    if high {
        (al, carry) = (adjust(al, 0x60).0, true);
    } else if !SUBTRACT {
        carry = false;
    }
    finish(cpu, al, low, carry)
}

/// `aaa`, or with `SUBTRACT` `aas`.
fn ascii<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> Outcome {
    let (al, af, _) = before(cpu);
    let adjusts = al & 15 > 9 || af;
    let mut ax = cpu.get::<u16>(slot::RAX);
    if adjusts && SUBTRACT {
        ax = ax.wrapping_sub(0x106);
    } else if adjusts {
        ax = ax.wrapping_add(0x106);
    }
    cpu.set(slot::RAX, ax & 0xff0f);
    let flags = if adjusts { AF | CF } else { 0 };
    cpu.flags = Flags::from_rflags(flags);
    Ok(Flow::Next)
}

/// `aam`: AL into two digits of this base.
fn digits(cpu: &mut Cpu, op: &Op) -> Outcome {
    let base = u8::low(op.imm);
    let al = cpu.get::<u8>(slot::RAX);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return cpu.fault(vector::DE, 0);
    };
    cpu.set(slot::RAX, u16::from(high) << 8 | u16::from(low));
    finish(cpu, low, false, false)
}

/// `aad`: two digits of this base into AL.
fn number(cpu: &mut Cpu, op: &Op) -> Outcome {
    let [low, high, ..] = cpu.get::<u32>(slot::RAX).to_le_bytes();
    let al = low.wrapping_add(high.wrapping_mul(u8::low(op.imm)));
    cpu.set(slot::RAX, u16::from(al));
    finish(cpu, al, false, false)
}

/// `into`: a trap, if OF is set.
fn into(cpu: &mut Cpu, op: &Op) -> Outcome {
    if !cpu.flags.holds::<0>() {
        return Ok(Flow::Next);
    }
    cpu.rip = cpu.in_page(op.next());
    cpu.halt(Stop::Software(vector::OF))
}

/// `bound`: a fault, if the register is not within the two signed numbers in memory.
fn bound<W: Memory + Signed>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let address = cpu.address(op);
    let lower = cpu.load::<W>(address)?.signed();
    let upper = cpu.load::<W>(u32::low(address + W::BYTES).into())?.signed();
    let index = cpu.get::<W>(op.dst).signed();
    if (lower..=upper).contains(&index) {
        Ok(Flow::Next)
    } else {
        cpu.fault(vector::BR, 0)
    }
}

trait Signed {
    fn signed(self) -> i32;
}

impl Signed for u16 {
    fn signed(self) -> i32 {
        self.cast_signed().into()
    }
}

impl Signed for u32 {
    fn signed(self) -> i32 {
        self.cast_signed()
    }
}

/// `arpl`: raises a selector's RPL to the other one's; ZF says whether it did.
fn adjust_rpl<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let source = if MEM { op.dst } else { op.src };
    let wanted = cpu.get::<u16>(source) & 3;
    if !MEM {
        let selector = cpu.get::<u16>(op.dst);
        let raise = selector & 3 < wanted;
        if raise {
            cpu.set(op.dst, selector & !3 | wanted);
        }
        cpu.flags = cpu.flags.with_zero(raise);
        return Ok(Flow::Next);
    }
    cpu.update::<u16>(cpu.address(op), |selector, flags| {
        if selector & 3 < wanted {
            (selector & !3 | wanted, flags.with_zero(true))
        } else {
            (selector, flags.with_zero(false))
        }
    })?;
    Ok(Flow::Next)
}

/// `xlat`: the immediate is the slot of its segment's base, the second operand the segment
/// register.
fn translate(cpu: &mut Cpu, op: &Op) -> Outcome {
    let offset = cpu
        .get::<u32>(slot::RBX)
        .wrapping_add(cpu.get::<u8>(slot::RAX).into());
    let at = reach(cpu, op.src.into(), offset, 1, false)?;
    let base = op.imm.to_le_bytes()[0];
    let address = at.wrapping_add(cpu.get::<u64>(base));
    let value = cpu.load::<u8>(u32::low(address).into())?;
    cpu.set(slot::RAX, value);
    Ok(Flow::Next)
}

/// `push` of a segment register: the immediate says which. The upper half of the word
/// stays as it is.
fn push_selector(cpu: &mut Cpu, op: &Op) -> Outcome {
    let known = usize::try_from(op.imm).ok();
    let selector = known.and_then(|n| *cpu.model.selectors.get(n)?);
    let Some(selector) = selector else {
        return cpu.halt(Stop::Unknown);
    };
    let stack = cpu.get::<u32>(slot::RSP).wrapping_sub(4);
    let at = reach(cpu, SS, stack, 4, true)?;
    cpu.store(at, selector)?;
    cpu.set(slot::RSP, stack);
    Ok(Flow::Next)
}

/// The handler for a `push` or `pop` of a segment register.
fn on_the_stack(i: &Instruction, op: &mut Op) -> Option<Handler> {
    match i.code() {
        Code::Pushd_ES
        | Code::Pushd_CS
        | Code::Pushd_SS
        | Code::Pushd_DS
        | Code::Pushd_FS
        | Code::Pushd_GS => {
            op.imm = i.op0_register().number() as u64;
            Some(push_selector)
        }
        Code::Popd_ES | Code::Popd_SS | Code::Popd_DS | Code::Popd_FS | Code::Popd_GS => {
            Some(super::segment::for_descriptor_tables)
        }
        _ => None,
    }
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, shape: Shape, op: &mut Op) -> Choice {
    if i.has_lock_prefix() {
        return None;
    }
    let run: Handler = match i.code() {
        Code::Daa => decimal::<false>,
        Code::Das => decimal::<true>,
        Code::Aaa => ascii::<false>,
        Code::Aas => ascii::<true>,
        Code::Aam_imm8 => digits,
        Code::Aad_imm8 => number,
        Code::Into => into,
        Code::Bound_r16_m1616 => bound::<u16>,
        Code::Bound_r32_m3232 => bound::<u32>,
        Code::Arpl_rm16_r16 | Code::Arpl_r32m16_r32 if shape.memory => adjust_rpl::<true>,
        Code::Arpl_rm16_r16 | Code::Arpl_r32m16_r32 => adjust_rpl::<false>,
        Code::Xlat_m8 if i.memory_base() == Register::EBX => {
            op.imm = op.segment.into();
            op.src = u8::try_from(i.memory_segment().number()).ok()?;
            translate
        }
        Code::Les_r32_m1632 | Code::Lds_r32_m1632 => super::segment::for_descriptor_tables,
        _ => on_the_stack(i, op)?,
    };
    Some((run, false))
}
