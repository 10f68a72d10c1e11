//! 32-bit code: what differs from 64-bit code.
//!
//! Law: addresses and branch targets are 32 bits wide and wrap. A memory
//! operand's linear address is made by an operation of its own ([`linear`]), so
//! the handlers for 64-bit code serve for the operation itself. What goes through a
//! data segment is within its limits, or a fault; code is not held to a limit.

use super::{
    segment::{ES, SS},
    stack::take_flags,
};
use crate::interp::{
    decode::{Choice, Shape},
    far::Far,
    host::{IS_AMD, Memory, Word},
    op::{Flow, Halt, Handler, Op, Outcome, slot},
    state::{Cpu, Stop, vector},
};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// What [`linear`] has to know of the operand, in its immediate.
pub struct Operand {
    /// The segment register's number.
    pub segment: u8,
    /// How many bytes; 0 is not checked.
    pub bytes: u16,
    /// It is written.
    pub writes: bool,
}

impl Operand {
    /// As an immediate.
    pub fn pack(&self) -> u64 {
        u64::from(self.segment) | u64::from(self.bytes) << 8 | u64::from(self.writes) << 32
    }

    fn unpack(imm: u64) -> Self {
        let [segment, low, high, _, writes, ..] = imm.to_le_bytes();
        Operand {
            segment,
            bytes: u16::from_le_bytes([low, high]),
            writes: writes != 0,
        }
    }
}

/// The linear address of an instruction's memory operand.
pub fn linear(cpu: &mut Cpu, op: &Op) -> Outcome {
    let offset = u32::low(cpu.offset(op));
    let operand = Operand::unpack(op.imm);
    let at = reach(
        cpu,
        usize::from(operand.segment),
        offset,
        operand.bytes.into(),
        operand.writes,
    )?;
    let address = at.wrapping_add(cpu.get::<u64>(op.segment));
    cpu.set(slot::TEMP, u32::low(address));
    Ok(Flow::Next)
}

/// An offset in a data segment, as a linear address but for the base of FS and GS.
#[inline]
pub fn reach(
    cpu: &mut Cpu,
    segment: usize,
    offset: u32,
    bytes: u32,
    writes: bool,
) -> Result<u64, Halt> {
    let Some(found) = cpu.segments.get(segment) else {
        return Ok(offset.into());
    };
    if bytes != 0 && (!found.contains(offset, bytes) || writes && !found.writable) {
        let which = if segment == SS {
            vector::SS
        } else {
            vector::GP
        };
        return cpu.fault(which, 0);
    }
    Ok(offset.wrapping_add(found.base).into())
}

/// An offset in the stack segment.
fn on_stack<W: Memory>(cpu: &mut Cpu, offset: u32, writes: bool) -> Result<u64, Halt> {
    reach(cpu, SS, offset, u32::low(W::BYTES), writes)
}

fn go(cpu: &mut Cpu, target: u64) -> Outcome {
    cpu.rip = u64::from(u32::low(target));
    Ok(Flow::Branch)
}

fn push<W: Memory>(cpu: &mut Cpu, value: W) -> Result<(), Halt> {
    let bytes = u32::low(W::BYTES);
    let stack = cpu.get::<u32>(slot::RSP).wrapping_sub(bytes);
    let at = on_stack::<W>(cpu, stack, true)?;
    cpu.store(at, value)?;
    cpu.set(slot::RSP, stack);
    Ok(())
}

/// The word on top, and ESP without it.
fn top<W: Memory>(cpu: &mut Cpu) -> Result<(W, u32), Halt> {
    let stack = cpu.get::<u32>(slot::RSP);
    let at = on_stack::<W>(cpu, stack, false)?;
    let value = cpu.load::<W>(at)?;
    Ok((value, stack.wrapping_add(u32::low(W::BYTES))))
}

fn push_reg<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    push(cpu, cpu.get::<W>(op.dst))?;
    Ok(Flow::Next)
}

