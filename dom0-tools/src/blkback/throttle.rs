//! Rate limits: a bucket of bytes and one of operations, filled steadily.
//!
//! Law: a request passes as soon as neither bucket is in debt, and may put it
//! into debt. So the average is exact whatever the requests' sizes, and after
//! a pause no more than [`BURST`] seconds' worth passes at once.

use std::time::{Duration, Instant};

/// Seconds' worth that a bucket holds.
const BURST: f64 = 0.1;

/// Limits of a disk; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in a second.
    pub bytes: Option<u64>,
    /// Operations in a second.
    pub operations: Option<u64>,
}

impl Limits {
    /// Of `bps=N,iops=N`; each may be missing, 0 is no limit.
    pub fn parse(text: &str) -> Option<Self> {
        let mut limits = Self::default();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (name, value) = part.split_once('=')?;
            let value = value.trim().parse().ok()?;
            let value = (value > 0).then_some(value);
            match name.trim() {
                "bps" => limits.bytes = value,
                "iops" => limits.operations = value,
                _ => return None,
            }
        }
        Some(limits)
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: f64,
    level: f64,
}

impl Bucket {
    #[allow(clippy::cast_precision_loss)] // rates need no 53 bits
    fn new(rate: u64) -> Self {
        let rate = rate as f64;
        let level = rate * BURST;
        Self { rate, level }
    }

    fn fill(&mut self, seconds: f64) {
        self.level = (self.level + self.rate * seconds).min(self.rate * BURST);
    }

    /// Seconds until it is out of debt.
    fn debt(&self) -> f64 {
        (-self.level / self.rate).max(0.0)
    }
}

/// The state of a disk's limits.
#[derive(Clone, Copy, Debug)]
pub struct Throttle {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    filled: Instant,
}

impl Throttle {
    /// Full buckets.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            bytes: limits.bytes.map(Bucket::new),
            operations: limits.operations.map(Bucket::new),
            filled: now,
        }
    }

    /// Lets an operation of so many bytes pass, or says how long it has to
    /// wait.
    #[allow(clippy::cast_precision_loss)] // a request's bytes fit 53 bits
    pub fn admit(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        let buckets = [&mut self.bytes, &mut self.operations];
        let mut wait: f64 = 0.0;
        for bucket in buckets.into_iter().flatten() {
            bucket.fill(passed);
            wait = wait.max(bucket.debt());
        }
        if wait > 0.0 {
            return Err(Duration::from_secs_f64(wait.min(60.0)) + Duration::from_micros(1));
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.level -= bytes as f64;
        }
        if let Some(bucket) = &mut self.operations {
            bucket.level -= 1.0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes in ten seconds, asked for as fast as it may.
    fn passes(limits: Limits, size: u64) -> u64 {
        let start = Instant::now();
        let (mut now, mut count) = (start, 0);
        let mut throttle = Throttle::new(limits, now);
        while now < start + Duration::from_secs(10) {
            match throttle.admit(size, now) {
                Ok(()) => count += 1,
                Err(wait) => now += wait,
            }
        }
        count
    }

    #[test]
    fn limits_are_parsed() {
        let both = Limits {
            bytes: Some(1000),
            operations: Some(20),
        };
        assert_eq!(Limits::parse("bps=1000,iops=20"), Some(both));
        assert_eq!(Limits::parse("bps=0"), Some(Limits::default()));
        assert_eq!(Limits::parse("speed=1"), None);
        assert_eq!(Limits::parse("bps=x"), None);
    }

    #[test]
    fn the_average_is_the_limit_for_small_and_large_requests() {
        for size in [512, 65_536, 4 << 20] {
            let limits = Limits {
                bytes: Some(1 << 20),
                operations: None,
            };
            let bytes = passes(limits, size) * size;
            let wanted = 10 << 20;
            assert!(
                bytes.abs_diff(wanted) <= size + wanted / 50,
                "{size}: {bytes}"
            );
        }
        let limits = Limits {
            bytes: None,
            operations: Some(100),
        };
        assert!(passes(limits, 1 << 30).abs_diff(1000) <= 20);
    }

    #[test]
    fn a_pause_saves_no_more_than_a_burst() {
        let start = Instant::now();
        let limits = Limits {
            bytes: None,
            operations: Some(100),
        };
        let mut throttle = Throttle::new(limits, start);
        let later = start + Duration::from_secs(3600);
        let at_once = (0..1000)
            .take_while(|_| throttle.admit(0, later).is_ok())
            .count();
        assert!(at_once <= 11, "{at_once}");
    }
}
