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
//! Each vCPU has a flag and ports of its own. A handler may switch to another
//! task, and come back much later, on another vCPU. So nothing is remembered
//! across its call, not even the vCPU's number: each round looks at all again.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use guest_abi::{
    addr::{Port, VcpuId},
    errno::Errno,
    kernel::{event, sched, smp},
    xen::XEN_LEGACY_MAX_VCPUS,
};

/// Called with the number of the interrupt, interrupts off.
pub type Handler = fn(usize);

/// Ports that can interrupt: those below this number. The hypervisor hands out
/// the lowest that is free, and a domain has a handful.
pub const PORTS: usize = 64;

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static VCPUS: [Vcpu; XEN_LEGACY_MAX_VCPUS] = [const { Vcpu::new() }; XEN_LEGACY_MAX_VCPUS];
/// The numbers of the ports' interrupts, plus one; 0 where it is the port's.
static NUMBERS: [AtomicUsize; PORTS] = [const { AtomicUsize::new(0) }; PORTS];

/// What a vCPU has of its own.
struct Vcpu {
    enabled: AtomicBool,
    /// A bit for each port that interrupts it.
    wanted: AtomicU64,
}

impl Vcpu {
    const fn new() -> Self {
        Self {
            enabled: AtomicBool::new(false),
            wanted: AtomicU64::new(0),
        }
    }

    /// Of the vCPU that asks, for now.
    #[inline]
    fn current() -> &'static Self {
        Self::of(VcpuId(smp::current()))
    }

    #[inline]
    fn of(vcpu: VcpuId) -> &'static Self {
        &VCPUS[vcpu.0 as usize % XEN_LEGACY_MAX_VCPUS]
    }
}

/// Who gets the interrupts.
pub fn set_handler(handler: Handler) {
    HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Whether interrupts are on.
#[inline]
pub fn enabled() -> bool {
    Vcpu::current().enabled.load(Ordering::Relaxed)
}

/// Turns them on, and takes those that wait.
#[inline]
pub fn enable() {
    Vcpu::current().enabled.store(true, Ordering::SeqCst);
    deliver();
}

/// Turns them off.
#[inline]
pub fn disable() {
    Vcpu::current().enabled.store(false, Ordering::SeqCst);
}

/// Turns them off; what to give [`restore`].
#[inline]
pub fn save_and_disable() -> usize {
    usize::from(Vcpu::current().enabled.swap(false, Ordering::SeqCst))
}

/// Turns them on again if they were.
#[inline]
pub fn restore(saved: usize) {
    match saved {
        0 => disable(),
        _ => enable(),
    }
}

/// From now on a port interrupts the vCPU that it is bound to.
///
/// # Errors
/// `EINVAL` for a port that can't; the hypervisor's.
pub fn listen(port: Port, vcpu: VcpuId) -> Result<(), Errno> {
    Vcpu::of(vcpu).wanted.fetch_or(bit(port)?, Ordering::SeqCst);
    event::unmask(port)
}

/// Gives a port's interrupt another number: that of its like on other vCPUs.
///
/// # Errors
/// `EINVAL` for a port that can't interrupt.
pub fn number(port: Port, number: usize) -> Result<(), Errno> {
    bit(port)?;
    NUMBERS[port.0 as usize].store(number + 1, Ordering::SeqCst);
    Ok(())
}

/// A port does not interrupt any more.
///
/// # Errors
/// `EINVAL` for a port that can't.
pub fn ignore(port: Port) -> Result<(), Errno> {
    event::mask(port);
    let bit = bit(port)?;
    for vcpu in &VCPUS {
        vcpu.wanted.fetch_and(!bit, Ordering::SeqCst);
    }
    Ok(())
}

/// Sleeps until a port wants to interrupt this vCPU, and lets it.
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

/// Calls the handler for each port of this vCPU that is pending.
#[inline]
fn deliver() {
    if upcall().load(Ordering::Relaxed) != 0 {
        deliver_all();
    }
}

/// Whether something is pending for the vCPU that asks.
#[inline]
fn upcall() -> &'static AtomicU8 {
    // SAFETY: a byte of this vCPU's info, which is mapped for good.
    unsafe { AtomicU8::from_ptr(&raw mut (*smp::vcpu_info()).evtchn_upcall_pending) }
}

#[cold]
fn deliver_all() {
    loop {
        let upcall = upcall();
        // SAFETY: as in `upcall`.
        let selector =
            unsafe { AtomicU64::from_ptr(&raw mut (*smp::vcpu_info()).evtchn_pending_sel) };
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
    let number = NUMBERS[port.0 as usize % PORTS].load(Ordering::SeqCst);
    disable();
    handler(number.checked_sub(1).unwrap_or(port.0 as usize));
    // As an `iret` would: interrupts were on, or we had not been called.
    Vcpu::current().enabled.store(true, Ordering::SeqCst);
}

fn wanted() -> impl Iterator<Item = Port> {
    let bits = Vcpu::current().wanted.load(Ordering::SeqCst);
    (0..PORTS as u32)
        .filter(move |&port| bits >> port & 1 != 0)
        .map(Port)
}

fn bit(port: Port) -> Result<u64, Errno> {
    1u64.checked_shl(port.0).ok_or(Errno::EINVAL)
}