fn push_imm<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    push(cpu, W::low(op.imm))?;
    Ok(Flow::Next)
}

fn push_mem<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let value = cpu.load::<W>(cpu.address(op))?;
    push(cpu, value)?;
    Ok(Flow::Next)
}

fn pop_reg<W: Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (value, stack) = top::<W>(cpu)?;
    cpu.set(slot::RSP, stack);
    cpu.set(op.dst, value);
    Ok(Flow::Next)
}

/// The address was made before; one made with ESP uses the ESP after the pop.
fn pop_mem<W: Memory, const WITH_ESP: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (value, stack) = top::<W>(cpu)?;
    let moved = if WITH_ESP { W::BYTES } else { 0 };
    let address = u32::low(cpu.address(op).wrapping_add(moved));
    cpu.store(address.into(), value)?;
    cpu.set(slot::RSP, stack);
    Ok(Flow::Next)
}

fn pusha<W: Memory>(cpu: &mut Cpu, _: &Op) -> Outcome {
    let stack = cpu.get::<u32>(slot::RSP);
    for (register, place) in (0u8..8).zip(1u32..) {
        let at = stack.wrapping_sub(place * u32::low(W::BYTES));
        let at = on_stack::<W>(cpu, at, true)?;
        cpu.store(at, cpu.get::<W>(register))?;
    }
    cpu.set(slot::RSP, stack.wrapping_sub(8 * u32::low(W::BYTES)));
    Ok(Flow::Next)
}

fn popa<W: Memory>(cpu: &mut Cpu, _: &Op) -> Outcome {
    let stack = cpu.get::<u32>(slot::RSP);
    let mut values = [W::low(0); 8];
    for (value, place) in values.iter_mut().rev().zip(0u32..) {
        let at = stack.wrapping_add(place * u32::low(W::BYTES));
        let at = on_stack::<W>(cpu, at, false)?;
        *value = cpu.load::<W>(at)?;
    }
    for (register, value) in (0u8..8).zip(values) {
        if register != slot::RSP {
            cpu.set(register, value);
        }
    }
    cpu.set(slot::RSP, stack.wrapping_add(8 * u32::low(W::BYTES)));
    Ok(Flow::Next)
}

fn pushf(cpu: &mut Cpu, _: &Op) -> Outcome {
    push(cpu, u32::low(cpu.rflags()))?;
    Ok(Flow::Next)
}

fn popf(cpu: &mut Cpu, op: &Op) -> Outcome {
    let top = top::<u32>(cpu)?;
    take_flags(cpu, op, top)
}

fn leave(cpu: &mut Cpu, _: &Op) -> Outcome {
    let frame = cpu.get::<u32>(slot::RBP);
    let at = on_stack::<u32>(cpu, frame, false)?;
    let value = cpu.load::<u32>(at)?;
    cpu.set(slot::RSP, frame.wrapping_add(4));
    cpu.set(slot::RBP, value);
    Ok(Flow::Next)
}

fn jmp(cpu: &mut Cpu, op: &Op) -> Outcome {
    go(cpu, cpu.in_page(op.imm))
}

fn jmp_indirect<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let target = super::operand::<MEM, u32>(cpu, op, op.dst)?;
    go(cpu, target.into())
}

fn branch_if(cpu: &mut Cpu, op: &Op, taken: bool) -> Outcome {
    let offset = if taken { op.imm } else { op.disp };
    go(cpu, cpu.in_page(offset))
}

fn jcc<const C: u8>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let taken = cpu.flags.holds::<C>();
    branch_if(cpu, op, taken)
}

fn call(cpu: &mut Cpu, op: &Op) -> Outcome {
    push(cpu, u32::low(cpu.in_page(op.disp)))?;
    go(cpu, cpu.in_page(op.imm))
}

