//! Who has to wait so that others' transactions can succeed.
//!
//! Law: a guest that keeps changing nodes under others' transactions could
//! make every commit fail (XSA-206). So each failed commit costs the guest
//! that caused it one credit; a guest without credit is not served until it
//! has one again. Credits come back one per [`REFILL`], up to [`BURST`].

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use guest_abi::addr::DomId;

/// Conflicts that a guest may cause in a row.
pub const BURST: u32 = 5;
/// The time in which one credit comes back.
pub const REFILL: Duration = Duration::from_millis(50);

/// The guests that are short of credit.
#[derive(Debug, Default)]
pub struct Credits(HashMap<DomId, Credit>);

#[derive(Debug)]
struct Credit {
    left: u32,
    since: Instant,
}

impl Credits {
    /// `dom` has made somebody's commit fail.
    pub fn charge(&mut self, dom: DomId, now: Instant) {
        self.refill(dom, now);
        let credit = self.0.entry(dom).or_insert(Credit {
            left: BURST,
            since: now,
        });
        credit.left = credit.left.saturating_sub(1);
    }

    /// How long `dom` has to wait, if it has to.
    pub fn wait(&mut self, dom: DomId, now: Instant) -> Option<Duration> {
        self.refill(dom, now);
        let credit = self.0.get(&dom).filter(|credit| credit.left == 0)?;
        Some(REFILL.saturating_sub(now.saturating_duration_since(credit.since)))
    }

    /// Forgets a domain that is gone.
    pub fn forget(&mut self, dom: DomId) {
        self.0.remove(&dom);
    }

    fn refill(&mut self, dom: DomId, now: Instant) {
        let Some(credit) = self.0.get_mut(&dom) else {
            return;
        };
        while credit.left < BURST && now.saturating_duration_since(credit.since) >= REFILL {
            credit.left += 1;
            credit.since += REFILL;
        }
        if credit.left == BURST {
            self.0.remove(&dom);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_runs_out_and_comes_back() {
        let (dom, start) = (DomId(3), Instant::now());
        let mut credits = Credits::default();
        for _ in 0..BURST {
            assert_eq!(credits.wait(dom, start), None);
            credits.charge(dom, start);
        }
        assert_eq!(credits.wait(dom, start), Some(REFILL));
        credits.charge(dom, start);
        assert_eq!(credits.wait(dom, start + REFILL), None);
        credits.charge(dom, start + REFILL);
        assert!(credits.wait(dom, start + REFILL).is_some());
        assert_eq!(credits.wait(dom, start + REFILL * 50), None);
        assert!(credits.0.is_empty());
    }
}
