//! A kernel that never lets go: events masked, a loop without a hypercall.
//!
//! **Mechanism.** A PV guest that masks events is not interrupted by any; the
//! hypervisor has only its own kick to get the CPU back.
//!
//! **Scenario.** After a line on the console, an endless loop of two
//! instructions.
//!
//! **Expected.** `xm pause`, `xm vcpu-list`, `xm shutdown` (without effect),
//! and `xm destroy` work at once; other domains get their share of the CPU.
//!
//! **Limits.** One vCPU. A guest that masks events can't be shut down kindly,
//! here as on Xen.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use guest_abi::kernel::Boot;

guest_abi::pv_kernel!(main, name = "spin-masked");

fn main(boot: &'static Boot) -> ! {
    boot.init().expect("the set-up is refused");
    test_guests::expect_destroy("spin-masked", "it spins with events masked");
    loop {
        core::hint::spin_loop();
    }
}
