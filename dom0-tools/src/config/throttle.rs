//! The most that a disk may do: `bps=10M,iops=500`.
//!
//! Not xl's: its disks know no limits. `throttle=bps=10M,iops=500` reads the
//! same.

use serde::{Deserialize, Serialize};

/// A disk's limits; none by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// Bytes in a second, read and written together.
    pub bytes_per_second: Option<u64>,
    /// Requests in a second.
    pub operations_per_second: Option<u64>,
}

impl Throttle {
    /// Whether there is no limit at all.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.bytes_per_second.is_none() && self.operations_per_second.is_none()
    }

    /// As the back end reads it: `bps=10000000,iops=500`.
    #[must_use]
    pub fn node(&self) -> Option<String> {
        let limits = [
            ("bps", self.bytes_per_second),
            ("iops", self.operations_per_second),
        ];
        let parts: Vec<String> = limits
            .iter()
            .filter_map(|(key, value)| value.map(|n| format!("{key}={n}")))
            .collect();
        (!parts.is_empty()).then(|| parts.join(","))
    }
}

/// A positive number with an optional `K`, `M` or `G` (thousands).
#[must_use]
pub fn amount(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => 1,
        "K" | "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(factor).filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, expected) in [
            ("1", Some(1)),
            ("10M", Some(10_000_000)),
            ("5k", Some(5_000)),
            ("2G", Some(2_000_000_000)),
            ("0", None),
            ("M", None),
            ("1.5M", None),
            ("10MB", None),
            ("99999999999999999999", None),
            ("18446744073709551615G", None),
        ] {
            assert_eq!(amount(text), expected, "{text}");
        }
    }

    #[test]
    fn nodes() {
        let mut throttle = Throttle::default();
        assert_eq!((throttle.node(), throttle.is_none()), (None, true));
        throttle.operations_per_second = Some(500);
        assert_eq!(throttle.node().as_deref(), Some("iops=500"));
        throttle.bytes_per_second = Some(10);
        assert_eq!(throttle.node().as_deref(), Some("bps=10,iops=500"));
    }
}
