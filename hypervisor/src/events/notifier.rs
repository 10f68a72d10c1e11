//! Event delivery to Dom0: each port is somebody's file descriptor.
//!
//! Dom0 has no `shared_info`. What stands for a pending bit there is the state
//! of the owner's descriptor, so the sink only remembers events of a port that
//! has no owner yet: between the bind that creates a port and
//! [`NotifierSink::attach`].

use super::EventSink;
use guest_abi::addr::{Port, VcpuId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// As many as Xen's Dom0 has.
const MAX_PORTS: u32 = 1 << 17;

/// The owner of a Dom0 port, as an event sees it.
pub trait PortNotifier: Send + Sync {
    /// An event came in on `port`. Called with the lock of Dom0's event table
    /// held: must neither block nor call back.
    fn notify(&self, port: Port);
}

enum Owner {
    /// An event came before the owner.
    Missed,
    Attached(Arc<dyn PortNotifier>),
}

/// Event delivery to the processes of Dom0.
#[derive(Default)]
pub struct NotifierSink {
    owners: Mutex<HashMap<Port, Owner>>,
}

impl NotifierSink {
    /// A sink without owners.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends the events of `port`, which the caller has just bound, to
    /// `notifier`, beginning with one that has come in already. Ends when the
    /// port is closed.
    pub fn attach(&self, port: Port, notifier: Arc<dyn PortNotifier>) {
        let missed = self
            .owners()
            .insert(port, Owner::Attached(notifier.clone()));
        if matches!(missed, Some(Owner::Missed)) {
            notifier.notify(port);
        }
    }

    fn owners(&self) -> std::sync::MutexGuard<'_, HashMap<Port, Owner>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for NotifierSink {
    fn max_ports(&self) -> u32 {
        MAX_PORTS
    }

    fn set_pending(&self, port: Port, _vcpu: VcpuId) -> bool {
        let mut owners = self.owners();
        if let Owner::Attached(notifier) = owners.entry(port).or_insert(Owner::Missed) {
            notifier.notify(port);
        }
        true
    }

    fn clear_pending(&self, port: Port) {
        self.owners().remove(&port);
    }

    fn is_pending(&self, port: Port) -> bool {
        matches!(self.owners().get(&port), Some(Owner::Missed))
    }

    fn unmask(&self, _port: Port, _vcpu: VcpuId) {}

    fn deliverable(&self, _vcpu: VcpuId) -> bool {
        false
    }

    fn wake_poller(&self, _vcpu: VcpuId) {}
}
