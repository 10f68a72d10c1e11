//! What the daemon needs of the hypervisor.
//!
//! Law: only this trait stands between the daemon's logic and the world of
//! domains, so all of the logic is tested without one.

use guest_abi::{
    addr::{DomId, Mfn, Port},
    errno::Errno,
};

use super::ring::Stream;

/// A domain as the hypervisor knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainState {
    /// Tells domains apart that had the same number one after the other.
    pub generation: u64,
    /// It has shut down but still exists.
    pub shutdown: bool,
}

/// See the module's text.
pub trait Hypervisor {
    /// The domain; `None` if there is none or it is being destroyed.
    ///
    /// # Errors
    /// Nothing can be said about it now.
    fn domain(&mut self, dom: DomId) -> Result<Option<DomainState>, Errno>;

    /// Maps the domain's ring, binds its event channel, and tells where the
    /// ring stands. An earlier connection of the same domain is closed.
    ///
    /// # Errors
    /// The hypervisor's, with the earlier connection gone.
    fn attach(&mut self, dom: DomId, mfn: Mfn, port: Port) -> Result<Stream, Errno>;

    /// Unmaps the ring and closes the event channel, if there are any.
    fn detach(&mut self, dom: DomId);
}

/// No hypervisor at all: no domain exists.
#[derive(Debug, Default)]
pub struct NoHypervisor;

impl Hypervisor for NoHypervisor {
    fn domain(&mut self, _dom: DomId) -> Result<Option<DomainState>, Errno> {
        Ok(None)
    }

    fn attach(&mut self, _dom: DomId, _mfn: Mfn, _port: Port) -> Result<Stream, Errno> {
        Err(Errno::EINVAL)
    }

    fn detach(&mut self, _dom: DomId) {}
}
