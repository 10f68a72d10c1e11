//! Shifts and rotates.

use crate::interp::{
    decode::{Form, Shape},
    flags::Flags,
    host::{Arith, Memory, WideArith},
    op::{Flow, Handler, Op, Outcome, slot},
    state::Cpu,
};
use iced_x86::{Instruction, Mnemonic, OpKind};

trait Shift: 'static {
    fn apply<W: Arith>(value: W, count: u8, flags: Flags) -> (W, Flags);
}

macro_rules! shift {
    ($($name:ident $method:ident)*) => {$(
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<W: Arith>(value: W, count: u8, flags: Flags) -> (W, Flags) {
                Arith::$method(value, count, flags)
            }
        }
    )*};
}
shift!(Shl shl Shr shr Sar sar Rol rol Ror ror Rcl rcl Rcr rcr);

/// The count: an immediate, or CL.
#[inline(always)]
fn count<const BY_CL: bool>(cpu: &Cpu, op: &Op) -> u8 {
    if BY_CL {
        cpu.get(slot::RCX)
    } else {
        op.imm.to_le_bytes()[0]
    }
}

fn in_reg<S: Shift, const BY_CL: bool, W: Arith>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let count = count::<BY_CL>(cpu, op);
    let (result, flags) = S::apply(cpu.get::<W>(op.dst), count, cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

fn in_mem<S: Shift, const BY_CL: bool, W: Arith + Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let count = count::<BY_CL>(cpu, op);
    cpu.update::<W>(cpu.address(op), |value, flags| {
        S::apply(value, count, flags)
    })?;
    Ok(Flow::Next)
}

fn double_reg<const LEFT: bool, const BY_CL: bool, W: WideArith>(
    cpu: &mut Cpu,
    op: &Op,
) -> Outcome {
    let count = count::<BY_CL>(cpu, op);
    let (value, filler) = (cpu.get::<W>(op.dst), cpu.get::<W>(op.src));
    let (result, flags) = double::<LEFT, W>(value, filler, count, cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

fn double_mem<const LEFT: bool, const BY_CL: bool, W: WideArith + Memory>(
    cpu: &mut Cpu,
    op: &Op,
) -> Outcome {
    let count = count::<BY_CL>(cpu, op);
    let filler = cpu.get::<W>(op.dst);
    cpu.update::<W>(cpu.address(op), |value, flags| {
        double::<LEFT, W>(value, filler, count, flags)
    })?;
    Ok(Flow::Next)
}

#[inline(always)]
fn double<const LEFT: bool, W: WideArith>(
    value: W,
    filler: W,
    count: u8,
    flags: Flags,
) -> (W, Flags) {
    if LEFT {
        value.shld(filler, count, flags)
    } else {
        value.shrd(filler, count, flags)
    }
}

fn single<S: Shift>(shape: Shape) -> Option<Handler> {
    let w = shape.width;
    match shape.form {
        Form::RegImm => by_width!(w, in_reg, S, false),
        Form::RegReg => by_width!(w, in_reg, S, true),
        Form::MemImm => by_width!(w, in_mem, S, false),
        Form::MemReg => by_width!(w, in_mem, S, true),
        _ => None,
    }
}

fn choose_double<const LEFT: bool>(i: &Instruction, shape: Shape) -> Option<Handler> {
    let w = shape.width;
    let by_cl = i.op_kind(2) == OpKind::Register;
    match (shape.form, by_cl) {
        (Form::RegReg, false) => by_wide_width!(w, double_reg, LEFT, false),
        (Form::RegReg, true) => by_wide_width!(w, double_reg, LEFT, true),
        (Form::MemReg, false) => by_wide_width!(w, double_mem, LEFT, false),
        (Form::MemReg, true) => by_wide_width!(w, double_mem, LEFT, true),
        _ => None,
    }
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, shape: Shape) -> Option<Handler> {
    if shape.locked {
        return None;
    }
    match i.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => single::<Shl>(shape),
        Mnemonic::Shr => single::<Shr>(shape),
        Mnemonic::Sar => single::<Sar>(shape),
        Mnemonic::Rol => single::<Rol>(shape),
        Mnemonic::Ror => single::<Ror>(shape),
        Mnemonic::Rcl => single::<Rcl>(shape),
        Mnemonic::Rcr => single::<Rcr>(shape),
        Mnemonic::Shld => choose_double::<true>(i, shape),
        Mnemonic::Shrd => choose_double::<false>(i, shape),
        _ => None,
    }
}
