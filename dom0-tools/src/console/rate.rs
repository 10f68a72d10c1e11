//! How much of the daemon one guest may use.
//!
//! A guest that prints without end, or that notifies without printing, would
//! keep the daemon from the others. So each has an allowance that refills with
//! time, and whose consoles are out of it wait: the guest finds its ring full,
//! as on a slow serial line.

use std::time::{Duration, Instant};

/// Refilled per second.
const PER_SECOND: u32 = 1 << 20;
/// The most that is saved up.
const BURST: u32 = 256 << 10;
/// What a wake-up costs at least, in bytes.
const WAKE_UP: u32 = 128;
/// A guest that ran out waits until it has this much again.
const RESUME: u32 = 16 << 10;

/// One guest's allowance, in bytes.
#[derive(Debug)]
pub struct Allowance {
    left: u32,
    refilled: Instant,
    exhausted: bool,
}

impl Allowance {
    /// A full one.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            refilled: now,
            exhausted: false,
        }
    }

    /// Accounts for a wake-up that moved `bytes`.
    pub fn spend(&mut self, bytes: usize) {
        let cost = u32::try_from(bytes).unwrap_or(u32::MAX).max(WAKE_UP);
        self.left = self.left.saturating_sub(cost);
        self.exhausted |= self.left == 0;
    }

    /// How long the guest has to wait; `None` if it need not.
    pub fn pause(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        if !self.exhausted {
            return None;
        }
        let missing = RESUME.saturating_sub(self.left);
        Some(Duration::from_secs(missing.into()) / PER_SECOND + Duration::from_millis(1))
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled);
        let millis = u32::try_from(elapsed.as_millis()).unwrap_or(u32::MAX);
        if millis == 0 {
            return;
        }
        let gained = millis.saturating_mul(PER_SECOND / 1000);
        self.left = self.left.saturating_add(gained).min(BURST);
        self.refilled = now;
        self.exhausted &= self.left < RESUME;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_held_to_the_rate() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut now = start;
        let mut moved = 0u64;
        while now < start + Duration::from_secs(10) {
            match allowance.pause(now) {
                Some(wait) => now += wait,
                None => {
                    allowance.spend(2048);
                    moved += 2048;
                    now += Duration::from_micros(10);
                }
            }
        }
        let limit = u64::from(BURST) + 10 * u64::from(PER_SECOND);
        assert!(moved <= limit + limit / 10, "{moved}");
        assert!(moved >= limit / 2, "{moved}");
    }

    #[test]
    fn empty_wake_ups_run_out_too() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        for _ in 0..BURST / WAKE_UP {
            allowance.spend(0);
        }
        assert!(allowance.pause(start).is_some());
        assert!(allowance.pause(start + Duration::from_secs(1)).is_none());
    }

    #[test]
    fn a_line_now_and_then_never_waits() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        for i in 0..10_000 {
            allowance.spend(80);
            assert_eq!(allowance.pause(start + Duration::from_millis(i)), None);
        }
    }
}
