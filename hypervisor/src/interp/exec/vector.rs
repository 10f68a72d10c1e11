//! Vector, MMX and x87 instructions: memory operands, exceptions, and the
//! host's own instruction in a stub between them.
//!
//! Law: everything that the instruction could fault on is checked before the
//! stub runs, so the stub never faults: alignment, both pages of the operand,
//! pending x87 exceptions. SIMD floating-point exceptions are masked while it
//! runs; what it would have raised is told from the flags that it leaves, and
//! then nothing of it is kept but those.
//!
//! Limit: with underflow unmasked, a tiny result that is exact raises nothing.

use crate::{
    fpu::at,
    interp::{
        access::Pieces,
        op::{Flow, Halt, Handler, Op, Outcome},
        state::{Cpu, vector},
        vector::{Planned, Plans},
    },
};
use iced_x86::Instruction;

/// Bits of MXCSR.
mod mxcsr {
    pub const FLAGS: u32 = 0x3f;
    /// Invalid, denormal and zero divide: found before anything is computed.
    pub const EARLY: u32 = 7;
    pub const MASKS: u32 = 0x1f80;
    pub const MASK_SHIFT: u32 = 7;
    pub const UNDERFLOW_MASK: u32 = 1 << 11;
    pub const FLUSH_TO_ZERO: u32 = 1 << 15;
}

#[inline(always)]
fn planned(cpu: &Cpu, op: &Op) -> Planned {
    cpu.vector.plans.get(usize::try_from(op.imm).unwrap_or(0))
}

/// The memory operand, checked.
#[inline(always)]
fn operand(cpu: &mut Cpu, op: &Op, planned: &Planned) -> Result<(u64, Pieces), Halt> {
    let (shape, address) = (planned.shape, cpu.address(op));
    if address & u64::from(shape.misaligned) != 0 {
        return cpu.fault(vector::GP, 0);
    }
    let pieces = cpu.pieces(address, u64::from(shape.bytes), shape.writes)?;
    Ok((address, pieces))
}

/// Runs the stub on a copy of its operand.
fn run_on_copy(cpu: &mut Cpu, planned: &Planned, pieces: &Pieces) {
    pieces.read(cpu.scratch());
    cpu.run_stub(planned, None);
    if planned.shape.writes {
        pieces.write(cpu.scratch());
    }
}

/// An SSE or AVX instruction.
fn simd<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let planned = planned(cpu, op);
    let now = cpu.fpu()?.mxcsr();
    if planned.shape.mxcsr && now & mxcsr::MASKS != mxcsr::MASKS {
        return watched::<MEM>(cpu, op, &planned, now);
    }
    if !MEM {
        cpu.run_stub(&planned, None);
        return Ok(Flow::Next);
    }
    let (_, pieces) = operand(cpu, op, &planned)?;
    match pieces.whole() {
        Some(place) => cpu.run_stub(&planned, Some(place)),
        None => run_on_copy(cpu, &planned, &pieces),
    }
    Ok(Flow::Next)
}

/// One that may raise a SIMD floating-point exception: everything is put back if
/// it does.
#[cold]
fn watched<const MEM: bool>(cpu: &mut Cpu, op: &Op, planned: &Planned, guest: u32) -> Outcome {
    let pieces = if MEM {
        Some(operand(cpu, op, planned)?.1)
    } else {
        None
    };
    if let Some(pieces) = &pieces {
        pieces.read(cpu.scratch());
    }
    let (state, registers, flags) = (cpu.fpu()?.clone(), cpu.r, cpu.flags);
    let mut masked = guest & !mxcsr::FLAGS | mxcsr::MASKS;
    if guest & mxcsr::UNDERFLOW_MASK == 0 {
        masked &= !mxcsr::FLUSH_TO_ZERO;
    }
    cpu.fpu_mut()?.set_mxcsr(masked);
    cpu.run_stub(planned, None);
    let raised = cpu.fpu()?.mxcsr() & mxcsr::FLAGS;
    let unmasked = !guest >> mxcsr::MASK_SHIFT & mxcsr::FLAGS;
    if raised & unmasked == 0 {
        cpu.fpu_mut()?.set_mxcsr(guest | raised);
        if let Some(pieces) = pieces.filter(|_| planned.shape.writes) {
            pieces.write(cpu.scratch());
        }
        return Ok(Flow::Next);
    }
    let reported = if raised & unmasked & mxcsr::EARLY == 0 {
        raised
    } else {
        raised & mxcsr::EARLY
    };
    *cpu.fpu_mut()? = state;
    cpu.fpu_mut()?.set_mxcsr(guest | reported);
    (cpu.r, cpu.flags) = (registers, flags);
    cpu.fault(vector::XM, 0)
}

