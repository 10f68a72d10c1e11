//! Instructions on the vector and x87 state as a whole: `xsave` and its kin,
//! `fxrstor`, MXCSR, `vzeroupper`.
//!
//! Law: as the manual's volume 1, chapter 13, with x87, SSE and AVX as the
//! components. Where ring 3 sees a larger XCR0 (a host whose XCR0 shows through)
//! the others count as being in their initial state; where they are not, or would
//! have to be written out, the instruction is for the engine. A component that
//! holds its initial values counts as not in use.

use crate::{
    fpu::{FPU_BYTES, FPU_COMPONENTS, FpuState, MXCSR_INIT, MXCSR_MASK, at},
    interp::{
        access::Pieces,
        host::Word,
        op::{Flow, Halt, Handler, Op, Outcome, slot},
        state::{Cpu, Stop, vector},
        vector::is_listed,
    },
};
use iced_x86::{Code, Instruction, Mnemonic};

/// XCOMP_BV's mark of the compacted format.
const COMPACTED: u64 = 1 << 63;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// MXCSR and its mask in an area.
const MXCSR: std::ops::Range<usize> = at::MXCSR..at::MXCSR + 8;

/// How `xsave` and its kin differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Optimised,
    Compacted,
}

fn kind(number: u64) -> Kind {
    match number {
        0 => Kind::Plain,
        1 => Kind::Optimised,
        _ => Kind::Compacted,
    }
}

/// An XSAVE area, in its own format, or the legacy part of one.
struct Area {
    bytes: [u8; FPU_BYTES],
    pieces: Pieces,
}

impl Area {
    fn word(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(word)
    }

    fn set_word(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// The area at the operand, its first `len` bytes read.
fn area(cpu: &mut Cpu, op: &Op, len: usize, align: u64, write: bool) -> Result<Area, Halt> {
    let address = cpu.address(op);
    if address & (align - 1) != 0 {
        return cpu.fault(vector::GP, 0);
    }
    let pieces = cpu.pieces(address, len as u64, write)?;
    let mut bytes = [0; FPU_BYTES];
    pieces.read(&mut bytes[..len]);
    Ok(Area { bytes, pieces })
}

/// The components asked for, or why not here.
fn requested(cpu: &mut Cpu) -> Result<u64, Halt> {
    let Some(xcr0) = cpu.model.xcr0 else {
        return cpu.halt(Stop::Unknown);
    };
    let mask = cpu.get::<u64>(slot::RDX) << 32 | cpu.get::<u64>(slot::RAX) & 0xffff_ffff;
    let wanted = xcr0 & mask;
    if wanted & !FPU_COMPONENTS != 0 && cpu.fpu()?.beyond() {
        return cpu.halt(Stop::Unknown);
    }
    Ok(wanted)
}

/// How many bytes there are with these components.
fn length(components: u64) -> usize {
    if components & AVX == 0 {
        at::YMM_HIGH
    } else {
        FPU_BYTES
    }
}

/// `xsave` (`WIDE`: `xsave64`), `xsaveopt`, `xsavec`: op.imm says which.
fn save<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (kind, wanted) = (kind(op.imm), requested(cpu)?);
    let state = cpu.fpu()?.clone();
    let others = wanted & !FPU_COMPONENTS != 0;
    if others && kind == Kind::Plain {
        return cpu.halt(Stop::Unknown);
    }
    let mut area = area(cpu, op, length(wanted), 64, true)?;
    let mut used = state.in_use();
    if kind == Kind::Compacted && state.mxcsr() != MXCSR_INIT {
        used |= SSE;
    }
    let written = if kind == Kind::Plain {
        wanted
    } else {
        wanted & used
    };
    let mxcsr = match kind {
        Kind::Compacted => written & SSE != 0,
        _ => wanted & (SSE | AVX) != 0,
    };
    put_state(&mut area.bytes, &state, written, mxcsr, WIDE);
    if kind == Kind::Compacted {
        area.set_word(at::XSTATE_BV, wanted & used);
        area.set_word(at::XCOMP_BV, wanted | COMPACTED);
    } else {
        let old = area.word(at::XSTATE_BV);
        area.set_word(at::XSTATE_BV, old & !wanted | wanted & used);
    }
    area.pieces.write(&area.bytes);
    Ok(Flow::Next)
}

fn put_state(bytes: &mut [u8], state: &FpuState, components: u64, mxcsr: bool, wide: bool) {
    for component in (0..3).filter(|c| components >> c & 1 != 0) {
        for &(start, end) in FpuState::component(component) {
            bytes[start..end].copy_from_slice(&state.bytes()[start..end]);
        }
    }
    if components & 1 != 0 && !wide {
        // Pointers of 32 bits, and selectors that processors no longer keep.
        bytes[at::FIP + 4..at::FIP + 8].fill(0);
        bytes[at::FDP + 4..at::FDP + 8].fill(0);
    }
    if mxcsr {
        bytes[MXCSR].copy_from_slice(&state.bytes()[MXCSR]);
    }
}

/// `xrstor` and `xrstor64`.
fn restore<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let wanted = requested(cpu)?;
    cpu.fpu()?;
    let area = area(cpu, op, length(wanted), 64, false)?;
    let (present, format) = (area.word(at::XSTATE_BV), area.word(at::XCOMP_BV));
    let xcr0 = cpu.model.xcr0.unwrap_or(0);
    let compacted = format & COMPACTED != 0;
    let reserved = &area.bytes[at::XCOMP_BV + 8..at::YMM_HIGH];
    let bad = if compacted {
        format & !COMPACTED & !xcr0 != 0
            || present & !format != 0
            || reserved.iter().any(|byte| *byte != 0)
    } else {
        present & !xcr0 != 0 || format != 0 || reserved[..8].iter().any(|byte| *byte != 0)
    };
    let takes_mxcsr = if compacted {
        wanted & present & SSE != 0
    } else {
        wanted & (SSE | AVX) != 0
    };
    let mxcsr = u32::low(area.word(at::MXCSR));
    if bad || (takes_mxcsr && mxcsr & !*MXCSR_MASK != 0) {
        return cpu.fault(vector::GP, 0);
    }
    if wanted & present & !FPU_COMPONENTS != 0 {
        return cpu.halt(Stop::Unknown);
    }
    let state = cpu.fpu_mut()?;
    let before = state.mxcsr();
    state.init(wanted & !present);
    take_state(state, &area.bytes, wanted & present, WIDE);
    if takes_mxcsr {
        state.set_mxcsr(mxcsr);
    } else if !(compacted && wanted & SSE != 0) {
        state.set_mxcsr(before);
    }
    if wanted & present & 1 != 0 {
        state.settle_x87();
    }
    Ok(Flow::Next)
}

