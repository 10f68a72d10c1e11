//! Run-ahead: after a trap, the process interprets the guest's next
//! instructions itself while the next trap is likely to be near.
//!
//! Where a trap costs as much as several thousand interpreted instructions,
//! and traps come in bursts, staying here is quicker than going back into the
//! VM. How far to go is learnt for each place in the guest: a place from which
//! the next trap was not reached gets a smaller budget the next time, and an
//! occasional new try.
//!
//! Law: the interpreter runs as the guest does: between
//! [`enter_guest`](super::VcpuShared::enter_guest) and
//! [`leave_guest`](super::VcpuShared::leave_guest), with requests as its
//! interrupt. Page-table words that are queued for the VM wait until the next
//! entry; for other vCPUs they are handed over with each flush. In a domain of
//! several vCPUs they are carried out before anything is interpreted: another vCPU may
//! take up a changed table without any flush (a task that moves over), and must
//! not do so with KVM's shadow of the old one.

use super::{Crash, Vcpu};
use crate::{
    cpu::{Context, Trap, reg},
    domain::Domain,
    engine::{Engine, EngineError, Entry},
    interp::{Counts, Exit, Interpreter},
};
use std::sync::{Arc, atomic::Ordering::Relaxed};

/// Instructions that are executed in a microsecond, where much of the code is compiled.
/// A stretch is given up when it has cost as much as the trap that it was to save: then it costs
/// twice the better choice at worst, whatever comes next.
const PER_MICROSECOND: u64 = 400;
/// Bounds of that, for a trial that measured nonsense.
const FULL: std::ops::RangeInclusive<u64> = 2_000..=60_000;
/// Instructions after which what is met [`OFTEN`] is compiled. A domain that lives
/// shorter needs no memory for that.
const COMPILE_AFTER: u64 = 1_000_000;
/// The software engine's code is met less often: it stays in loops.
const OFTEN: u32 = 512;
/// Places that are told apart.
const PLACES: usize = 4096;
/// All places where a kick found the guest in the VM are one: the guest was in a
/// long stretch, and going back to it says nothing about the instruction there.
const KICKED: usize = PLACES;
/// After so many visits, a place that was given up is tried again.
const RETRY: u8 = 24;
/// With more words than this queued the VM is entered, which carries them out.
const MAX_QUEUED: usize = 2048;

/// A place's stretches are followed so much further than the longest of late.
const SLACK: u64 = 2;
/// ... and so far at least.
const LEAST: u64 = 1_000;

/// What is known of one place.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Misses in a row, up to 3.
    misses: u8,
    /// Visits since it was given up.
    skipped: u8,
    /// Instructions to the next trap, where one was reached: a little more than
    /// it mostly takes. 0 is not known.
    reach: u32,
}

impl Place {
    /// How far it is worth to go, when the whole trap is worth `full`.
    fn worth(&self, full: u64) -> u64 {
        match self.reach {
            0 => full,
            reach => (u64::from(reach) * SLACK).clamp(LEAST, full),
        }
    }

    /// A trap was reached after so many instructions.
    fn reached(&mut self, spent: u64) {
        let spent = u32::try_from(spent).unwrap_or(u32::MAX);
        // Quick to grow, slow to shrink.
        let before = self.reach - self.reach / 64;
        (self.misses, self.reach) = (0, before.max(spent).max(1));
    }

    /// None was reached within `budget`.
    fn missed(&mut self, budget: u64, full: u64) {
        if budget < full && self.misses == 0 {
            // It may only take longer than of late.
            self.reach = 0;
        } else {
            self.misses = (self.misses + 1).min(3);
        }
    }
}

/// The interpreter of a vCPU and what it has learnt.
pub struct RunAhead {
    interpreter: Interpreter,
    /// XCR0 that ring 3 sees whatever the guest sets.
    fixed_xcr0: Option<u64>,
    compiles: bool,
    /// Instructions worth one trap.
    full: u64,
    places: Box<[Place; PLACES + 1]>,
}

impl RunAhead {
    /// An interpreter for a vCPU of this domain.
    #[must_use]
    pub fn new(domain: &Domain) -> Self {
        let cpuid = domain.cpuid.clone();
        let mut interpreter = Interpreter::new(Arc::clone(&domain.space) as _);
        interpreter.model().cpuid = Some(Box::new(move |leaf, subleaf| {
            let leaf = cpuid.lookup(leaf, subleaf);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        }));
        // What `rdmsr` of it gives as well.
        interpreter.model().tsc_aux = Some(0);
        let traits = domain.host.kvm().map(|kvm| kvm.traits);
        let fixed_xcr0 = traits.and_then(|traits| traits.fixed_xcr0);
        let trap = traits.map_or(0, |traits| traits.trap.as_micros());
        let worth = u64::try_from(trap)
            .unwrap_or(u64::MAX)
            .saturating_mul(PER_MICROSECOND);
        interpreter.model().xcr0 = fixed_xcr0.or(Some(1));
        RunAhead {
            interpreter,
            fixed_xcr0,
            compiles: false,
            full: worth.clamp(*FULL.start(), *FULL.end()),
            places: Box::new([Place::default(); PLACES + 1]),
        }
    }

