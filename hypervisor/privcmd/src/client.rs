//! A Dom0 process's side of the privcmd socket.
//!
//! Law: one request is in flight at a time; threads that share a [`Client`]
//! take turns. A connection on which a message went wrong is never used again.
//!
//! What a client acquires belongs to its connection: drop the client and the
//! hypervisor takes its ports back (see [`protocol`](crate::protocol)).

mod calls;
mod error;

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

pub use calls::Memory;
pub use error::ClientError;

use crate::{
    protocol::{PROTOCOL_VERSION, Reply, Request, Response},
    wire::{Channel, MAX_FDS, Patience, WireError},
};

/// A connection to the hypervisor.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    /// `None` once a message went wrong.
    channel: Mutex<Option<Channel>>,
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
            path: path.into(),
            channel: Mutex::new(Some(Channel::over(stream, Patience::default()))),
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
    /// of this.
    ///
    /// # Errors
    /// [`ClientError::Failed`] with what the hypervisor said, or
    /// [`ClientError::Disconnected`] or [`ClientError::Wire`].
    pub fn call(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let mut slot = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out while in use, so that every early return leaves it broken.
        let channel = slot.take().ok_or_else(|| self.disconnected())?;
        match channel.send(request, &[]) {
            // The server may have said why before it hung up: read that.
            Err(WireError::Io(e)) if e.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error @ WireError::TooLong { .. }) => {
                *slot = Some(channel);
                return Err(error.into());
            }
            sent => sent?,
        }
        let (response, fds) = match channel.receive::<Response>(MAX_FDS) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(self.disconnected()),
            Err(WireError::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset => {
                return Err(self.disconnected());
            }
            Err(error) => return Err(error.into()),
        };
        *slot = Some(channel);
        Ok((response?, fds))
    }

    /// A descriptor that hangs up (`POLLHUP`) when the hypervisor ends, for
    /// callers that wait for other things.
    ///
    /// # Errors
    /// [`ClientError::Disconnected`] when it has ended already.
    pub fn hang_up_fd(&self) -> Result<OwnedFd, ClientError> {
        let slot = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = slot.as_ref().ok_or_else(|| self.disconnected())?;
        let fd = channel.stream().as_fd().try_clone_to_owned();
        fd.map_err(|error| WireError::Io(error).into())
    }

    fn disconnected(&self) -> ClientError {
        ClientError::Disconnected {
            path: self.path.clone(),
        }
    }
}
