//! The end.

use axplat::power::PowerIf;
use guest_abi::{kernel::sched, sched::SHUTDOWN_POWEROFF};

struct Power;

#[impl_plat_interface]
impl PowerIf for Power {
    /// ArceOS ends like this after a panic too.
    fn system_off() -> ! {
        sched::shutdown(SHUTDOWN_POWEROFF)
    }

    fn cpu_num() -> usize {
        1
    }
}
