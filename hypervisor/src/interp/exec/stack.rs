//! The stack.
//!
//! Law: RSP changes last, after every access that can fault.

use crate::interp::{
    decode::Shape,
    far::POPPED,
    flags::{AC, TF},
    host::{Memory, Word},
    op::{Flow, Halt, Handler, Op, Outcome, slot},
    state::{Cpu, Stop},
};
use iced_x86::{Code, Instruction, OpKind, Register};

/// Flags that only the engine can give their effect, and without one the
/// interpreter's slow ways: single-stepping and alignment checks.
pub(super) const FOR_ENGINE: u64 = TF | AC;

impl Cpu {
    /// Pushes a word.
    #[inline(always)]
    pub fn push<W: Memory>(&mut self, value: W) -> Result<(), Halt> {
        let stack = self.get::<u64>(slot::RSP).wrapping_sub(W::BYTES);
        self.store(stack, value)?;
        self.set(slot::RSP, stack);
        Ok(())
    }

    /// The word on top, and RSP without it.
    #[inline(always)]
    fn top<W: Memory>(&mut self) -> Result<(W, u64), Halt> {
        let stack = self.get::<u64>(slot::RSP);
        let value = self.load::<W>(stack)?;
        Ok((value, stack.wrapping_add(W::BYTES)))
    }
}

fn push_reg<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.push(cpu.get::<W>(op.dst))?;
    Ok(Flow::Next)
}

fn push_imm<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.push(W::low(op.imm))?;
    Ok(Flow::Next)
}

fn push_mem<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let value = cpu.load::<W>(cpu.address(op))?;
    cpu.push(value)?;
    Ok(Flow::Next)
}

fn pop_reg<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (value, stack) = cpu.top::<W>()?;
    cpu.set(slot::RSP, stack);
    cpu.set(op.dst, value);
    Ok(Flow::Next)
}

/// An address made with RSP uses the RSP after the pop.
fn pop_mem<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (value, stack) = cpu.top::<W>()?;
    let address = if op.base == slot::RSP {
        cpu.address(op).wrapping_add(W::BYTES)
    } else {
        cpu.address(op)
    };
    cpu.store(address, value)?;
    cpu.set(slot::RSP, stack);
    Ok(Flow::Next)
}

fn pushf(cpu: &mut Cpu, _: &Op) -> Outcome {
    let rflags = cpu.rflags();
    cpu.push(rflags)?;
    Ok(Flow::Next)
}

fn popf(cpu: &mut Cpu, op: &Op) -> Outcome {
    let top = cpu.top::<u64>()?;
    take_flags(cpu, op, top)
}

/// Ends a `popf`: the word popped, and the stack pointer after it.
pub(super) fn take_flags<W: Memory>(cpu: &mut Cpu, op: &Op, (word, stack): (W, W)) -> Outcome {
    let value = word.zext();
    if value & FOR_ENGINE != 0 && !cpu.model.alone {
        return cpu.halt(Stop::Unknown);
    }
    let kept = cpu.rflags() & !POPPED;
    cpu.set_rflags(kept | (value & POPPED));
    cpu.set(slot::RSP, stack);
    if value & FOR_ENGINE != 0 {
        cpu.rip = cpu.in_page(op.next());
        return cpu.halt(Stop::Again);
    }
    Ok(Flow::Next)
}

fn pushfw(cpu: &mut Cpu, _: &Op) -> Outcome {
    let rflags = cpu.rflags();
    cpu.push(u16::low(rflags))?;
    Ok(Flow::Next)
}

fn popfw(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (word, stack) = cpu.top::<u16>()?;
    let value = cpu.rflags() & !0xffff | word.zext();
    take_flags(cpu, op, (value, stack))
}

fn leave<W: Memory>(cpu: &mut Cpu, _: &Op) -> Outcome {
    let frame = cpu.get::<u64>(slot::RBP);
    let value = cpu.load::<W>(frame)?;
    cpu.set(slot::RSP, frame.wrapping_add(W::BYTES));
    cpu.set(slot::RBP, value);
    Ok(Flow::Next)
}

/// `push rbp`; the frame pointers of so many enclosing procedures; `mov rbp, rsp` of the
/// first push; `sub rsp, imm`. The last word of the new frame has to be writable.
fn enter<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (size, levels) = (op.imm & 0xffff, op.imm >> 16 & 31);
    let outer = cpu.get::<u64>(slot::RBP);
    let frame = cpu.get::<u64>(slot::RSP).wrapping_sub(W::BYTES);
    let stack = frame.wrapping_sub(levels * W::BYTES);
    cpu.store(frame, W::low(outer))?;
    for level in 1..levels {
        let pointer = cpu.load::<W>(outer.wrapping_sub(level * W::BYTES))?;
        cpu.store(frame.wrapping_sub(level * W::BYTES), pointer)?;
    }
    if levels != 0 {
        cpu.store(stack, W::low(frame))?;
    }
    cpu.write_place(stack.wrapping_sub(size), 1)?;
    cpu.set(slot::RBP, W::low(frame));
    cpu.set(slot::RSP, stack.wrapping_sub(size));
    Ok(Flow::Next)
}

fn choose_push<W: Memory>(i: &Instruction, shape: Shape) -> Option<Handler> {
    match i.op0_kind() {
        OpKind::Register if i.op0_register().is_gpr() => Some(push_reg::<W>),
        OpKind::Register => None,
        _ if shape.memory => Some(push_mem::<W>),
        _ => Some(push_imm::<W>),
    }
}

fn choose_pop<W: Memory>(i: &Instruction, shape: Shape) -> Option<Handler> {
    match i.op0_kind() {
        OpKind::Register if i.op0_register().is_gpr() => Some(pop_reg::<W>),
        // A 32-bit address is computed before the pop.
        _ if shape.memory && i.memory_base() != Register::ESP => Some(pop_mem::<W>),
        _ => None,
    }
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, shape: Shape, op: &mut Op) -> Option<Handler> {
    op.scale |= if shape.memory { 0 } else { Op::STACK };
    match i.code() {
        Code::Push_r64 | Code::Push_rm64 | Code::Pushq_imm8 | Code::Pushq_imm32 => {
            choose_push::<u64>(i, shape)
        }
        Code::Push_r16 | Code::Push_rm16 | Code::Pushw_imm8 | Code::Push_imm16 => {
            choose_push::<u16>(i, shape)
        }
        Code::Pop_r64 | Code::Pop_rm64 => choose_pop::<u64>(i, shape),
        Code::Pop_r16 | Code::Pop_rm16 => choose_pop::<u16>(i, shape),
        Code::Pushfq => Some(pushf),
        Code::Popfq => Some(popf),
        Code::Pushfw => Some(pushfw),
        Code::Popfw => Some(popfw),
        Code::Leaveq => Some(leave::<u64>),
        Code::Leavew => Some(leave::<u16>),
        Code::Enterq_imm16_imm8 | Code::Enterw_imm16_imm8 => {
            op.imm = u64::from(i.immediate16()) | u64::from(i.immediate8_2nd()) << 16;
            Some(if i.code() == Code::Enterw_imm16_imm8 {
                enter::<u16>
            } else {
                enter::<u64>
            })
        }
        _ => None,
    }
}
