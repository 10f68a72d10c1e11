//! Taking a vCPU's thread out of the guest, whichever engine runs it.
//!
//! Law: the signal's handler says it in two places, both of the thread that
//! the signal went to: in `kvm_run`, so that `KVM_RUN` returns, and in the
//! flag that an interpreter looks at between blocks of code.

use std::{
    cell::Cell,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

thread_local! {
    /// The `immediate_exit` byte of the KVM vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
    /// The flag that this thread's interpreter looks at.
    static INTERRUPT: Cell<*const AtomicBool> = const { Cell::new(ptr::null()) };
}

/// The signal that takes a vCPU thread out of the guest.
#[must_use]
pub fn kick_signal() -> nix::sys::signal::Signal {
    nix::sys::signal::Signal::SIGUSR1
}

extern "C" fn on_kick(_: libc::c_int) {
    let flag = INTERRUPT.get();
    if !flag.is_null() {
        // SAFETY: the `Kickable` of this thread keeps the flag alive and takes
        // the pointer back before it lets go of it.
        unsafe { &*flag }.store(true, Ordering::SeqCst);
    }
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is that of the mapped `kvm_run` of the vCPU
        // that this thread owns; `KvmVcpu` takes it back when it goes.
        unsafe { &*flag }.store(1, Ordering::Relaxed);
    }
}

/// Makes [`kick_signal`] take a vCPU thread out of the guest instead of ending
/// the process. Once per process.
///
/// # Errors
/// The kernel's answer.
pub fn install_kick_signal() -> nix::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    let action = SigAction::new(
        SigHandler::Handler(on_kick),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does two atomic stores and is async-signal-safe.
    unsafe { sigaction(kick_signal(), &action) }.map(|_| ())
}

/// While it lives, the signal also sets an interpreter's flag.
#[derive(Debug)]
pub struct Kickable {
    _flag: Arc<AtomicBool>,
}

impl Kickable {
    /// For the calling thread, which keeps it for as long as it runs a vCPU.
    #[must_use]
    pub fn new(flag: Arc<AtomicBool>) -> Self {
        INTERRUPT.set(Arc::as_ptr(&flag));
        Kickable { _flag: flag }
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        INTERRUPT.set(ptr::null());
    }
}

/// The `immediate_exit` byte that the signal sets on the calling thread.
pub(super) fn watch_kvm_run(flag: *const AtomicU8) {
    IMMEDIATE_EXIT.set(flag);
}

/// Takes [`watch_kvm_run`] back, if it was for this byte.
pub(super) fn forget_kvm_run(flag: *const AtomicU8) {
    if IMMEDIATE_EXIT.get() == flag {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}
