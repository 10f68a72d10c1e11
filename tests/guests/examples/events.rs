//! Event channels between a domain and itself.
//!
//! **Mechanism.** A port is bound to another port, to a virtual interrupt or
//! to a vCPU. An event sets the port's pending bit; unless the port is masked
//! it also sets the selector bit of its word and the vCPU's upcall bit, and
//! the hypervisor calls the event entry point.
//!
//! **Scenario.** One vCPU sends to itself: by IPI, and over an interdomain
//! channel of which it has both ends. Then the rules about masks, polling and
//! closing; then the limits of the port space, exhausted twice.
//!
//! **Race.** An event that comes while its port is masked must neither be
//! lost nor be delivered before the unmask; ten thousand sends between two
//! looks are one event.
//!
//! **Limits.** One vCPU: nothing here happens at the same time as something
//! else. See `ping-pong` for that.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use core::sync::atomic::{AtomicU32, Ordering};

use guest_abi::{
    addr::{DomId, Port, VcpuId},
    errno::Errno,
    event_channel::{
        EVTCHN_2L_NR_CHANNELS, EVTCHNSTAT_CLOSED, EVTCHNSTAT_INTERDOMAIN, EVTCHNSTAT_IPI,
        EVTCHNSTAT_UNBOUND, EVTCHNSTAT_VIRQ,
    },
    kernel::{Boot, event, sched, time},
    xen::{NR_VIRQS, VIRQ_DOM_EXC, VIRQ_TIMER},
};
use test_guests::Report;

guest_abi::pv_kernel!(main, name = "events");

static COUNT: AtomicU32 = AtomicU32::new(0);
static LAST: AtomicU32 = AtomicU32::new(0);

fn count(port: Port) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    LAST.store(port.0, Ordering::Relaxed);
}

/// Takes what is pending; how many handler calls that were.
fn taken() -> u32 {
    event::take();
    COUNT.swap(0, Ordering::Relaxed)
}

fn main(boot: &'static Boot) -> ! {
    let mut report = Report::begin("events", boot);
    let steps = [ipi, masking, loopback, polling, virqs, refusals, exhaustion];
    for step in steps {
        if let Err(errno) = step(&mut report) {
            report.check(false, &format_args!("a step ended early: {errno:?}"));
        }
    }
    report.end()
}

fn ipi(report: &mut Report) -> Result<(), Errno> {
    let port = event::bind_ipi(VcpuId(0))?;
    event::listen(port, count)?;
    let status = event::status(port)?;
    report.check(
        status.status == EVTCHNSTAT_IPI && status.vcpu == 0,
        &"an IPI port says so",
    );
    report.check(taken() == 0, &"no event before the first send");
    event::send(port)?;
    report.check(COUNT.load(Ordering::Relaxed) == 0, &"no event while masked");
    report.check(
        taken() == 1 && LAST.load(Ordering::Relaxed) == port.0,
        &"one send, one event, at the right port",
    );
    for _ in 0..100 {
        event::send(port)?;
    }
    report.check(taken() == 1, &"a hundred sends in a row are one event");
    event::close(port)?;
    report.refused_with(Errno::EINVAL, event::send(port), &"a send on a closed port");
    Ok(())
}

fn masking(report: &mut Report) -> Result<(), Errno> {
    let port = event::bind_ipi(VcpuId(0))?;
    event::listen(port, count)?;
    event::mask(port);
    event::send(port)?;
    report.check(taken() == 0, &"a masked port's event is not delivered");
    report.check(event::is_pending(port), &"but pending");
    event::unmask(port)?;
    report.check(taken() == 1, &"unmasking delivers it");
    report.check(taken() == 0, &"once");
    event::mask(port);
    event::send(port)?;
    report.check(event::clear(port), &"a pending bit can be cleared by hand");
    event::unmask(port)?;
    report.check(taken() == 0, &"and then unmasking delivers nothing");
    event::close(port)
}

fn loopback(report: &mut Report) -> Result<(), Errno> {
    let here = event::alloc_unbound(DomId::SELF)?;
    report.check(
        event::status(here)?.status == EVTCHNSTAT_UNBOUND,
        &"an unbound port says so",
    );
    let there = event::bind_interdomain(DomId::SELF, here)?;
    let status = event::status(here)?;
    report.check(
        status.status == EVTCHNSTAT_INTERDOMAIN && status.u_port == there.0,
        &"both ends in one domain",
    );
    report.refused(
        event::bind_interdomain(DomId::SELF, here),
        &"binding an end that is bound",
    );
    event::listen(here, count)?;
    event::listen(there, count)?;
    // Binding may leave an event behind: what was sent while unbound counts.
    taken();
    event::send(here)?;
    report.check(
        taken() == 1 && LAST.load(Ordering::Relaxed) == there.0,
        &"a send comes out at the other end",
    );
    event::send(there)?;
    report.check(
        taken() == 1 && LAST.load(Ordering::Relaxed) == here.0,
        &"and back",
    );
    event::close(here)?;
    report.check(
        event::status(there)?.status == EVTCHNSTAT_UNBOUND,
        &"closing one end leaves the other unbound",
    );
    report.check(
        event::status(here)?.status == EVTCHNSTAT_CLOSED,
        &"and itself closed",
    );
    event::close(there)
}

