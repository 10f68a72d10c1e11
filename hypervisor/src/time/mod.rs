//! Time, as a PV guest knows it.
//!
//! System time is nanoseconds since the hypervisor started. It is one fixed
//! function of the TSC ([`TscClock`]), written into each `vcpu_info` once, so
//! that a guest that computes it and the hypervisor that sets its timers never
//! disagree. Wall time is system time plus a constant.
//!
//! Laws:
//! - A structure that the guest reads while we write it has a version (odd
//!   while it changes) or an update flag, and is written in that order.
//! - Nothing here sleeps or arms a host timer. [`Timers`] says when something
//!   is due and [`Timers::expire`] what; the vCPU's thread does the rest.
//! - A guest's number is compared, never added to without a check.

mod clock;
mod runstate;
mod timers;
mod vcpu_time;
mod wallclock;

pub use clock::{TscClock, TscScale, measure_tsc_khz, read_tsc};
pub use runstate::Runstate;
pub use timers::{Expired, TimerError, Timers};
pub use vcpu_time::{PvClock, SecondaryTime, publish_time};
pub use wallclock::{WallTime, publish_wallclock};

use guest_abi::addr::GuestVirt;

/// Whether a guest may name `bytes` bytes at `at` as an area of its own: not
/// in the hypervisor's range, and canonical. (Whether anything is mapped there
/// shows when it is written.)
#[must_use]
pub fn area_address_ok(at: GuestVirt, bytes: u64) -> bool {
    const LOW_END: u64 = 1 << 47;
    const HYPERVISOR_END: u64 = 0xffff_8800_0000_0000;
    let Some(end) = at.0.checked_add(bytes) else {
        return false;
    };
    end <= LOW_END || at.0 >= HYPERVISOR_END
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_lie_in_the_guests_halves() {
        let ok = |at, bytes| area_address_ok(GuestVirt(at), bytes);
        assert!(ok(0, 48) && ok((1 << 47) - 48, 48) && ok(0xffff_8800_0000_0000, 48));
        assert!(!ok((1 << 47) - 47, 48) && !ok(0xffff_87ff_ffff_ffff, 48));
        assert!(!ok(0xffff_8000_0000_0000, 1) && !ok(u64::MAX - 8, 48));
    }
}
