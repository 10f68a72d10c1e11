//! Messages over the ring: one request going out, one reply coming in, each
//! in pieces.

use core::fmt;

use zerocopy::{FromBytes, IntoBytes};

use super::{StoreError, ring::Ring};
use crate::{
    errno::Errno,
    kernel::{doorbell::Doorbell, page::Page},
    xs_wire::{XENSTORE_PAYLOAD_MAX, XSD_ERRORS, XsdSockmsg},
};

const HEADER: usize = size_of::<XsdSockmsg>();

/// A message of the largest size.
struct Buffer {
    bytes: [u8; HEADER + XENSTORE_PAYLOAD_MAX],
    /// Of an outgoing message: its length. Of an incoming one: what is there.
    used: usize,
}

impl Buffer {
    const fn new() -> Self {
        Self {
            bytes: [0; HEADER + XENSTORE_PAYLOAD_MAX],
            used: 0,
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.used)
    }
}

impl fmt::Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.used + text.len();
        let room = self.bytes.get_mut(self.used..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.used = end;
        Ok(())
    }
}

/// The head of a whole message that lies in the incoming buffer, until the
/// next is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub(super) kind: u32,
    pub(super) id: u32,
    length: usize,
}

/// What a refusal's payload names.
pub(super) fn refusal(payload: &[u8]) -> StoreError {
    let name = payload.split(|&byte| byte == 0).next().unwrap_or_default();
    let known = XSD_ERRORS.iter().find(|(text, _)| text.as_bytes() == name);
    known.map_or(StoreError::Protocol, |&(_, number)| {
        StoreError::Refused(Errno(number))
    })
}

#[derive(Debug)]
pub(super) struct Connection<B> {
    ring: Ring,
    pub(super) bell: B,
    next_id: u32,
    outgoing: Buffer,
    /// Bytes of the outgoing message that are in the ring.
    sent: usize,
    incoming: Buffer,
    /// The incoming buffer holds a whole message that was handed out.
    taken: bool,
}

impl<B: Doorbell> Connection<B> {
    pub(super) fn new(page: Page, bell: B) -> Self {
        Self {
            ring: Ring::new(page),
            bell,
            next_id: 1,
            outgoing: Buffer::new(),
            sent: 0,
            incoming: Buffer::new(),
            taken: false,
        }
    }

    /// Makes a request ready to go. Its number.
    pub(super) fn request(
        &mut self,
        kind: u32,
        tx_id: u32,
        payload: fmt::Arguments<'_>,
    ) -> Result<u32, StoreError> {
        self.finish_old()?;
        self.outgoing.used = HEADER;
        let written = fmt::write(&mut self.outgoing, payload);
        let length = self.outgoing.used - HEADER;
        if written.is_err() {
            self.forget_rest();
            return Err(StoreError::TooLong);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let header = XsdSockmsg {
            kind,
            req_id: id,
            tx_id,
            len: u32::try_from(length).map_err(|_| StoreError::TooLong)?,
        };
        self.outgoing.bytes[..HEADER].copy_from_slice(header.as_bytes());
        self.sent = 0;
        Ok(id)
    }

    /// A request that timed out half sent must go out whole, or the stream is
    /// out of step.
    fn finish_old(&mut self) -> Result<(), StoreError> {
        if self.flush()? {
            Ok(())
        } else {
            Err(StoreError::TimedOut)
        }
    }

    /// Puts into the ring what there is room for. `true`: all is out.
    pub(super) fn flush(&mut self) -> Result<bool, StoreError> {
        let rest = &self.outgoing.bytes[self.sent..self.outgoing.used];
        if rest.is_empty() {
            return Ok(true);
        }
        let count = self.ring.send(rest)?;
        self.sent += count;
        if count > 0 {
            self.bell.ring();
        }
        Ok(self.sent == self.outgoing.used)
    }

    /// Nothing more of the outgoing message goes out.
    fn forget_rest(&mut self) {
        self.sent = 0;
        self.outgoing.used = 0;
    }

    /// The next whole message, if it is there.
    pub(super) fn next(&mut self) -> Result<Option<Reply>, StoreError> {
        if core::mem::take(&mut self.taken) {
            self.incoming.used = 0;
        }
        if !self.fill(HEADER)? {
            return Ok(None);
        }
        let header = XsdSockmsg::read_from_bytes(&self.incoming.bytes[..HEADER]);
        let header = header.map_err(|_| StoreError::Protocol)?;
        let length = usize::try_from(header.len).map_err(|_| StoreError::Protocol)?;
        if length > XENSTORE_PAYLOAD_MAX {
            return Err(StoreError::Protocol);
        }
        if !self.fill(HEADER + length)? {
            return Ok(None);
        }
        self.taken = true;
        Ok(Some(Reply {
            kind: header.kind,
            id: header.req_id,
            length,
        }))
    }

    /// Reads until the incoming buffer holds `goal` bytes. `false`: not yet.
    fn fill(&mut self, goal: usize) -> Result<bool, StoreError> {
        while self.incoming.used < goal {
            let room = &mut self.incoming.bytes[self.incoming.used..goal];
            let count = self.ring.receive(room)?;
            if count == 0 {
                return Ok(false);
            }
            self.incoming.used += count;
            self.bell.ring();
        }
        Ok(true)
    }

    /// The bytes of a message that [`next`](Self::next) gave last.
    pub(super) fn payload(&self, reply: Reply) -> &[u8] {
        &self.incoming.bytes[HEADER..HEADER + reply.length]
    }
}
