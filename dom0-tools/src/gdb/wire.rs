//! The bytes between gdb and us.

use gdbstub::conn::{Connection, ConnectionExt};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

/// A stream each way: a socket's both ends, or standard input and output.
#[derive(Debug)]
pub struct Wire {
    input: File,
    output: File,
    received: Vec<u8>,
    taken: usize,
    queued: Vec<u8>,
}

impl Wire {
    /// Speaks over two streams.
    #[must_use]
    pub fn new(input: OwnedFd, output: OwnedFd) -> Self {
        Wire {
            input: input.into(),
            output: output.into(),
            received: Vec::new(),
            taken: 0,
            queued: Vec::new(),
        }
    }

    /// Speaks over a socket.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn over(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self::new(socket.try_clone()?, socket))
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let count = self.input.read(&mut bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received = bytes[..count].to_vec();
        self.taken = 0;
        Ok(())
    }

    fn readable(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.queued.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.queued.extend(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.write_all(&self.queued)?;
        self.queued.clear();
        self.output.flush()
    }
}

impl ConnectionExt for Wire {
    fn read(&mut self) -> io::Result<u8> {
        if self.taken == self.received.len() {
            self.fill()?;
        }
        let byte = self.received[self.taken];
        self.taken += 1;
        Ok(byte)
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        if self.taken == self.received.len() {
            if !self.readable()? {
                return Ok(None);
            }
            self.fill()?;
        }
        Ok(self.received.get(self.taken).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_pass_and_an_end_is_an_error() {
        let (ours, mut gdbs) = UnixStream::pair().unwrap();
        let mut wire = Wire::over(ours.into()).unwrap();
        assert_eq!(wire.peek().unwrap(), None);
        Write::write_all(&mut gdbs, b"+$").unwrap();
        assert_eq!(wire.peek().unwrap(), Some(b'+'));
        assert_eq!(wire.read().unwrap(), b'+');
        assert_eq!(wire.read().unwrap(), b'$');
        wire.write_all(b"$OK#9a").unwrap();
        wire.flush().unwrap();
        let mut got = [0; 6];
        Read::read_exact(&mut gdbs, &mut got).unwrap();
        assert_eq!(&got, b"$OK#9a");
        drop(gdbs);
        assert!(wire.peek().is_err() && wire.read().is_err());
    }
}
