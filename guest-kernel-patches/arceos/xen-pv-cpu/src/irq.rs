//! The interrupt flag, as a flag of our own, and the ports that interrupt.
//!
//! An event is never delivered by an upcall: events stay masked for good. A
//! bounce frame would be pushed right under the stack pointer, where the
//! prebuilt `core` keeps live data (the red zone; see `guest_abi::kernel`).
//! Instead pending ports are looked for wherever ArceOS turns interrupts on:
//! at the end of each critical section, in `enable_irqs`, while it waits. A
//! handler is then an ordinary function call.
//!
//! So a loop that takes no lock is not interrupted. ArceOS' own code takes
//! locks all the time.
//!
//! A handler may switch to another task, and come back much later. So nothing
//! is remembered across its call: each round looks at all ports again.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering};

use guest_abi::{
    addr::Port,
    errno::Errno,
    kernel::{event, sched, smp},
};

/// Called with the number of the port, interrupts off.
pub type Handler = fn(usize);

/// Ports that can interrupt: those below this number. The hypervisor hands out
/// the lowest that is free, and a domain has a handful.
pub const PORTS: usize = 64;

static ENABLED: AtomicBool = AtomicBool::new(false);
static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
/// A bit for each port that interrupts.
static WANTED: AtomicU64 = AtomicU64::new(0);

/// Who gets the interrupts.
pub fn set_handler(handler: Handler) {
    HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Whether interrupts are on.
#[inline]
pub fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Turns them on, and takes those that wait.
#[inline]
pub fn enable() {
    ENABLED.store(true, Ordering::SeqCst);
    deliver();
}

/// Turns them off.
#[inline]
pub fn disable() {
    ENABLED.store(false, Ordering::SeqCst);
}

/// Turns them off; what to give [`restore`].
#[inline]
pub fn save_and_disable() -> usize {
    usize::from(ENABLED.swap(false, Ordering::SeqCst))
}

/// Turns them on again if they were.
#[inline]
pub fn restore(saved: usize) {
    match saved {
        0 => disable(),
        _ => enable(),
    }
}

/// From now on a port interrupts.
///
/// # Errors
/// `EINVAL` for a port that can't; the hypervisor's.
pub fn listen(port: Port) -> Result<(), Errno> {
    WANTED.fetch_or(bit(port)?, Ordering::SeqCst);
    event::unmask(port)
}

/// A port does not interrupt any more.
///
/// # Errors
/// `EINVAL` for a port that can't.
pub fn ignore(port: Port) -> Result<(), Errno> {
    event::mask(port);
    WANTED.fetch_and(!bit(port)?, Ordering::SeqCst);
    Ok(())
}

/// Sleeps until a port wants to interrupt, and lets it.
pub fn wait() {
    let mut ports = [Port(0); PORTS];
    let mut used = 0;
    for port in wanted() {
        ports[used] = port;
        used += 1;
    }
    if sched::poll(&ports[..used], 0).is_err() {
        sched::yield_now();
    }
    if enabled() {
        deliver();
    }
}

/// Takes this vCPU down. It does not come back.
pub fn halt() -> ! {
    disable();
    smp::down()
}

/// Calls the handler for each port that is pending.
#[inline]
fn deliver() {
    // SAFETY: a byte of this vCPU's info, which is mapped for good.
    let upcall = unsafe { AtomicU8::from_ptr(&raw mut (*smp::vcpu_info()).evtchn_upcall_pending) };
    if upcall.load(Ordering::Relaxed) != 0 {
        deliver_all(upcall);
    }
}

#[cold]
fn deliver_all(upcall: &AtomicU8) {
    // SAFETY: as in `deliver`.
    let selector = unsafe { AtomicU64::from_ptr(&raw mut (*smp::vcpu_info()).evtchn_pending_sel) };
    loop {
        // In this order: what comes in between sets all of it again.
        upcall.store(0, Ordering::SeqCst);
        selector.store(0, Ordering::SeqCst);
        let Some(port) = wanted().find(|&port| event::clear(port)) else {
            return;
        };
        // The task that the handler switches to looks for the other ports.
        upcall.store(1, Ordering::SeqCst);
        call(port);
    }
}

fn call(port: Port) {
    let handler = HANDLER.load(Ordering::Acquire);
    if handler.is_null() {
        return;
    }
    // SAFETY: only `set_handler` stores there.
    let handler: Handler = unsafe { core::mem::transmute(handler) };
    disable();
    handler(port.0 as usize);
    // As an `iret` would: interrupts were on, or we had not been called.
    ENABLED.store(true, Ordering::SeqCst);
}

fn wanted() -> impl Iterator<Item = Port> {
    let bits = WANTED.load(Ordering::SeqCst);
    (0..PORTS as u32)
        .filter(move |&port| bits >> port & 1 != 0)
        .map(Port)
}

fn bit(port: Port) -> Result<u64, Errno> {
    1u64.checked_shl(port.0).ok_or(Errno::EINVAL)
}
