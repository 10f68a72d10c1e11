//! Two vCPUs that wake each other.
//!
//! **Mechanism.** A second vCPU is initialised with a context and set going.
//! An event for a vCPU that sleeps in `SCHEDOP_block` must wake it; one that
//! arrives just before it falls asleep must keep it awake.
//!
//! **Scenario.** Each vCPU sleeps until its partner's IPI has come, then sends
//! one back, two thousand times. At the end the second vCPU goes down and is
//! brought up again.
//!
//! **Race.** Between looking at the count and falling asleep lies a gap in
//! which the IPI may come. `SCHEDOP_block` unmasks and looks once more in one
//! step; if it did not, both would sleep for good, and the test would end by
//! its watchdog timer with a FAILURE.
//!
//! **Limits.** Two vCPUs, one pair of ports. Needs `vcpus=2`.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use guest_abi::{
    addr::{Port, VcpuId},
    errno::Errno,
    kernel::{Boot, entry::Stack, event, smp, time},
    vcpu::VCPUOP_UP,
    xen::VIRQ_TIMER,
};
use test_guests::Report;

guest_abi::pv_kernel!(main, name = "ping-pong");

const ROUNDS: u32 = 2000;
/// Longer than the rounds take on the slowest host.
const PATIENCE: u64 = 60_000_000_000;

static SECOND_STACK: Stack = Stack::new();
static TO_FIRST: AtomicU32 = AtomicU32::new(0);
static TO_SECOND: AtomicU32 = AtomicU32::new(0);
static PINGS: AtomicU32 = AtomicU32::new(0);
static PONGS: AtomicU32 = AtomicU32::new(0);
static WRONG_VCPU: AtomicU32 = AtomicU32::new(0);
static TIMEOUT: AtomicBool = AtomicBool::new(false);
static LIVES: AtomicU32 = AtomicU32::new(0);

fn ping(_: Port) {
    count_on(1, &PINGS);
}

fn pong(_: Port) {
    count_on(0, &PONGS);
}

fn count_on(vcpu: u32, counter: &AtomicU32) {
    if smp::current() != vcpu {
        WRONG_VCPU.fetch_add(1, Ordering::Relaxed);
    }
    counter.fetch_add(1, Ordering::SeqCst);
}

fn on_timeout(_: Port) {
    TIMEOUT.store(true, Ordering::SeqCst);
}

fn main(boot: &'static Boot) -> ! {
    let mut report = Report::begin("ping-pong", boot);
    match smp::is_up(VcpuId(1)) {
        Ok(false) => {}
        Ok(true) => report.check(false, &"vCPU 1 is up before anybody brought it up"),
        Err(_) => report.skip(&"needs two vCPUs"),
    }
    if let Err(errno) = play(&mut report) {
        report.check(false, &format_args!("a step ended early: {errno:?}"));
    }
    report.end()
}

fn play(report: &mut Report) -> Result<(), Errno> {
    let to_first = event::bind_ipi(VcpuId(0))?;
    let to_second = event::bind_ipi(VcpuId(1))?;
    event::listen(to_first, pong)?;
    event::listen(to_second, ping)?;
    event::listen(event::bind_virq(VIRQ_TIMER, VcpuId(0))?, on_timeout)?;
    TO_FIRST.store(to_first.0, Ordering::SeqCst);
    TO_SECOND.store(to_second.0, Ordering::SeqCst);
    time::stop_periodic_timer()?;
    time::set_singleshot_timer(time::system_time() + PATIENCE, 0)?;
    // SAFETY: the stack is the second vCPU's alone.
    let started = unsafe { smp::start(VcpuId(1), SECOND_STACK.top(), second) };
    report.allowed(started, &"vCPU 1 starts");
    // SAFETY: as above; it is refused.
    let again = unsafe { smp::start(VcpuId(1), SECOND_STACK.top(), second) };
    report.refused_with(Errno::EEXIST, again, &"initialising it again");
    let start = time::system_time();
    rounds(to_second)?;
    let each = (time::system_time() - start) / u64::from(ROUNDS) / 1000;
    finish(report, each)
}

fn rounds(to_second: Port) -> Result<(), Errno> {
    for round in 1..=ROUNDS {
        event::send(to_second)?;
        while PONGS.load(Ordering::SeqCst) < round && !TIMEOUT.load(Ordering::SeqCst) {
            event::block();
        }
    }
    Ok(())
}

fn finish(report: &mut Report, each_us: u64) -> Result<(), Errno> {
    let (pings, pongs) = (PINGS.load(Ordering::SeqCst), PONGS.load(Ordering::SeqCst));
    report.check(
        pings == ROUNDS && pongs == ROUNDS,
        &format_args!("{pings} pings, {pongs} pongs of {ROUNDS}, {each_us} us a round"),
    );
    report.check(
        WRONG_VCPU.load(Ordering::SeqCst) == 0,
        &"each handler ran on its own vCPU",
    );
    while smp::is_up(VcpuId(1))? && !TIMEOUT.load(Ordering::SeqCst) {
        guest_abi::kernel::sched::yield_now();
    }
    report.check(!smp::is_up(VcpuId(1))?, &"vCPU 1 went down");
    let before = LIVES.load(Ordering::SeqCst);
    // SAFETY: no argument; the vCPU goes on where it went down.
    unsafe { guest_abi::kernel::hypercall::vcpu_op(VCPUOP_UP, 1, 0) }?;
    while LIVES.load(Ordering::SeqCst) == before && !TIMEOUT.load(Ordering::SeqCst) {
        guest_abi::kernel::sched::yield_now();
    }
    report.check(
        LIVES.load(Ordering::SeqCst) > before,
        &"and came up where it had gone down",
    );
    report.check(!TIMEOUT.load(Ordering::SeqCst), &"in time");
    Ok(())
}

/// The second vCPU: answers each ping, then goes down, again and again.
fn second(vcpu: VcpuId) -> ! {
    let to_first = Port(TO_FIRST.load(Ordering::SeqCst));
    for round in 1..=ROUNDS {
        while PINGS.load(Ordering::SeqCst) < round {
            event::block();
        }
        event::send(to_first).expect("the first vCPU's port is open");
    }
    loop {
        // SAFETY: no argument; it returns when somebody brings the vCPU up.
        let gone = unsafe {
            guest_abi::kernel::hypercall::vcpu_op(guest_abi::vcpu::VCPUOP_DOWN, vcpu.0, 0)
        };
        gone.expect("a vCPU may go down");
        LIVES.fetch_add(1, Ordering::SeqCst);
    }
}
