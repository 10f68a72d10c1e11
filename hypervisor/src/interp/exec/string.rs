//! String instructions.
//!
//! Law: a repeated one is interruptible after every element, as the
//! architecture allows: RCX, RSI and RDI are always those of the elements done.
//! One run of a handler does at most [`Cpu::chunk`] elements; then it branches to
//! itself, which comes past the loop's budget and interrupt checks.

use super::alu::Integer;
use crate::interp::{
    host::{HostPtr, Memory},
    op::{Flow, Halt, Handler, Op, Outcome, slot},
    state::Cpu,
};
use iced_x86::{Code, Instruction, OpKind};

/// Elements in one go.
pub const CHUNK: u64 = 4096;
/// Elements of a block move or fill that cost the budget of one instruction.
const BULK: u64 = 16;

/// Elements of `bytes` each from `address` to its page's end.
fn room(address: u64, bytes: u64) -> u64 {
    (0x1000 - (address & 0xfff)) / bytes
}

/// The distance from one element to the next.
fn step<W: Memory>(cpu: &Cpu) -> u64 {
    if cpu.backwards() {
        W::BYTES.wrapping_neg()
    } else {
        W::BYTES
    }
}

fn advance(cpu: &mut Cpu, register: u8, distance: u64) {
    let value = cpu.get::<u64>(register).wrapping_add(distance);
    cpu.set(register, value);
}

/// The address of the source: its segment may be overridden.
fn source(cpu: &Cpu, op: &Op) -> u64 {
    let base = cpu.get::<u64>(op.segment);
    cpu.get::<u64>(slot::RSI).wrapping_add(base)
}

fn destination(cpu: &Cpu) -> u64 {
    cpu.get(slot::RDI)
}

/// The same instruction again, if elements are left.
fn again(cpu: &mut Cpu, op: &Op) -> Outcome {
    if cpu.get::<u64>(slot::RCX) == 0 {
        return Ok(Flow::Next);
    }
    cpu.rip = cpu.in_page(u64::from(op.at));
    Ok(Flow::Branch)
}

/// Does one element.
type Element = fn(&mut Cpu, &Op) -> Result<(), Halt>;

fn one(cpu: &mut Cpu, op: &Op, element: Element) -> Outcome {
    element(cpu, op)?;
    Ok(Flow::Next)
}

/// `rep` one element at a time, while `go_on` says so. At a fault the flags are those from
/// before the instruction.
#[inline(always)]
fn repeat(cpu: &mut Cpu, op: &Op, element: Element, go_on: fn(&Cpu) -> bool) -> Outcome {
    let flags = cpu.flags;
    for _ in 0..cpu.chunk {
        let count = cpu.get::<u64>(slot::RCX);
        if count == 0 {
            return Ok(Flow::Next);
        }
        if let Err(halt) = element(cpu, op) {
            cpu.flags = flags;
            return Err(halt);
        }
        cpu.set(slot::RCX, count - 1);
        cpu.extra += 1;
        if !go_on(cpu) {
            return Ok(Flow::Next);
        }
    }
    again(cpu, op)
}

fn movs_element<W: Memory>(cpu: &mut Cpu, op: &Op) -> Result<(), Halt> {
    let value = cpu.load::<W>(source(cpu, op))?;
    cpu.store(destination(cpu), value)?;
    let step = step::<W>(cpu);
    advance(cpu, slot::RSI, step);
    advance(cpu, slot::RDI, step);
    Ok(())
}

fn stos_element<W: Memory>(cpu: &mut Cpu, _: &Op) -> Result<(), Halt> {
    cpu.store(destination(cpu), cpu.get::<W>(slot::RAX))?;
    let step = step::<W>(cpu);
    advance(cpu, slot::RDI, step);
    Ok(())
}

fn lods_element<W: Memory>(cpu: &mut Cpu, op: &Op) -> Result<(), Halt> {
    let value = cpu.load::<W>(source(cpu, op))?;
    cpu.set(slot::RAX, value);
    let step = step::<W>(cpu);
    advance(cpu, slot::RSI, step);
    Ok(())
}

fn scas_element<W: Integer>(cpu: &mut Cpu, _: &Op) -> Result<(), Halt> {
    let value = cpu.load::<W>(destination(cpu))?;
    cpu.flags = cpu.get::<W>(slot::RAX).sub(value, cpu.flags).1;
    let step = step::<W>(cpu);
    advance(cpu, slot::RDI, step);
    Ok(())
}

fn cmps_element<W: Integer>(cpu: &mut Cpu, op: &Op) -> Result<(), Halt> {
    let a = cpu.load::<W>(source(cpu, op))?;
    let b = cpu.load::<W>(destination(cpu))?;
    cpu.flags = a.sub(b, cpu.flags).1;
    let step = step::<W>(cpu);
    advance(cpu, slot::RSI, step);
    advance(cpu, slot::RDI, step);
    Ok(())
}

fn movs<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    one(cpu, op, movs_element::<W>)
}
fn stos<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    one(cpu, op, stos_element::<W>)
}
fn lods<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    one(cpu, op, lods_element::<W>)
}
fn scas<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    one(cpu, op, scas_element::<W>)
}
fn cmps<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    one(cpu, op, cmps_element::<W>)
}
fn rep_lods<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    repeat(cpu, op, lods_element::<W>, |_| true)
}
fn repe_scas<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    repeat(cpu, op, scas_element::<W>, |cpu| cpu.flags.zero())
}
fn repne_scas<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    repeat(cpu, op, scas_element::<W>, |cpu| !cpu.flags.zero())
}
fn repe_cmps<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    repeat(cpu, op, cmps_element::<W>, |cpu| cpu.flags.zero())
}
fn repne_cmps<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    repeat(cpu, op, cmps_element::<W>, |cpu| !cpu.flags.zero())
}

