//! The checker: sampled stretches of guest code are executed twice, by the
//! interpreter on a copy of memory and by KVM in single steps, and compared; and
//! sampled pages are read from inside the VM and compared with what the tables in
//! memory say, which finds shadow entries that are older than their tables.
//!
//! A debug mode (`--check-every`): a step costs a trap.
//!
//! Law: KVM's result is the one that counts; the guest notices nothing but time.
//! What the two may see differently (time, random numbers, the trap flag in a
//! pushed word, what only a descriptor table tells) ends a stretch before it is executed.
//! Bytes that other threads of the hypervisor write at any time (events, grant tables) are
//! not compared, and an instruction that saw an event which came in between is no
//! difference. A domain with several vCPUs is not checked: another one may change what is
//! compared.

mod copied;
mod probe;

use super::{Crash, Vcpu};
use crate::{
    cpu::{Context, Trap},
    engine::{EngineKind, Entry},
    events::VCPU_INFO_BYTES,
    fpu::FpuState,
    interp::{Exit, Far, GuestPhys, Interpreter},
    memory::BASE_MFN,
};
use copied::CopiedPhys;
use guest_abi::addr::{MachineAddr, Mfn};
use iced_x86::{Instruction, Mnemonic};
use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
};

/// Instructions of one stretch.
const STEPS: u32 = 48;
/// Differences that are told in full.
const TOLD: u64 = 20;
const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;
/// The vector of a single step.
const DEBUG: u8 = 1;
const PAGE_FAULT: u8 = 14;

/// What was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckCounts {
    stretches: u64,
    steps: u64,
    probes: u64,
    differences: u64,
}

impl fmt::Display for CheckCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} stretches, {} steps, {} probes, {} differences",
            self.stretches, self.steps, self.probes, self.differences
        )
    }
}

/// The checker of a vCPU.
pub struct Checker {
    every: u64,
    entries: u64,
    phys: Arc<CopiedPhys>,
    interpreter: Interpreter,
    random: u64,
    counts: CheckCounts,
}

impl Checker {
    /// For a vCPU of `domain`, if checks are wanted.
    #[must_use]
    pub fn new(domain: &crate::domain::Domain) -> Option<Self> {
        let every = domain.host.check_every()?;
        let phys = Arc::new(CopiedPhys::new(Arc::clone(&domain.space)));
        let mut interpreter = Interpreter::new(Arc::clone(&phys) as Arc<dyn GuestPhys>);
        let cpuid = domain.cpuid.clone();
        let model = interpreter.model();
        model.alone = true;
        model.tsc_aux = Some(0);
        model.cpuid = Some(Box::new(move |leaf, subleaf| {
            let leaf = cpuid.lookup(leaf, subleaf);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        }));
        Some(Checker {
            every,
            entries: 0,
            phys,
            interpreter,
            random: every | 1,
            counts: CheckCounts::default(),
        })
    }

    /// What was checked so far.
    #[must_use]
    pub fn counts(&self) -> CheckCounts {
        self.counts
    }

    /// Begins a stretch.
    fn begin(&mut self, fpu: &FpuState, xcr0: u64) {
        self.interpreter.flush_all();
        self.phys.reset();
        self.interpreter.load_fpu(fpu);
        self.interpreter.model().xcr0 = Some(xcr0);
        self.counts.stretches += 1;
    }

    /// Whether both may execute the next instruction.
    fn comparable(&mut self, context: &Context, root: Mfn) -> bool {
        use Mnemonic as M;
        let next = self.interpreter.instruction(context, root);
        next.is_some_and(|next| {
            !matches!(
                next.mnemonic(),
                M::Rdtsc
                    | M::Rdtscp
                    | M::Rdrand
                    | M::Rdseed
                    | M::Rdpid
                    | M::Cpuid
                    | M::Xgetbv
                    | M::Pushf
                    | M::Pushfq
                    | M::Popf
                    | M::Popfq
                    | M::Lar
                    | M::Lsl
                    | M::Verr
                    | M::Verw
                    | M::Int
                    | M::Int3
                    | M::Int1
                    | M::Syscall
                    | M::Sysenter
                    | M::Pop
            ) || next.mnemonic() == M::Pop && next.op0_register().is_gpr()
        }) && next.is_some_and(|next| {
            Far::of(&next).is_none()
                && !(0..next.op_count()).any(|n| next.op_register(n).is_segment_register())
        })
    }
}

/// Flags that are compared: those of ring 3 but TF and RF.
const COMPARED: u64 = 0x0024_0cd5;

/// A context with only the flags that both must agree on.
fn comparable_flags(context: &Context) -> Context {
    Context {
        rflags: context.rflags & COMPARED,
        ..*context
    }
}

/// The flags that an instruction leaves undefined, and that this processor makes
/// depend on the form of its count: OF after shifts and rotations.
fn undefined_flags(instruction: Option<Instruction>) -> u64 {
    use Mnemonic as M;
    const OF: u64 = 1 << 11;
    let shifts = instruction.is_some_and(|instruction| {
        matches!(
            instruction.mnemonic(),
            M::Rol
                | M::Ror
                | M::Rcl
                | M::Rcr
                | M::Shl
                | M::Sal
                | M::Shr
                | M::Sar
                | M::Shld
                | M::Shrd
        )
    });
    if shifts { OF } else { 0 }
}

