//! A vCPU: the thread that runs it, its guest state, and what its traps mean.
//!
//! Law: a [`Vcpu`] belongs to its thread. Other threads reach it through
//! [`VcpuShared`] alone.

mod access;
mod aside;
mod bounce;
mod check;
mod clock;
mod far;
mod inspect;
mod mistakes;
mod run;
mod run_ahead;
mod selector;
mod shared;
mod state;
mod trap;

pub use access::VcpuAccess;
pub use check::Stillness;
pub use clock::{TimeState, VcpuTime};
pub use run::start;
pub use run_ahead::RunAhead;
pub use selector::base_of;
pub use shared::{VcpuShared, request};
pub use state::{GuestState, Handler, canonical_or_zero};

use crate::{
    domain::Domain,
    engine::{Engine, TableWrites},
    paging::Paging,
    space::Tables,
};
use guest_abi::{addr::Port, errno::Errno};
use std::{
    cell::{Cell, RefCell},
    sync::{Arc, MutexGuard},
};
use trap::Spurious;

/// Why a domain can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Crash {
    /// An exception or event for which the guest has no handler.
    #[error("no handler is set (address {0:#x})")]
    NoHandler(u64),
    /// A bounce frame could not be written.
    #[error("the kernel stack at {0:#x} can't be written")]
    NoStack(u64),
    /// `iret` with a frame that can't be read, or to a mode without a root.
    #[error("iret: {0}")]
    BadIret(&'static str),
    /// The engine gave up.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
    /// A fault whose handler faults in the same way, without end.
    #[error("the page fault at {0:#x} does not end although its mapping allows the access")]
    EndlessFault(u64),
}

/// Why a vCPU sleeps though it may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It does not.
    No,
    /// `SCHEDOP_block`: until an event is deliverable.
    Block,
    /// `SCHEDOP_poll`: until a port is pending or the poll's time is over.
    Poll,
}

/// One vCPU.
pub struct Vcpu {
    /// Whose.
    pub domain: Arc<Domain>,
    /// What others see of it.
    pub shared: Arc<VcpuShared>,
    /// What the guest has set.
    pub state: GuestState,
    time: VcpuTime,
    /// Host CPUs as last applied.
    affinity: Vec<u32>,
    /// Whether it sleeps.
    pub wait: Wait,
    /// The hypercall is an element of a `multicall`.
    pub in_multicall: bool,
    engine: Engine,
    /// The change of the domain's engine that `engine` came with.
    engine_generation: u64,
    writes: RefCell<TableWrites>,
    flush: Cell<bool>,
    ahead: Option<RunAhead>,
    aside: Option<aside::Aside>,
    flush_aside: Cell<bool>,
    checker: Option<check::Checker>,
    /// Where a kick has just found the guest in the VM.
    kicked_at: Option<(u64, u64)>,
    /// What the guest's code goes on after: the last trap's kind, or the event
    /// that was delivered. Tells stretches apart that begin at one place.
    why: u64,
    /// The interpreter's cached translations are to be dropped.
    flush_ahead: Cell<bool>,
    blame: mistakes::Blame,
    /// The last spurious page fault, and how often it came.
    spurious: Spurious,
}

impl Vcpu {
    /// The paging rules, to be used with [`tables`](Self::tables).
    pub fn lock_mm(&self) -> MutexGuard<'_, Paging> {
        self.domain.space.lock_mm()
    }

    /// The domain's tables, with changes queued for this vCPU's next entry.
    #[must_use]
    pub fn tables(&self) -> Tables<'_> {
        Tables {
            space: &self.domain.space,
            vcpu: Some(self.shared.id),
            writes: Some((&self.writes, &self.flush)),
        }
    }

    /// Runs a paging operation on this vCPU. One that takes long lets go of the
    /// lock now and then, and goes on where it stopped.
    ///
    /// # Errors
    /// The operation's.
    pub fn update<R>(
        &self,
        mut op: impl FnMut(&mut Paging, &Tables<'_>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        loop {
            let result = op(&mut self.lock_mm(), &self.tables());
            match result {
                Err(Errno::ERESTART) if !self.domain.is_dying() => std::thread::yield_now(),
                result => return result,
            }
        }
    }

    /// Drops cached translations at the next entry.
    pub fn flush(&self) {
        self.flush.set(true);
        self.flush_ahead.set(true);
        self.flush_aside.set(true);
    }

    /// Drops cached translations of all vCPUs: on return no other one runs
    /// with old ones, and this one will not.
    pub fn flush_everywhere(&self) {
        self.flush();
        self.domain
            .space
            .shoot_down(Some(self.shared.id), self.writes.borrow().words());
    }

    /// Guest memory under the root in use.
    #[must_use]
    pub fn access(&self) -> VcpuAccess<'_> {
        VcpuAccess::new(&self.domain, self.state.root())
    }

    /// Guest memory under the kernel's root.
    #[must_use]
    pub fn access_kernel(&self) -> VcpuAccess<'_> {
        VcpuAccess::new(&self.domain, self.state.kernel_root)
    }

    /// Whether the guest has masked its events.
    #[must_use]
    pub fn events_masked(&self) -> bool {
        self.domain.delivery.masked(self.shared.id)
    }

    /// Masks or unmasks events.
    pub fn mask_events(&self, mask: bool) {
        self.domain.delivery.set_mask(self.shared.id, mask.into());
    }

    /// Whether an event would be delivered now.
    #[must_use]
    pub fn event_deliverable(&self) -> bool {
        !self.events_masked() && self.domain.delivery.pending(self.shared.id)
    }

    /// Whether this is vCPU 0.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.shared.id.0 == 0
    }

    /// Ends a poll.
    pub fn end_poll(&mut self) {
        if self.wait == Wait::Poll {
            self.domain.events.end_poll(self.shared.id);
            self.shared.lock_time().timers.end_poll();
        }
        self.wait = Wait::No;
    }

    /// Ports for [`EventChannels::poll`](crate::events::EventChannels::poll).
    pub(crate) fn poll(&mut self, ports: &[Port], deadline: Option<u64>) -> Result<(), Errno> {
        use crate::events::PollOutcome;
        match self
            .domain
            .events
            .poll(self.shared.id, ports)
            .map_err(|error| error.errno())?
        {
            PollOutcome::Ready => {}
            PollOutcome::Sleep => {
                self.shared.lock_time().timers.begin_poll(deadline);
                self.wait = Wait::Poll;
            }
        }
        Ok(())
    }

    /// Takes XCR0 over into the engine.
    ///
    /// # Errors
    /// The engine's.
    pub(crate) fn load_xcr0(&mut self, value: u64) -> Result<(), Crash> {
        if let Some(ahead) = &mut self.ahead {
            ahead.set_xcr0(value);
        }
        self.set_xcr0_aside(value);
        Ok(self.engine.set_xcr0(value)?)
    }
}