/// Counts `elements` as done.
fn done<W: Memory>(cpu: &mut Cpu, elements: u64, with_source: bool) {
    let bytes = elements * W::BYTES;
    if with_source {
        advance(cpu, slot::RSI, bytes);
    }
    advance(cpu, slot::RDI, bytes);
    advance(cpu, slot::RCX, elements.wrapping_neg());
    cpu.extra += elements / BULK;
}

/// `rep movs`: by the host's own within pages, one by one across their ends.
fn rep_movs<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    if cpu.backwards() {
        return repeat(cpu, op, movs_element::<W>, |_| true);
    }
    let mut left = cpu.chunk;
    while left > 0 && cpu.get::<u64>(slot::RCX) > 0 {
        let (from, to) = (source(cpu, op), destination(cpu));
        let count = left
            .min(cpu.get(slot::RCX))
            .min(room(from, W::BYTES))
            .min(room(to, W::BYTES));
        if count == 0 {
            movs_element::<W>(cpu, op)?;
            advance(cpu, slot::RCX, u64::MAX);
            left -= 1;
            continue;
        }
        let from = cpu.read_place(from)?;
        let to = cpu.write_place(to, count * W::BYTES)?;
        copy::<W>(to, from, count);
        done::<W>(cpu, count, true);
        left -= count;
    }
    again(cpu, op)
}

fn copy<W: Memory>(to: HostPtr, from: HostPtr, count: u64) {
    W::copy(to, from, count);
}

/// `rep stos`, likewise.
fn rep_stos<W: Integer>(cpu: &mut Cpu, op: &Op) -> Outcome {
    if cpu.backwards() {
        return repeat(cpu, op, stos_element::<W>, |_| true);
    }
    let mut left = cpu.chunk;
    while left > 0 && cpu.get::<u64>(slot::RCX) > 0 {
        let to = destination(cpu);
        let count = left.min(cpu.get(slot::RCX)).min(room(to, W::BYTES));
        if count == 0 {
            stos_element::<W>(cpu, op)?;
            advance(cpu, slot::RCX, u64::MAX);
            left -= 1;
            continue;
        }
        let to = cpu.write_place(to, count * W::BYTES)?;
        cpu.get::<W>(slot::RAX).fill(to, count);
        done::<W>(cpu, count, false);
        left -= count;
    }
    again(cpu, op)
}

/// The instruction's kind and element size.
pub fn kind(code: Code) -> Option<(char, usize)> {
    Some(match code {
        Code::Movsb_m8_m8 => ('m', 1),
        Code::Movsw_m16_m16 => ('m', 2),
        Code::Movsd_m32_m32 => ('m', 4),
        Code::Movsq_m64_m64 => ('m', 8),
        Code::Stosb_m8_AL => ('t', 1),
        Code::Stosw_m16_AX => ('t', 2),
        Code::Stosd_m32_EAX => ('t', 4),
        Code::Stosq_m64_RAX => ('t', 8),
        Code::Lodsb_AL_m8 => ('l', 1),
        Code::Lodsw_AX_m16 => ('l', 2),
        Code::Lodsd_EAX_m32 => ('l', 4),
        Code::Lodsq_RAX_m64 => ('l', 8),
        Code::Scasb_AL_m8 => ('s', 1),
        Code::Scasw_AX_m16 => ('s', 2),
        Code::Scasd_EAX_m32 => ('s', 4),
        Code::Scasq_RAX_m64 => ('s', 8),
        Code::Cmpsb_m8_m8 => ('c', 1),
        Code::Cmpsw_m16_m16 => ('c', 2),
        Code::Cmpsd_m32_m32 => ('c', 4),
        Code::Cmpsq_m64_m64 => ('c', 8),
        _ => return None,
    })
}

/// Whether the pointers are 64 bits wide.
fn long_pointers(i: &Instruction) -> bool {
    (0..i.op_count()).all(|n| {
        !matches!(
            i.op_kind(n),
            OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegSI | OpKind::MemoryESDI
        )
    })
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let (kind, w) = kind(i.code())?;
    if !long_pointers(i) || i.has_lock_prefix() {
        return None;
    }
    if matches!(kind, 'm' | 'l' | 'c') {
        crate::interp::decode::segment(i, op)?;
    }
    // F2 before `movs`, `stos` and `lods` repeats as well.
    let (equal, not_equal) = (i.has_repe_prefix(), i.has_repne_prefix());
    match (kind, equal || not_equal) {
        ('m', false) => by_width!(w, movs),
        ('m', true) => by_width!(w, rep_movs),
        ('t', false) => by_width!(w, stos),
        ('t', true) => by_width!(w, rep_stos),
        ('l', false) => by_width!(w, lods),
        ('l', true) => by_width!(w, rep_lods),
        ('s', false) => by_width!(w, scas),
        ('s', true) if equal => by_width!(w, repe_scas),
        ('s', true) => by_width!(w, repne_scas),
        (_, false) => by_width!(w, cmps),
        (_, true) if equal => by_width!(w, repe_cmps),
        (_, true) => by_width!(w, repne_cmps),
    }
}
