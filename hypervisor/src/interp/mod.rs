//! Run-ahead: an interpreter of ring-3 integer code.
//!
//! Where a trap to the hypervisor process is dear, the process does not go
//! back to the engine after it: it interprets the guest's next instructions
//! itself, for as long as the next trap is likely to be near. A vCPU's whole
//! state is a [`Context`] and memory, so it may change over at any instruction.
//!
//! ```text
//!   Interpreter::run ── CodeCache (code)  decoded blocks by machine address
//!        │                  └ decode, exec/*   operand shapes, handlers
//!        └──────────── Cpu (state)  registers, flags
//!                           ├ access, tlb, walk   guest virtual memory
//!                           └ host/*   the host's own instructions (unsafe)
//! ```
//!
//! Laws:
//! - An instruction happens whole or not at all (a repeated string instruction:
//!   each element). One that is not known is not executed: [`Exit::Unknown`].
//! - Each guest access of a word is one host access, each locked instruction
//!   a locked one of the host: other vCPUs may run meanwhile, here or elsewhere.
//! - While a vCPU is in `run` it counts as running in the guest: whoever
//!   changes page tables under it sets its interrupt flag and waits until
//!   `run` has returned, as with a vCPU in the engine.

mod access;
mod code;
mod decode;
mod exec;
mod flags;
mod host;
mod op;
mod pages;
mod phys;
mod state;
mod tlb;
mod walk;

pub use host::FramePtr;
pub use phys::{Frame, FrameUse, GuestPhys};
pub use state::{Cpuid, Model};

use crate::cpu::{Context, Trap};
use code::{Block, CodeCache};
use flags::{AC, TF, VM};
use guest_abi::addr::{GuestVirt, Mfn};
use op::{Flow, Op, slot};
use state::{Cpu, Stop, vector};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Why [`Interpreter::run`] returned. The context is always that of a whole
/// instruction's end or beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The guest trapped, as it would have in the engine.
    Trap(Trap),
    /// The budget is used up.
    Budget,
    /// The instruction at `rip` is for the engine.
    Unknown,
    /// The interrupt flag was set.
    Interrupted,
}

/// What an interpreter has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of `run`.
    pub runs: u64,
    /// Instructions executed.
    pub instructions: u64,
    /// Runs that ended in a trap.
    pub traps: u64,
    /// Runs that ended at an unknown instruction.
    pub unknown: u64,
}

/// The interpreter of one vCPU.
pub struct Interpreter {
    cpu: Cpu,
    code: CodeCache,
    translation_epoch: u64,
    counts: Counts,
}

impl Interpreter {
    /// An interpreter for a vCPU of the domain with this memory.
    #[must_use]
    pub fn new(phys: Arc<dyn GuestPhys>) -> Self {
        let translation_epoch = phys.translation_epoch();
        Interpreter {
            cpu: Cpu::new(phys),
            code: CodeCache::new(),
            translation_epoch,
            counts: Counts::default(),
        }
    }

    /// What the guest can learn of its processor.
    pub fn model(&mut self) -> &mut Model {
        &mut self.cpu.model
    }

    /// What has been done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Drops all cached translations.
    pub fn flush_all(&mut self) {
        self.cpu.tlb.flush_all();
        self.code.forget_addresses();
    }

    /// Drops the cached translations of one page.
    pub fn flush_va(&mut self, address: GuestVirt) {
        self.cpu.tlb.flush_page(address.0);
        self.code.forget_addresses();
    }

    /// Runs `context` under the page tables at `root` for about `budget`
    /// instructions, or until `interrupt` is set. (It is not cleared.)
    ///
    /// Single-stepping and alignment checks are for the engine: with TF or AC
    /// set nothing runs. So are breakpoints: do not call this for a vCPU whose
    /// debug registers are armed.
    pub fn run(
        &mut self,
        context: &mut Context,
        root: Mfn,
        budget: u64,
        interrupt: &AtomicBool,
    ) -> Exit {
        if context.rflags & (TF | VM | AC) != 0 {
            return Exit::Unknown;
        }
        self.synchronise(root);
        self.cpu.enter(context);
        let exit = self.execute(budget, interrupt);
        self.cpu.leave(context);
        self.counts.runs += 1;
        self.counts.traps += u64::from(matches!(exit, Exit::Trap(_)));
        if exit == Exit::Unknown {
            self.counts.unknown += 1;
            self.trace_unknown();
        }
        exit
    }

