//! Moves, extensions, `lea`, conditional moves and sets, and flag twiddling.

use super::operand;
use crate::interp::{
    decode::{Form, Shape, width},
    flags::{ARITHMETIC, DF, Flags},
    host::{Memory, Word},
    op::{Flow, Handler, Op, Outcome, slot},
    state::Cpu,
};
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

fn mov_reg<W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let value = cpu.get::<W>(op.src);
    cpu.set(op.dst, value);
    Ok(Flow::Next)
}

fn mov_imm<W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.set(op.dst, W::low(op.imm));
    Ok(Flow::Next)
}

fn mov_load<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let value = cpu.load::<W>(cpu.address(op))?;
    cpu.set(op.dst, value);
    Ok(Flow::Next)
}

fn mov_store<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.store(cpu.address(op), cpu.get::<W>(op.dst))?;
    Ok(Flow::Next)
}

fn mov_store_imm<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.store(cpu.address(op), W::low(op.imm))?;
    Ok(Flow::Next)
}

/// `movzx`, `movsx`, `movsxd`: `D` from `S`.
fn extend<S: Memory, const SIGNED: bool, const MEM: bool, D: Word>(
    cpu: &mut Cpu,
    op: &Op,
) -> Outcome {
    let value = operand::<MEM, S>(cpu, op, op.src)?;
    let value = if SIGNED { value.sext() } else { value.zext() };
    cpu.set(op.dst, D::low(value));
    Ok(Flow::Next)
}

fn lea<W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.set(op.dst, W::low(cpu.offset(op)));
    Ok(Flow::Next)
}

/// The effective address of an instruction with a 32-bit one.
pub fn address32(cpu: &mut Cpu, op: &Op) -> Outcome {
    let offset = cpu.offset(op);
    cpu.set(slot::TEMP, u32::low(offset));
    Ok(Flow::Next)
}

fn bswap<W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.set(op.dst, swapped(cpu.get::<W>(op.dst)));
    Ok(Flow::Next)
}

fn swapped<W: Word>(value: W) -> W {
    W::low(value.zext().swap_bytes() >> (64 - W::BITS))
}

fn movbe_load<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let value = cpu.load::<W>(cpu.address(op))?;
    cpu.set(op.dst, swapped(value));
    Ok(Flow::Next)
}

fn movbe_store<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.store(cpu.address(op), swapped(cpu.get::<W>(op.dst)))?;
    Ok(Flow::Next)
}

/// The source is read, and 32-bit destinations cleared above, whether or not
/// the condition holds.
fn cmov<const C: u8, const MEM: bool, W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let source = operand::<MEM, W>(cpu, op, op.src)?;
    let old = cpu.get::<W>(op.dst);
    let value = if cpu.flags.holds::<C>() { source } else { old };
    cpu.set(op.dst, value);
    Ok(Flow::Next)
}

fn set<const C: u8, const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let value = u8::from(cpu.flags.holds::<C>());
    if MEM {
        cpu.store(cpu.address(op), value)?;
    } else {
        cpu.set(op.dst, value);
    }
    Ok(Flow::Next)
}

/// `cbw`, `cwde`, `cdqe`.
fn widen_accumulator<S: Word, D: Word>(cpu: &mut Cpu, _: &Op) -> Outcome {
    let value = cpu.get::<S>(slot::RAX).sext();
    cpu.set(slot::RAX, D::low(value));
    Ok(Flow::Next)
}

/// `cwd`, `cdq`, `cqo`.
fn spread_sign<W: Word>(cpu: &mut Cpu, _: &Op) -> Outcome {
    let sign = u64::from(cpu.get::<W>(slot::RAX).negative());
    cpu.set(slot::RDX, W::low(sign.wrapping_neg()));
    Ok(Flow::Next)
}

fn xlat(cpu: &mut Cpu, op: &Op) -> Outcome {
    let index = cpu.get::<u8>(slot::RAX).zext();
    let value = cpu.load::<u8>(cpu.address(op).wrapping_add(index))?;
    cpu.set(slot::RAX, value);
    Ok(Flow::Next)
}

fn nop(_: &mut Cpu, _: &Op) -> Outcome {
    Ok(Flow::Next)
}

fn lahf(cpu: &mut Cpu, _: &Op) -> Outcome {
    let [low, ..] = (cpu.flags.to_rflags() | 2).to_le_bytes();
    cpu.set(slot::RAX | slot::HIGH_BYTE, low);
    Ok(Flow::Next)
}

fn sahf(cpu: &mut Cpu, _: &Op) -> Outcome {
    let low = cpu.get::<u8>(slot::RAX | slot::HIGH_BYTE).zext();
    let overflow = cpu.flags.to_rflags() & ARITHMETIC & !0xff;
    cpu.flags = Flags::from_rflags(low | overflow);
    Ok(Flow::Next)
}

fn clc(cpu: &mut Cpu, _: &Op) -> Outcome {
    cpu.flags = cpu.flags.with_carry(false);
    Ok(Flow::Next)
}

fn stc(cpu: &mut Cpu, _: &Op) -> Outcome {
    cpu.flags = cpu.flags.with_carry(true);
    Ok(Flow::Next)
}

fn cmc(cpu: &mut Cpu, _: &Op) -> Outcome {
    cpu.flags = cpu.flags.with_carry(!cpu.flags.carry());
    Ok(Flow::Next)
}

fn cld(cpu: &mut Cpu, _: &Op) -> Outcome {
    cpu.other_flags &= !DF;
    Ok(Flow::Next)
}

fn std(cpu: &mut Cpu, _: &Op) -> Outcome {
    cpu.other_flags |= DF;
    Ok(Flow::Next)
}

