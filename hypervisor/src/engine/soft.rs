//! The software engine: the interpreter, with nothing behind it.
//!
//! It opens no device and makes no VM. Several vCPUs of a domain run in their
//! threads at the same time; what a processor does in one indivisible step is
//! one instruction of the host's on guest memory (`interp/host`).
//!
//! Law: nobody else executes what the interpreter does not know. What is
//! undefined for the CPU that the domain sees is #UD; everything else is told
//! by its name ([`EngineError::Unknown`]) and is never skipped.

use super::{EngineCounts, EngineError, Entry, FIXED_FLAGS, USER_FLAGS};
use crate::{
    cpu::Trap,
    emulate::CpuidPolicy,
    fpu::FpuState,
    interp::{Breakpoints, Counts, Exit, GuestPhys, Interpreter, RF},
};
use guest_abi::addr::GuestVirt;
use std::sync::{Arc, atomic::AtomicBool};

/// Instructions after which decoded code is compared with memory again, so
/// that a loop without a trap sees what another vCPU writes into it.
const SLICE: u64 = 1 << 20;
/// The vector of an invalid opcode.
const INVALID_OPCODE: u8 = 6;

/// A vCPU of the software engine.
pub struct SoftVcpu {
    interpreter: Interpreter,
    interrupt: Arc<AtomicBool>,
    counts: EngineCounts,
}

impl SoftVcpu {
    /// A vCPU over this memory, which stops soon after `interrupt` is set.
    #[must_use]
    pub fn new(phys: Arc<dyn GuestPhys>, cpuid: CpuidPolicy, interrupt: Arc<AtomicBool>) -> Self {
        let mut interpreter = Interpreter::new(phys);
        let model = interpreter.model();
        model.alone = true;
        // TSC_AUX is 0 in guests, see `emulate::msr`.
        model.tsc_aux = Some(0);
        model.cpuid = Some(Box::new(move |leaf, subleaf| {
            let leaf = cpuid.lookup(leaf, subleaf);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        }));
        model.xcr0 = Some(1);
        interpreter.load_fpu(&FpuState::new());
        interpreter.compile(None);
        SoftVcpu {
            interpreter,
            interrupt,
            counts: EngineCounts::default(),
        }
    }

    /// Sets XCR0.
    pub fn set_xcr0(&mut self, value: u64) {
        self.interpreter.model().xcr0 = Some(value);
    }

    /// Sets the debug registers.
    pub fn set_breakpoints(&mut self, breakpoints: Breakpoints) {
        self.interpreter.model().breakpoints = breakpoints;
    }

    /// Bits of DR6 for breakpoints that were hit since this was called.
    pub fn take_hits(&mut self) -> u64 {
        std::mem::take(&mut self.interpreter.model().hits)
    }

    /// The vector and x87 state.
    #[must_use]
    pub fn fpu(&self) -> FpuState {
        self.interpreter.fpu().cloned().unwrap_or_default()
    }

    /// Sets the vector and x87 state.
    pub fn set_fpu(&mut self, state: &FpuState) {
        self.interpreter.load_fpu(state);
    }

    /// The selectors of ES, CS, SS, DS, FS and GS.
    #[must_use]
    pub fn selectors(&self) -> [Option<u16>; 6] {
        self.interpreter.selectors()
    }

    /// The interpreter.
    pub fn interpreter(&mut self) -> &mut Interpreter {
        &mut self.interpreter
    }

    /// What the interpreter did.
    #[must_use]
    pub fn interpreted(&self) -> Counts {
        self.interpreter.counts()
    }

    /// See [`Engine::counts`](super::Engine::counts).
    #[must_use]
    pub fn counts(&self) -> EngineCounts {
        self.counts
    }

    /// See [`Engine::run`](super::Engine::run).
    ///
    /// # Errors
    /// [`EngineError::Unknown`].
    pub fn run(&mut self, entry: &mut Entry<'_>) -> Result<Trap, EngineError> {
        // The interpreter walks the tables in memory, which are right already.
        entry.writes.clear();
        if entry.flush {
            self.interpreter.flush_all();
            self.counts.flushes += 1;
        }
        self.counts.entries += 1;
        let context = &mut *entry.context;
        context.rflags = context.rflags & USER_FLAGS | FIXED_FLAGS;
        loop {
            match self
                .interpreter
                .run(context, entry.root, SLICE, &self.interrupt)
            {
                Exit::Trap(trap) => return Ok(trap),
                Exit::Interrupted => return Ok(Trap::Kick),
                Exit::Budget => {}
                // It is there from the start.
                Exit::NeedsFpu => self.interpreter.load_fpu(&FpuState::new()),
                Exit::Unknown => {
                    let name = self.interpreter.describe(context, entry.root);
                    return match name {
                        Some(name) => Err(EngineError::Unknown(name)),
                        None => {
                            context.rflags |= RF;
                            Ok(Trap::Exception {
                                vector: INVALID_OPCODE,
                                error: 0,
                                cr2: GuestVirt(0),
                            })
                        }
                    };
                }
            }
        }
    }
}
