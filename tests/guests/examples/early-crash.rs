//! A kernel that faults before it has any handler.
//!
//! **Mechanism.** An exception of a PV kernel goes to the handler in its trap
//! table. Until `set_trap_table` there is none, and an exception can go
//! nowhere.
//!
//! **Scenario.** The kernel sets up its console, says so, and executes `ud2`.
//!
//! **Expected.** The hypervisor crashes the domain (shutdown reason 3), as Xen
//! does, and says why in its log; other domains and the hypervisor go on.
//!
//! **Limits.** One exception, on one vCPU.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use guest_abi::kernel::Boot;

guest_abi::pv_kernel!(main, name = "early-crash");

fn main(boot: &'static Boot) -> ! {
    boot.init_console().expect("the set-up is refused");
    test_guests::expect_crash("early-crash", "by #UD without a trap table");
    // SAFETY: an exception, as intended.
    unsafe { core::arch::asm!("ud2") };
    test_guests::survived("early-crash")
}
