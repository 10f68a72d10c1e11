//! The vCPU's thread: wait, deliver, run, handle, again.

use super::{
    Crash, GuestState, RunAhead, Vcpu, VcpuShared, VcpuTime, Wait,
    check::Checker,
    mistakes::{Blame, Cause},
    request, run_ahead,
    trap::Spurious,
};
use crate::{
    cpu::{Trap, reg},
    domain::Domain,
    engine::{Engine, EngineError, EngineKind, Entry, Kickable},
    guest_access::GuestAccess,
};
use domus_privcmd::trace::kind;
use guest_abi::{
    addr::{GuestVirt, Mfn, VcpuId},
    arch_x86::VcpuGuestContext,
    arch_x86_64::cr3_to_pfn,
    sched::SHUTDOWN_CRASH,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::pthread::pthread_self,
    unistd::Pid,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

/// Stack of a vCPU thread: its deepest path is a page-table validation.
const THREAD_STACK: usize = 512 << 10;
/// [`Vcpu::why`] for an event; its port is in the lower bits.
const WHY_EVENT: u64 = 1 << 32;
/// Ports that the record of a delivery names.
const TRACED_PORTS: usize = 16;

/// Makes the thread of a vCPU, unless there is one. The vCPU runs when it is
/// online and the domain is not paused.
///
/// # Errors
/// The engine refused another vCPU, or the host another thread.
pub fn start(domain: &Arc<Domain>, id: VcpuId) -> Result<(), EngineError> {
    let index = usize::try_from(id.0).unwrap_or(usize::MAX);
    let shared = domain
        .vcpus
        .get(index)
        .ok_or(EngineError::Layout("no such vCPU"))?;
    if !shared.claim_thread() {
        return Ok(());
    }
    let engine = domain.create_engine(shared)?;
    let (domain_of_thread, shared) = (Arc::clone(domain), Arc::clone(shared));
    let thread = std::thread::Builder::new()
        .name(format!("d{}v{}", domain.id, id.0))
        .stack_size(THREAD_STACK)
        .spawn(move || contained(domain_of_thread, shared, engine))
        .map_err(|error| EngineError::Vm(format!("no thread for the vCPU: {error}")))?;
    domain.add_thread(thread);
    Ok(())
}

/// Runs a vCPU to its end. A panic ends its domain, and nobody waits for it.
fn contained(domain: Arc<Domain>, shared: Arc<VcpuShared>, engine: (Engine, u64)) {
    let (its_domain, its_shared) = (Arc::clone(&domain), Arc::clone(&shared));
    let run = AssertUnwindSafe(move || Vcpu::new(domain, shared, engine).run());
    if catch_unwind(run).is_err() {
        tracing::error!(
            domain = its_domain.id.0,
            vcpu = its_shared.id.0,
            "the vCPU's thread panicked"
        );
        its_shared.leave_guest();
        its_shared.set_thread(None);
        its_domain.shut_down(SHUTDOWN_CRASH);
    }
}

impl Vcpu {
    fn new(
        domain: Arc<Domain>,
        shared: Arc<VcpuShared>,
        (engine, engine_generation): (Engine, u64),
    ) -> Self {
        let ahead = ahead_of(&domain, &engine);
        let checker = Checker::new(&domain);
        Vcpu {
            state: GuestState::new(),
            time: VcpuTime::new(&domain, shared.id),
            domain,
            shared,
            wait: Wait::No,
            in_multicall: false,
            affinity: Vec::new(),
            engine,
            engine_generation,
            writes: Default::default(),
            flush: true.into(),
            ahead,
            aside: None,
            flush_aside: true.into(),
            checker,
            kicked_at: None,
            why: 0,
            flush_ahead: true.into(),
            blame: Blame::new(),
            spurious: Spurious::default(),
        }
    }

    fn run(mut self) {
        let _kickable = Kickable::new(self.shared.interrupt_flag());
        self.engine.adopt_thread();
        self.shared.set_thread(Some(pthread_self()));
        let mut runnable = false;
        loop {
            let requests = self.shared.take_requests();
            if requests & request::STATE != 0 {
                if self.domain.is_dying() {
                    break;
                }
                runnable = self.take_state();
                if let Err(crash) = self.take_engine() {
                    self.crash(&crash);
                }
            }
            self.serve(requests);
            if !runnable || !self.shared.is_online() {
                self.time.leave_cpu(&self.shared);
                self.shared.sleep_until(None);
                continue;
            }
            if self.sleeps() {
                continue;
            }
            if let Err(crash) = self.step() {
                self.crash(&crash);
            }
        }
        self.shared.set_thread(None);
        self.tell_counts("vCPU ends");
    }

    /// Run state as others set it; whether the vCPU may run.
    fn take_state(&mut self) -> bool {
        self.apply_affinity();
        if let Some(context) = self.shared.take_initial() {
            self.load_context(&context);
        }
        self.domain.may_run() && self.domain.debugger.lets_run(self.shared.id)
    }

    fn load_context(&mut self, context: &VcpuGuestContext) {
        self.state.load(context);
        self.state.kernel_root = Mfn(cr3_to_pfn(context.ctrlreg[3]));
        let user = context.ctrlreg[1];
        self.state.user_root = (user & 1 != 0).then(|| Mfn(cr3_to_pfn(user)));
        self.wait = Wait::No;
        self.domain.publish_clock(self.shared.id);
        self.flush();
    }

    /// Goes over to the domain's engine, if it was changed.
    fn take_engine(&mut self) -> Result<(), Crash> {
        if self.engine_generation == self.domain.engines.generation() {
            return Ok(());
        }
        self.tell_counts("engine changes");
        self.end_aside()?;
        self.aside = None;
        if let Some(ahead) = &mut self.ahead {
            ahead.hand_over_fpu(&mut self.engine)?;
        }
        let fpu = self.engine.fpu()?;
        let (engine, generation) = self.domain.create_engine(&self.shared)?;
        (self.engine, self.engine_generation) = (engine, generation);
        self.engine.adopt_thread();
        self.engine.set_xcr0(self.state.xcr0)?;
        self.engine.set_fpu(&fpu)?;
        self.ahead = ahead_of(&self.domain, &self.engine);
        if let Some(ahead) = &mut self.ahead {
            ahead.set_xcr0(self.state.xcr0);
        }
        self.kicked_at = None;
        self.flush();
        Ok(())
    }

    /// Logs what the engine did.
    fn tell_counts(&self, why: &str) {
        let (counts, engine) = (self.engine.counts(), self.engine.kind());
        let interpreted = match &self.engine {
            Engine::Kvm(_) => self.ahead.as_ref().map(RunAhead::counts),
            Engine::Soft(vcpu) => Some(vcpu.interpreted()),
        };
        tracing::info!(domain = self.domain.id.0, vcpu = self.shared.id.0, %engine, %counts, ?interpreted, "{why}");
        if let Some(checker) = &self.checker {
            tracing::info!(
                domain = self.domain.id.0,
                vcpu = self.shared.id.0,
                "checker: {}",
                checker.counts()
            );
        }
    }

    /// Keeps this thread to the host CPUs that Dom0 chose; none is any.
    fn apply_affinity(&mut self) {
        let cpus = self.shared.affinity();
        if cpus == self.affinity {
            return;
        }
        let mut set = CpuSet::new();
        let chosen =
            |cpu: usize| cpus.is_empty() || cpus.iter().any(|c| usize::try_from(*c) == Ok(cpu));
        for cpu in (0..CpuSet::count()).filter(|cpu| chosen(*cpu)) {
            let _ = set.set(cpu);
        }
        if let Err(error) = sched_setaffinity(Pid::from_raw(0), &set) {
            tracing::warn!(domain = self.domain.id.0, vcpu = self.shared.id.0, %error, "affinity not applied");
        }
        self.affinity = cpus;
    }

    fn serve(&mut self, requests: u32) {
        if requests & (request::FLUSH | request::STATE) != 0 {
            self.flush();
            self.shared.take_deferred(self.writes.get_mut());
        }
        if requests & request::POLL != 0 {
            self.end_poll();
        }
        if requests & request::LOAD != 0
            && let Some(context) = self.shared.take_registers()
        {
            self.state.set_registers(&context);
        }
        if requests & request::SAVE != 0 {
            self.shared.give_context(self.state.save());
        }
        if requests & request::STILL != 0
            && let Err(crash) = self.stand_still()
        {
            self.crash(&crash);
        }
        if self.time.fire(&self.shared) {
            self.end_poll();
        }
    }

    /// Sleeps if the guest waits for something that has not come.
    fn sleeps(&mut self) -> bool {
        if self.wait == Wait::No {
            return false;
        }
        if self.event_deliverable() {
            self.end_poll();
            return false;
        }
        let clock = &self.domain.host.clock;
        let deadline = self.shared.lock_time().timers.next_deadline(true);
        let until = deadline.map(|ns| Instant::now() + clock.until(ns));
        let trace = self.trace_clock(kind::EVENT);
        self.time.block(&self.shared);
        self.shared.set_blocked(true);
        let alarm = if until.is_none() { self.alarm() } else { None };
        self.shared.sleep_until(until.or(alarm));
        self.shared.set_blocked(false);
        self.look_at_sleep(alarm);
        if let Some(began) = trace {
            self.trace_sleep(began);
        }
        true
    }

    fn deliver_events(&mut self) -> Result<(), Crash> {
        self.domain.counts.events.fetch_add(1, Relaxed);
        let first = self.domain.delivery.reported(1).first().copied();
        self.why = WHY_EVENT | u64::from(first.unwrap_or(0));
        self.note_cause(Cause::Event);
        let Some(began) = self.trace_clock(kind::EVENT) else {
            return self.bounce(self.state.event, None);
        };
        let ports = self.domain.delivery.reported(TRACED_PORTS);
        let delivered = self.bounce(self.state.event, None);
        self.trace_upcall(began, ports);
        delivered
    }

    /// Delivers what is due, runs the guest to its next trap, deals with it.
    fn step(&mut self) -> Result<(), Crash> {
        let stepping = self.begin_step();
        if stepping.is_none() && self.event_deliverable() {
            self.deliver_events()?;
        }
        if !GuestVirt(self.state.context.rip).is_canonical() {
            return self.bounce_failsafe();
        }
        self.time.enter_cpu(&self.shared);
        self.publish_time();
        if !self.shared.enter_guest() {
            return Ok(());
        }
        let trap = self.run_guest();
        self.shared.leave_guest();
        let trap = match trap {
            Err(Crash::Engine(EngineError::Unknown(name))) if self.state.user_mode => {
                self.unknown(&name)
            }
            trap => trap?,
        };
        self.handle(trap, stepping)
    }

    /// Runs the guest to its next trap, where that is quickest or possible.
    fn run_guest(&mut self) -> Result<Trap, Crash> {
        if let Some(trap) = self.run_aside()? {
            return Ok(trap);
        }
        if let Some(trap) = self.check()? {
            return Ok(trap);
        }
        if let Some(trap) = self.run_ahead()? {
            return Ok(trap);
        }
        if let Engine::Soft(vcpu) = &mut self.engine {
            vcpu.set_breakpoints(self.state.breakpoints());
        }
        let mut entry = Entry {
            root: self.state.root(),
            context: &mut self.state.context,
            flush: self.flush.replace(false),
            writes: self.writes.get_mut(),
        };
        if let Some(ahead) = &mut self.ahead {
            ahead.hand_over_fpu(&mut self.engine)?;
        }
        self.domain.counts.entries.fetch_add(1, Relaxed);
        let trap = self.engine.run(&mut entry)?;
        let kicked = trap == Trap::Kick;
        self.kicked_at = kicked.then(|| run_ahead::at(&self.state.context));
        Ok(trap)
    }

    /// A program's instruction that the engine does not know: to the program it
    /// is undefined, and the operator is told. (In the kernel it ends the
    /// domain, which a program must not be able to bring about.)
    fn unknown(&self, name: &str) -> Trap {
        let (domain, vcpu) = (self.domain.id, self.shared.id);
        let text = format!(
            "domain {domain} vCPU {vcpu}: the software engine does not know the instruction {name} of a program: it gets #UD\n"
        );
        tracing::warn!("{}", text.trim_end());
        if !self.domain.told_unknown.swap(true, Relaxed) {
            self.domain.host.console.print(&text);
        }
        Trap::Exception {
            vector: 6,
            error: 0,
            cr2: GuestVirt(0),
        }
    }

    /// The domain can't go on: says why, with the registers, and shuts it down.
    fn crash(&self, crash: &Crash) {
        let report = self.report(crash);
        tracing::warn!(domain = self.domain.id.0, "{report}");
        self.tell_crash(crash);
        self.domain.host.console.print(&report);
        self.domain.shut_down(SHUTDOWN_CRASH);
    }

    fn report(&self, crash: &Crash) -> String {
        use std::fmt::Write;
        let context = &self.state.context;
        let mut text = format!(
            "domain {} vCPU {} crashed: {crash}\n",
            self.domain.id, self.shared.id
        );
        let mode = if self.state.user_mode {
            "user"
        } else {
            "kernel"
        };
        let _ = writeln!(
            text,
            "rip: {:016x}  rflags: {:08x}  {mode} mode",
            context.rip, context.rflags
        );
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        for row in 0..4 {
            let column = |i: usize| format!("{}: {:016x}", NAMES[i], context.gpr[i]);
            let line: Vec<_> = (row * 4..row * 4 + 4).map(column).collect();
            let _ = writeln!(text, "{}", line.join("  "));
        }
        let root = self.state.root();
        let _ = writeln!(
            text,
            "cr3: {:x}  fs base: {:x}  gs base: {:x}",
            root.0 << 12,
            context.fs_base,
            context.gs_base
        );
        let mut stack = [0; 256];
        if self
            .access()
            .read_bytes(GuestVirt(context.gpr[reg::RSP]), &mut stack)
            .is_ok()
        {
            let _ = writeln!(text, "stack from rsp:");
            for line in stack.chunks(32) {
                let words: Vec<_> = line
                    .chunks_exact(8)
                    .map(|word| {
                        format!(
                            "{:016x}",
                            u64::from_le_bytes(word.try_into().unwrap_or_default())
                        )
                    })
                    .collect();
                let _ = writeln!(text, "  {}", words.join(" "));
            }
        }
        text
    }
}

/// The run-ahead interpreter of a vCPU on this engine, if it has one.
fn ahead_of(domain: &Domain, engine: &Engine) -> Option<RunAhead> {
    let wanted = domain.host.run_ahead() && engine.kind() == EngineKind::Kvm;
    wanted.then(|| RunAhead::new(domain))
}

impl VcpuShared {
    /// Whether the caller is to make the thread: true once until it ends.
    fn claim_thread(&self) -> bool {
        !self.claimed.swap(true, std::sync::atomic::Ordering::SeqCst)
    }
}
