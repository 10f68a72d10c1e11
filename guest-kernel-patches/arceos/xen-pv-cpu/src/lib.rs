//! What ArceOS does by privileged instructions, done by hypercalls: the
//! interrupt flag, page tables, the table of exceptions.
//!
//! The patched upstream crates (`axcpu`, `kernel_guard`, `page_table_entry`,
//! `page_table_multiarch`) call this one, so that their patches stay small.
//! It knows nothing of ArceOS and allocates nothing.

#![no_std]

pub mod area;
pub mod irq;
pub mod table;
pub mod thread;
pub mod trap;

use core::sync::atomic::{AtomicPtr, Ordering};

use guest_abi::{kernel::Boot, xen::StartInfo};

static BOOT: AtomicPtr<Boot> = AtomicPtr::new(core::ptr::null_mut());

/// The platform's first step.
///
/// # Safety
/// Once, with the domain builder's record.
pub unsafe fn start(start_info: *const StartInfo) -> &'static Boot {
    // SAFETY: the caller's duty.
    let boot = unsafe { Boot::start(start_info) };
    BOOT.store(core::ptr::from_ref(boot).cast_mut(), Ordering::Release);
    boot
}

/// What the domain builder told, after [`start`].
pub fn boot() -> Option<&'static Boot> {
    // SAFETY: null, or what `start` stored, which is there for good.
    unsafe { BOOT.load(Ordering::Acquire).as_ref() }
}