fn call_indirect<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let target = super::operand::<MEM, u32>(cpu, op, op.dst)?;
    push(cpu, u32::low(cpu.in_page(op.next())))?;
    go(cpu, target.into())
}

fn ret(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (target, stack) = top::<u32>(cpu)?;
    cpu.set(slot::RSP, stack.wrapping_add(u32::low(op.imm)));
    go(cpu, target.into())
}

/// `loop`, `loope` (`WHILE` is 1) and `loopne` (0); 2 does not look at ZF.
fn loop_while<const WHILE: u8>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let count = cpu.get::<u32>(slot::RCX).wrapping_sub(1);
    cpu.set(slot::RCX, count);
    let wanted = match WHILE {
        2 => true,
        zero => cpu.flags.zero() == (zero == 1),
    };
    branch_if(cpu, op, count != 0 && wanted)
}

fn jump_if_none(cpu: &mut Cpu, op: &Op) -> Outcome {
    let none = cpu.get::<u32>(slot::RCX) == 0;
    branch_if(cpu, op, none)
}

/// `syscall` in 32-bit code: AMD's processors have it.
fn syscall(cpu: &mut Cpu, op: &Op) -> Outcome {
    let next = u32::low(cpu.in_page(op.next()));
    let rflags = cpu.rflags();
    cpu.set(slot::RCX, next);
    cpu.set(slot::R11, rflags);
    cpu.rip = next.into();
    cpu.halt(Stop::Syscall)
}

/// The segment bases of a string instruction's two operands, and its repeat
/// prefix, packed into `imm`.
mod repeat {
    pub const NONE: u64 = 0;
    pub const WHILE_EQUAL: u64 = 1;
    pub const WHILE_DIFFERENT: u64 = 2;
    pub const ALWAYS: u64 = 3;
}

/// The source's segment register is the second operand.
fn source<W: Memory>(cpu: &mut Cpu, op: &Op) -> Result<u64, Halt> {
    let offset = cpu.get::<u32>(slot::RSI);
    let at = reach(cpu, op.src.into(), offset, u32::low(W::BYTES), false)?;
    Ok(u32::low(at.wrapping_add(cpu.get::<u64>(op.segment))).into())
}

fn destination<W: Memory>(cpu: &mut Cpu, writes: bool) -> Result<u64, Halt> {
    let offset = cpu.get::<u32>(slot::RDI);
    reach(cpu, ES, offset, u32::low(W::BYTES), writes)
}

fn advance<W: Memory>(cpu: &mut Cpu, register: u8) {
    let bytes = u32::low(W::BYTES);
    let value = cpu.get::<u32>(register);
    let value = if cpu.backwards() {
        value.wrapping_sub(bytes)
    } else {
        value.wrapping_add(bytes)
    };
    cpu.set(register, value);
}

/// One element: `m`ovs, s`t`os, `l`ods, `s`cas, `c`mps.
fn element<const KIND: char, W: super::alu::Integer>(cpu: &mut Cpu, op: &Op) -> Result<(), Halt> {
    match KIND {
        'm' => {
            let (from, to) = (source::<W>(cpu, op)?, destination::<W>(cpu, true)?);
            let value = cpu.load::<W>(from)?;
            cpu.store(to, value)?;
        }
        't' => {
            let to = destination::<W>(cpu, true)?;
            cpu.store(to, cpu.get::<W>(slot::RAX))?;
        }
        'l' => {
            let from = source::<W>(cpu, op)?;
            let value = cpu.load::<W>(from)?;
            cpu.set(slot::RAX, value);
        }
        's' => {
            let at = destination::<W>(cpu, false)?;
            let value = cpu.load::<W>(at)?;
            cpu.flags = cpu.get::<W>(slot::RAX).sub(value, cpu.flags).1;
        }
        _ => {
            let (a, b) = (source::<W>(cpu, op)?, destination::<W>(cpu, false)?);
            let (a, b) = (cpu.load::<W>(a)?, cpu.load::<W>(b)?);
            cpu.flags = a.sub(b, cpu.flags).1;
        }
    }
    if matches!(KIND, 'm' | 'l' | 'c') {
        advance::<W>(cpu, slot::RSI);
    }
    if KIND != 'l' {
        advance::<W>(cpu, slot::RDI);
    }
    Ok(())
}

