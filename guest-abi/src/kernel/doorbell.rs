//! How a driver wakes its other half and waits for it.
//!
//! ```no_run
//! use guest_abi::{addr::Port, kernel::doorbell};
//!
//! // Sleeps until one of two drivers has something, or for a second.
//! let (disk, network) = ([Some(Port(9))], [Some(Port(10)), None]);
//! let deadline = guest_abi::kernel::time::system_time() + 1_000_000_000;
//! doorbell::wait_any(&[&disk, &network], deadline).expect("ports of ours");
//! ```

use super::{event, sched, time};
use crate::{addr::Port, errno::Errno};

/// The other half's bell, and our sleep. [`EventBell`] is the real one; tests
/// bring their own.
pub trait Doorbell {
    /// Wakes the other half.
    fn ring(&self);
    /// Sleeps until the other half rings, or until `deadline` (system time in
    /// ns; 0 = never). May return early.
    fn wait(&self, deadline: u64);
    /// System time in ns.
    fn now(&self) -> u64;
}

/// An event channel that is waited for by `SCHEDOP_poll`.
///
/// Its port stays masked: no handler runs, so the caller needs none, and it
/// may wait anywhere. A kernel that wants handlers calls
/// [`event::listen`] on the port itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventBell(pub Port);

impl Doorbell for EventBell {
    fn ring(&self) {
        // A port whose other end is gone is no reason to stop: who comes next
        // there looks at the ring first.
        let _ = event::send(self.0);
    }

    fn wait(&self, deadline: u64) {
        if sched::poll(&[self.0], deadline).is_err() {
            sched::yield_now();
        }
        event::clear(self.0);
    }

    fn now(&self) -> u64 {
        time::system_time()
    }
}

/// Sleeps until one of several ports is pending or `deadline` is reached, and
/// clears them. Ports that are not there are left out; at most 16.
///
/// # Errors
/// `EINVAL` for more.
pub fn wait_any(ports: &[&[Option<Port>]], deadline: u64) -> Result<(), Errno> {
    let mut list = [Port(0); 16];
    let mut used = 0;
    for &port in ports.iter().copied().flatten().flatten() {
        *list.get_mut(used).ok_or(Errno::EINVAL)? = port;
        used += 1;
    }
    sched::poll(&list[..used], deadline)?;
    for &port in &list[..used] {
        event::clear(port);
    }
    Ok(())
}
