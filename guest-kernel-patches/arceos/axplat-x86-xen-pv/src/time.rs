//! The hypervisor's clock, read without a hypercall: its ticks are
//! nanoseconds. And its timer, `VIRQ_TIMER`.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use axplat::time::{NANOS_PER_SEC, TimeIf};
use guest_abi::kernel::{boot, time};

struct Time;

#[impl_plat_interface]
impl TimeIf for Time {
    fn current_ticks() -> u64 {
        time::system_time()
    }

    fn ticks_to_nanos(ticks: u64) -> u64 {
        ticks
    }

    fn nanos_to_ticks(nanos: u64) -> u64 {
        nanos
    }

    fn epochoffset_nanos() -> u64 {
        wall_clock()
    }

    #[cfg(feature = "irq")]
    fn irq_num() -> usize {
        crate::irq::timer()
    }

    /// A deadline that is past sets it off at once.
    #[cfg(feature = "irq")]
    fn set_oneshot_timer(deadline_ns: u64) {
        time::set_singleshot_timer(deadline_ns, 0).expect("a timer is set");
    }
}

/// Nanoseconds since 1970 at system time 0.
fn wall_clock() -> u64 {
    let info = boot::shared_info();
    // SAFETY: fields of the shared info page, mapped for good; a torn read
    // shows in the version, which is only accessed atomically.
    unsafe {
        let version = AtomicU32::from_ptr(&raw mut (*info).wc_version);
        loop {
            let before = version.load(Ordering::Acquire);
            let low = (&raw const (*info).wc_sec).read_volatile();
            let high = (&raw const (*info).wc_sec_hi).read_volatile();
            let nanos = (&raw const (*info).wc_nsec).read_volatile();
            fence(Ordering::Acquire);
            if before & 1 == 0 && before == version.load(Ordering::Relaxed) {
                let seconds = u64::from(high) << 32 | u64::from(low);
                return seconds
                    .wrapping_mul(NANOS_PER_SEC)
                    .wrapping_add(u64::from(nanos));
            }
        }
    }
}