/// A context without what single-stepping leaves in its flags.
fn plain(context: &Context) -> Context {
    Context {
        rflags: context.rflags & !(TF | RF),
        ..*context
    }
}

impl Vcpu {
    /// Now and then, checks a stretch; the trap that ended it.
    pub(super) fn check(&mut self) -> Result<Option<Trap>, Crash> {
        let alone = || self.domain.vcpus.iter().filter(|v| v.has_thread()).count() == 1;
        let due = self.checker.as_mut().is_some_and(|checker| {
            checker.entries += 1;
            checker.entries.is_multiple_of(checker.every)
        });
        if !due
            || self.engine.kind() != EngineKind::Kvm
            || self.state.context.rflags & TF != 0
            || !alone()
        {
            return Ok(None);
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
        checker.begin(&self.engine.fpu()?, self.state.xcr0);
        let root = self.state.root();
        let mut ended = None;
        for _ in 0..STEPS {
            let before = self.state.context;
            if !checker.comparable(&before, root) {
                break;
            }
            let mut interpreted = Context {
                rflags: before.rflags | TF,
                ..before
            };
            let exit = {
                let never = AtomicBool::new(false);
                checker.interpreter.run(&mut interpreted, root, 1, &never)
            };
            let Exit::Trap(expected) = exit else {
                break;
            };
            self.state.context.rflags |= TF;
            let trap = self.engine.run(&mut Entry {
                context: &mut self.state.context,
                root,
                flush: self.flush.replace(false),
                writes: self.writes.get_mut(),
            });
            self.state.context = plain(&self.state.context);
            let trap = trap?;
            if trap == Trap::Kick {
                // Nothing was executed; memory of the copy may be ahead by now.
                return Ok(Some(trap));
            }
            checker.counts.steps += 1;
            let stepped = |trap| matches!(trap, Trap::Exception { vector: DEBUG, .. });
            let faulted = matches!(
                trap,
                Trap::Exception {
                    vector: PAGE_FAULT,
                    ..
                }
            );
            if faulted && stepped(expected) {
                // A translation that was older than the tables: retried.
                return Ok(Some(trap));
            }
            let undefined = undefined_flags(checker.interpreter.instruction(&before, root));
            let mut ours = comparable_flags(&interpreted);
            let mut theirs = comparable_flags(&self.state.context);
            ours.rflags &= !undefined;
            theirs.rflags &= !undefined;
            let differs = !same_trap(expected, trap) || ours != theirs;
            if differs && !checker.phys.agrees(&self.info_bytes()) {
                // An event came in between, and the instruction looked for one.
                ended = (!stepped(trap)).then_some(trap);
                break;
            }
            if differs {
                self.tell(
                    checker,
                    root,
                    &before,
                    &format!("{expected:?} {ours:x?} interpreted, {trap:?} {theirs:x?} on KVM"),
                );
                ended = (!stepped(trap)).then_some(trap);
                break;
            }
            if !stepped(trap) {
                ended = Some(trap);
                break;
            }
        }
        self.compare_rest(checker, root)?;
        Ok(ended)
    }

    /// Vector registers, and each word of memory that the interpreter changed.
    fn compare_rest(&mut self, checker: &mut Checker, root: Mfn) -> Result<(), Crash> {
        let context = self.state.context;
        let kvm = self.engine.fpu()?;
        if let Some(ours) = checker.interpreter.fpu().cloned() {
            let differs = (0..16).find(|n| ours.ymm(*n) != kvm.ymm(*n));
            if differs.is_some() || ours.mxcsr() != kvm.mxcsr() {
                let text = format!(
                    "vector registers before here: {differs:?}, mxcsr {:#x} interpreted, {:#x} on KVM",
                    ours.mxcsr(),
                    kvm.mxcsr()
                );
                self.tell(checker, root, &context, &text);
            }
        }
        let info = self.info_bytes();
        let others = |at: MachineAddr| at.0 < BASE_MFN.0 << 12 || info.contains(&at.0);
        if let Some(byte) = checker.phys.first_difference(others) {
            self.tell(
                checker,
                root,
                &context,
                &format!("memory before here: {byte}"),
            );
        }
        Ok(())
    }

    /// Where this vCPU's events are told of, by whatever thread.
    fn info_bytes(&self) -> std::ops::Range<u64> {
        let area = self.domain.delivery.area(self.shared.id);
        let start = area.and_then(|area| area.with(|at| at.0)).unwrap_or(0);
        start..start + VCPU_INFO_BYTES
    }

    fn tell(&self, checker: &mut Checker, root: Mfn, at: &Context, what: &str) {
        checker.counts.differences += 1;
        if checker.counts.differences > TOLD {
            return;
        }
        let instruction = checker.interpreter.describe(at, root);
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