/// A handler with a condition for a parameter, in the encoding's numbering.
macro_rules! by_condition {
    ($i:expr, $build:ident) => {
        match $i.condition_code() {
            ConditionCode::o => $build!(0),
            ConditionCode::no => $build!(1),
            ConditionCode::b => $build!(2),
            ConditionCode::ae => $build!(3),
            ConditionCode::e => $build!(4),
            ConditionCode::ne => $build!(5),
            ConditionCode::be => $build!(6),
            ConditionCode::a => $build!(7),
            ConditionCode::s => $build!(8),
            ConditionCode::ns => $build!(9),
            ConditionCode::p => $build!(10),
            ConditionCode::np => $build!(11),
            ConditionCode::l => $build!(12),
            ConditionCode::ge => $build!(13),
            ConditionCode::le => $build!(14),
            ConditionCode::g => $build!(15),
            _ => None,
        }
    };
}
pub(super) use by_condition;

fn choose_mov(i: &Instruction, shape: Shape) -> Option<Handler> {
    let general = |n| i.op_kind(n) != OpKind::Register || i.op_register(n).is_gpr();
    if !general(0) || !general(1) {
        return None;
    }
    let w = shape.width;
    match shape.form {
        Form::RegReg => by_width!(w, mov_reg),
        Form::RegImm => by_width!(w, mov_imm),
        Form::RegMem => by_width!(w, mov_load),
        Form::MemReg => by_width!(w, mov_store),
        Form::MemImm => by_width!(w, mov_store_imm),
        _ => None,
    }
}

fn choose_extend<const SIGNED: bool>(i: &Instruction, shape: Shape) -> Option<Handler> {
    let w = shape.width;
    match (width(i, 1), shape.memory) {
        (1, false) => by_width!(w, extend, u8, SIGNED, false),
        (1, true) => by_width!(w, extend, u8, SIGNED, true),
        (2, false) => by_width!(w, extend, u16, SIGNED, false),
        (2, true) => by_width!(w, extend, u16, SIGNED, true),
        (4, false) => by_width!(w, extend, u32, SIGNED, false),
        (4, true) => by_width!(w, extend, u32, SIGNED, true),
        _ => None,
    }
}

fn choose_cmov(i: &Instruction, shape: Shape) -> Option<Handler> {
    let w = shape.width;
    macro_rules! build {
        ($c:literal) => {
            if shape.memory {
                by_wide_width!(w, cmov, $c, true)
            } else {
                by_wide_width!(w, cmov, $c, false)
            }
        };
    }
    by_condition!(i, build)
}

fn choose_set(i: &Instruction, shape: Shape) -> Option<Handler> {
    macro_rules! build {
        ($c:literal) => {
            Some(if shape.memory {
                set::<$c, true> as Handler
            } else {
                set::<$c, false> as Handler
            })
        };
    }
    by_condition!(i, build)
}

/// `xlat`'s operand is `[rbx + al]`; iced shows AL as the index.
fn choose_xlat(i: &Instruction, op: &mut Op) -> Option<Handler> {
    if i.memory_base() != Register::RBX {
        return None;
    }
    op.index = slot::ZERO;
    Some(xlat)
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, shape: Shape, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    if shape.locked {
        return None;
    }
    let w = shape.width;
    match i.mnemonic() {
        M::Mov => choose_mov(i, shape),
        M::Movnti => by_width!(w, mov_store),
        M::Movzx => choose_extend::<false>(i, shape),
        M::Movsx | M::Movsxd => choose_extend::<true>(i, shape),
        M::Lea => by_wide_width!(w, lea),
        M::Bswap if w >= 4 => by_wide_width!(w, bswap),
        M::Movbe if !std::arch::is_x86_feature_detected!("movbe") => None,
        M::Movbe if shape.form == Form::RegMem => by_wide_width!(w, movbe_load),
        M::Movbe if shape.form == Form::MemReg => by_wide_width!(w, movbe_store),
        M::Cbw => Some(widen_accumulator::<u8, u16>),
        M::Cwde => Some(widen_accumulator::<u16, u32>),
        M::Cdqe => Some(widen_accumulator::<u32, u64>),
        M::Cwd => Some(spread_sign::<u16>),
        M::Cdq => Some(spread_sign::<u32>),
        M::Cqo => Some(spread_sign::<u64>),
        M::Xlatb => choose_xlat(i, op),
        M::Nop | M::Endbr64 | M::Endbr32 | M::Pause | M::Reservednop => Some(nop),
        // Without shadow stacks, and where there are no such hints, they do nothing.
        M::Rdsspd | M::Rdsspq | M::Cldemote => Some(nop),
        M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetch
        | M::Prefetchit0
        | M::Prefetchit1
        | M::Prefetchwt1 => Some(nop),
        M::Lahf => Some(lahf),
        M::Sahf => Some(sahf),
        M::Clc => Some(clc),
        M::Stc => Some(stc),
        M::Cmc => Some(cmc),
        M::Cld => Some(cld),
        M::Std => Some(std),
        M::Cmovo
        | M::Cmovno
        | M::Cmovb
        | M::Cmovae
        | M::Cmove
        | M::Cmovne
        | M::Cmovbe
        | M::Cmova
        | M::Cmovs
        | M::Cmovns
        | M::Cmovp
        | M::Cmovnp
        | M::Cmovl
        | M::Cmovge
        | M::Cmovle
        | M::Cmovg => choose_cmov(i, shape),
        M::Seto
        | M::Setno
        | M::Setb
        | M::Setae
        | M::Sete
        | M::Setne
        | M::Setbe
        | M::Seta
        | M::Sets
        | M::Setns
        | M::Setp
        | M::Setnp
        | M::Setl
        | M::Setge
        | M::Setle
        | M::Setg => choose_set(i, shape),
        _ => None,
    }
}
