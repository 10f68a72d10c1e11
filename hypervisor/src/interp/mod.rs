//! An interpreter of ring-3 code: run-ahead, and the software engine.
//!
//! Where a trap to the hypervisor process is dear, the process does not go
//! back to the engine after it: it interprets the guest's next instructions
//! itself, for as long as the next trap is likely to be near. A vCPU's whole
//! state is a [`Context`] and memory, so it may change over at any instruction.
//!
//! ```text
//!   Interpreter::run ── CodeCache (code)  decoded blocks by machine address
//!        │                  ├ decode, exec/*   operand shapes, handlers
//!        │                  └ compiled/*       the same for what is met often, compiled
//!        └──────────── Cpu (state)  registers, flags
//!                           ├ access, tlb, walk   guest virtual memory
//!                           ├ vector   vector and x87 registers, stubs
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
mod careful;
mod code;
mod compiled;
mod decode;
mod describe;
mod exec;
mod far;
mod flags;
mod host;
mod op;
mod pages;
mod phys;
mod split;
mod state;
mod tlb;
mod vector;
mod walk;

pub use careful::Breakpoints;
pub use far::{Far, FarKind, POPPED};
pub use host::FramePtr;
pub use phys::{Frame, FrameUse, GuestPhys};
pub use state::{Cpuid, Model};

use crate::{
    cpu::{Context, Trap},
    fpu::FpuState,
};
use code::{Block, CodeCache};
use compiled::{Compiled, Left, Way};
use exec::string::CHUNK;
pub(crate) use flags::RF;
use flags::{AC, TF, VM};
use guest_abi::addr::{GuestVirt, Mfn};
use op::{Flow, Op, slot};
use state::{Cpu, Stop};
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
    /// The instruction at `rip` needs the vector and x87 registers: give them
    /// by [`Interpreter::load_fpu`] and go on.
    NeedsFpu,
}

