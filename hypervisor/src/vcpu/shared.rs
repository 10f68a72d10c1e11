//! What others may touch of a vCPU: its requests, its sleep, its thread.
//!
//! Protocol. A thread that wants the vCPU's attention sets a request bit, then
//! wakes it: a sleeping vCPU through the condition variable, a running one by
//! a signal. The vCPU says that it is in the guest *before* it looks at the
//! requests for the last time; both sides use sequential consistency, so
//! either the vCPU sees the bit or the other side sees it in the guest.

use super::TimeState;
use crate::engine::{TableWrite, TableWrites};
use guest_abi::{addr::VcpuId, arch_x86::VcpuGuestContext};
use nix::sys::pthread::{Pthread, pthread_kill};
use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// Bits of [`VcpuShared::request`].
pub mod request {
    /// An event may be deliverable.
    pub const EVENT: u32 = 1;
    /// The domain's or the vCPU's run state changed.
    pub const STATE: u32 = 2;
    /// Drop cached translations before running on.
    pub const FLUSH: u32 = 4;
    /// A timer is due or was changed from outside.
    pub const TIMER: u32 = 8;
    /// A poll ended.
    pub const POLL: u32 = 16;
    /// Somebody wants to see the registers.
    pub const SAVE: u32 = 32;
    /// A debugger has set the registers.
    pub const LOAD: u32 = 64;
    /// Stand still while another vCPU is checked.
    pub const STILL: u32 = 128;
}

/// The shared half of a vCPU.
#[derive(Debug)]
pub struct VcpuShared {
    /// Its number.
    pub id: VcpuId,
    requests: AtomicU32,
    /// A request waits for the guest to leave the VM by itself.
    nudged: AtomicBool,
    /// Some request waits: what an interpreter looks at.
    interrupt: Arc<AtomicBool>,
    /// Page-table words that other vCPUs changed, to be carried out by this
    /// one before it runs on.
    deferred: Mutex<TableWrites>,
    in_guest: AtomicBool,
    /// A thread exists or is being made.
    pub(super) claimed: AtomicBool,
    /// Not parked: between a wake-up and the next sleep.
    active: AtomicBool,
    online: AtomicBool,
    initialised: AtomicBool,
    blocked: AtomicBool,
    thread: Mutex<Option<Pthread>>,
    sleep: Mutex<()>,
    wake: Condvar,
    /// State for the next start, put there by `VCPUOP_initialise`.
    initial: Mutex<Option<Box<VcpuGuestContext>>>,
    /// CPU time of threads that have ended.
    cpu_time_ns: AtomicU64,
    affinity: Mutex<Vec<u32>>,
    time: Mutex<TimeState>,
    /// Held by who waits for the registers.
    asking: Mutex<()>,
    /// The registers, as the thread gave them last.
    saved: Mutex<Option<Box<VcpuGuestContext>>>,
    given: Condvar,
    /// Registers that a debugger has set.
    set: Mutex<Option<Box<VcpuGuestContext>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VcpuShared {
    /// A vCPU that is down, since system time `now`.
    #[must_use]
    pub fn new(id: VcpuId, now: u64) -> Self {
        VcpuShared {
            id,
            requests: AtomicU32::new(0),
            nudged: AtomicBool::new(false),
            interrupt: Arc::default(),
            deferred: Mutex::default(),
            in_guest: AtomicBool::new(false),
            claimed: AtomicBool::new(false),
            active: AtomicBool::new(false),
            online: AtomicBool::new(false),
            initialised: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            thread: Mutex::new(None),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            initial: Mutex::new(None),
            cpu_time_ns: AtomicU64::new(0),
            affinity: Mutex::new(Vec::new()),
            time: Mutex::new(TimeState::new(now)),
            asking: Mutex::new(()),
            saved: Mutex::new(None),
            given: Condvar::new(),
            set: Mutex::new(None),
        }
    }

    /// Sets request bits and sees to it that the vCPU looks at them.
    pub fn request(&self, bits: u32) {
        self.requests.fetch_or(bits, SeqCst);
        self.interrupt.store(true, SeqCst);
        if self.in_guest.load(SeqCst) {
            if let Some(thread) = *lock(&self.thread) {
                let _ = pthread_kill(thread, crate::engine::kick_signal());
            }
        } else {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }

    /// As [`request`](Self::request), but a guest that runs in the VM is left
    /// there until it traps, or until somebody [hurries](Self::hurry).
    pub fn nudge(&self, bits: u32) {
        self.requests.fetch_or(bits, SeqCst);
        self.interrupt.store(true, SeqCst);
        if self.in_guest.load(SeqCst) {
            self.nudged.store(true, SeqCst);
        } else {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }

    /// What a [nudge](Self::nudge) has left to wait waits no longer.
    pub fn hurry(&self) {
        if self.nudged.swap(false, SeqCst) {
            self.request(request::EVENT);
        }
    }

    /// Takes all request bits.
    pub fn take_requests(&self) -> u32 {
        self.nudged.store(false, SeqCst);
        self.interrupt.store(false, SeqCst);
        self.requests.swap(0, SeqCst)
    }

    /// Set while a request waits (and now and then when none does).
    #[must_use]
    pub fn interrupt(&self) -> &AtomicBool {
        &self.interrupt
    }

    /// The same flag, for an engine to keep.
    #[must_use]
    pub fn interrupt_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupt)
    }

    /// Hands page-table words over, to be carried out before this vCPU runs on.
    pub fn defer(&self, words: &[TableWrite]) {
        let mut deferred = lock(&self.deferred);
        words.iter().for_each(|word| deferred.push(*word));
    }

    /// Takes what was handed over.
    pub fn take_deferred(&self, into: &mut TableWrites) {
        let mut deferred = lock(&self.deferred);
        deferred.words().iter().for_each(|word| into.push(*word));
        deferred.clear();
    }

    /// Whether some request waits.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        self.requests.load(SeqCst) != 0
    }

