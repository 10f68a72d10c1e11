//! Event channels: the interrupts of a PV guest.
//!
//! A domain owns a table of ports. A port is free, or waits for a peer
//! (unbound), or is one end of a pair between two domains, or is raised by the
//! hypervisor (VIRQ), or by another vCPU of the same domain (IPI). An event on
//! a port is one bit: raising it twice before it is seen is raising it once.
//!
//! ```text
//! EventChannels (one per domain, Dom0 included)
//!   key, limits         who it is, what it may have
//!   Mutex<Table>        the ports, VIRQ bindings and polling vCPUs
//!   dyn EventSink       where a set bit goes:
//!     TwoLevel            a guest's shared_info, and a kick to its vCPU
//!     NotifierSink        Dom0: the file descriptor behind each port
//! ```
//!
//! Laws:
//! - A port's state changes only under its table's lock, and an event is
//!   delivered only under the lock of the table that receives it: so no bit is
//!   ever set for a port that was closed and given to somebody else.
//! - Two tables are locked only to bind or to break a pair, in ascending order
//!   of [`DomainKey`]. `send` takes one lock after the other, never both.
//! - Both ends of a pair name each other, or neither does. A link holds its
//!   peer's table itself, not its domid: a reused domid inherits nothing.
//! - Under a table's lock nothing is called but the sink, which takes at most
//!   a vCPU's wait-state lock.

mod channels;
mod error;
mod interdomain;
mod notifier;
mod poll;
mod table;
mod two_level;
mod vcpu_info;

#[cfg(test)]
mod tests;

pub use channels::{DomainKey, EventChannels, Limits, When};
pub use error::EventError;
pub use notifier::{NotifierSink, PortNotifier};
pub use poll::PollOutcome;
pub use table::{PortState, PortStatus};
pub use two_level::{MAX_PORTS, TwoLevel, VcpuWaker};
pub use vcpu_info::{VCPU_INFO_BYTES, VcpuInfoArea};

use guest_abi::addr::{DomId, Port, VcpuId};
use std::sync::Arc;

/// Where a table's events go.
///
/// All methods are called with the table's lock held: they must not call back
/// into the table.
pub trait EventSink: Send + Sync {
    /// How many ports it can tell apart: port numbers are below this.
    fn max_ports(&self) -> u32;
    /// Marks `port` pending and tells `vcpu` if that is news to it. `false`
    /// if the port was pending already.
    fn set_pending(&self, port: Port, vcpu: VcpuId) -> bool;
    /// As [`set_pending`](Self::set_pending), but `vcpu`, if it runs, need not
    /// be interrupted for it.
    fn set_pending_soon(&self, port: Port, vcpu: VcpuId) -> bool {
        self.set_pending(port, vcpu)
    }
    /// Takes a pending mark back, because the port was closed.
    fn clear_pending(&self, port: Port);
    /// Whether `port` is marked pending.
    fn is_pending(&self, port: Port) -> bool;
    /// Unmasks `port`; an event that waited behind the mask goes to `vcpu`.
    fn unmask(&self, port: Port, vcpu: VcpuId);
    /// Whether `vcpu` has an event that it would take now.
    fn deliverable(&self, vcpu: VcpuId) -> bool;
    /// Ends a poll of `vcpu`: see [`EventChannels::poll`].
    fn wake_poller(&self, vcpu: VcpuId);
}

/// The domains that there are, by number.
pub trait EventDomains {
    /// The event channels of `dom`, which is a real number (not
    /// [`DomId::SELF`]); `None` if there is no such domain.
    fn events(&self, dom: DomId) -> Option<Arc<EventChannels>>;
}