fn take_state(state: &mut FpuState, bytes: &[u8; FPU_BYTES], components: u64, wide: bool) {
    for component in (0..3).filter(|c| components >> c & 1 != 0) {
        state.copy_component(component, bytes);
    }
    if components & 1 != 0 && !wide {
        for pointer in [at::FIP, at::FDP] {
            let low = state.x87_u64(pointer) & 0xffff_ffff;
            state.set_x87_u64(pointer, low);
        }
    }
}

/// `fxrstor` and `fxrstor64`.
fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.fpu()?;
    let area = area(cpu, op, 512, 16, false)?;
    let mxcsr = u32::low(area.word(at::MXCSR));
    if mxcsr & !*MXCSR_MASK != 0 {
        return cpu.fault(vector::GP, 0);
    }
    let state = cpu.fpu_mut()?;
    take_state(state, &area.bytes, 3, WIDE);
    state.set_mxcsr(mxcsr);
    state.settle_x87();
    Ok(Flow::Next)
}

fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.fpu()?;
    let value = cpu.load::<u32>(cpu.address(op))?;
    if value & !*MXCSR_MASK != 0 {
        return cpu.fault(vector::GP, 0);
    }
    cpu.fpu_mut()?.set_mxcsr(value);
    Ok(Flow::Next)
}

fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Outcome {
    let value = cpu.fpu()?.mxcsr();
    cpu.store(cpu.address(op), value)?;
    Ok(Flow::Next)
}

/// `vzeroupper` (`LOW` is false) and `vzeroall`.
fn vzero<const LOW: bool>(cpu: &mut Cpu, _: &Op) -> Outcome {
    let state = cpu.fpu_mut()?;
    let mxcsr = state.mxcsr();
    state.init(if LOW { SSE | AVX } else { AVX });
    state.set_mxcsr(mxcsr);
    Ok(Flow::Next)
}

/// `fwait`: an x87 exception that waits is raised here.
fn fwait(cpu: &mut Cpu, _: &Op) -> Outcome {
    if cpu.fpu()?.x87_pending() {
        return cpu.fault(vector::MF, 0);
    }
    Ok(Flow::Next)
}

fn xgetbv(cpu: &mut Cpu, _: &Op) -> Outcome {
    let index = cpu.get::<u32>(slot::RCX);
    let Some(xcr0) = cpu.model.xcr0.filter(|_| index == 0) else {
        return cpu.halt(Stop::Unknown);
    };
    cpu.set(slot::RAX, u32::low(xcr0));
    cpu.set(slot::RDX, u32::low(xcr0 >> 32));
    Ok(Flow::Next)
}

/// Whether this processor has the compacted format.
fn compacts() -> bool {
    is_x86_feature_detected!("xsavec")
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    if i.has_lock_prefix() {
        return None;
    }
    op.imm = match i.mnemonic() {
        M::Xsaveopt | M::Xsaveopt64 => 1,
        M::Xsavec | M::Xsavec64 => 2,
        _ => 0,
    };
    Some(match i.mnemonic() {
        M::Xgetbv => xgetbv,
        M::Xsave if is_x86_feature_detected!("xsave") => save::<false>,
        M::Xsave64 if is_x86_feature_detected!("xsave") => save::<true>,
        M::Xsaveopt if is_x86_feature_detected!("xsaveopt") => save::<false>,
        M::Xsaveopt64 if is_x86_feature_detected!("xsaveopt") => save::<true>,
        M::Xsavec if compacts() => save::<false>,
        M::Xsavec64 if compacts() => save::<true>,
        M::Xrstor if is_x86_feature_detected!("xsave") => restore::<false>,
        M::Xrstor64 if is_x86_feature_detected!("xsave") => restore::<true>,
        M::Fxrstor => fxrstor::<false>,
        M::Fxrstor64 => fxrstor::<true>,
        M::Wait => fwait,
        M::Ldmxcsr => ldmxcsr,
        M::Stmxcsr => stmxcsr,
        M::Vldmxcsr if is_listed(Code::VEX_Vldmxcsr_m32) => ldmxcsr,
        M::Vstmxcsr if is_listed(Code::VEX_Vstmxcsr_m32) => stmxcsr,
        M::Vzeroupper if is_listed(i.code()) => vzero::<false>,
        M::Vzeroall if is_listed(i.code()) => vzero::<true>,
        _ => return None,
    })
}