    /// Whether some request waits that is not of these.
    #[must_use]
    pub fn has_requests_but(&self, bits: u32) -> bool {
        self.requests.load(SeqCst) & !bits != 0
    }

    /// Marks the vCPU as in the guest, unless a request waits.
    #[must_use]
    pub fn enter_guest(&self) -> bool {
        self.in_guest.store(true, SeqCst);
        if self.has_requests() {
            self.in_guest.store(false, SeqCst);
            return false;
        }
        true
    }

    /// The vCPU has left the guest.
    pub fn leave_guest(&self) {
        self.in_guest.store(false, SeqCst);
    }

    /// Waits until the vCPU has left the guest or taken the requests `bits`.
    pub fn wait_for(&self, bits: u32) {
        let mut spins = 0u32;
        while self.in_guest.load(SeqCst) && self.requests.load(SeqCst) & bits != 0 {
            spins += 1;
            if spins.is_multiple_of(64) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
    }

    /// Sleeps until a request waits or `deadline` is past.
    pub fn sleep_until(&self, deadline: Option<Instant>) {
        self.active.store(false, SeqCst);
        let mut guard = lock(&self.sleep);
        while !self.has_requests() {
            guard = match deadline {
                None => self
                    .wake
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        break;
                    }
                    self.wake
                        .wait_timeout(guard, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        drop(guard);
        self.active.store(true, SeqCst);
    }

    /// Tells which thread runs this vCPU from now on; `None` when it ends.
    pub fn set_thread(&self, thread: Option<Pthread>) {
        let mut current = lock(&self.thread);
        self.cpu_time_ns
            .fetch_add(current.map_or(0, thread_cpu_time), SeqCst);
        *current = thread;
        self.active.store(thread.is_some(), SeqCst);
    }

    /// Whether a thread exists.
    #[must_use]
    pub fn has_thread(&self) -> bool {
        lock(&self.thread).is_some()
    }

    /// Whether the vCPU is neither asleep nor without a thread.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active.load(SeqCst)
    }

    /// Its timers and its account of time.
    pub fn lock_time(&self) -> MutexGuard<'_, TimeState> {
        lock(&self.time)
    }

    /// Whether the vCPU is up.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.online.load(SeqCst)
    }

    /// Takes the vCPU up or down.
    pub fn set_online(&self, online: bool) {
        self.online.store(online, SeqCst);
        self.request(request::STATE);
    }

