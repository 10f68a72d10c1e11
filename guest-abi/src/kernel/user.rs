//! User mode: entering it by the hypercall `iret`, and coming back.
//!
//! User mode has a page-table root of its own (`MMUEXT_NEW_USER_BASEPTR`), in
//! which the kernel is not mapped. The hypervisor changes roots, GS bases and
//! stacks on the way; both modes are ring 3 to the processor.
//!
//! ```no_run
//! use guest_abi::{addr::{GuestVirt, Mfn}, errno::Errno, kernel::user};
//!
//! /// Runs a program until it traps; `root` maps its code and stack, not the kernel.
//! unsafe fn run(root: Mfn, entry: GuestVirt, stack: GuestVirt) -> Result<u64, Errno> {
//!     // SAFETY: the caller's duty.
//!     unsafe {
//!         user::set_root(root)?;
//!         Ok(user::run(user::context(entry, stack)).rip)
//!     }
//! }
//! ```

use core::{arch::naked_asm, sync::atomic::Ordering};

use super::{smp, trap};
use crate::{
    addr::{GuestVirt, Mfn},
    arch_x86_64::{FLAT_KERNEL_SS, FLAT_USER_CS, FLAT_USER_SS},
    errno::Errno,
    xen::{HYPERVISOR_STACK_SWITCH, MMUEXT_NEW_USER_BASEPTR},
};
use trap::TrapFrame;

/// A context for user mode that starts at `rip` on the stack `rsp`, with
/// events unmasked.
#[must_use]
pub fn context(rip: GuestVirt, rsp: GuestVirt) -> TrapFrame {
    TrapFrame {
        rip: rip.0,
        rsp: rsp.0,
        cs: u64::from(FLAT_USER_CS),
        ss: u64::from(FLAT_USER_SS),
        rflags: 1 << 9,
        ..TrapFrame::ZERO
    }
}

/// Loads the user mode's page-table root, a pinned L4 table.
///
/// # Safety
/// What user mode can reach then must be meant for it.
///
/// # Errors
/// The hypervisor's refusal.
pub unsafe fn set_root(root: Mfn) -> Result<(), Errno> {
    // SAFETY: the caller's duty.
    unsafe { super::mm::extended(MMUEXT_NEW_USER_BASEPTR, root.0, 0) }
}

/// Runs user mode until it traps (a `syscall` or an exception; events are
/// handled on the way), and returns the context it was left in.
///
/// # Safety
/// A user root must be loaded.
pub unsafe fn run(mut context: TrapFrame) -> TrapFrame {
    let record = smp::record();
    // SAFETY: `enter` keeps to the calling convention, coming back by `leave`.
    // The record is this vCPU's own.
    unsafe {
        enter(&raw mut context, record.kernel_rsp.as_ptr());
        *record.user_frame.get()
    }
}

/// The trap handler's way here: notes the context and returns from [`run`].
pub(super) fn trapped(frame: &TrapFrame) -> ! {
    let record = smp::record();
    // SAFETY: the record is this vCPU's own, and `run` waits for it.
    unsafe {
        *record.user_frame.get() = *frame;
        leave(record.kernel_rsp.load(Ordering::Relaxed))
    }
}

/// Keeps the callee-saved registers on the stack and its address in
/// `kernel_rsp`, makes that the kernel's stack, and resumes `context`.
#[unsafe(naked)]
unsafe extern "C" fn enter(context: *mut TrapFrame, kernel_rsp: *mut u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rsi], rsp",
        "mov rbx, rdi",
        "mov edi, {ss}",
        "mov rsi, rsp",
        "mov eax, {stack_switch}",
        "syscall",
        "mov rdi, rbx",
        "jmp {resume}",
        ss = const FLAT_KERNEL_SS,
        stack_switch = const HYPERVISOR_STACK_SWITCH,
        resume = sym trap::resume,
    )
}

/// Returns from [`enter`].
#[unsafe(naked)]
unsafe extern "C" fn leave(kernel_rsp: u64) -> ! {
    naked_asm!(
        "mov rsp, rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}