/// An x87 or MMX instruction.
fn x87<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let planned = planned(cpu, op);
    let pending = cpu.fpu()?.x87_pending();
    if planned.shape.waits && pending {
        return cpu.fault(vector::MF, 0);
    }
    // Conversions between MMX and vector registers.
    let now = cpu.fpu()?.mxcsr();
    if planned.shape.mxcsr && now & mxcsr::MASKS != mxcsr::MASKS {
        return watched::<MEM>(cpu, op, &planned, now);
    }
    if !MEM {
        cpu.run_stub(&planned, None);
        settle_pointers(cpu, op, &planned, None)?;
        return Ok(Flow::Next);
    }
    let (address, pieces) = operand(cpu, op, &planned)?;
    let place = match pieces.whole() {
        Some(place) => {
            cpu.run_stub(&planned, Some(place));
            place.address()
        }
        None => {
            run_on_copy(cpu, &planned, &pieces);
            cpu.scratch().as_ptr().addr() as u64
        }
    };
    settle_pointers(cpu, op, &planned, Some((place, address)))?;
    Ok(Flow::Next)
}

/// The processor notes where the last x87 instruction and its operand were. It
/// saw our addresses; the guest shall see its own.
fn settle_pointers(
    cpu: &mut Cpu,
    op: &Op,
    planned: &Planned,
    operand: Option<(u64, u64)>,
) -> Result<(), Halt> {
    let rip = cpu.in_page(u64::from(op.at));
    let state = cpu.fpu_mut()?;
    if state.x87_u64(at::FIP) != planned.stub.address(planned.shape.at.into()) {
        return Ok(());
    }
    state.set_x87_u64(at::FIP, rip);
    if let Some((ours, address)) = operand
        && state.x87_u64(at::FDP) == ours
    {
        state.set_x87_u64(at::FDP, address);
    }
    if state.x87_u16(at::OPCODE) != 0
        && let Some(opcode) = opcode(cpu, rip)
    {
        cpu.fpu_mut()?.set_x87_u16(at::OPCODE, opcode);
    }
    Ok(())
}

/// Eleven bits of the x87 instruction at `rip`, behind its prefixes. (The stub's has another
/// operand.)
#[cold]
fn opcode(cpu: &mut Cpu, rip: u64) -> Option<u16> {
    for at in (0..14).map(|n| rip.wrapping_add(n)) {
        let first = cpu.load::<u8>(at).ok()?;
        if first & 0xf8 == 0xd8 {
            let second = cpu.load::<u8>(at.wrapping_add(1)).ok()?;
            return Some(u16::from(first & 7) << 8 | u16::from(second));
        }
    }
    None
}

/// The handler for an instruction that a stub can execute.
pub fn choose(i: &Instruction, op: &mut Op, plans: &mut Plans) -> Option<Handler> {
    let index = plans.plan(i)?;
    let shape = plans.get(index).shape;
    op.imm = index as u64;
    Some(match (shape.x87, shape.bytes != 0) {
        (false, false) => simd::<false>,
        (false, true) => simd::<true>,
        (true, false) => x87::<false>,
        (true, true) => x87::<true>,
    })
}
