//! A vCPU's dealings with time: its timers, its runstate, its copy of the clock.
//!
//! Law: the host timer of a vCPU thread is armed for the next deadline before
//! each entry, so a guest that never traps is still interrupted.

use super::Vcpu;
use crate::{
    domain::Domain,
    engine::kvm::kick_signal,
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

/// What a vCPU knows of time.
pub struct VcpuTime {
    domain: Arc<Domain>,
    id: VcpuId,
    /// The guest's timers.
    pub timers: Timers,
    /// The account of where time went.
    pub runstate: Runstate,
    /// The guest's second copy of the clock.
    pub secondary: SecondaryTime,
    host_timer: Option<Timer>,
    armed: Option<u64>,
    runstate_due: bool,
}

impl VcpuTime {
    pub(super) fn new(domain: &Arc<Domain>, id: VcpuId) -> Self {
        VcpuTime {
            domain: Arc::clone(domain),
            id,
            timers: Timers::new(),
            runstate: Runstate::new(domain.host.clock.now_ns()),
            secondary: SecondaryTime::default(),
            host_timer: None,
            armed: None,
            runstate_due: false,
        }
    }

    fn now(&self) -> u64 {
        self.domain.host.clock.now_ns()
    }

    /// Raises what is due; whether a poll has timed out.
    pub(super) fn fire(&mut self) -> bool {
        let expired = self.timers.expire(self.domain.host.clock.now_ns());
        if expired.timer {
            self.domain.events.send_virq(self.id, VIRQ_TIMER);
        }
        expired.poll
    }

    /// When the vCPU wants to be woken.
    pub(super) fn next_deadline(&self, blocked: bool) -> Option<u64> {
        self.timers.next_deadline(blocked)
    }

    fn change(&mut self, state: u32) {
        if self.runstate.state() != state {
            self.runstate.change(state, self.now());
            self.runstate_due = self.runstate.is_registered();
        }
    }

    pub(super) fn leave_cpu(&mut self) {
        self.change(RUNSTATE_OFFLINE);
    }

    pub(super) fn block(&mut self) {
        self.change(RUNSTATE_BLOCKED);
    }

    /// The vCPU is about to enter the guest.
    pub(super) fn enter_cpu(&mut self) {
        self.change(RUNSTATE_RUNNING);
        let deadline = self.next_deadline(false);
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
        let spec = delay.map_or(
            TimeSpec::from_duration(Duration::ZERO),
            TimeSpec::from_duration,
        );
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
    pub(super) fn publish_time(&mut self) {
        if std::mem::take(&mut self.time.runstate_due) {
            let flag = self.domain.has_assist(VMASST_TYPE_RUNSTATE_UPDATE_FLAG);
            let access = self.access_kernel();
            if let Err(error) = self.time.runstate.publish(&access, flag) {
                tracing::debug!(%error, "the runstate area can't be written");
            }
        }
    }

    /// Registers the second copy of the clock, and writes it.
    pub(crate) fn register_time_area(&mut self, at: GuestVirt) -> Result<(), Errno> {
        self.time.secondary.register(at)?;
        let info = self.domain.host.pvclock().info();
        let domain = Arc::clone(&self.domain);
        let access = super::VcpuAccess::new(&domain, self.state.kernel_root);
        self.time
            .secondary
            .publish(&access as &dyn GuestAccess, &info)
    }

    /// Registers the runstate area, and writes it.
    pub(crate) fn register_runstate(&mut self, at: GuestVirt) -> Result<(), Errno> {
        self.time.runstate.register(at)?;
        self.time.runstate_due = true;
        self.publish_time();
        Ok(())
    }
}
