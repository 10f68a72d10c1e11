//! `rate=`: how many bytes a guest may send.
//!
//! Credit of so many bytes is given at the start of each interval and does not
//! pile up, except that one packet larger than an interval's credit can go at
//! all. As in Xen, only what the guest sends is limited.

use std::time::{Duration, Instant};

/// What a packet may have at most, and so what credit may pile up to.
const LARGEST: u64 = 128 << 10;

/// A limit, and what is left of it now.
#[derive(Clone, Debug)]
pub struct Credit {
    limit: Option<Limit>,
}

#[derive(Clone, Debug)]
struct Limit {
    bytes: u64,
    interval: Duration,
    left: u64,
    next: Instant,
}

/// A text that is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no rate: BYTES,MICROSECONDS is wanted, both above 0")]
pub struct RateError(String);

impl Credit {
    /// No limit.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { limit: None }
    }

    /// From the node `rate`: `BYTES,MICROSECONDS`.
    ///
    /// # Errors
    /// [`RateError`].
    pub fn parse(rate: &str, now: Instant) -> Result<Self, RateError> {
        let numbers = rate.split_once(',').and_then(|(bytes, interval)| {
            let bytes: u64 = bytes.trim().parse().ok()?;
            let interval: u64 = interval.trim().parse().ok()?;
            (bytes > 0 && interval > 0).then_some((bytes, interval))
        });
        let (bytes, interval) = numbers.ok_or_else(|| RateError(rate.to_owned()))?;
        let interval = Duration::from_micros(interval.min(3_600_000_000));
        Ok(Self {
            limit: Some(Limit {
                bytes,
                interval,
                left: bytes,
                next: now + interval,
            }),
        })
    }

    /// Takes credit for a packet of `bytes`, or says when to ask again.
    ///
    /// # Errors
    /// When there will be more credit.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Instant> {
        let Some(limit) = &mut self.limit else {
            return Ok(());
        };
        if bytes > limit.left && now >= limit.next {
            let most = limit.bytes.max(bytes.min(LARGEST));
            limit.left = limit.left.saturating_add(limit.bytes).min(most);
            limit.next = now + limit.interval;
        }
        match limit.left.checked_sub(bytes) {
            Some(left) => {
                limit.left = left;
                Ok(())
            }
            None => Err(limit.next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_rates_are_named() {
        let now = Instant::now();
        for text in ["", "1", "0,5", "5,0", "a,b", "1,-1"] {
            let error = Credit::parse(text, now).unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn credit_runs_out_and_comes_back() {
        let start = Instant::now();
        let mut credit = Credit::parse("3000,50000", start).unwrap();
        assert_eq!(credit.take(1500, start), Ok(()));
        assert_eq!(credit.take(1500, start), Ok(()));
        let next = credit.take(1500, start).unwrap_err();
        assert_eq!(next, start + Duration::from_millis(50));
        assert_eq!(credit.take(1500, next), Ok(()));
        // It does not pile up over idle intervals.
        let later = start + Duration::from_secs(9);
        for _ in 0..3 {
            assert_eq!(credit.take(1500, later), Ok(()));
        }
        assert!(credit.take(1500, later).is_err());
    }

    #[test]
    fn a_packet_above_the_credit_goes_in_the_end() {
        let mut now = Instant::now();
        let mut credit = Credit::parse("1000,1000", now).unwrap();
        let mut waits = 0;
        while let Err(next) = credit.take(60_000, now) {
            assert!(next > now);
            now = next;
            waits += 1;
        }
        assert_eq!(waits, 59);
    }

    #[test]
    fn no_limit_never_waits() {
        let mut credit = Credit::unlimited();
        for _ in 0..100 {
            assert_eq!(credit.take(u64::MAX, Instant::now()), Ok(()));
        }
    }
}
