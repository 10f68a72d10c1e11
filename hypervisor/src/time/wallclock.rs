//! Wall time, in `shared_info`: what the clock on the wall showed at system
//! time 0. The same version protocol as [`vcpu_time_info`](super::publish_time).

use crate::shared_words::SharedWords;
use guest_abi::{
    addr::{MachineAddr, Mfn},
    xen::SharedInfo,
};
use std::{
    mem::offset_of,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Wall time at system time 0, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime {
    /// Seconds.
    pub sec: u64,
    /// Nanoseconds, below 10^9.
    pub nsec: u32,
}

impl WallTime {
    /// From the host's clock, at system time `now_ns`.
    #[must_use]
    pub fn from_host(now_ns: u64) -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self::from_reading(wall, now_ns)
    }

    /// From a reading of the clock on the wall at system time `now_ns`.
    #[must_use]
    pub fn from_reading(wall: Duration, now_ns: u64) -> Self {
        let start = wall.saturating_sub(Duration::from_nanos(now_ns));
        WallTime {
            sec: start.as_secs(),
            nsec: start.subsec_nanos(),
        }
    }

    /// Shifted by a domain's own offset (`XEN_DOMCTL_settimeoffset`).
    #[must_use]
    pub fn offset_by(self, seconds: i64) -> Self {
        WallTime {
            sec: self.sec.saturating_add_signed(seconds),
            ..self
        }
    }
}

/// Writes wall time into a domain's `shared_info`.
///
/// # Panics
/// If `shared_info` is not a frame number below 2^40.
pub fn publish_wallclock(words: &dyn SharedWords, shared_info: Mfn, wall: WallTime) {
    let base = shared_info
        .addr()
        .expect("shared_info is a frame of the domain");
    let at = |offset: usize| MachineAddr(base.0 | offset as u64);
    let version = at(offset_of!(SharedInfo, wc_version));
    let odd = words.load_u32(version) | 1;
    words.store_u32(version, odd);
    let (low, high) = (wall.sec & u64::from(u32::MAX), wall.sec >> 32);
    let half = |value| u32::try_from(value).unwrap_or(u32::MAX);
    words.store_u32(at(offset_of!(SharedInfo, wc_sec)), half(low));
    words.store_u32(at(offset_of!(SharedInfo, wc_nsec)), wall.nsec);
    words.store_u32(at(offset_of!(SharedInfo, wc_sec_hi)), half(high));
    words.store_u32(version, odd.wrapping_add(1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_words::test_memory::Pages;

    #[test]
    fn the_wall_clock_is_that_of_system_time_0() {
        let wall = WallTime::from_reading(Duration::new(1_700_000_000, 5), 2_000_000_006);
        assert_eq!(
            wall,
            WallTime {
                sec: 1_699_999_997,
                nsec: 999_999_999
            }
        );
        assert_eq!(wall.offset_by(-3600).sec, 1_699_996_397);
        let early = WallTime::from_reading(Duration::ZERO, 1);
        assert_eq!(early, WallTime { sec: 0, nsec: 0 });
        assert!(WallTime::from_host(0).sec > 1_700_000_000);
    }

    #[test]
    fn seconds_past_2106_use_the_high_word() {
        let memory = Pages::new(2);
        publish_wallclock(
            &memory,
            Mfn(1),
            WallTime {
                sec: 0x3_0000_0002,
                nsec: 9,
            },
        );
        let read = |offset: u64| memory.load_u32(MachineAddr(4096 + offset));
        assert_eq!(
            [read(3072), read(3076), read(3080), read(3084)],
            [2, 2, 9, 3]
        );
        publish_wallclock(&memory, Mfn(1), WallTime { sec: 1, nsec: 0 });
        assert_eq!(
            [read(3072), read(3076), read(3080), read(3084)],
            [4, 1, 0, 0]
        );
    }
}
