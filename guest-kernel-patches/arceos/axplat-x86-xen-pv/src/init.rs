//! The order in which the platform comes up.

use axplat::init::InitIf;
use guest_abi::kernel::VIRT_BASE;

struct Init;

#[impl_plat_interface]
impl InitIf for Init {
    /// `arg` is `start_info`'s physical address, by way of ArceOS.
    fn init_early(_cpu_id: usize, arg: usize) {
        let start_info = VIRT_BASE.wrapping_add(arg as u64) as *const _;
        // SAFETY: called once, by ArceOS' runtime, with what `entry` gave it.
        let boot = unsafe { xen_pv_cpu::start(start_info) };
        boot.init_console()
            .expect("the hypervisor refuses the usual set-up");
        axcpu::init::init_trap();
        crate::mem::init(boot);
    }

    fn init_early_secondary(_cpu_id: usize) {
        axcpu::init::init_trap();
    }

    fn init_later(_cpu_id: usize, _arg: usize) {
        #[cfg(feature = "irq")]
        crate::irq::init();
    }

    fn init_later_secondary(_cpu_id: usize) {
        #[cfg(feature = "irq")]
        crate::irq::init();
    }
}
