//! The vector and x87 registers while a vCPU is interpreted, and the stubs
//! that work on them.
//!
//! Law: the registers are here only after somebody has put them here; until
//! then an instruction that needs them stops with [`Stop::NeedsFpu`]. A stub
//! is used only while the decoded block that names it lives: when the stubs are
//! dropped, so is all decoded code.

mod plan;
mod traits;

use super::{
    host::{HostPtr, SCRATCH, Stub, StubFrame, StubMemory},
    op::Halt,
    pages::NumberMap,
    state::{Cpu, Stop},
};
use crate::fpu::FpuState;
use iced_x86::Instruction;
use plan::Plan;
pub use plan::{Shape, is_listed};

/// A stub and how to run it.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    /// The code.
    pub stub: Stub,
    /// What to do before and after it.
    pub shape: Shape,
}

/// Stubs by number, and by their code.
#[derive(Default)]
pub struct Plans {
    memory: Option<StubMemory>,
    planned: Vec<Planned>,
    by_code: NumberMap<Vec<(Box<[u8]>, usize)>>,
    full: bool,
}

/// The vector and x87 part of a vCPU.
pub struct Vector {
    frame: Box<StubFrame>,
    present: bool,
    changed: bool,
    /// What can be executed.
    pub plans: Plans,
}

impl Plans {
    /// The number of a stub for `i`.
    pub fn plan(&mut self, i: &Instruction) -> Option<usize> {
        let mut plan = Plan::new(i)?;
        let code = plan.encode()?;
        let key = number(&code);
        let known = self.by_code.get(&key).into_iter().flatten();
        if let Some((_, index)) = known.into_iter().find(|(same, _)| **same == *code) {
            return Some(*index);
        }
        if self.memory.is_none() {
            match StubMemory::new() {
                Ok(memory) => self.memory = Some(memory),
                Err(error) => {
                    tracing::warn!(%error, "no memory for vector instructions: they go to the engine");
                    return None;
                }
            }
        }
        let Some(stub) = self.memory.as_mut()?.add(&code) else {
            self.full = true;
            return None;
        };
        let index = self.planned.len();
        self.planned.push(Planned {
            stub,
            shape: plan.shape,
        });
        let same = self.by_code.entry(key).or_default();
        same.push((code.into(), index));
        Some(index)
    }

    /// How to run stub `index`.
    #[inline(always)]
    pub fn get(&self, index: usize) -> Planned {
        self.planned[index]
    }

    /// Whether there was no room for a stub: time to start anew.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Drops all stubs; the caller drops all decoded code.
    pub fn clear(&mut self) {
        self.planned.clear();
        self.by_code.clear();
        self.full = false;
        if let Some(memory) = &mut self.memory {
            memory.clear();
        }
    }
}

fn number(code: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    code.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

impl Vector {
    /// Without registers.
    pub fn new() -> Self {
        Vector {
            frame: StubFrame::new(),
            present: false,
            changed: false,
            plans: Plans::default(),
        }
    }

    /// Takes the registers over.
    pub fn load(&mut self, state: &FpuState) {
        self.frame.state = state.clone();
        (self.present, self.changed) = (true, false);
    }

    /// The registers, if they are here.
    pub fn state(&self) -> Option<&FpuState> {
        self.present.then_some(&self.frame.state)
    }

    /// The registers if they are here and have changed since they came or
    /// were last taken.
    pub fn changes(&mut self) -> Option<&FpuState> {
        std::mem::take(&mut self.changed).then_some(&self.frame.state)
    }

    /// Forgets the registers.
    pub fn forget(&mut self) {
        (self.present, self.changed) = (false, false);
    }
}

impl Cpu {
    /// The registers, to be read.
    #[inline(always)]
    pub fn fpu(&mut self) -> Result<&FpuState, Halt> {
        if self.vector.present {
            Ok(&self.vector.frame.state)
        } else {
            self.halt(Stop::NeedsFpu)
        }
    }

    /// The registers, to be changed.
    #[inline(always)]
    pub fn fpu_mut(&mut self) -> Result<&mut FpuState, Halt> {
        if !self.vector.present {
            return self.halt(Stop::NeedsFpu);
        }
        self.vector.changed = true;
        Ok(&mut self.vector.frame.state)
    }

    /// Runs a stub on `memory` or on the scratch; the registers are here.
    #[inline(always)]
    pub fn run_stub(&mut self, planned: &Planned, memory: Option<HostPtr>) {
        let vector = &mut self.vector;
        vector.changed |= planned.shape.changes;
        let flags = planned
            .stub
            .run(&mut vector.frame, memory, &mut self.r, self.flags);
        if planned.shape.flags {
            self.flags = flags;
        }
    }

    /// Room for the operand of a stub that is not to work on guest memory.
    pub fn scratch(&mut self) -> &mut [u8; SCRATCH] {
        &mut self.vector.frame.scratch.0
    }
}
