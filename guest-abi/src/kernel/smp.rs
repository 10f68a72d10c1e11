//! vCPUs: which one runs, and setting more going.
//!
//! Each vCPU's GS base points to its own record, whose second word is its
//! number.
//!
//! ```no_run
//! use guest_abi::{addr::VcpuId, kernel::{entry::Stack, smp}, kprintln};
//!
//! static STACK: Stack = Stack::new();
//!
//! fn second(vcpu: VcpuId) -> ! {
//!     kprintln!("vCPU {} runs", vcpu.0);
//!     smp::down()
//! }
//!
//! // SAFETY: nobody else uses the stack.
//! unsafe { smp::start(VcpuId(1), STACK.top(), second) }.expect("the domain has two vCPUs");
//! ```

use core::{
    arch::asm,
    cell::UnsafeCell,
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
};

use super::{boot, hypercall, mm, sched, trap};
use crate::{
    addr::VcpuId,
    arch_x86::{TrapInfo, VGCF_IN_KERNEL, VcpuGuestContext},
    arch_x86_64::{CpuUserRegs, FLAT_KERNEL_CS, FLAT_KERNEL_SS, SEGBASE_GS_KERNEL, pfn_to_cr3},
    errno::Errno,
    vcpu::{VCPUOP_DOWN, VCPUOP_INITIALISE, VCPUOP_IS_UP, VCPUOP_UP},
    xen::{VcpuInfo, XEN_LEGACY_MAX_VCPUS},
};

/// A vCPU's own record.
#[repr(C, align(64))]
pub(super) struct PerCpu {
    /// The vCPU's number; read through GS.
    number: u64,
    /// Where [`user`](super::user) keeps the kernel's stack pointer.
    pub(super) kernel_rsp: AtomicU64,
    /// Where it keeps the context that user mode was left in.
    pub(super) user_frame: UnsafeCell<trap::TrapFrame>,
}

// SAFETY: `number` is constant; the rest only its own vCPU touches.
unsafe impl Sync for PerCpu {}

const fn records() -> [PerCpu; XEN_LEGACY_MAX_VCPUS] {
    let mut records = [const {
        PerCpu {
            number: 0,
            kernel_rsp: AtomicU64::new(0),
            user_frame: UnsafeCell::new(trap::TrapFrame::ZERO),
        }
    }; XEN_LEGACY_MAX_VCPUS];
    let mut i = 0;
    while i < XEN_LEGACY_MAX_VCPUS {
        records[i].number = i as u64;
        i += 1;
    }
    records
}

static RECORDS: [PerCpu; XEN_LEGACY_MAX_VCPUS] = records();

/// Points vCPU 0's GS base to its record.
///
/// # Errors
/// The hypervisor's.
pub fn init_boot_vcpu() -> Result<(), Errno> {
    let record = (&raw const RECORDS[0]) as u64;
    // SAFETY: nothing uses GS yet.
    unsafe { hypercall::set_segment_base(SEGBASE_GS_KERNEL, record) }?;
    Ok(())
}

/// The number of the vCPU that asks; after [`init_boot_vcpu`] only.
#[must_use]
pub fn current() -> u32 {
    let number: u32;
    // SAFETY: GS points to the vCPU's record.
    unsafe {
        asm!("mov {:e}, gs:[0]", out(reg) number, options(nostack, readonly, preserves_flags))
    };
    number
}

/// The record of the vCPU that asks.
pub(super) fn record() -> &'static PerCpu {
    &RECORDS[current() as usize % XEN_LEGACY_MAX_VCPUS]
}

/// The [`VcpuInfo`] of the vCPU that asks.
#[must_use]
pub fn vcpu_info() -> *mut VcpuInfo {
    vcpu_info_of(VcpuId(current()))
}

/// The [`VcpuInfo`] of a vCPU.
#[must_use]
pub fn vcpu_info_of(vcpu: VcpuId) -> *mut VcpuInfo {
    let index = vcpu.0 as usize % XEN_LEGACY_MAX_VCPUS;
    // SAFETY: the address of an element of the page's array.
    unsafe { (&raw mut (*boot::shared_info()).vcpu_info[index]).cast() }
}

