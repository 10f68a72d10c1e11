//! System time as a function of the TSC.
//!
//! ```text
//! ns = ((tsc - start) << shift) * mul >> 32      (>> -shift if negative)
//! ```
//!
//! The guest computes exactly this from its `vcpu_time_info`; so do we.

use std::time::{Duration, Instant};

const NS_PER_S: u128 = 1_000_000_000;

/// The factor from TSC ticks to nanoseconds, in the ABI's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscScale {
    /// `tsc_to_system_mul`: a fraction of 2^32, at least one half.
    pub mul: u32,
    /// `tsc_shift`.
    pub shift: i8,
}

impl TscScale {
    /// The scale of a TSC of `khz` kHz; of one of 1 kHz if that is 0.
    #[must_use]
    pub fn from_khz(khz: u32) -> Self {
        let hz = u128::from(khz.max(1)) * 1000;
        let mut shift = 0i8;
        let fraction = |shift: i8| {
            // 1e9 * 2^32 / hz / 2^shift; shift lies in -3..=20 for any khz.
            let (up, down) = if shift < 0 { (-shift, 0) } else { (0, shift) };
            (NS_PER_S << (32 + up)) / (hz << down)
        };
        while fraction(shift) >= 1 << 32 {
            shift += 1;
        }
        while fraction(shift) < 1 << 31 {
            shift -= 1;
        }
        TscScale {
            mul: u32::try_from(fraction(shift)).unwrap_or(u32::MAX),
            shift,
        }
    }

    /// Nanoseconds in `ticks`, wrapping as the guest's arithmetic does.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // the guest's 64-bit result
    pub fn ns(self, ticks: u64) -> u64 {
        let shifted = if self.shift < 0 {
            ticks >> self.shift.unsigned_abs()
        } else {
            ticks << self.shift.unsigned_abs()
        };
        ((u128::from(shifted) * u128::from(self.mul)) >> 32) as u64
    }
}

/// The hypervisor's clock. There is one for all domains.
#[derive(Debug, Clone, Copy)]
pub struct TscClock {
    scale: TscScale,
    start: u64,
    khz: u32,
}

impl TscClock {
    /// A clock that starts now, on a host TSC of `khz` kHz.
    #[must_use]
    pub fn start(khz: u32) -> Self {
        Self::starting_at(khz, read_tsc())
    }

    /// A clock that is 0 when the host's TSC is `start`.
    #[must_use]
    pub fn starting_at(khz: u32, start: u64) -> Self {
        TscClock {
            scale: TscScale::from_khz(khz),
            start,
            khz,
        }
    }

    /// The TSC's rate.
    #[must_use]
    pub fn khz(&self) -> u32 {
        self.khz
    }

    /// The factor that a guest is told.
    #[must_use]
    pub fn scale(&self) -> TscScale {
        self.scale
    }

    /// The host TSC at system time 0.
    #[must_use]
    pub fn start_tsc(&self) -> u64 {
        self.start
    }

    /// System time when the host's TSC was `tsc`; 0 before the start.
    #[must_use]
    pub fn ns_at(&self, tsc: u64) -> u64 {
        self.scale.ns(tsc.saturating_sub(self.start))
    }

    /// System time.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.ns_at(read_tsc())
    }

    /// How long to sleep until system time `deadline`. The host's own clock
    /// may run a little off the TSC: look at [`now_ns`](Self::now_ns) again
    /// on waking.
    #[must_use]
    pub fn until(&self, deadline: u64) -> Duration {
        Duration::from_nanos(deadline.saturating_sub(self.now_ns()))
    }
}

/// The host's time-stamp counter.
#[must_use]
pub fn read_tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux leaves it
    // open to user space (a process that forbade it to itself would be killed,
    // which is not unsound).
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The TSC's rate against the host's monotonic clock, for hosts whose KVM does
/// not tell it. Takes 50 ms; good to about 0.01 %.
#[must_use]
pub fn measure_tsc_khz() -> u32 {
    let (from, start) = (Instant::now(), read_tsc());
    std::thread::sleep(Duration::from_millis(50));
    let (elapsed, ticks) = (from.elapsed(), read_tsc().saturating_sub(start));
    let khz = u128::from(ticks) * 1_000_000 / elapsed.as_nanos().max(1);
    u32::try_from(khz).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_scales() {
        let scale = |khz| {
            let TscScale { mul, shift } = TscScale::from_khz(khz);
            (mul, shift)
        };
        assert_eq!(scale(1_000_000), (1 << 31, 1));
        assert_eq!(scale(2_000_000), (1 << 31, 0));
        assert_eq!(scale(2_500_000), (3_435_973_836, -1));
        assert_eq!(scale(4_000_000), (1 << 31, -1));
    }

    #[test]
    fn the_clock_keeps_pace_with_the_host() {
        let clock = TscClock::start(measure_tsc_khz());
        let (from, before) = (Instant::now(), clock.now_ns());
        std::thread::sleep(Duration::from_millis(20));
        let (host, ours) = (
            from.elapsed().as_nanos(),
            u128::from(clock.now_ns() - before),
        );
        assert!(
            ours.abs_diff(host) < host / 20,
            "{ours} ns against {host} ns"
        );
        assert_eq!(clock.until(0), Duration::ZERO);
        let wait = clock.until(clock.now_ns() + 1_000_000_000);
        assert!(wait > Duration::from_millis(900) && wait <= Duration::from_secs(1));
    }

    #[test]
    fn before_its_start_the_clock_stands() {
        let clock = TscClock::starting_at(2_000_000, 1000);
        assert_eq!(
            (clock.ns_at(0), clock.ns_at(1000), clock.ns_at(1002)),
            (0, 0, 1)
        );
    }

    proptest! {
        #[test]
        fn a_day_is_right_to_a_microsecond(khz in 100_000u32..8_000_000, s in 1u64..86_400) {
            let ticks = s * u64::from(khz) * 1000;
            let ns = TscScale::from_khz(khz).ns(ticks);
            let error = ns.abs_diff(s * 1_000_000_000);
            // mul is exact to one part in 2^31.
            prop_assert!(error <= s, "{error} ns off after {s} s");
        }

        #[test]
        fn time_never_goes_back(khz in 1u32.., ticks in 0u64..1 << 40, step in 0u64..1 << 30) {
            let scale = TscScale::from_khz(khz);
            prop_assert!(scale.mul >= 1 << 31);
            if khz >= 1000 {
                prop_assert!(scale.ns(ticks) <= scale.ns(ticks + step));
            }
        }
    }
}
