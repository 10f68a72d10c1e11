//! The connection itself, shared by a client and the mappings that it made.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::ClientError;
use crate::{
    protocol::{Reply, Request, Response},
    wire::{Channel, MAX_FDS, Patience, WireError},
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Link {
    path: PathBuf,
    /// `None` once a message went wrong.
    channel: Mutex<Option<Channel>>,
}

impl Link {
    pub fn new(path: &Path, stream: UnixStream) -> Self {
        Self {
            path: path.into(),
            channel: Mutex::new(Some(Channel::over(stream, Patience::default()))),
        }
    }

    /// One request and its reply.
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

    /// A request without reply.
    pub fn tell(&self, request: &Request) -> Result<(), ClientError> {
        let mut slot = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = slot.take().ok_or_else(|| self.disconnected())?;
        match channel.send(request, &[]) {
            Err(WireError::Io(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                return Err(self.disconnected());
            }
            sent => sent?,
        }
        *slot = Some(channel);
        Ok(())
    }

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
