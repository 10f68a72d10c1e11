//! The socket under a client: whole messages out, whole messages in.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::dup3,
};

use super::Error;
use crate::xenstore::wire::{MESSAGE_MAX, Message};

/// Pause between attempts to reach a daemon that is away.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    path: PathBuf,
    input: Vec<u8>,
}

impl Connection {
    pub(super) fn open(path: &Path) -> Result<Connection, Error> {
        let socket = UnixStream::connect(path).map_err(|source| Error::Unreachable {
            path: path.to_owned(),
            source,
        })?;
        Ok(Connection {
            socket,
            path: path.to_owned(),
            input: Vec::new(),
        })
    }

    /// Connects anew, trying until `deadline`. The file descriptor keeps its
    /// number, so that whoever polls it goes on polling the right thing.
    pub(super) fn reopen(&mut self, deadline: Instant) -> Result<(), Error> {
        loop {
            let attempt = UnixStream::connect(&self.path).and_then(|socket| self.adopt(socket));
            match attempt {
                Err(_) if Instant::now() < deadline => std::thread::sleep(RETRY_PAUSE),
                Err(source) => {
                    return Err(Error::Unreachable {
                        path: self.path.clone(),
                        source,
                    });
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    fn adopt(&mut self, socket: UnixStream) -> io::Result<()> {
        self.input.clear();
        let mut number = OwnedFd::from(std::mem::replace(&mut self.socket, socket.try_clone()?));
        dup3(&socket, &mut number, OFlag::O_CLOEXEC)?;
        self.socket = number.into();
        Ok(())
    }

    pub(super) fn send(&mut self, message: &Message) -> io::Result<()> {
        self.socket.write_all(&message.to_bytes())
    }

    /// The next message; `None` when `deadline` has passed.
    pub(super) fn receive(&mut self, deadline: Option<Instant>) -> io::Result<Option<Message>> {
        loop {
            let message = Message::take(&mut self.input);
            if let Some(message) = message.map_err(io::Error::other)? {
                return Ok(Some(message));
            }
            if deadline.is_some_and(|deadline| !self.readable_by(deadline)) {
                return Ok(None);
            }
            let mut chunk = [0; MESSAGE_MAX];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.input.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn readable_by(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a wait of 0 ms would spin.
            let millis = left.as_nanos().div_ceil(1_000_000);
            let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if Instant::now() >= deadline => return false,
                Ok(count) if count > 0 => return true,
                _ => {}
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
