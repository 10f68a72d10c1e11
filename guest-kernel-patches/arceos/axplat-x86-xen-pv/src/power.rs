//! The vCPUs' beginnings, and the end.

use axplat::power::PowerIf;
use guest_abi::{
    addr::VcpuId,
    kernel::{VIRT_BASE, sched, smp},
    sched::SHUTDOWN_POWEROFF,
};
use xen_pv_cpu::area;

struct Power;

#[impl_plat_interface]
impl PowerIf for Power {
    /// `stack_top` is in physical memory, all of which is mapped.
    fn cpu_boot(cpu_id: usize, stack_top: usize) {
        let stack = VIRT_BASE.wrapping_add(stack_top as u64);
        let vcpu = u32::try_from(cpu_id).map_or(VcpuId(u32::MAX), VcpuId);
        // SAFETY: ArceOS gives each its own stack.
        let started = unsafe { smp::start(vcpu, stack, secondary) };
        started.expect("a vCPU that is there can be started");
    }

    /// ArceOS ends like this after a panic too.
    fn system_off() -> ! {
        sched::shutdown(SHUTDOWN_POWEROFF)
    }

    /// The domain's vCPUs, as far as there is room for their data.
    fn cpu_num() -> usize {
        let exists =
            |&vcpu: &usize| u32::try_from(vcpu).is_ok_and(|vcpu| smp::is_up(VcpuId(vcpu)).is_ok());
        (0..area::count()).take_while(exists).count()
    }
}

/// Where a vCPU after the first comes up: under the domain builder's page
/// tables, events masked.
fn secondary(vcpu: VcpuId) -> ! {
    axplat::call_secondary_main(vcpu.0 as usize)
}
