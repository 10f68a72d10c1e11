//! The thread pointer, by which a task finds its thread-local storage: the base
//! of FS. A kernel may neither read it nor write it; the hypervisor sets it.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::{
    arch_x86_64::SEGBASE_FS,
    kernel::{hypercall, smp},
    xen::XEN_LEGACY_MAX_VCPUS,
};

/// What each vCPU has been given.
static POINTERS: [AtomicU64; XEN_LEGACY_MAX_VCPUS] =
    [const { AtomicU64::new(0) }; XEN_LEGACY_MAX_VCPUS];

fn current() -> &'static AtomicU64 {
    &POINTERS[smp::current() as usize % XEN_LEGACY_MAX_VCPUS]
}

/// The pointer of the vCPU that asks.
#[must_use]
pub fn pointer() -> u64 {
    current().load(Ordering::Relaxed)
}

/// Sets the pointer of the vCPU that asks.
///
/// # Safety
/// Thread-local storage of the task that runs on must be there.
///
/// # Panics
/// If the hypervisor refuses: no address that a guest may use.
pub unsafe fn set_pointer(base: u64) {
    let known = current();
    if known.load(Ordering::Relaxed) == base {
        return; // Each task switch comes here: save the hypercall.
    }
    // SAFETY: the caller's duty.
    if let Err(error) = unsafe { hypercall::set_segment_base(SEGBASE_FS, base) } {
        panic!("thread pointer {base:#x} refused: {error}");
    }
    known.store(base, Ordering::Relaxed);
}
