//! Which bytes of guest memory have been decoded.
//!
//! Law: a frame listed here has no writable translation in the TLB, so that
//! each write of the interpreter to it comes past [`CodeLines::hit`].

use guest_abi::addr::Mfn;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// Hashes a number by one multiplication; the keys are frame and machine
/// addresses of one domain, which gains nothing by making its own slow.
#[derive(Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

/// A map with numbers for keys.
pub type NumberMap<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;

/// For each frame with decoded code, its 64-byte lines that hold some.
#[derive(Default)]
pub struct CodeLines {
    frames: NumberMap<u64>,
}

impl CodeLines {
    /// Whether there is decoded code in this frame.
    pub fn contains(&self, mfn: Mfn) -> bool {
        self.frames.contains_key(&mfn.0)
    }

    /// Whether `offset..offset + len` of the frame touches decoded code.
    pub fn hit(&self, mfn: Mfn, offset: u64, len: u64) -> bool {
        let lines = self.frames.get(&mfn.0).copied().unwrap_or(0);
        lines & mask(offset, len) != 0
    }

    /// Marks code; true if it is the frame's first.
    pub fn mark(&mut self, mfn: Mfn, offset: u64, len: u64) -> bool {
        let lines = self.frames.entry(mfn.0).or_insert(0);
        let first = *lines == 0;
        *lines |= mask(offset, len);
        first
    }

    /// Forgets a frame.
    pub fn remove(&mut self, mfn: Mfn) {
        self.frames.remove(&mfn.0);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.frames.clear();
    }
}

/// The bits of the lines that `offset..offset + len` touches.
fn mask(offset: u64, len: u64) -> u64 {
    let first = (offset & 0xfff) >> 6;
    let last = (offset & 0xfff).saturating_add(len.max(1) - 1).min(0xfff) >> 6;
    (u64::MAX >> (63 - (last - first))) << first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_touched() {
        assert_eq!(mask(0, 1), 1);
        assert_eq!(mask(63, 2), 3);
        assert_eq!(mask(64, 64), 2);
        assert_eq!(mask(0, 4096), u64::MAX);
        assert_eq!(mask(4095, 8), 1 << 63);
        let mut lines = CodeLines::default();
        assert!(lines.mark(Mfn(5), 100, 10));
        assert!(!lines.mark(Mfn(5), 300, 10));
        assert!(lines.hit(Mfn(5), 96, 8) && !lines.hit(Mfn(5), 0, 64));
        assert!(!lines.hit(Mfn(6), 96, 8));
    }
}
