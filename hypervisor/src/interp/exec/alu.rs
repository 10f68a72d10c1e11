//! Arithmetic and logic: `add` to `xor`, `cmp`, `test`, `inc` to `not`, and
//! products and quotients.

use super::operand;
use crate::interp::{
    decode::{Form, Shape},
    flags::Flags,
    host::{Arith, Atomic, HostPtr, Memory, MulDiv, WideArith, Word},
    op::{Flow, Handler, Op, Outcome, slot},
    state::{Cpu, vector},
};
use iced_x86::{Instruction, Mnemonic};

/// An integer with everything that the host does for it.
pub trait Integer: Arith + Atomic + Memory + MulDiv {}
impl<W: Arith + Atomic + Memory + MulDiv> Integer for W {}

trait Binary: 'static {
    /// Whether the result is written to the first operand.
    const WRITES: bool = true;
    fn apply<W: Integer>(a: W, b: W, flags: Flags) -> (W, Flags);
    fn locked<W: Integer>(b: W, to: HostPtr, flags: Flags) -> Flags;
}

trait Unary: 'static {
    fn apply<W: Integer>(a: W, flags: Flags) -> (W, Flags);
    fn locked<W: Integer>(to: HostPtr, flags: Flags) -> Flags;
}

macro_rules! binary {
    ($($name:ident $method:ident $locked:ident)*) => {$(
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<W: Integer>(a: W, b: W, flags: Flags) -> (W, Flags) {
                Arith::$method(a, b, flags)
            }
            #[inline(always)]
            fn locked<W: Integer>(b: W, to: HostPtr, flags: Flags) -> Flags {
                b.$locked(to, flags)
            }
        }
    )*};
}
binary!(Add add lock_add Or or lock_or Adc adc lock_adc Sbb sbb lock_sbb
    And and lock_and Sub sub lock_sub Xor xor lock_xor);

/// `cmp` and `test` compute flags only, and cannot be locked.
macro_rules! compare {
    ($($name:ident $method:ident)*) => {$(
        struct $name;
        impl Binary for $name {
            const WRITES: bool = false;
            #[inline(always)]
            fn apply<W: Integer>(a: W, b: W, flags: Flags) -> (W, Flags) {
                Arith::$method(a, b, flags)
            }
            fn locked<W: Integer>(_: W, _: HostPtr, flags: Flags) -> Flags {
                flags
            }
        }
    )*};
}
compare!(Cmp sub Test and);

macro_rules! unary {
    ($($name:ident $method:ident $locked:ident)*) => {$(
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<W: Integer>(a: W, flags: Flags) -> (W, Flags) {
                Arith::$method(a, flags)
            }
            #[inline(always)]
            fn locked<W: Integer>(to: HostPtr, flags: Flags) -> Flags {
                W::$locked(to, flags)
            }
        }
    )*};
}
unary!(Inc inc lock_inc Dec dec lock_dec Neg neg lock_neg);

struct Not;
impl Unary for Not {
    #[inline(always)]
    fn apply<W: Integer>(a: W, flags: Flags) -> (W, Flags) {
        (W::low(!a.zext()), flags)
    }
    #[inline(always)]
    fn locked<W: Integer>(to: HostPtr, flags: Flags) -> Flags {
        W::lock_not(to, flags)
    }
}

fn reg_reg<O: Binary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let b = cpu.get::<W>(op.src);
    into_reg::<O, W>(cpu, op, b)
}

fn reg_mem<O: Binary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let b = cpu.load::<W>(cpu.address(op))?;
    into_reg::<O, W>(cpu, op, b)
}

fn reg_imm<O: Binary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    into_reg::<O, W>(cpu, op, W::low(op.imm))
}

#[inline(always)]
fn into_reg<O: Binary, W: Integer>(cpu: &mut Cpu, op: &Op, b: W) -> Outcome {
    let (result, flags) = O::apply(cpu.get::<W>(op.dst), b, cpu.flags);
    cpu.flags = flags;
    if O::WRITES {
        cpu.set(op.dst, result);
    }
    Ok(Flow::Next)
}

fn mem_reg<O: Binary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let b = cpu.get::<W>(op.dst);
    into_mem::<O, W>(cpu, op, b)
}

fn mem_imm<O: Binary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    into_mem::<O, W>(cpu, op, W::low(op.imm))
}

#[inline(always)]
fn into_mem<O: Binary, W: Integer>(cpu: &mut Cpu, op: &Op, b: W) -> Outcome {
    let address = cpu.address(op);
    if O::WRITES {
        cpu.update::<W>(address, |a, flags| O::apply(a, b, flags))?;
    } else {
        let a = cpu.load::<W>(address)?;
        cpu.flags = O::apply(a, b, cpu.flags).1;
    }
    Ok(Flow::Next)
}

fn lock_reg<O: Binary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let b = cpu.get::<W>(op.dst);
    let place = cpu.exclusive(cpu.address(op), W::BYTES)?;
    cpu.flags = O::locked(b, place, cpu.flags);
    Ok(Flow::Next)
}

fn lock_imm<O: Binary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let place = cpu.exclusive(cpu.address(op), W::BYTES)?;
    cpu.flags = O::locked(W::low(op.imm), place, cpu.flags);
    Ok(Flow::Next)
}