fn string<const KIND: char, W: super::alu::Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    if op.imm == repeat::NONE {
        element::<KIND, W>(cpu, op)?;
        return Ok(Flow::Next);
    }
    for _ in 0..cpu.chunk {
        let count = cpu.get::<u32>(slot::RCX);
        if count == 0 {
            return Ok(Flow::Next);
        }
        element::<KIND, W>(cpu, op)?;
        cpu.set(slot::RCX, count - 1);
        cpu.extra += 1;
        let wanted = match op.imm {
            repeat::WHILE_EQUAL => cpu.flags.zero(),
            repeat::WHILE_DIFFERENT => !cpu.flags.zero(),
            _ => true,
        };
        if !wanted {
            return Ok(Flow::Next);
        }
    }
    if cpu.get::<u32>(slot::RCX) == 0 {
        return Ok(Flow::Next);
    }
    cpu.rip = cpu.in_page(u64::from(op.at));
    Ok(Flow::Branch)
}

fn choose_string(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let (kind, w) = super::string::kind(i.code())?;
    let other =
        (0..i.op_count()).any(|n| matches!(i.op_kind(n), OpKind::MemorySegSI | OpKind::MemoryESDI));
    if other || i.has_lock_prefix() {
        return None;
    }
    if matches!(kind, 'm' | 'l' | 'c') {
        crate::interp::decode::segment(i, op)?;
        op.src = u8::try_from(i.memory_segment().number()).ok()?;
    }
    let compares = matches!(kind, 's' | 'c');
    op.imm = match (i.has_rep_prefix(), i.has_repne_prefix()) {
        (false, false) => repeat::NONE,
        (true, _) if compares => repeat::WHILE_EQUAL,
        (_, true) if compares => repeat::WHILE_DIFFERENT,
        _ => repeat::ALWAYS,
    };
    macro_rules! of_kind {
        ($kind:literal) => {
            match w {
                1 => Some(string::<$kind, u8> as Handler),
                2 => Some(string::<$kind, u16> as Handler),
                _ => Some(string::<$kind, u32> as Handler),
            }
        };
    }
    match kind {
        'm' => of_kind!('m'),
        't' => of_kind!('t'),
        'l' => of_kind!('l'),
        's' => of_kind!('s'),
        _ => of_kind!('c'),
    }
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
    use iced_x86::Register;
    match i.op0_kind() {
        OpKind::Register if i.op0_register().is_gpr() => Some(pop_reg::<W>),
        _ if !shape.memory => None,
        _ if i.memory_base() == Register::ESP => Some(pop_mem::<W, true>),
        _ => Some(pop_mem::<W, false>),
    }
}

fn choose_stack(i: &Instruction, shape: Shape) -> Option<Handler> {
    match i.code() {
        Code::Push_r32 | Code::Push_rm32 | Code::Pushd_imm8 | Code::Pushd_imm32 => {
            choose_push::<u32>(i, shape)
        }
        Code::Push_r16 | Code::Push_rm16 | Code::Pushw_imm8 | Code::Push_imm16 => {
            choose_push::<u16>(i, shape)
        }
        Code::Pop_r32 | Code::Pop_rm32 => choose_pop::<u32>(i, shape),
        Code::Pop_r16 | Code::Pop_rm16 => choose_pop::<u16>(i, shape),
        Code::Pushad => Some(pusha::<u32>),
        Code::Pushaw => Some(pusha::<u16>),
        Code::Popad => Some(popa::<u32>),
        Code::Popaw => Some(popa::<u16>),
        Code::Pushfd => Some(pushf),
        Code::Popfd => Some(popf),
        Code::Leaved => Some(leave),
        _ => None,
    }
}

