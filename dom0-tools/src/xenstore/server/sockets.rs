//! Clients on the socket.
//!
//! Law: no read or write here waits. Input is read only while less than one
//! message is at hand, output is taken from the outbox only when the last of
//! it has been written: so a client costs one message each way besides its
//! outbox.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use crate::xenstore::{
    peers::Outbox,
    wire::{Header, MESSAGE_MAX, Message, TooLong},
};

/// A client that lets more bytes of events pile up than this is cut off.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The connection has to be closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    #[error("the client has hung up")]
    HungUp,
    #[error(transparent)]
    Broken(#[from] io::Error),
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("the client does not read its events")]
    Deaf,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Socket {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Socket {
    pub(super) fn new(stream: UnixStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(Socket {
            stream,
            input: Vec::new(),
            output: Vec::new(),
        })
    }

    /// Takes in what has come, up to a message's length.
    pub(super) fn read(&mut self) -> Result<(), Closed> {
        let mut chunk = [0; MESSAGE_MAX];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(Closed::HungUp),
            Ok(len) => {
                self.input.extend_from_slice(&chunk[..len]);
                Ok(())
            }
            Err(error) if is_temporary(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The next whole message that has been taken in.
    pub(super) fn message(&mut self) -> Result<Option<Message>, Closed> {
        Ok(Message::take(&mut self.input)?)
    }

    /// Whether a whole message, or a broken one, has been taken in.
    pub(super) fn has_message(&self) -> bool {
        let head = self.input.first_chunk().copied().map(Header::from_bytes);
        head.is_some_and(|head| head.message_len().is_ok_and(|len| len <= self.input.len()))
    }

    /// Whether there is room for a read.
    pub(super) fn wants_input(&self) -> bool {
        self.input.len() < MESSAGE_MAX
    }

    /// Whether output waits for the client.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Writes what the client takes.
    pub(super) fn write(&mut self, outbox: &mut Outbox) -> Result<(), Closed> {
        loop {
            if self.output.is_empty() {
                match outbox.pop() {
                    Some(item) => self.output = item.bytes,
                    None => return Ok(()),
                }
            }
            match self.stream.write(&self.output) {
                Ok(len) => drop(self.output.drain(..len)),
                Err(error) if is_temporary(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if outbox.event_bytes() > EVENT_BYTES_MAX {
            return Err(Closed::Deaf);
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
