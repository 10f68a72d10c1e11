//! How a message travels.
//!
//! ```text
//! +-----------------+----------------------------------+
//! | length, u32 LE  | body: bincode, fixed-width, LE   |   fds ride on the
//! +-----------------+----------------------------------+   first byte
//! ```
//!
//! Law: nobody else in the project uses bincode. A length above the limit is
//! refused before anything is allocated, and memory grows only with bytes that
//! have arrived. Bytes after the value inside a body are an error. After an
//! error the stream's position is unknown: the connection is of no more use.
//!
//! Fixed-width integers, because then a body of n bytes cannot decode to much
//! more than n bytes of memory.

use std::{
    borrow::Borrow,
    io::{self, Read},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    protocol::MAX_MESSAGE,
    socket::{Receiver, send_all},
};

/// The most descriptors that a message carries.
pub const MAX_FDS: usize = 4;

/// Why a message did not get through.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream ended inside a message.
    #[error("the connection ended inside a message (after {got} of {expected} bytes)")]
    Truncated {
        /// Bytes that arrived, of the length field or of the body.
        got: usize,
        /// Bytes that it should have had.
        expected: usize,
    },
    /// A length field above the limit.
    #[error("a message of {length} bytes exceeds the limit of {MAX_MESSAGE}")]
    TooLong {
        /// The length announced, or that an outgoing message would have.
        length: u64,
    },
    /// A body that is no message of the expected kind.
    #[error("not a privcmd message: {0}")]
    Garbage(String),
    /// The other side was too slow.
    #[error("the other side did not take or finish a message in time")]
    TimedOut,
    /// The socket failed.
    #[error("privcmd socket: {0}")]
    Io(#[from] io::Error),
}

/// How long the other side may take; `None` is for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Patience {
    /// From the call of [`Channel::receive`] to the message's first byte.
    pub idle: Option<Duration>,
    /// From the first byte to the last, either way.
    pub message: Option<Duration>,
}

/// One end of a privcmd connection.
#[derive(Debug)]
pub struct Channel<S = UnixStream> {
    stream: S,
    patience: Patience,
}

impl<S: Borrow<UnixStream>> Channel<S> {
    /// Speaks over something that holds a connected stream.
    pub const fn over(stream: S, patience: Patience) -> Self {
        Self { stream, patience }
    }

    /// The stream below.
    pub fn stream(&self) -> &UnixStream {
        self.stream.borrow()
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`WireError::TooLong`] (nothing was sent), [`WireError::TimedOut`],
    /// [`WireError::Io`].
    pub fn send<T: Serialize>(&self, value: &T, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        let framed = encode(value)?;
        let deadline = self.patience.message.map(|limit| Instant::now() + limit);
        send_all(self.stream.borrow(), &framed, fds, deadline).map_err(timed_out)
    }

    /// Receives one message and up to `max_fds` descriptors (more are closed);
    /// `None` when the other side has ended the connection between messages.
    ///
    /// # Errors
    /// All variants of [`WireError`].
    pub fn receive<T: DeserializeOwned>(
        &self,
        max_fds: usize,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        let idle = self.patience.idle.map(|limit| Instant::now() + limit);
        let mut from = Receiver::new(self.stream.borrow(), max_fds, idle);
        let mut first = [0; 1];
        if from.read(&mut first).map_err(timed_out)? == 0 {
            return Ok(None);
        }
        from.deadline = self.patience.message.map(|limit| Instant::now() + limit);
        let body = read_body(&mut from, first[0])?;
        Ok(Some((decode(&body)?, from.fds)))
    }
}

/// The rest of a message whose first byte has been read.
fn read_body(from: &mut impl Read, first: u8) -> Result<Vec<u8>, WireError> {
    let header = read_exactly(from, 3, Vec::from([first]), 4)?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    match usize::try_from(length) {
        Ok(length) if length <= MAX_MESSAGE => read_exactly(from, length, Vec::new(), length),
        _ => Err(WireError::TooLong {
            length: length.into(),
        }),
    }
}

/// Appends `more` bytes to `buf`, which then has `expected`. The buffer grows
/// as bytes arrive, not by what the sender announces.
fn read_exactly(
    from: &mut impl Read,
    more: usize,
    mut buf: Vec<u8>,
    expected: usize,
) -> Result<Vec<u8>, WireError> {
    let limit = u64::try_from(more).unwrap_or(u64::MAX);
    from.take(limit).read_to_end(&mut buf).map_err(timed_out)?;
    if buf.len() < expected {
        return Err(WireError::Truncated {
            got: buf.len(),
            expected,
        });
    }
    Ok(buf)
}

fn options() -> impl Options {
    bincode::options()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(MAX_MESSAGE as u64)
        .reject_trailing_bytes()
}

/// A message with its length field.
fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let length = bincode::options()
        .with_fixint_encoding()
        .serialized_size(value)
        .map_err(garbage)?;
    let short = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_MESSAGE as u64)
        .ok_or(WireError::TooLong { length })?;
    let mut framed = Vec::from(short.to_le_bytes());
    options()
        .serialize_into(&mut framed, value)
        .map_err(garbage)?;
    Ok(framed)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    options().deserialize(body).map_err(garbage)
}

#[allow(clippy::needless_pass_by_value)] // the shape of map_err
fn garbage(error: bincode::Error) -> WireError {
    WireError::Garbage(error.to_string())
}

fn timed_out(error: io::Error) -> WireError {
    match error.kind() {
        io::ErrorKind::TimedOut => WireError::TimedOut,
        _ => WireError::Io(error),
    }
}

#[cfg(test)]
mod tests;