/// A direct branch: where to, and where it goes on otherwise.
fn direct(i: &Instruction, op: &mut Op, run: Handler) -> Choice {
    op.imm = i.near_branch_target();
    op.disp = op.next();
    Some((run, true))
}

fn choose_jcc(i: &Instruction) -> Option<Handler> {
    use super::data::by_condition;
    use iced_x86::ConditionCode;
    macro_rules! build {
        ($c:literal) => {
            Some(jcc::<$c> as Handler)
        };
    }
    by_condition!(i, build)
}

fn choose_branch(i: &Instruction, shape: Shape, op: &mut Op) -> Choice {
    let ends = |run: Handler| Some((run, true));
    match i.code() {
        Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => direct(i, op, jmp),
        Code::Call_rel32_32 => direct(i, op, call),
        Code::Jmp_rm32 if shape.memory => ends(jmp_indirect::<true>),
        Code::Jmp_rm32 => ends(jmp_indirect::<false>),
        Code::Call_rm32 if shape.memory => ends(call_indirect::<true>),
        Code::Call_rm32 => ends(call_indirect::<false>),
        Code::Retnd | Code::Retnd_imm16 => ends(ret),
        Code::Loop_rel8_32_ECX => direct(i, op, loop_while::<2>),
        Code::Loope_rel8_32_ECX => direct(i, op, loop_while::<1>),
        Code::Loopne_rel8_32_ECX => direct(i, op, loop_while::<0>),
        Code::Jecxz_rel8_32 => direct(i, op, jump_if_none),
        _ if i.code().is_jcc_short_or_near() && i.op0_kind() == OpKind::NearBranch32 => {
            choose_jcc(i).and_then(|run| direct(i, op, run))
        }
        _ => None,
    }
}

/// What 32-bit code does with an instruction.
pub enum Answer {
    /// This.
    Own(Choice),
    /// What 64-bit code does.
    Shared,
}

/// The handler for an instruction of 32-bit code.
pub fn choose(i: &Instruction, shape: Shape, op: &mut Op) -> Answer {
    let own = |choice| Answer::Own(choice);
    use Mnemonic as M;
    match i.mnemonic() {
        M::Push
        | M::Pop
        | M::Pusha
        | M::Pushad
        | M::Popa
        | M::Popad
        | M::Pushfd
        | M::Popfd
        | M::Leave => match choose_stack(i, shape) {
            Some(run) => own(Some((run, false))),
            None => own(super::legacy::choose(i, shape, op)
                .or_else(|| super::segment::choose(i, shape, op).map(|run| (run, false)))),
        },
        _ if Far::of(i).is_some() => own(Some((super::segment::for_descriptor_tables, true))),
        M::Jmp | M::Call | M::Ret | M::Loop | M::Loope | M::Loopne | M::Jecxz => {
            own(choose_branch(i, shape, op))
        }
        _ if i.code().is_jcc_short_or_near() => own(choose_branch(i, shape, op)),
        _ if super::string::kind(i.code()).is_some() => {
            own(choose_string(i, op).map(|run| (run, false)))
        }
        M::Syscall if *IS_AMD => own(Some((syscall, true))),
        M::Syscall | M::Sysenter => own(Some((super::system::undefined, true))),
        // Not for 32-bit code, or without a handler for it.
        M::Pushf | M::Popf | M::Enter | M::Iret | M::Jcxz => own(None),
        M::Daa
        | M::Das
        | M::Aaa
        | M::Aas
        | M::Aam
        | M::Aad
        | M::Into
        | M::Bound
        | M::Arpl
        | M::Xlatb
        | M::Les
        | M::Lds => own(super::legacy::choose(i, shape, op)),
        _ => Answer::Shared,
    }
}