    /// With tracing of this module, tells which instruction was not known.
    #[cold]
    fn trace_unknown(&mut self) {
        if tracing::enabled!(tracing::Level::TRACE)
            && let Some(instruction) = code::instruction(&mut self.cpu)
        {
            let (code, rip) = (instruction.code(), self.cpu.rip);
            tracing::trace!(?code, rip = format_args!("{rip:#x}"), "unknown");
        }
    }

    /// Drops what may have become stale since the last run.
    fn synchronise(&mut self, root: Mfn) {
        let epoch = self.cpu.phys.translation_epoch();
        if epoch != self.translation_epoch {
            self.translation_epoch = epoch;
            self.flush_all();
        }
        if self.cpu.tlb.select(root) {
            self.code.forget_addresses();
        }
        self.code.next_epoch();
    }

    fn execute(&mut self, budget: u64, interrupt: &AtomicBool) -> Exit {
        let mut left = budget;
        let mut over_code = false;
        loop {
            if interrupt.load(Ordering::Relaxed) {
                return Exit::Interrupted;
            }
            if left == 0 {
                return Exit::Budget;
            }
            let (spent, stop) = if over_code {
                step(&mut self.cpu)
            } else {
                match self.code.find(&mut self.cpu) {
                    Ok(id) => run_block(&mut self.cpu, self.code.block(id)),
                    Err(_) => (0, Some(self.cpu.stop)),
                }
            };
            over_code = false;
            self.counts.instructions += spent;
            left = left.saturating_sub(spent + std::mem::take(&mut self.cpu.extra));
            match stop {
                None => {}
                Some(Stop::OverCode(mfn)) => {
                    self.code.drop_frame(&mut self.cpu, mfn);
                    over_code = true;
                }
                Some(stop) => return exit(stop),
            }
        }
    }
}

/// Executes a block: how many instructions, and what stopped it but its end.
#[inline(always)]
fn run_block(cpu: &mut Cpu, block: &Block) -> (u64, Option<Stop>) {
    cpu.r[usize::from(slot::PAGE)] = cpu.rip & !0xfff;
    for (n, op) in block.ops.iter().enumerate() {
        match (op.run)(cpu, op) {
            Ok(Flow::Next) => {}
            Ok(Flow::Branch) if n + 1 == block.ops.len() => return (u64::from(block.count), None),
            Ok(Flow::Branch) => return (instructions(&block.ops[..=n]), None),
            Err(_) => return (instructions(&block.ops[..n]), Some(stopped(cpu, op))),
        }
    }
    // Every block ends in a branch or a stop.
    (u64::from(block.count), None)
}

/// Operations without a length belong to the instruction next to them.
fn instructions(ops: &[Op]) -> u64 {
    ops.iter().filter(|op| op.len != 0).count() as u64
}

/// Settles `rip`, and which exception a bad address is.
#[cold]
fn stopped(cpu: &mut Cpu, op: &Op) -> Stop {
    if !matches!(cpu.stop, Stop::Syscall | Stop::Breakpoint) {
        cpu.rip = cpu.in_page(u64::from(op.at));
    }
    if cpu.stop == Stop::NotCanonical {
        let stack = op.scale & Op::STACK != 0;
        cpu.stop = Stop::Fault {
            vector: if stack { vector::SS } else { vector::GP },
            error: 0,
            cr2: 0,
        };
    }
    cpu.stop
}

/// Executes the one instruction at `rip` without keeping it decoded.
fn step(cpu: &mut Cpu) -> (u64, Option<Stop>) {
    match code::single(cpu) {
        Ok(block) => run_block(cpu, &block),
        Err(_) => (0, Some(cpu.stop)),
    }
}

fn exit(stop: Stop) -> Exit {
    let exception = |vector, error, cr2| {
        Exit::Trap(Trap::Exception {
            vector,
            error,
            cr2: GuestVirt(cr2),
        })
    };
    match stop {
        Stop::Fault { vector, error, cr2 } => exception(vector, error, cr2),
        Stop::Breakpoint => exception(vector::BP, 0, 0),
        Stop::NotCanonical => exception(vector::GP, 0, 0),
        Stop::Syscall => Exit::Trap(Trap::Syscall),
        // A write over code is carried out, never reported.
        Stop::Unknown | Stop::OverCode(_) => Exit::Unknown,
    }
}