fn unary_reg<O: Unary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (result, flags) = O::apply(cpu.get::<W>(op.dst), cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

fn unary_mem<O: Unary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let address = cpu.address(op);
    cpu.update::<W>(address, O::apply)?;
    Ok(Flow::Next)
}

fn unary_lock<O: Unary, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let place = cpu.exclusive(cpu.address(op), W::BYTES)?;
    cpu.flags = O::locked::<W>(place, cpu.flags);
    Ok(Flow::Next)
}

/// The upper half of a product or dividend: DX, EDX, RDX, or AH.
const fn upper<W: Word>() -> u8 {
    if W::BYTES == 1 {
        slot::RAX | slot::HIGH_BYTE
    } else {
        slot::RDX
    }
}

fn product<const SIGNED: bool, const MEM: bool, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let b = operand::<MEM, W>(cpu, op, op.dst)?;
    let a = cpu.get::<W>(slot::RAX);
    let (low, high, flags) = if SIGNED {
        a.imul_wide(b, cpu.flags)
    } else {
        a.mul(b, cpu.flags)
    };
    cpu.flags = flags;
    cpu.set(slot::RAX, low);
    cpu.set(upper::<W>(), high);
    Ok(Flow::Next)
}

fn quotient<const SIGNED: bool, const MEM: bool, W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let divisor = operand::<MEM, W>(cpu, op, op.dst)?;
    let low = cpu.get::<W>(slot::RAX);
    let high = cpu.get::<W>(upper::<W>());
    let result = if SIGNED {
        low.idiv(high, divisor, cpu.flags)
    } else {
        low.div(high, divisor, cpu.flags)
    };
    let Some((quotient, remainder, flags)) = result else {
        return cpu.fault(vector::DE, 0);
    };
    cpu.flags = flags;
    cpu.set(slot::RAX, quotient);
    cpu.set(upper::<W>(), remainder);
    Ok(Flow::Next)
}

fn imul_two<const MEM: bool, W: Integer + WideArith>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let b = operand::<MEM, W>(cpu, op, op.src)?;
    let (result, flags) = cpu.get::<W>(op.dst).imul(b, cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

fn imul_three<const MEM: bool, W: Integer + WideArith>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let a = operand::<MEM, W>(cpu, op, op.src)?;
    let (result, flags) = a.imul(W::low(op.imm), cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

fn binary<O: Binary>(shape: Shape) -> Option<Handler> {
    let w = shape.width;
    match (shape.form, shape.locked) {
        (Form::RegReg, false) => by_width!(w, reg_reg, O),
        (Form::RegMem, false) => by_width!(w, reg_mem, O),
        (Form::RegImm, false) => by_width!(w, reg_imm, O),
        (Form::MemReg, false) => by_width!(w, mem_reg, O),
        (Form::MemImm, false) => by_width!(w, mem_imm, O),
        (Form::MemReg, true) if O::WRITES => by_width!(w, lock_reg, O),
        (Form::MemImm, true) if O::WRITES => by_width!(w, lock_imm, O),
        _ => None,
    }
}

fn unary<O: Unary>(shape: Shape) -> Option<Handler> {
    let w = shape.width;
    match (shape.form, shape.locked) {
        (Form::Reg, false) => by_width!(w, unary_reg, O),
        (Form::Mem, false) => by_width!(w, unary_mem, O),
        (Form::Mem, true) => by_width!(w, unary_lock, O),
        _ => None,
    }
}

fn imul(i: &Instruction, shape: Shape) -> Option<Handler> {
    let w = shape.width;
    match (i.op_count(), shape.memory) {
        (1, false) => by_width!(w, product, true, false),
        (1, true) => by_width!(w, product, true, true),
        (2, false) => by_wide_width!(w, imul_two, false),
        (2, true) => by_wide_width!(w, imul_two, true),
        (_, false) => by_wide_width!(w, imul_three, false),
        (_, true) => by_wide_width!(w, imul_three, true),
    }
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, shape: Shape) -> Option<Handler> {
    let w = shape.width;
    match i.mnemonic() {
        Mnemonic::Add => binary::<Add>(shape),
        Mnemonic::Or => binary::<Or>(shape),
        Mnemonic::Adc => binary::<Adc>(shape),
        Mnemonic::Sbb => binary::<Sbb>(shape),
        Mnemonic::And => binary::<And>(shape),
        Mnemonic::Sub => binary::<Sub>(shape),
        Mnemonic::Xor => binary::<Xor>(shape),
        Mnemonic::Cmp => binary::<Cmp>(shape),
        Mnemonic::Test => binary::<Test>(shape),
        Mnemonic::Inc => unary::<Inc>(shape),
        Mnemonic::Dec => unary::<Dec>(shape),
        Mnemonic::Neg => unary::<Neg>(shape),
        Mnemonic::Not => unary::<Not>(shape),
        Mnemonic::Mul if shape.memory => by_width!(w, product, false, true),
        Mnemonic::Mul => by_width!(w, product, false, false),
        Mnemonic::Div if shape.memory => by_width!(w, quotient, false, true),
        Mnemonic::Div => by_width!(w, quotient, false, false),
        Mnemonic::Idiv if shape.memory => by_width!(w, quotient, true, true),
        Mnemonic::Idiv => by_width!(w, quotient, true, false),
        Mnemonic::Imul => imul(i, shape),
        _ => None,
    }
}