    /// Whether it waits for an event.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(SeqCst)
    }

    /// Says whether it waits for an event.
    pub fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, SeqCst);
    }

    /// Puts down the state to start from.
    pub fn set_initial(&self, context: Box<VcpuGuestContext>) {
        *lock(&self.initial) = Some(context);
        self.initialised.store(true, SeqCst);
        self.request(request::STATE);
    }

    /// Whether it was ever given a state.
    #[must_use]
    pub fn is_initialised(&self) -> bool {
        self.initialised.load(SeqCst)
    }

    /// Takes the state to start from.
    pub fn take_initial(&self) -> Option<Box<VcpuGuestContext>> {
        lock(&self.initial).take()
    }

    /// The registers, asked of the thread, which leaves the guest for that; of
    /// a vCPU that never ran, those that it will start with. `None` if it has
    /// none, or if the thread does not answer within `patience`.
    #[must_use]
    pub fn context(&self, patience: Duration) -> Option<Box<VcpuGuestContext>> {
        let _one_at_a_time = lock(&self.asking);
        if !self.has_thread() {
            return lock(&self.initial).clone();
        }
        *lock(&self.saved) = None;
        self.request(request::SAVE);
        let waiting = |saved: &mut Option<_>| saved.is_none();
        self.given
            .wait_timeout_while(lock(&self.saved), patience, waiting)
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .take()
    }

    /// The thread's answer to [`request::SAVE`].
    pub fn give_context(&self, context: Box<VcpuGuestContext>) {
        *lock(&self.saved) = Some(context);
        self.given.notify_all();
    }

    /// Puts down registers for the thread to take over; `false` if it has none.
    #[must_use]
    pub fn set_registers(&self, context: Box<VcpuGuestContext>) -> bool {
        if !self.has_thread() {
            return false;
        }
        *lock(&self.set) = Some(context);
        self.request(request::LOAD);
        true
    }

    /// Takes what [`set_registers`](Self::set_registers) put down.
    pub fn take_registers(&self) -> Option<Box<VcpuGuestContext>> {
        lock(&self.set).take()
    }

    /// CPU time used, in ns.
    #[must_use]
    pub fn cpu_time_ns(&self) -> u64 {
        let thread = lock(&self.thread);
        self.cpu_time_ns.load(SeqCst) + thread.map_or(0, thread_cpu_time)
    }

    /// Host CPUs that it may run on; empty = any.
    #[must_use]
    pub fn affinity(&self) -> Vec<u32> {
        lock(&self.affinity).clone()
    }

    /// Restricts it to host CPUs; taken over when it next starts or wakes.
    pub fn set_affinity(&self, cpus: Vec<u32>) {
        *lock(&self.affinity) = cpus;
        self.request(request::STATE);
    }
}

/// CPU time of a living thread, in ns.
fn thread_cpu_time(thread: Pthread) -> u64 {
    let mut clock = 0;
    // SAFETY: the caller holds the lock under which the thread clears its
    // handle before it ends, so the thread exists; `clock` is ours.
    if unsafe { libc::pthread_getcpuclockid(thread, &raw mut clock) } != 0 {
        return 0;
    }
    let clock = nix::time::ClockId::from_raw(clock);
    clock.now().map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_abi::addr::VcpuId;
    use nix::sys::pthread::pthread_self;
    use std::sync::Arc;
    use zerocopy::FromZeros;

    fn context(rip: u64) -> Box<VcpuGuestContext> {
        let mut context = Box::new(VcpuGuestContext::new_zeroed());
        context.user_regs.rip = rip;
        context
    }

    #[test]
    fn registers_of_a_vcpu_that_never_ran_are_its_first_ones() {
        let vcpu = VcpuShared::new(VcpuId(0), 0);
        assert!(vcpu.context(Duration::ZERO).is_none());
        vcpu.set_initial(context(7));
        let seen = vcpu.context(Duration::ZERO).unwrap();
        assert_eq!(seen.user_regs.rip, 7);
        assert!(vcpu.take_initial().is_some(), "it is still there");
    }

    #[test]
    fn a_nudge_waits_for_the_guest_until_somebody_hurries() {
        let vcpu = VcpuShared::new(VcpuId(0), 0);
        assert!(vcpu.enter_guest());
        vcpu.nudge(request::EVENT);
        assert!(vcpu.nudged.load(SeqCst), "a running guest is left alone");
        vcpu.hurry();
        assert!(!vcpu.nudged.load(SeqCst), "it is hurried once");
        vcpu.leave_guest();
        assert_eq!(vcpu.take_requests(), request::EVENT);
        vcpu.nudge(request::EVENT);
        assert!(
            !vcpu.enter_guest(),
            "the request is seen before the guest runs"
        );
        assert!(!vcpu.nudged.load(SeqCst));
    }

    #[test]
    fn registers_of_a_vcpu_with_a_thread_are_the_threads() {
        let vcpu = Arc::new(VcpuShared::new(VcpuId(0), 0));
        vcpu.set_thread(Some(pthread_self()));
        assert!(
            vcpu.context(Duration::from_millis(1)).is_none(),
            "no answer"
        );
        vcpu.take_requests();
        let asking = Arc::clone(&vcpu);
        let asker = std::thread::spawn(move || asking.context(Duration::from_secs(60)));
        while vcpu.take_requests() & request::SAVE == 0 {
            std::thread::yield_now();
        }
        vcpu.give_context(context(9));
        assert_eq!(asker.join().unwrap().unwrap().user_regs.rip, 9);
        vcpu.set_thread(None);
    }
}
