//! The checker: sampled stretches of guest code are executed three times, by compiled code
//! and by the interpreter on copies of memory, and by KVM in single steps, and compared; and
//! sampled pages are read from inside the VM and compared with what the tables in
//! memory say, which finds shadow entries that are older than their tables.
//!
//! ```text
//!   path       the interpreter alone: how the stretch goes, where it can be stopped
//!   compiled   the same as compiled code, to the stop; compared with the interpreter
//!   here       interpreter and KVM step by step, compared after each;
//!              at the stop KVM is compared with compiled code, too
//!   probe      pages as KVM's own tables map them
//!   still      the domain's other vCPUs stand still all the time
//! ```
//!
//! A debug mode (`--check-every`): a step costs a trap.
//!
//! Law: KVM's result is the one that counts; the guest notices nothing but time.
//! What they may see differently (time, random numbers, the trap flag in a
//! pushed word, what only a descriptor table tells) ends a stretch before it is executed.
//! Bytes that other threads of the hypervisor or Dom0 write at any time (events, grant tables,
//! frames that somebody has mapped by a grant) are not compared, and an instruction that saw
//! such a change which came in between is no difference.

mod compiled;
mod copied;
mod path;
mod probe;
mod still;
#[cfg(test)]
mod tests;
mod twin;

pub use still::Stillness;

use super::{Crash, Vcpu, request};
use crate::{
    cpu::{Context, Trap},
    engine::{EngineKind, Entry},
    events::VCPU_INFO_BYTES,
    fpu::FpuState,
    interp::Exit,
    memory::BASE_MFN,
    space::Tables,
};
use compiled::{Run, Start};
use guest_abi::addr::{GuestVirt, MachineAddr, Mfn};
use path::{Path, is_step};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use twin::{TF, Twin, comparable, is_comparable, plain, undefined_flags};

/// Steps of a stretch.
const STEPS: usize = 48;
/// Steps of a long one, and every how many is one.
const LONG: (usize, u64) = (320, 8);
/// So long an event may have to wait for a stretch's end: with a step that costs 100
/// microseconds, the guest's own timer would end most of them.
const PATIENCE: Duration = Duration::from_millis(40);
/// Differences that are told in full.
const TOLD: u64 = 20;
const PAGE_FAULT: u8 = 14;

/// What was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckCounts {
    stretches: u64,
    steps: u64,
    /// Stretches of which compiled code came to the same end as KVM.
    compiled: u64,
    probes: u64,
    differences: u64,
}

impl fmt::Display for CheckCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} stretches, {} steps, {} compiled, {} probes, {} differences",
            self.stretches, self.steps, self.compiled, self.probes, self.differences
        )
    }
}

/// The checker of a vCPU.
pub struct Checker {
    every: u64,
    entries: u64,
    interpreted: Twin,
    compiled: Twin,
    random: u64,
    /// When the stretch began, and whether a kick has waited since.
    began: Instant,
    kicked: bool,
    counts: CheckCounts,
}

impl Checker {
    /// For a vCPU of `domain`, if checks are wanted.
    #[must_use]
    pub fn new(domain: &crate::domain::Domain) -> Option<Self> {
        let every = domain.host.check_every()?;
        let twin = |source| {
            let cpuid = domain.cpuid.clone();
            let cpuid = Box::new(move |leaf, subleaf| {
                let leaf = cpuid.lookup(leaf, subleaf);
                [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
            });
            Twin::new(Arc::clone(&domain.space), source, Some(cpuid))
        };
        let interpreted = twin(None);
        let mut compiled = twin(Some(&interpreted));
        compiled.interpreter.compile(Some(1));
        Some(Checker {
            every,
            entries: 0,
            interpreted,
            compiled,
            random: every | 1,
            began: Instant::now(),
            kicked: false,
            counts: CheckCounts::default(),
        })
    }

    /// What was checked so far.
    #[must_use]
    pub fn counts(&self) -> CheckCounts {
        self.counts
    }

    /// Begins a stretch: how many steps it has at most.
    fn begin(&mut self, fpu: &FpuState, xcr0: u64) -> usize {
        self.interpreted.begin(fpu, xcr0);
        self.compiled.begin(fpu, xcr0);
        self.counts.stretches += 1;
        (self.began, self.kicked) = (Instant::now(), false);
        let (long, every) = LONG;
        if self.counts.stretches.is_multiple_of(every) {
            long
        } else {
            STEPS
        }
    }
}

/// How a step of both ended.
enum Step {
    /// Alike.
    Same,
    /// It can't be compared, or they are not to be compared any further; with the trap that
    /// the vCPU has to deal with.
    End(Option<Trap>),
}

impl Vcpu {
    /// Now and then, checks a stretch; the trap that ended it.
    pub(super) fn check(&mut self) -> Result<Option<Trap>, Crash> {
        let due = self.checker.as_mut().is_some_and(|checker| {
            checker.entries += 1;
            checker.entries.is_multiple_of(checker.every)
        });
        if !due || self.engine.kind() != EngineKind::Kvm || self.state.context.rflags & TF != 0 {
            return Ok(None);
        }
        let Some(held) = self.hold_others() else {
            return Ok(None);
        };
        if held.others {
            // Another one may have changed a table, and not yet asked for the flush that the
            // change needs.
            self.flush.set(true);
        }
        let Some(mut checker) = self.checker.take() else {
            return Ok(None);
        };
        let result = self.check_stretch(&mut checker);
        let result = match result {
            Ok(None) => self.probe_pages(&mut checker),
            result => result,
        };
        self.checker = Some(checker);
        result
    }

