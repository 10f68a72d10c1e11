//! The two streams of bytes in the page shared with the xenstore daemon.
//!
//! Law: `req_prod` and `rsp_cons` are ours and private, the page gets copies.
//! More bytes in a stream than its 1024 is a broken peer.

use core::{
    mem::offset_of,
    sync::atomic::{AtomicU32, Ordering},
};

use super::StoreError;
use crate::{
    kernel::page::Page,
    xs_wire::{XENSTORE_RING_SIZE, XenstoreDomainInterface},
};

/// Where one stream lies in the page.
struct Stream {
    data: usize,
    produced: usize,
    consumed: usize,
}

const REQUESTS: Stream = Stream {
    data: offset_of!(XenstoreDomainInterface, req),
    produced: offset_of!(XenstoreDomainInterface, req_prod),
    consumed: offset_of!(XenstoreDomainInterface, req_cons),
};

const REPLIES: Stream = Stream {
    data: offset_of!(XenstoreDomainInterface, rsp),
    produced: offset_of!(XenstoreDomainInterface, rsp_prod),
    consumed: offset_of!(XenstoreDomainInterface, rsp_cons),
};

#[derive(Debug)]
pub(super) struct Ring {
    page: Page,
    req_prod: u32,
    rsp_cons: u32,
}

impl Ring {
    /// Goes on where the page's user before us stopped: the tool stack, or the
    /// kernel that started this one.
    pub(super) fn new(page: Page) -> Self {
        let mut ring = Self {
            page,
            req_prod: 0,
            rsp_cons: 0,
        };
        ring.req_prod = ring.load(REQUESTS.produced);
        ring.rsp_cons = ring.load(REPLIES.consumed);
        ring
    }

    /// Puts in as many bytes as there is room for.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<usize, StoreError> {
        let used = in_stream(self.req_prod, self.load(REQUESTS.consumed))?;
        let count = bytes.len().min(XENSTORE_RING_SIZE - used);
        let (first, second) = parts(self.req_prod, count);
        let _ = self.page.write(REQUESTS.data + first.0, &bytes[..first.1]);
        let _ = self.page.write(REQUESTS.data, &bytes[first.1..][..second]);
        self.req_prod = self.req_prod.wrapping_add(word(count));
        self.store(REQUESTS.produced, self.req_prod);
        Ok(count)
    }

    /// Takes as many bytes as there are and as fit.
    pub(super) fn receive(&mut self, to: &mut [u8]) -> Result<usize, StoreError> {
        let waiting = in_stream(self.load(REPLIES.produced), self.rsp_cons)?;
        let count = to.len().min(waiting);
        let (first, second) = parts(self.rsp_cons, count);
        let (head, tail) = to[..count].split_at_mut(first.1);
        let _ = self.page.read(REPLIES.data + first.0, head);
        let _ = self.page.read(REPLIES.data, &mut tail[..second]);
        self.rsp_cons = self.rsp_cons.wrapping_add(word(count));
        self.store(REPLIES.consumed, self.rsp_cons);
        Ok(count)
    }

    fn load(&self, offset: usize) -> u32 {
        let word: Option<&AtomicU32> = self.page.word(offset);
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, offset: usize, value: u32) {
        if let Some(word) = self.page.word(offset) {
            word.store(value, Ordering::SeqCst);
        }
    }
}

/// Bytes in a stream.
fn in_stream(produced: u32, consumed: u32) -> Result<usize, StoreError> {
    let used = produced.wrapping_sub(consumed) as usize;
    if used > XENSTORE_RING_SIZE {
        return Err(StoreError::BrokenRing { produced, consumed });
    }
    Ok(used)
}

/// Offset and length up to the stream's end, and the length from its start.
fn parts(index: u32, count: usize) -> ((usize, usize), usize) {
    let offset = index as usize % XENSTORE_RING_SIZE;
    let first = count.min(XENSTORE_RING_SIZE - offset);
    ((offset, first), count - first)
}

/// A count of at most 1024.
#[allow(clippy::cast_possible_truncation)]
fn word(count: usize) -> u32 {
    count as u32
}
