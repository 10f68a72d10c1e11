//! Giving up the CPU, ending the domain, and a lock.
//!
//! ```no_run
//! use guest_abi::{kernel::{sched, time}, sched::SHUTDOWN_POWEROFF};
//!
//! // A second's rest, then the end.
//! sched::poll(&[], time::system_time() + 1_000_000_000).expect("no port is no error");
//! sched::shutdown(SHUTDOWN_POWEROFF)
//! ```

use core::{
    fmt::Display,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{console, hypercall};
use crate::{
    addr::Port,
    errno::Errno,
    sched::{
        SCHEDOP_POLL, SCHEDOP_SHUTDOWN, SCHEDOP_YIELD, SHUTDOWN_CRASH, SchedPoll, SchedShutdown,
    },
};

/// `SCHEDOP_yield`.
pub fn yield_now() {
    // SAFETY: the command takes no argument. It has no failure to report.
    let _ = unsafe { hypercall::sched_op(SCHEDOP_YIELD, &mut ()) };
}

/// `SCHEDOP_poll`: sleeps until one of `ports` is pending, masked or not, or
/// system time reaches `deadline` (ns; 0 = never). Its events are not delivered.
///
/// # Errors
/// `EINVAL` for more than 128 ports or one that can't be.
pub fn poll(ports: &[Port], deadline: u64) -> Result<(), Errno> {
    let nr_ports = u32::try_from(ports.len()).map_err(|_| Errno::EINVAL)?;
    let mut argument = SchedPoll {
        ports: ports.as_ptr() as u64,
        nr_ports,
        timeout: deadline,
        ..Default::default()
    };
    // SAFETY: the command's type; `Port` is a transparent `u32`.
    unsafe { hypercall::sched_op(SCHEDOP_POLL, &mut argument) }?;
    Ok(())
}

/// `SCHEDOP_shutdown`; `reason` is a `SHUTDOWN_*`.
pub fn shutdown(reason: u32) -> ! {
    let mut argument = SchedShutdown { reason };
    // SAFETY: the command's type.
    let _ = unsafe { hypercall::sched_op(SCHEDOP_SHUTDOWN, &mut argument) };
    loop {
        yield_now();
    }
}

/// Says why and crashes the domain.
pub fn crash(why: &dyn Display) -> ! {
    console::print_unlocked(format_args!("domain crashes: {why}\n"));
    shutdown(SHUTDOWN_CRASH)
}

/// A lock that yields while it waits.
#[derive(Debug, Default)]
pub struct SpinLock(AtomicBool);

/// Holds a [`SpinLock`].
#[derive(Debug)]
#[must_use = "the lock is held as long as the guard lives"]
pub struct SpinGuard<'a>(&'a SpinLock);

impl SpinLock {
    /// A free lock.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Waits for the lock. Not to be taken twice by one vCPU.
    pub fn lock(&self) -> SpinGuard<'_> {
        while self.0.swap(true, Ordering::Acquire) {
            yield_now();
        }
        SpinGuard(self)
    }
}

impl Drop for SpinGuard<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}
