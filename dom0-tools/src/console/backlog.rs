//! Output that nobody has read yet.
//!
//! Law: it never holds more than its limit; what is pushed out is the oldest.

use std::collections::VecDeque;

/// A bounded queue of bytes.
#[derive(Debug)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Backlog {
    /// An empty one.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
        }
    }

    /// Adds `new` at the end; how many old bytes had to go.
    pub fn push(&mut self, new: &[u8]) -> usize {
        let new = &new[new.len().saturating_sub(self.limit)..];
        let total = self.bytes.len() + new.len();
        let lost = total.saturating_sub(self.limit);
        self.bytes.drain(..lost);
        self.bytes.extend(new);
        lost
    }

    /// The oldest bytes, some of them at least if there are any.
    #[must_use]
    pub fn front(&self) -> &[u8] {
        let (first, second) = self.bytes.as_slices();
        if first.is_empty() { second } else { first }
    }

    /// Removes the `count` oldest bytes.
    pub fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// Whether there is nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes to read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(backlog: &mut Backlog) -> Vec<u8> {
        let mut out = Vec::new();
        while !backlog.is_empty() {
            let front = backlog.front().to_vec();
            backlog.consume(front.len());
            out.extend(front);
        }
        out
    }

    #[test]
    fn it_keeps_the_newest() {
        let mut backlog = Backlog::new(5);
        assert_eq!(backlog.push(b"abc"), 0);
        assert_eq!(backlog.push(b"def"), 1);
        assert_eq!(backlog.len(), 5);
        assert_eq!(all(&mut backlog), b"bcdef");
        backlog.push(b"12345678");
        assert_eq!(all(&mut backlog), b"45678");
    }

    #[test]
    fn a_flood_does_not_grow_it() {
        let mut backlog = Backlog::new(1000);
        for _ in 0..10_000 {
            backlog.push(&[b'x'; 77]);
        }
        assert_eq!(backlog.len(), 1000);
        assert!(backlog.bytes.capacity() < 4096);
    }
}