    fn check_stretch(&mut self, checker: &mut Checker) -> Result<Option<Trap>, Crash> {
        if let Some(ahead) = &mut self.ahead {
            ahead.hand_over_fpu(&mut self.engine)?;
        }
        let fpu = self.engine.fpu()?;
        let most = checker.begin(&fpu, self.state.xcr0);
        let compiled = self.run_compiled(checker, &fpu, most);
        checker.interpreted.begin(&fpu, self.state.xcr0);
        let most = compiled.as_ref().map_or(most, |run| run.steps.max(STEPS));
        let mut ended = None;
        for step in 0..=most {
            let run = compiled.as_ref().filter(|run| run.steps == step);
            if let Some(run) = run.filter(|run| run.breakpoint.is_some()) {
                self.compare_compiled(checker, run)?;
            }
            if step == most {
                break;
            }
            if let Step::End(trap) = self.check_step(checker)? {
                ended = trap;
                // It has trapped as the compiled code has.
                let trapped = trap.is_some_and(|trap| trap != Trap::Kick);
                if let Some(run) = run.filter(|run| trapped && run.breakpoint.is_none()) {
                    self.compare_compiled(checker, run)?;
                }
                break;
            }
        }
        if ended == Some(Trap::Kick) {
            // Nothing was executed; memory of the copy may be ahead by now.
            return Ok(ended);
        }
        self.compare_rest(checker)?;
        Ok(ended.or(checker.kicked.then_some(Trap::Kick)))
    }

    /// Runs the stretch as compiled code; compares that with the interpreter.
    fn run_compiled(&self, checker: &mut Checker, fpu: &FpuState, most: usize) -> Option<Run> {
        let (context, root) = (plain(&self.state.context), self.state.root());
        let start = Start {
            context: &context,
            root,
            fpu,
        };
        let Checker {
            interpreted,
            compiled,
            ..
        } = checker;
        let path = Path::walk(interpreted, &context, root, most);
        let place = |rip| self.machine_place(root, rip);
        match compiled::run(compiled, interpreted, &path, &start, place)? {
            Ok(run) => Some(run),
            Err(_) if self.is_disturbed(checker) => None,
            Err(text) => {
                self.tell(checker, &context, &text);
                None
            }
        }
    }

    /// The machine address of a byte of code.
    fn machine_place(&self, root: Mfn, rip: u64) -> Option<MachineAddr> {
        let tables = Tables::read_only(&self.domain.space);
        let found = self.lock_mm().translate(&tables, root, GuestVirt(rip))?;
        Some(MachineAddr(found.mfn.addr()?.0 + found.offset))
    }

    /// Executes one step on both sides.
    fn check_step(&mut self, checker: &mut Checker) -> Result<Step, Crash> {
        let (before, root) = (self.state.context, self.state.root());
        let next = checker.interpreted.instruction(&before, root);
        let Some(next) = next.filter(is_comparable) else {
            return Ok(Step::End(None));
        };
        let (interpreted, exit) = checker.interpreted.step(&before, root);
        let Exit::Trap(expected) = exit else {
            return Ok(Step::End(None));
        };
        let mut trap = self.step_on_kvm()?;
        while trap == Trap::Kick && self.may_wait(checker) {
            checker.kicked = true;
            trap = self.step_on_kvm()?;
        }
        if trap == Trap::Kick {
            return Ok(Step::End(Some(trap)));
        }
        checker.counts.steps += 1;
        let ended = (!is_step(trap)).then_some(trap);
        if is_page_fault(trap) && is_step(expected) {
            // A translation that was older than the tables: retried.
            return Ok(Step::End(ended));
        }
        let undefined = undefined_flags(&next, 0);
        let ours = comparable(&interpreted, undefined);
        let theirs = comparable(&self.state.context, undefined);
        if same_trap(expected, trap) && ours == theirs {
            return Ok(ended.map_or(Step::Same, |trap| Step::End(Some(trap))));
        }
        if !self.is_disturbed(checker) {
            let text = format!("{expected:?} {ours:x?} interpreted, {trap:?} {theirs:x?} on KVM");
            self.tell(checker, &before, &text);
        }
        Ok(Step::End(ended))
    }

