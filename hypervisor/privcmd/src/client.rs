//! A Dom0 process's side of the privcmd socket.
//!
//! Law: one request is in flight at a time; threads that share a [`Client`]
//! take turns. A connection on which a message went wrong is never used again.
//!
//! What a client acquires belongs to its connection: drop the client, and the
//! [`GrantMapping`]s that it made, and the hypervisor takes its ports back (see
//! [`protocol`](crate::protocol)).

mod buffer;
mod calls;
mod error;
mod files;
mod grants;
mod link;
mod region;

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::Arc,
};

pub use buffer::{CopyBuffer, GrantPart};
pub use calls::Memory;
pub use error::ClientError;
pub use grants::{CopyData, GrantCopy, GrantMapping};
pub use region::AccessError;

use crate::protocol::{PROTOCOL_VERSION, Reply, Request};
use files::Files;
use link::Link;

/// A connection to the hypervisor.
#[derive(Debug)]
pub struct Client {
    link: Arc<Link>,
    files: Files,
}

impl Client {
    /// Connects and agrees on the protocol's version.
    ///
    /// # Errors
    /// [`ClientError::NoHypervisor`], [`ClientError::PermissionDenied`],
    /// [`ClientError::Refused`] (another version, another user, too many
    /// connections), or what the socket gave.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|e| ClientError::connecting(path, e))?;
        let client = Self {
            link: Arc::new(Link::new(path, stream)),
            files: Files::default(),
        };
        let hello = Request::Hello {
            version: PROTOCOL_VERSION,
        };
        match client.call(&hello) {
            Ok((Reply::Done, _)) => Ok(client),
            Ok((reply, _)) => Err(ClientError::unexpected(&hello, &reply)),
            Err(ClientError::Failed(failure)) => Err(ClientError::Refused(failure)),
            Err(error) => Err(error),
        }
    }

    /// Sends any request and waits for its reply. The typed methods are made
    /// of this. (Not for a [one-way](Request::is_one_way) one.)
    ///
    /// # Errors
    /// [`ClientError::Failed`] with what the hypervisor said, or
    /// [`ClientError::Disconnected`] or [`ClientError::Wire`].
    pub fn call(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.link.call(request)
    }

    /// Sends a [one-way](Request::is_one_way) request.
    ///
    /// # Errors
    /// [`ClientError::Disconnected`] or [`ClientError::Wire`].
    ///
    /// # Panics
    /// For a request that has a reply: the next call would take it for its own.
    pub fn tell(&self, request: &Request) -> Result<(), ClientError> {
        assert!(request.is_one_way(), "{} has a reply", request.name());
        self.link.tell(request)
    }

    /// A descriptor that hangs up (`POLLHUP`) when the hypervisor ends, for
    /// callers that wait for other things.
    ///
    /// # Errors
    /// [`ClientError::Disconnected`] when it has ended already.
    pub fn hang_up_fd(&self) -> Result<OwnedFd, ClientError> {
        self.link.hang_up_fd()
    }
}
