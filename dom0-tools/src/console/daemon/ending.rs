//! Consoles of guests that have ended, until their last words are read.
//!
//! The kernel throws away what a hung-up terminal still holds. So a terminal
//! hangs up when it is read out, or when nobody has read it for a while.

use std::time::{Duration, Instant};

use crate::console::domain::Console;

/// Bytes can be on their way to the far end and count as read: wait as long.
const AT_LEAST: Duration = Duration::from_millis(50);
/// Somebody who reads nothing in this time reads nothing.
const AT_MOST: Duration = Duration::from_secs(2);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// The consoles.
#[derive(Debug, Default)]
pub struct Ending {
    consoles: Vec<(Console, Instant)>,
}

impl Ending {
    /// Adds one.
    pub fn push(&mut self, console: Console, now: Instant) {
        self.consoles.push((console, now));
    }

    /// Shows more of what is left, and hangs up where all is read.
    pub fn serve(&mut self, now: Instant) {
        self.consoles.retain_mut(|(console, since)| {
            let age = now.saturating_duration_since(*since);
            let broken = console.serve_screen().is_err();
            let done = age >= AT_LEAST && console.is_read_out();
            !(broken || done || age >= AT_MOST)
        });
    }

    /// When to call [`serve`](Self::serve) again.
    #[must_use]
    pub fn again(&self) -> Option<Duration> {
        (!self.consoles.is_empty()).then_some(BETWEEN_LOOKS)
    }
}