    fn step_on_kvm(&mut self) -> Result<Trap, Crash> {
        self.state.context.rflags |= TF;
        let trap = self.engine.run(&mut Entry {
            root: self.state.root(),
            context: &mut self.state.context,
            flush: self.flush.replace(false),
            writes: self.writes.get_mut(),
        });
        self.state.context = plain(&self.state.context);
        Ok(trap?)
    }

    /// Whether what the vCPU was kicked for has time: an event has, somebody who waits for
    /// it has not.
    fn may_wait(&self, checker: &Checker) -> bool {
        let events = request::EVENT | request::TIMER | request::POLL;
        !self.shared.has_requests_but(events) && checker.began.elapsed() < PATIENCE
    }

    /// KVM has come to where compiled code did.
    fn compare_compiled(&mut self, checker: &mut Checker, run: &Run) -> Result<(), Crash> {
        let context = self.state.context;
        let (ours, theirs) = (&checker.compiled.phys, &checker.interpreted.phys);
        let disturbed = self.is_disturbed(checker) || !ours.began_as(theirs, run.breakpoint);
        if disturbed {
            return Ok(());
        }
        let kvm = self.engine.fpu()?;
        let others = self.written_by_others();
        let difference = run
            .differs_from(&context)
            .or_else(|| checker.compiled.vectors_differ(&kvm))
            .or_else(|| checker.compiled.phys.first_difference(others));
        match difference {
            Some(text) => self.tell(
                checker,
                &context,
                &format!("compiled code before here: {text}"),
            ),
            None => checker.counts.compiled += u64::from(run.compiled),
        }
        Ok(())
    }

    /// Vector registers, and each word of memory that the interpreter changed.
    fn compare_rest(&mut self, checker: &mut Checker) -> Result<(), Crash> {
        let context = self.state.context;
        let kvm = self.engine.fpu()?;
        if let Some(text) = checker.interpreted.vectors_differ(&kvm) {
            self.tell(checker, &context, &text);
        }
        let others = self.written_by_others();
        if let Some(byte) = checker.interpreted.phys.first_difference(others) {
            self.tell(checker, &context, &format!("memory before here: {byte}"));
        }
        Ok(())
    }

    /// Whether something that the copies hold is no longer so, because somebody else has
    /// written it; or is not of this domain.
    fn is_disturbed(&self, checker: &Checker) -> bool {
        let phys = &checker.interpreted.phys;
        phys.met_foreign() || phys.changed_behind(self.written_by_others())
    }

    /// What other threads may write at any time: where vCPUs' events are told of, the
    /// hypervisor's frames, and what somebody has mapped by a grant.
    fn written_by_others(&self) -> impl Fn(MachineAddr) -> bool + use<> {
        let domain = &self.domain;
        let areas = domain.vcpus.iter().filter_map(|vcpu| {
            let start = domain.delivery.area(vcpu.id)?.with(|at| at.0)?;
            Some(start..start + VCPU_INFO_BYTES)
        });
        let areas: Vec<_> = areas.collect();
        let granted = domain.grants.written_by_others();
        move |at| {
            at.0 < BASE_MFN.0 << 12
                || areas.iter().any(|area| area.contains(&at.0))
                || granted.contains(&at.frame())
        }
    }

    fn tell(&self, checker: &mut Checker, at: &Context, what: &str) {
        checker.counts.differences += 1;
        if checker.counts.differences > TOLD {
            return;
        }
        let root = self.state.root();
        let instruction = checker.interpreted.interpreter.describe(at, root);
        let (domain, vcpu) = (self.domain.id, self.shared.id);
        let code = self.fetch();
        let text = format!(
            "domain {domain} vCPU {vcpu}: checker: difference at {}, bytes {code:02x?}: {what}\n",
            instruction.unwrap_or_else(|| format!("{:#x}", at.rip))
        );
        tracing::error!("{}", text.trim_end());
        self.domain.host.console.print(&text);
    }
}

fn is_page_fault(trap: Trap) -> bool {
    matches!(
        trap,
        Trap::Exception {
            vector: PAGE_FAULT,
            ..
        }
    )
}

/// Whether KVM's trap is the interpreter's.
fn same_trap(ours: Trap, theirs: Trap) -> bool {
    let key = |trap| match trap {
        Trap::Exception { vector, error, cr2 } => {
            let address = (vector == PAGE_FAULT).then_some(cr2);
            Some((vector, error, address))
        }
        _ => None,
    };
    key(ours) == key(theirs)
}
