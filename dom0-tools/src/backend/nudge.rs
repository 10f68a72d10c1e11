//! How long a guest may leave its notification alone.
//!
//! Law: a guest that runs is not interrupted for what a back end has done: it
//! traps soon, and takes the event along ([`Port::nudge`](super::Port::nudge)).
//! A guest that computes without trapping would wait for its next timer. So
//! who nudges looks after a while whether the guest has looked, and if not
//! notifies it in earnest.

use std::time::{Duration, Instant};

/// The nudges to one ring.
#[derive(Debug)]
pub struct Nudges {
    patience: Duration,
    since: Option<Instant>,
}

/// What has become of a nudge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The guest has looked, or there was none.
    Yes,
    /// It has so much time left to.
    NotYet(Duration),
    /// It has to be notified. This is told once.
    No,
}

impl Nudges {
    /// None yet; a guest has `patience` to look by itself.
    #[must_use]
    pub const fn new(patience: Duration) -> Self {
        Self {
            patience,
            since: None,
        }
    }

    /// The guest was nudged.
    pub fn sent(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Whether a nudge may not have been heard.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.since.is_some()
    }

    /// Looks after the nudge; `is_seen` says whether the guest has looked at
    /// its ring.
    pub fn look(&mut self, now: Instant, is_seen: impl FnOnce() -> bool) -> Heard {
        let Some(since) = self.since else {
            return Heard::Yes;
        };
        if is_seen() {
            self.since = None;
            return Heard::Yes;
        }
        let left = self.patience.saturating_sub(now.duration_since(since));
        if left.is_zero() {
            self.since = None;
            return Heard::No;
        }
        Heard::NotYet(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_does_not_look_is_notified_once() {
        let start = Instant::now();
        let at = |us| start + Duration::from_micros(us);
        let mut nudges = Nudges::new(Duration::from_micros(100));
        assert_eq!(nudges.look(at(0), || false), Heard::Yes, "none was sent");
        nudges.sent(at(0));
        nudges.sent(at(90));
        let left = Duration::from_micros(40);
        assert_eq!(nudges.look(at(60), || false), Heard::NotYet(left));
        assert_eq!(nudges.look(at(100), || false), Heard::No);
        assert_eq!(nudges.look(at(200), || false), Heard::Yes);
        nudges.sent(at(300));
        assert_eq!(nudges.look(at(500), || true), Heard::Yes);
        assert!(!nudges.is_open());
    }
}
