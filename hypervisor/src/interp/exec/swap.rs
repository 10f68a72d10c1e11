//! Exchanges: `xchg`, `xadd`, `cmpxchg` and its wide forms.

use super::alu::Integer;
use crate::interp::{
    decode::{Form, Shape},
    host::{Atomic, Word, cmpxchg16b},
    op::{Flow, Handler, Op, Outcome, slot},
    state::{Cpu, vector},
};
use iced_x86::{Instruction, Mnemonic};
use std::arch::is_x86_feature_detected;

fn xchg_reg<W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (a, b) = (cpu.get::<W>(op.dst), cpu.get::<W>(op.src));
    cpu.set(op.dst, b);
    cpu.set(op.src, a);
    Ok(Flow::Next)
}

/// With memory, `xchg` is atomic even without the prefix.
fn xchg_mem<W: Atomic>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let place = cpu.exclusive(cpu.address(op), W::BYTES)?;
    let old = cpu.get::<W>(op.dst).swap(place);
    cpu.set(op.dst, old);
    Ok(Flow::Next)
}

fn xadd_reg<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (a, b) = (cpu.get::<W>(op.dst), cpu.get::<W>(op.src));
    let (sum, flags) = a.add(b, cpu.flags);
    cpu.flags = flags;
    cpu.set(op.src, a);
    cpu.set(op.dst, sum);
    Ok(Flow::Next)
}

fn xadd_mem<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let b = cpu.get::<W>(op.dst);
    let mut old = b;
    cpu.update::<W>(cpu.address(op), |a, flags| {
        old = a;
        a.add(b, flags)
    })?;
    cpu.set(op.dst, old);
    Ok(Flow::Next)
}

fn xadd_lock<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let place = cpu.exclusive(cpu.address(op), W::BYTES)?;
    let (old, flags) = cpu.get::<W>(op.dst).lock_xadd(place);
    cpu.flags = flags;
    cpu.set(op.dst, old);
    Ok(Flow::Next)
}

fn cmpxchg_reg<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let new = cpu.get::<W>(op.src);
    // A byte in the upper half of a register is brought down for it.
    let shift = if op.dst & slot::HIGH_BYTE != 0 { 8 } else { 0 };
    let register = op.dst & !slot::HIGH_BYTE;
    let whole = cpu.get::<u64>(register).rotate_right(shift);
    let (rax, whole, flags) = new.cmpxchg(cpu.get(slot::RAX), whole);
    cpu.flags = flags;
    cpu.set::<u64>(slot::RAX, rax);
    if register != slot::RAX || flags.zero() {
        cpu.set::<u64>(register, whole.rotate_left(shift));
    }
    Ok(Flow::Next)
}

fn cmpxchg_mem<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let mut rax = cpu.get(slot::RAX);
    let new = cpu.get::<W>(op.dst);
    cpu.update::<W>(cpu.address(op), |old, _| {
        let (after, result, flags) = new.cmpxchg(rax, old.zext());
        rax = after;
        (W::low(result), flags)
    })?;
    cpu.set(slot::RAX, rax);
    Ok(Flow::Next)
}

fn cmpxchg_lock<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let place = cpu.exclusive(cpu.address(op), W::BYTES)?;
    let new = cpu.get::<W>(op.dst);
    let (rax, flags) = new.lock_cmpxchg(place, cpu.get(slot::RAX));
    cpu.flags = flags;
    cpu.set(slot::RAX, rax);
    Ok(Flow::Next)
}

/// A pair of registers: upper and lower half.
fn pair(cpu: &Cpu, high: u8, low: u8) -> u64 {
    (u64::from(cpu.get::<u32>(high)) << 32) | u64::from(cpu.get::<u32>(low))
}

/// `cmpxchg8b`, atomic with or without the prefix.
fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Outcome {
    let place = cpu.exclusive(cpu.address(op), 8)?;
    let expected = pair(cpu, slot::RDX, slot::RAX);
    let new = pair(cpu, slot::RCX, slot::RBX);
    let (found, flags) = new.lock_cmpxchg(place, expected);
    cpu.flags = cpu.flags.with_zero(flags.zero());
    if !flags.zero() {
        cpu.set(slot::RAX, u32::low(found));
        cpu.set(slot::RDX, u32::low(found >> 32));
    }
    Ok(Flow::Next)
}

/// `cmpxchg16b`, atomic with or without the prefix; the operand is aligned.
fn cmpxchg16_bytes(cpu: &mut Cpu, op: &Op) -> Outcome {
    let address = cpu.address(op);
    if address & 15 != 0 {
        return cpu.fault(vector::GP, 0);
    }
    let place = cpu.exclusive(address, 16)?;
    let expected = (cpu.get(slot::RAX), cpu.get(slot::RDX));
    let found = cmpxchg16b(place, expected, (cpu.get(slot::RBX), cpu.get(slot::RCX)));
    cpu.flags = cpu.flags.with_zero(found == expected);
    cpu.set(slot::RAX, found.0);
    cpu.set(slot::RDX, found.1);
    Ok(Flow::Next)
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, shape: Shape) -> Option<Handler> {
    let w = shape.width;
    match (i.mnemonic(), shape.form, shape.locked) {
        (Mnemonic::Xchg, Form::RegReg, false) => by_width!(w, xchg_reg),
        (Mnemonic::Xchg, Form::MemReg | Form::RegMem, _) => by_width!(w, xchg_mem),
        (Mnemonic::Xadd, Form::RegReg, false) => by_width!(w, xadd_reg),
        (Mnemonic::Xadd, Form::MemReg, false) => by_width!(w, xadd_mem),
        (Mnemonic::Xadd, Form::MemReg, true) => by_width!(w, xadd_lock),
        (Mnemonic::Cmpxchg, Form::RegReg, false) => by_width!(w, cmpxchg_reg),
        (Mnemonic::Cmpxchg, Form::MemReg, false) => by_width!(w, cmpxchg_mem),
        (Mnemonic::Cmpxchg, Form::MemReg, true) => by_width!(w, cmpxchg_lock),
        (Mnemonic::Cmpxchg8b, Form::Mem, _) => Some(cmpxchg8b),
        (Mnemonic::Cmpxchg16b, Form::Mem, _) => {
            is_x86_feature_detected!("cmpxchg16b").then_some(cmpxchg16_bytes)
        }
        _ => None,
    }
}
