//! The hypervisor's console ring: what `console_io` writes and `xm dmesg` reads.
//!
//! Law: bounded. A guest that floods it pushes out old text and costs no
//! memory; each line is marked with the domain that wrote it. Of what a guest
//! writes only printable ASCII and tabs come in, as in Xen: whoever reads it on
//! a terminal is not at the mercy of escape sequences.

use guest_abi::addr::DomId;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

/// Bytes that the ring keeps.
const RING_BYTES: usize = 256 << 10;
/// A line that gets longer is broken.
const LINE_BYTES: usize = 1024;

#[derive(Debug, Default)]
struct Inner {
    ring: VecDeque<u8>,
    /// Number of the ring's first byte since the start.
    start: u64,
    /// Unfinished lines by domain.
    lines: HashMap<DomId, Vec<u8>>,
}

/// The console.
#[derive(Debug, Default)]
pub struct Console {
    inner: Mutex<Inner>,
}

impl Console {
    /// Takes what a guest wrote; lines appear when they end.
    pub fn guest_write(&self, dom: DomId, bytes: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = inner.lines.remove(&dom).unwrap_or_default();
        for byte in bytes {
            if matches!(byte, b' '..=b'~' | b'\t') {
                line.push(*byte);
            }
            if *byte == b'\n' || line.len() >= LINE_BYTES {
                inner.push_line(&format!("(d{dom}) "), &line);
                line.clear();
            }
        }
        if !line.is_empty() {
            inner.lines.insert(dom, line);
        }
    }

    /// Writes a line of the hypervisor's own.
    pub fn print(&self, text: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for line in text.lines() {
            inner.push_line("(XEN) ", line.as_bytes());
        }
    }

    /// Forgets the unfinished line of a domain that is gone, after writing it.
    pub fn domain_gone(&self, dom: DomId) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = inner.lines.remove(&dom) {
            inner.push_line(&format!("(d{dom}) "), &line);
        }
    }

    /// The bytes from number `from` on, and the number of the first one.
    #[must_use]
    pub fn read(&self, from: u64, max: usize, clear: bool) -> (u64, Vec<u8>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let end = inner.start + inner.ring.len() as u64;
        let start = from.clamp(inner.start, end);
        let skip = usize::try_from(start - inner.start).unwrap_or(usize::MAX);
        let bytes = inner.ring.iter().skip(skip).take(max).copied().collect();
        if clear {
            inner.start = end;
            inner.ring.clear();
        }
        (start, bytes)
    }
}

impl Inner {
    fn push_line(&mut self, prefix: &str, line: &[u8]) {
        let text = prefix.bytes().chain(line.iter().copied()).chain([b'\n']);
        self.ring.extend(text);
        let surplus = self.ring.len().saturating_sub(RING_BYTES);
        self.ring.drain(..surplus);
        self.start += surplus as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_marked_and_appear_when_they_end() {
        let console = Console::default();
        console.guest_write(DomId(3), b"hel");
        assert_eq!(console.read(0, 100, false).1, b"");
        console.guest_write(DomId(4), b"other\r\n");
        console.guest_write(DomId(3), b"lo\nrest");
        assert_eq!(
            console.read(0, 100, false),
            (0, b"(d4) other\n(d3) hello\n".to_vec())
        );
        console.domain_gone(DomId(3));
        assert_eq!(console.read(22, 100, true), (22, b"(d3) rest\n".to_vec()));
        assert_eq!(console.read(0, 100, false), (32, vec![]));
    }

    #[test]
    fn a_guest_sends_no_escape_sequences() {
        let console = Console::default();
        console.guest_write(DomId(1), b"\x1b[2Ja\tb\x7f\xc3\xa9\x9b\0!\n");
        assert_eq!(console.read(0, 100, false).1, b"(d1) [2Ja\tb!\n");
    }

    #[test]
    fn a_flood_is_bounded() {
        let console = Console::default();
        for _ in 0..100 {
            console.guest_write(DomId(1), &[b'x'; 10_000]);
        }
        let (start, bytes) = console.read(0, usize::MAX, false);
        assert_eq!(bytes.len(), RING_BYTES);
        assert!(start > 0);
        console.guest_write(DomId(1), &vec![b'y'; 5 << 20]);
        assert_eq!(console.read(0, usize::MAX, false).1.len(), RING_BYTES);
    }
}