/// Whether a vCPU is up.
///
/// # Errors
/// `ENOENT` for one that does not exist.
pub fn is_up(vcpu: VcpuId) -> Result<bool, Errno> {
    // SAFETY: no argument.
    Ok(unsafe { hypercall::vcpu_op(VCPUOP_IS_UP, vcpu.0, 0) }? != 0)
}

/// Takes the vCPU that asks down, for good.
pub fn down() -> ! {
    loop {
        // SAFETY: no argument; this vCPU ends here.
        let _ = unsafe { hypercall::vcpu_op(VCPUOP_DOWN, current(), 0) };
        sched::yield_now();
    }
}

/// Sets a vCPU going: it calls `main` with its number, on the stack that ends
/// at `stack_top`, with events masked, under the same page tables.
///
/// # Safety
/// The stack must be the vCPU's own, for good.
///
/// # Errors
/// `ENOENT` for a vCPU that the domain has not, `EEXIST` for one that has a
/// state already, `EINVAL` for a number past the records.
pub unsafe fn start(vcpu: VcpuId, stack_top: u64, main: fn(VcpuId) -> !) -> Result<(), Errno> {
    let record = RECORDS.get(vcpu.0 as usize).ok_or(Errno::EINVAL)?;
    let context = context(record, vcpu, stack_top, main)?;
    let address = (&raw const context) as u64;
    // SAFETY: the context is complete; the caller gives the stack. The mask is
    // stored only once it is sure that the vCPU is not up yet.
    unsafe {
        hypercall::vcpu_op(VCPUOP_INITIALISE, vcpu.0, address)?;
        AtomicU8::from_ptr(&raw mut (*vcpu_info_of(vcpu)).evtchn_upcall_mask)
            .store(1, Ordering::SeqCst);
        hypercall::vcpu_op(VCPUOP_UP, vcpu.0, 0)?;
    }
    Ok(())
}

fn context(
    record: &'static PerCpu,
    vcpu: VcpuId,
    stack_top: u64,
    main: fn(VcpuId) -> !,
) -> Result<VcpuGuestContext, Errno> {
    let root = mm::root().ok_or(Errno::EINVAL)?;
    let mut context = VcpuGuestContext {
        flags: VGCF_IN_KERNEL,
        user_regs: CpuUserRegs {
            rip: started as *const () as u64,
            rdi: u64::from(vcpu.0),
            rsi: main as *const () as u64,
            rsp: (stack_top & !15) - 8,
            rflags: 1 << 12,
            cs: FLAT_KERNEL_CS,
            ss: FLAT_KERNEL_SS,
            ..Default::default()
        },
        trap_ctxt: trap_context(),
        kernel_ss: u64::from(FLAT_KERNEL_SS),
        kernel_sp: stack_top & !15,
        event_callback_eip: trap::event_entry_address(),
        failsafe_callback_eip: trap::failsafe_entry_address(),
        syscall_callback_eip: trap::syscall_entry_address(),
        gs_base_kernel: core::ptr::from_ref(record) as u64,
        ..Default::default()
    };
    context.flags |= crate::arch_x86::VGCF_SYSCALL_DISABLES_EVENTS
        | crate::arch_x86::VGCF_FAILSAFE_DISABLES_EVENTS;
    context.ctrlreg[3] = pfn_to_cr3(root.0);
    Ok(context)
}

fn trap_context() -> [TrapInfo; 256] {
    let mut table = [TrapInfo::default(); 256];
    for entry in trap::table() {
        if entry.address != 0 {
            table[usize::from(entry.vector)] = entry;
        }
    }
    table
}

/// Where a new vCPU starts: the arguments are in the registers of the C
/// convention; a Rust function pointer is an address like any other.
#[allow(improper_ctypes_definitions)]
extern "C" fn started(number: u32, main: fn(VcpuId) -> !) -> ! {
    main(VcpuId(number))
}