fn polling(report: &mut Report) -> Result<(), Errno> {
    let port = event::bind_ipi(VcpuId(0))?;
    event::mask(port);
    event::send(port)?;
    sched::poll(&[port], 0)?;
    report.check(
        event::clear(port),
        &"a poll without end returns for a pending port, masked or not",
    );
    let start = time::system_time();
    sched::poll(&[port], start + 20_000_000)?;
    let waited = time::system_time() - start;
    report.check(
        waited >= 20_000_000,
        &format_args!("a poll gives up at its time, not before ({waited} ns)"),
    );
    report.check(!event::is_pending(port), &"and sets nothing pending");
    sched::poll(&[port], 1)?;
    report.check(true, &"a time in the past returns at once");
    report.refused(
        sched::poll(&[Port(EVTCHN_2L_NR_CHANNELS)], 1),
        &"polling a port past the last",
    );
    report.refused_with(
        Errno::EINVAL,
        sched::poll(&[port; 129], 1),
        &"polling 129 ports",
    );
    event::close(port)
}

fn virqs(report: &mut Report) -> Result<(), Errno> {
    let port = event::bind_virq(VIRQ_TIMER, VcpuId(0))?;
    let status = event::status(port)?;
    report.check(
        status.status == EVTCHNSTAT_VIRQ && status.u == VIRQ_TIMER,
        &"a virtual interrupt's port says so",
    );
    report.refused_with(
        Errno::EEXIST,
        event::bind_virq(VIRQ_TIMER, VcpuId(0)),
        &"binding it twice",
    );
    event::close(port)?;
    let again = event::bind_virq(VIRQ_TIMER, VcpuId(0))?;
    report.check(true, &"binding it again once it is closed");
    event::close(again)?;
    report.refused_with(
        Errno::EINVAL,
        event::bind_virq(NR_VIRQS, VcpuId(0)),
        &"a virtual interrupt past the last",
    );
    report.refused_with(
        Errno::ENOENT,
        event::bind_virq(VIRQ_TIMER, VcpuId(4096)),
        &"the timer of a vCPU that is none",
    );
    report.refused_with(
        Errno::EINVAL,
        event::bind_virq(VIRQ_DOM_EXC, VcpuId(1)),
        &"a domain's interrupt on vCPU 1",
    );
    Ok(())
}

fn refusals(report: &mut Report) -> Result<(), Errno> {
    for port in [
        0,
        EVTCHN_2L_NR_CHANNELS - 1,
        EVTCHN_2L_NR_CHANNELS,
        u32::MAX,
    ] {
        report.refused(
            event::send(Port(port)),
            &format_args!("a send on port {port:#x}"),
        );
        report.refused(
            event::close(Port(port)),
            &format_args!("closing port {port:#x}"),
        );
    }
    report.refused(
        event::unmask(Port(u32::MAX)),
        &"unmasking a port past the last",
    );
    report.refused(
        event::bind_interdomain(DomId::SELF, Port(u32::MAX)),
        &"binding to a port past the last",
    );
    report.refused(
        event::bind_interdomain(DomId(0x7abc), Port(1)),
        &"binding to a domain that is none",
    );
    report.refused_with(
        Errno::ENOENT,
        event::bind_ipi(VcpuId(u32::MAX)),
        &"an IPI to a vCPU that is none",
    );
    Ok(())
}

/// Fills the port space to the last port, frees it, and does it again: the
/// second time must get as far as the first.
fn exhaustion(report: &mut Report) -> Result<(), Errno> {
    let first = fill_and_empty(report)?;
    let second = fill_and_empty(report)?;
    report.check(
        first == second && first < EVTCHN_2L_NR_CHANNELS,
        &format_args!("{first} ports, and again {second}"),
    );
    Ok(())
}

fn fill_and_empty(report: &mut Report) -> Result<u32, Errno> {
    static OURS: [AtomicU32; 4096] = [const { AtomicU32::new(0) }; 4096];
    let mut got = 0;
    let end = loop {
        match event::bind_ipi(VcpuId(0)) {
            Ok(port) => OURS[got].store(port.0, Ordering::Relaxed),
            Err(errno) => break errno,
        }
        got += 1;
    };
    report.check(
        end == Errno::ENOSPC,
        &format_args!("the port after the last: {end:?}"),
    );
    report.refused_with(
        Errno::ENOSPC,
        event::alloc_unbound(DomId::SELF),
        &"an unbound port when none is left",
    );
    report.refused_with(
        Errno::ENOSPC,
        event::bind_virq(VIRQ_TIMER, VcpuId(0)),
        &"a virtual interrupt when none is left",
    );
    for port in &OURS[..got] {
        event::close(Port(port.load(Ordering::Relaxed)))?;
    }
    u32::try_from(got).map_err(|_| Errno::ERANGE)
}
