//! A vCPU's dealings with time: its timers, its runstate, its copy of the clock.
//!
//! Law: the host timer of a vCPU thread is armed for the next deadline before
//! each entry, so a guest that never traps is still interrupted. What any vCPU
//! of the domain may set for another is in [`TimeState`], under a lock of its
//! own that is held for no other call.

use super::{Vcpu, VcpuShared, request};
use crate::{
    domain::Domain,
    engine::kick_signal,
    guest_access::GuestAccess,
    time::{Runstate, SecondaryTime, Timers},
};
use guest_abi::{
    addr::{GuestVirt, VcpuId},
    errno::Errno,
    vcpu::{RUNSTATE_BLOCKED, RUNSTATE_OFFLINE, RUNSTATE_RUNNING},
    xen::{VIRQ_TIMER, VMASST_TYPE_RUNSTATE_UPDATE_FLAG},
};
use nix::{
    sys::{
        signal::{SigEvent, SigevNotify},
        time::TimeSpec,
        timer::{Expiration, Timer, TimerSetTimeFlags},
    },
    time::ClockId,
    unistd::gettid,
};
use std::{sync::Arc, time::Duration};

/// What a guest has set about one vCPU's time.
#[derive(Debug)]
pub struct TimeState {
    /// Its timers.
    pub timers: Timers,
    /// The account of where time went.
    pub runstate: Runstate,
    /// The guest's second copy of the clock.
    pub secondary: SecondaryTime,
    /// The registered runstate area is to be written before the guest runs.
    runstate_due: bool,
}

impl TimeState {
    /// A vCPU that is down since `now`.
    #[must_use]
    pub fn new(now: u64) -> Self {
        TimeState {
            timers: Timers::new(),
            runstate: Runstate::new(now),
            secondary: SecondaryTime::default(),
            runstate_due: false,
        }
    }
}

/// The thread's half: the host timer.
pub struct VcpuTime {
    domain: Arc<Domain>,
    id: VcpuId,
    host_timer: Option<Timer>,
    armed: Option<u64>,
}

impl VcpuTime {
    pub(super) fn new(domain: &Arc<Domain>, id: VcpuId) -> Self {
        VcpuTime {
            domain: Arc::clone(domain),
            id,
            host_timer: None,
            armed: None,
        }
    }

    /// Raises what is due; whether a poll has timed out.
    pub(super) fn fire(&mut self, shared: &VcpuShared) -> bool {
        let expired = shared
            .lock_time()
            .timers
            .expire(self.domain.host.clock.now_ns());
        if expired.timer {
            self.domain.events.send_virq(self.id, VIRQ_TIMER);
        }
        expired.poll
    }

    fn change(&self, shared: &VcpuShared, state: u32) {
        let mut time = shared.lock_time();
        if time.runstate.state() != state {
            time.runstate.change(state, self.domain.host.clock.now_ns());
            time.runstate_due = time.runstate.is_registered();
        }
    }

    pub(super) fn leave_cpu(&mut self, shared: &VcpuShared) {
        self.change(shared, RUNSTATE_OFFLINE);
    }

    pub(super) fn block(&mut self, shared: &VcpuShared) {
        self.change(shared, RUNSTATE_BLOCKED);
    }

    /// The vCPU is about to enter the guest.
    pub(super) fn enter_cpu(&mut self, shared: &VcpuShared) {
        self.change(shared, RUNSTATE_RUNNING);
        let deadline = shared.lock_time().timers.next_deadline(false);
        if deadline != self.armed {
            self.armed = deadline;
            self.arm(deadline);
        }
    }

    /// Sets the host timer that kicks this thread out of the guest.
    fn arm(&mut self, deadline: Option<u64>) {
        let clock = &self.domain.host.clock;
        if self.host_timer.is_none() {
            self.host_timer = thread_timer();
        }
        let Some(timer) = &mut self.host_timer else {
            return;
        };
        // A zero would disarm it.
        let delay = deadline.map(|at| clock.until(at).max(Duration::from_nanos(1)));
        let spec = TimeSpec::from_duration(delay.unwrap_or(Duration::ZERO));
        if let Err(error) = timer.set(Expiration::OneShot(spec), TimerSetTimeFlags::empty()) {
            tracing::warn!(%error, "the vCPU's host timer can't be set");
        }
    }
}

fn thread_timer() -> Option<Timer> {
    let notify = SigevNotify::SigevThreadId {
        signal: kick_signal(),
        thread_id: gettid().as_raw(),
        si_value: 0,
    };
    Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))
        .inspect_err(|error| tracing::warn!(%error, "no host timer for the vCPU"))
        .ok()
}

impl Vcpu {
    /// Writes what the guest registered for time, now that it is about to run.
    pub(super) fn publish_time(&self) {
        let due = std::mem::take(&mut self.shared.lock_time().runstate_due);
        if due && let Err(error) = self.publish_runstate(&self.shared) {
            tracing::debug!(%error, "the runstate area can't be written");
        }
    }

    fn publish_runstate(&self, target: &VcpuShared) -> Result<(), Errno> {
        let flag = self.domain.has_assist(VMASST_TYPE_RUNSTATE_UPDATE_FLAG);
        let runstate = target.lock_time().runstate.clone();
        runstate.publish(&self.access_kernel(), flag)
    }

    /// Registers where a vCPU's clock is written a second time, and writes it.
    pub(crate) fn register_time_area(
        &self,
        target: &VcpuShared,
        at: GuestVirt,
    ) -> Result<(), Errno> {
        let info = self.domain.host.pvclock().info();
        let mut secondary = SecondaryTime::default();
        secondary.register(at)?;
        let access = self.access_kernel();
        // As on Xen the registration stands although nothing is mapped yet.
        if let Err(error) = secondary.publish(&access as &dyn GuestAccess, &info) {
            tracing::debug!(%error, "the time area can't be written");
        }
        target.lock_time().secondary = secondary;
        Ok(())
    }

    /// Registers where a vCPU's runstate is written, and writes it.
    pub(crate) fn register_runstate(
        &self,
        target: &VcpuShared,
        at: GuestVirt,
    ) -> Result<(), Errno> {
        target.lock_time().runstate.register(at)?;
        self.publish_runstate(target)
    }

    /// Changes the timers of a vCPU.
    pub(crate) fn set_timer<R>(
        &self,
        target: &VcpuShared,
        op: impl FnOnce(&mut Timers, u64) -> R,
    ) -> R {
        let now = self.domain.host.clock.now_ns();
        let result = op(&mut target.lock_time().timers, now);
        if target.id != self.shared.id {
            target.request(request::TIMER);
        }
        result
    }
}
