//! Branches.
//!
//! Law: targets of direct branches are kept relative to the code page, since
//! one frame of code may be mapped at many addresses.

use super::{data::by_condition, operand};
use crate::interp::{
    decode::{Choice, Shape},
    host::Word,
    op::{Flow, Handler, Op, Outcome, slot},
    state::{Cpu, canonical, vector},
};
use iced_x86::{Code, ConditionCode, Instruction};

/// Goes on after the block's last instruction.
pub fn fall_through(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.rip = cpu.in_page(op.imm);
    Ok(Flow::Branch)
}

fn jmp(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.rip = cpu.in_page(op.imm);
    Ok(Flow::Branch)
}

fn jmp_indirect<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let target = operand::<MEM, u64>(cpu, op, op.dst)?;
    cpu.jump(target)
}

#[inline(always)]
fn branch_if(cpu: &mut Cpu, op: &Op, taken: bool) -> Outcome {
    let offset = if taken { op.imm } else { op.disp };
    cpu.rip = cpu.in_page(offset);
    Ok(Flow::Branch)
}

fn jcc<const C: u8>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let taken = cpu.flags.holds::<C>();
    branch_if(cpu, op, taken)
}

fn call(cpu: &mut Cpu, op: &Op) -> Outcome {
    let back = cpu.in_page(op.disp);
    cpu.push(back)?;
    cpu.rip = cpu.in_page(op.imm);
    Ok(Flow::Branch)
}

fn call_indirect<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let target = operand::<MEM, u64>(cpu, op, op.dst)?;
    if !canonical(target) {
        return cpu.fault(vector::GP, 0);
    }
    let back = cpu.in_page(op.next());
    cpu.push(back)?;
    cpu.rip = target;
    Ok(Flow::Branch)
}

fn ret(cpu: &mut Cpu, op: &Op) -> Outcome {
    let stack = cpu.get::<u64>(slot::RSP);
    let target = cpu.load::<u64>(stack)?;
    let flow = cpu.jump(target)?;
    let popped = op.imm.wrapping_add(8);
    cpu.set(slot::RSP, stack.wrapping_add(popped));
    Ok(flow)
}

/// `loop`, `loope` (`WHILE` is 1) and `loopne` (0); 2 does not look at ZF.
fn loop_while<const WHILE: u8, W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let count = cpu.get::<W>(slot::RCX).zext().wrapping_sub(1);
    cpu.set(slot::RCX, W::low(count));
    let again = W::low(count).zext() != 0;
    let wanted = match WHILE {
        2 => true,
        zero => cpu.flags.zero() == (zero == 1),
    };
    branch_if(cpu, op, again && wanted)
}

fn jump_if_none<W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let none = cpu.get::<W>(slot::RCX).zext() == 0;
    branch_if(cpu, op, none)
}

fn choose_jcc(i: &Instruction) -> Option<Handler> {
    macro_rules! build {
        ($c:literal) => {
            Some(jcc::<$c> as Handler)
        };
    }
    by_condition!(i, build)
}

/// A direct branch: where to, and where it goes on otherwise.
fn direct(i: &Instruction, op: &mut Op, run: Handler) -> Choice {
    op.imm = i.near_branch64();
    op.disp = op.next();
    Some((run, true))
}

/// The handler for an instruction of this family. Branches with 16-bit
/// operands, which processors treat differently, are not among them.
pub fn choose(i: &Instruction, shape: Shape, op: &mut Op) -> Choice {
    let ends = |run: Handler| Some((run, true));
    match i.code() {
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => direct(i, op, jmp),
        Code::Call_rel32_64 => direct(i, op, call),
        Code::Jmp_rm64 if shape.memory => ends(jmp_indirect::<true>),
        Code::Jmp_rm64 => ends(jmp_indirect::<false>),
        Code::Call_rm64 if shape.memory => ends(call_indirect::<true>),
        Code::Call_rm64 => ends(call_indirect::<false>),
        Code::Retnq | Code::Retnq_imm16 => ends(ret),
        Code::Loop_rel8_64_RCX => direct(i, op, loop_while::<2, u64>),
        Code::Loop_rel8_64_ECX => direct(i, op, loop_while::<2, u32>),
        Code::Loope_rel8_64_RCX => direct(i, op, loop_while::<1, u64>),
        Code::Loope_rel8_64_ECX => direct(i, op, loop_while::<1, u32>),
        Code::Loopne_rel8_64_RCX => direct(i, op, loop_while::<0, u64>),
        Code::Loopne_rel8_64_ECX => direct(i, op, loop_while::<0, u32>),
        Code::Jrcxz_rel8_64 => direct(i, op, jump_if_none::<u64>),
        Code::Jecxz_rel8_64 => direct(i, op, jump_if_none::<u32>),
        _ if i.code().is_jcc_short_or_near() && i.op0_kind() == iced_x86::OpKind::NearBranch64 => {
            choose_jcc(i).and_then(|run| direct(i, op, run))
        }
        _ => None,
    }
}
