//! An event channel's port, bound to one of the guest's.
//!
//! Law: a port belongs to the connection that made it, and is given back when
//! it is dropped. The hypervisor then leaves the guest's end unbound, so that
//! the next back end binds to it again.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use domus_privcmd::client::{Client, ClientError};
use guest_abi::addr::{self, DomId};
use tracing::debug;

/// A port of ours.
#[derive(Debug)]
pub struct Port {
    client: Arc<Client>,
    port: addr::Port,
    event: OwnedFd,
}

impl Port {
    /// Binds to a port that `dom` has offered to Dom0.
    ///
    /// # Errors
    /// What the hypervisor says: no such port, or not offered to us.
    pub fn bind(client: &Arc<Client>, dom: DomId, remote: addr::Port) -> Result<Self, ClientError> {
        let (port, event) = client.evtchn_bind_interdomain(dom, remote)?;
        let client = client.clone();
        Ok(Self {
            client,
            port,
            event,
        })
    }

    /// Notifies the guest. A guest that has gone hears nothing, which is no
    /// error of ours: its end comes through xenstore.
    pub fn notify(&self) {
        self.signal(false);
    }

    /// Notifies the guest, unless it is just running: then it hears at its next
    /// trap. Who calls this looks after a while whether the guest has
    /// looked, and [notifies](Self::notify) it if not.
    pub fn nudge(&self) {
        self.signal(true);
    }

    fn signal(&self, soon: bool) {
        if let Err(error) = self.client.evtchn_signal(self.port, soon) {
            debug!(port = %self.port, %error, "cannot notify");
        }
    }

    /// Forgets the notifications that have come. To be called before the ring
    /// is looked at: what comes later notifies again.
    pub fn clear(&self) {
        // It is not readable, or it is: both are fine.
        let _ = nix::unistd::read(&self.event, &mut [0; 8]);
    }
}

impl AsFd for Port {
    /// Readable when the guest has notified us.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Err(error) = self.client.evtchn_close(self.port) {
            debug!(port = %self.port, %error, "cannot close");
        }
    }
}