    /// What the interpreter did.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.interpreter.counts()
    }

    /// The guest has set XCR0.
    pub fn set_xcr0(&mut self, value: u64) {
        self.interpreter.model().xcr0 = self.fixed_xcr0.or(Some(value));
    }

    /// Gives the vector and x87 registers to the engine, before it runs.
    ///
    /// # Errors
    /// The engine's.
    pub fn hand_over_fpu(&mut self, engine: &mut Engine) -> Result<(), EngineError> {
        if let Some(state) = self.interpreter.fpu_changes() {
            engine.set_fpu(state)?;
        }
        self.interpreter.forget_fpu();
        Ok(())
    }

    /// Drops cached translations.
    pub fn flush(&mut self) {
        self.interpreter.flush_all();
    }

    /// Compiles from now on, once there was enough to do.
    fn compile_if_busy(&mut self) {
        if !self.compiles && self.interpreter.used() > COMPILE_AFTER {
            self.compiles = true;
            self.interpreter.compile(Some(OFTEN));
        }
    }

    /// The stack's depth tells callers of one function apart; `why` is what the
    /// last trap was, for what follows `read` differs from what follows `getpid`.
    fn place(context: &Context, why: u64) -> usize {
        let mixed = context.rip.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ (context.gpr[reg::RSP] & 0x3fff) << 40
            ^ why.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        usize::try_from(mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 52).unwrap_or(0) % PLACES
    }

    fn budget(&mut self, place: usize) -> u64 {
        let known = &mut self.places[place];
        match known.misses {
            0 => known.worth(self.full),
            1 => self.full / 2,
            2 => self.full / 8,
            _ if known.skipped >= RETRY => {
                known.skipped = 0;
                self.full
            }
            _ => {
                known.skipped += 1;
                0
            }
        }
    }
}

/// Where a context is: instruction and stack.
pub(super) fn at(context: &Context) -> (u64, u64) {
    (context.rip, context.gpr[reg::RSP])
}

impl Vcpu {
    /// Interprets on from here; the trap that was reached, or `None` when the
    /// VM shall go on.
    pub(super) fn run_ahead(&mut self) -> Result<Option<Trap>, Crash> {
        let Some(ahead) = &mut self.ahead else {
            return Ok(None);
        };
        let place = if self.kicked_at == Some(at(&self.state.context)) {
            KICKED
        } else {
            RunAhead::place(&self.state.context, self.why)
        };
        let budget = ahead.budget(place);
        if budget == 0 || !self.settle_tables()? {
            return Ok(None);
        }
        self.interpret(place, budget)
    }

    /// Deals with queued page-table words before the interpreter goes on:
    /// whether it may.
    pub(super) fn settle_tables(&mut self) -> Result<bool, Crash> {
        if self.writes.get_mut().words().len() > MAX_QUEUED {
            self.writes.get_mut().settle();
        }
        let queued = self.writes.get_mut().words().len();
        let alone = self
            .domain
            .vcpus
            .iter()
            .filter(|vcpu| vcpu.has_thread())
            .count()
            == 1;
        if alone || queued == 0 {
            return Ok(queued <= MAX_QUEUED);
        }
        self.write_tables()?;
        Ok(true)
    }

    /// Has the engine carry out the queued page-table words now.
    pub(super) fn write_tables(&mut self) -> Result<(), Crash> {
        let root = self.state.root();
        self.engine.write_tables(&mut Entry {
            root,
            context: &mut self.state.context,
            flush: self.flush.replace(false),
            writes: self.writes.get_mut(),
        })?;
        Ok(())
    }

    fn interpret(&mut self, place: usize, budget: u64) -> Result<Option<Trap>, Crash> {
        let root = self.state.root();
        let Some(ahead) = &mut self.ahead else {
            return Ok(None);
        };
        if self.flush_ahead.replace(false) {
            ahead.flush();
        }
        ahead.compile_if_busy();
        ahead.interpreter.model().selectors = self.engine.selectors();
        let (from, before) = (self.state.context.rip, ahead.interpreter.used());
        let mut run = |ahead: &mut RunAhead| {
            let (context, interrupt) = (&mut self.state.context, self.shared.interrupt());
            ahead.interpreter.run(context, root, budget, interrupt)
        };
        let mut exit = run(ahead);
        if exit == Exit::NeedsFpu {
            // Fetched where it is needed: most stretches are the kernel's.
            ahead.interpreter.load_fpu(&self.engine.fpu()?);
            exit = run(ahead);
        }
        let spent = ahead.interpreter.used() - before;
        self.domain.counts.interpreted.fetch_add(spent, Relaxed);
        tracing::trace!(
            from = format_args!("{from:#x}"),
            to = format_args!("{:#x}", self.state.context.rip),
            place,
            budget,
            spent,
            ?exit,
            "ran ahead"
        );
        Ok(match exit {
            Exit::Trap(trap) => {
                ahead.places[place].reached(spent);
                Some(trap)
            }
            Exit::Interrupted => Some(Trap::Kick),
            Exit::Budget => {
                let full = ahead.full;
                ahead.places[place].missed(budget, full);
                None
            }
            Exit::Unknown | Exit::NeedsFpu => None,
        })
    }
}