/// What an interpreter has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of `run`.
    pub runs: u64,
    /// Instructions executed.
    pub instructions: u64,
    /// Of these, in compiled code.
    pub compiled: u64,
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
    used: u64,
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
            used: 0,
        }
    }

    /// How much budget all runs together have used: instructions, and repeated
    /// ones for what they moved.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
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

    /// What ES, CS, SS, DS, FS and GS hold, where that is certain.
    #[must_use]
    pub fn selectors(&self) -> [Option<u16>; 6] {
        self.cpu.model.selectors
    }

    /// Compiles code that is met `often` times, for one that executes stretches now and
    /// then; or, for one that executes everything, as often as is usual, with translations in
    /// place everywhere. Without what it takes, code is interpreted as before.
    pub fn compile(&mut self, often: Option<u32>) {
        if !compiled::is_possible() {
            return;
        }
        match Compiled::new(often.unwrap_or(compiled::OFTEN), often.is_none()) {
            Ok(compiled) => {
                self.code.clear(&mut self.cpu);
                self.cpu.compiled = Some(Box::new(compiled));
                self.cpu.tlb.enable_fast();
            }
            Err(error) => tracing::warn!(%error, "no memory for compiled code: it is interpreted"),
        }
    }

    /// Gives the vCPU's vector and x87 registers to the interpreter.
    pub fn load_fpu(&mut self, state: &FpuState) {
        self.cpu.vector.load(state);
    }

    /// The vector and x87 registers, if they are here.
    #[must_use]
    pub fn fpu(&self) -> Option<&FpuState> {
        self.cpu.vector.state()
    }

    /// The vector and x87 registers, if they are here and have changed since
    /// they came or since the last call of this.
    pub fn fpu_changes(&mut self) -> Option<&FpuState> {
        self.cpu.vector.changes()
    }

    /// Forgets the vector and x87 registers: somebody else has them now.
    pub fn forget_fpu(&mut self) {
        self.cpu.vector.forget();
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

    /// Drops what was decoded and compiled of a frame.
    pub fn forget_code(&mut self, frame: Mfn) {
        self.code.drop_frame(&mut self.cpu, frame);
    }

    /// Runs `context` under the page tables at `root` for about `budget`
    /// instructions, or until `interrupt` is set. (It is not cleared.)
    ///
    /// Single-stepping and alignment checks are for the engine: with TF or AC
    /// set nothing runs, unless the interpreter is [alone](Model::alone): then
    /// both are obeyed, and so are breakpoints. One that is not alone is not called
    /// for a vCPU whose debug registers are armed.
    pub fn run(
        &mut self,
        context: &mut Context,
        root: Mfn,
        budget: u64,
        interrupt: &AtomicBool,
    ) -> Exit {
        let for_engine = context.rflags & (TF | AC) != 0 && !self.cpu.model.alone;
        if for_engine || context.rflags & VM != 0 {
            return Exit::Unknown;
        }
        self.synchronise(root);
        self.cpu.enter(context);
        let resumed = context.rflags & RF != 0;
        let exit = match (context.rflags & TF != 0, self.is_careful()) {
            (false, false) => self.execute(budget, interrupt),
            (false, true) => self.execute_carefully(budget, interrupt, resumed),
            (true, false) => self.single_step(),
            (true, true) => self.careful_step(resumed).unwrap_or(Exit::Budget),
        };
        self.cpu.leave(context);
        if is_fault(exit) {
            // Whoever goes on with the instruction has met its breakpoint already.
            context.rflags |= RF;
        }
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

    /// The instruction at `context` and its bytes, for people. `None` if the
    /// processor that the guest sees has no such instruction.
    #[must_use]
    pub fn describe(&mut self, context: &Context, root: Mfn) -> Option<String> {
        self.synchronise(root);
        self.cpu.enter(context);
        let instruction = code::instruction(&mut self.cpu)?;
        describe::describe(&mut self.cpu, &instruction)
    }

    /// The instruction at `context`, as far as its page has it.
    #[must_use]
    pub fn instruction(&mut self, context: &Context, root: Mfn) -> Option<iced_x86::Instruction> {
        self.synchronise(root);
        self.cpu.enter(context);
        code::instruction(&mut self.cpu)
    }

    /// Executes one instruction, or one element of a repeated one, and traps.
    #[cold]
    fn single_step(&mut self) -> Exit {
        match self.step_once() {
            None | Some(Stop::Again) => exit(Stop::Software(state::vector::DB)),
            Some(stop) => exit(stop),
        }
    }

    /// Executes one instruction, or one element of a repeated one: what stopped it.
    fn step_once(&mut self) -> Option<Stop> {
        self.cpu.chunk = 1;
        let mut split = false;
        let stop = loop {
            let (spent, stop) = step(&mut self.cpu, split);
            self.counts.instructions += spent;
            match stop {
                Some(Stop::OverCode(mfn)) => self.code.drop_frame(&mut self.cpu, mfn),
                Some(Stop::SplitLock) => split = true,
                Some(Stop::Unknown) if self.start_anew() => {}
                stop => break stop,
            }
        };
        self.cpu.chunk = CHUNK;
        stop
    }

    /// Whether an instruction was unknown for want of room for its stub; then there is
    /// room now.
    #[cold]
    fn start_anew(&mut self) -> bool {
        let full = self.cpu.vector.plans.is_full();
        if full {
            self.code.clear(&mut self.cpu);
        }
        full
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
        self.code.make_room(&mut self.cpu);
        self.code.set_still(self.cpu.phys.still_epoch());
        self.cpu.negative_epoch = self.code.epoch().wrapping_neg();
        self.cpu.negative_still = self.code.still().wrapping_neg();
        self.cpu.jump_tag = self.code.jump_tag(&self.cpu);
        if let Some(compiled) = &mut self.cpu.compiled {
            compiled.keep_returns_of(self.cpu.jump_tag);
        }
    }

    fn execute(&mut self, budget: u64, interrupt: &AtomicBool) -> Exit {
        let mut left = budget;
        let mut alone = Alone::No;
        let mut last = Left::Next;
        loop {
            if interrupt.load(Ordering::Relaxed) {
                return Exit::Interrupted;
            }
            if left == 0 {
                return Exit::Budget;
            }
            let (spent, stop) = if alone == Alone::No {
                self.advance(left, &mut last)
            } else {
                step(&mut self.cpu, alone == Alone::Split)
            };
            alone = Alone::No;
            self.counts.instructions += spent;
            let cost = spent + std::mem::take(&mut self.cpu.extra);
            left = left.saturating_sub(cost);
            self.used += cost;
            match stop {
                None => {}
                Some(Stop::OverCode(mfn)) => {
                    self.code.drop_frame(&mut self.cpu, mfn);
                    alone = Alone::OverCode;
                }
                Some(Stop::SplitLock) => alone = Alone::Split,
                Some(Stop::Again) => return Exit::Budget,
                Some(Stop::Unknown) if self.start_anew() => {}
                Some(stop) => return exit(stop),
            }
        }
    }
}

impl Interpreter {
    /// Executes what is at `rip`, in its compiled form if it has one: how many
    /// instructions, and what stopped it but its end.
    #[inline(always)]
    fn advance(&mut self, left: u64, last: &mut Left) -> (u64, Option<Stop>) {
        let Ok(id) = self.code.find(&mut self.cpu) else {
            return (0, Some(self.cpu.stop));
        };
        if self.cpu.compiled.is_some()
            && left >= compiled::LEAST
            && *last != Left::Interpret
            && let Some(way) = self.code.way(&mut self.cpu, id)
        {
            return self.visit(way, left, last);
        }
        *last = Left::Next;
        run_block(&mut self.cpu, self.code.block(id))
    }

    fn visit(&mut self, way: Way, left: u64, last: &mut Left) -> (u64, Option<Stop>) {
        if let Some(compiled) = &mut self.cpu.compiled {
            compiled.remember(self.cpu.rip, self.cpu.jump_tag, way);
            if let Left::Link(link) = *last {
                compiled.link(link, way);
            }
        }
        let (spent, left) = compiled::run(&mut self.cpu, way, left);
        *last = left;
        self.counts.compiled += spent;
        (spent, (left == Left::Stopped).then_some(self.cpu.stop))
    }
}

/// Whether a processor would set RF in the flags that it saves: at every exception but
/// those behind an instruction, and an instruction breakpoint.
fn is_fault(exit: Exit) -> bool {
    use state::vector::{BP, DB, OF};
    match exit {
        Exit::Trap(Trap::Exception { vector, .. }) => !matches!(vector, DB | BP | OF),
        _ => false,
    }
}

/// Whether the next instruction is executed by itself, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    No,
    /// It writes over decoded code.
    OverCode,
    /// It locks an operand across two cache lines.
    Split,
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
    if !matches!(cpu.stop, Stop::Syscall | Stop::Software(_) | Stop::Again) {
        cpu.rip = cpu.in_page(u64::from(op.at));
    }
    if cpu.stop == Stop::NotCanonical {
        let stack = op.scale & Op::STACK != 0;
        cpu.stop = Stop::Fault {
            vector: if stack {
                state::vector::SS
            } else {
                state::vector::GP
            },
            error: 0,
            cr2: 0,
        };
    }
    cpu.stop
}

/// Executes the one instruction at `rip` without keeping it decoded; with
/// `split`, its locked operand lies across two cache lines.
fn step(cpu: &mut Cpu, split: bool) -> (u64, Option<Stop>) {
    let block = match code::single(cpu) {
        Ok(block) => block,
        Err(_) => return (0, Some(cpu.stop)),
    };
    if !split {
        return run_block(cpu, &block);
    }
    let _bus = split::lock_bus();
    cpu.split = Some(split::SplitOperand::default());
    let (spent, stop) = run_block(cpu, &block);
    if let Some(operand) = cpu.split.take()
        && stop.is_none()
    {
        operand.write_back();
    }
    (spent, stop)
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
        Stop::Software(vector) => exception(vector, 0, 0),
        Stop::NotCanonical => exception(state::vector::GP, 0, 0),
        Stop::Syscall => Exit::Trap(Trap::Syscall),
        Stop::NeedsFpu => Exit::NeedsFpu,
        // What the loop deals with by itself is never reported.
        Stop::Unknown | Stop::OverCode(_) | Stop::SplitLock | Stop::Again => Exit::Unknown,
    }
}
