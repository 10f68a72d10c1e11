//! From a raised port to the bits that a guest sees, and to the kick.

use super::*;

#[test]
fn an_event_sets_three_levels_and_kicks_once() {
    let a = Guest::new(1, 1, 4095);
    let port = bind_ipis(&a, 130, VcpuId(2));
    a.events.send(port).unwrap();
    assert!(a.pending_bit(port));
    assert_eq!(a.memory.load_u64(MachineAddr(2 * 64 + 8)), 1 << 2);
    assert!(a.sink.pending(VcpuId(2)) && !a.sink.pending(VcpuId(0)));
    a.events.send(port).unwrap();
    a.events.send(Port(1)).unwrap();
    assert_eq!(a.kicks(2), 1);
    assert_eq!(a.take_events(2), [Port(1), port]);
    a.events.send(port).unwrap();
    assert_eq!(a.kicks(2), 2);
}

#[test]
fn an_event_that_may_wait_interrupts_nobody_and_an_urgent_one_does() {
    let (a, b) = (Guest::new(1, 1, 1023), Guest::new(2, 1, 1023));
    let world = World::of(&[&a.events, &b.events]);
    let (pa, pb) = pair(&world, &a.events, &b.events);
    b.take_events(0);
    let (kicks, nudges) = (b.kicks(0), b.nudges(0));
    a.events.send_when(pa, When::Soon).unwrap();
    assert!(b.pending_bit(pb) && b.sink.pending(VcpuId(0)));
    assert_eq!((b.kicks(0), b.nudges(0)), (kicks, nudges + 1));
    // Marked already, so no news; but who waits has waited enough.
    let hurries = b.hurries(0);
    a.events.send(pa).unwrap();
    assert_eq!((b.kicks(0), b.hurries(0)), (kicks, hurries + 1));
    b.take_events(0);
    a.events.send(pa).unwrap();
    assert_eq!(b.kicks(0), kicks + 1);
}

#[test]
fn a_masked_port_waits_for_its_unmask() {
    let a = Guest::new(1, 1, 1023);
    let port = a.events.bind_ipi(VcpuId(1)).unwrap();
    a.mask_bit(port);
    a.events.send(port).unwrap();
    assert!(a.pending_bit(port) && !a.sink.pending(VcpuId(1)));
    assert_eq!(a.kicks(1), 0);
    a.events.unmask(port).unwrap();
    assert_eq!(a.kicks(1), 1);
    assert_eq!(a.take_events(1), [port]);
    a.events.unmask(port).unwrap();
    assert!(!a.sink.pending(VcpuId(1)));
}

#[test]
fn an_upcall_is_deliverable_only_unmasked() {
    let a = Guest::new(1, 1, 1023);
    let port = a.events.bind_ipi(VcpuId(0)).unwrap();
    a.events.send(port).unwrap();
    assert!(a.sink.masked(VcpuId(0)), "upcalls start masked");
    assert!(!a.sink.deliverable(VcpuId(0)));
    assert_eq!(a.sink.set_mask(VcpuId(0), 0), 1);
    assert!(a.sink.deliverable(VcpuId(0)));
}

#[test]
fn binding_a_pair_raises_the_binders_end() {
    let (a, b) = (Guest::new(1, 1, 1023), Guest::new(2, 1, 1023));
    let world = World::of(&[&a.events, &b.events]);
    let (pa, pb) = pair(&world, &a.events, &b.events);
    assert!(b.pending_bit(pb) && !a.pending_bit(pa));
    b.events.send(pb).unwrap();
    assert_eq!(a.take_events(0), [pa]);
}

#[test]
fn dom0_hears_what_came_before_it_attached() {
    let (a, dom0) = (Guest::new(1, 1, 1023), Dom0::new());
    let world = World::of(&[&a.events, &dom0.events]);
    let (pa, p0) = pair(&world, &a.events, &dom0.events);
    let heard = Arc::new(Heard::default());
    dom0.sink.attach(p0, heard.clone());
    assert_eq!(*heard.0.lock().unwrap(), [p0]);
    a.events.send(pa).unwrap();
    a.events.send(pa).unwrap();
    assert_eq!(*heard.0.lock().unwrap(), [p0, p0, p0]);
    dom0.events.close(p0).unwrap();
    a.events.send(pa).unwrap();
    assert_eq!(heard.0.lock().unwrap().len(), 3);
}

#[test]
fn a_closed_port_leaves_no_pending_bit() {
    let a = Guest::new(1, 1, 1023);
    let port = a.events.bind_ipi(VcpuId(0)).unwrap();
    a.events.send(port).unwrap();
    a.events.close(port).unwrap();
    assert!(!a.pending_bit(port));
}

#[test]
fn a_vcpu_info_moves_once_and_wakes_everything() {
    let a = Guest::new(1, 1, 1023);
    a.sink.set_cr2(VcpuId(0), 0x1234);
    let place = |offset| a.sink.register(VcpuId(0), Mfn(1), offset);
    assert_eq!(place(4096 - 56), Err(EventError::InfoMisplaced(4096 - 56)));
    assert_eq!(place(4), Err(EventError::InfoMisplaced(4)));
    assert_eq!(
        place(u32::MAX - 7),
        Err(EventError::InfoMisplaced(u32::MAX - 7))
    );
    assert_eq!(place(4096 - 64), Ok(()));
    assert_eq!(place(0), Err(EventError::InfoRegistered(VcpuId(0))));
    assert!(a.sink.register(VcpuId(4), Mfn(1), 0).is_err());
    let at = 2 * 4096 - 64;
    assert_eq!(a.memory.load_u64(MachineAddr(at + 8)), u64::MAX);
    assert_eq!(a.memory.load_u64(MachineAddr(at + 16)), 0x1234);
    assert_eq!(a.memory.load_u8(MachineAddr(at)), 1);
    assert_eq!(
        a.memory.load_u8(MachineAddr(at + 1)),
        1,
        "the mask moves along"
    );
    a.memory.store_u64(MachineAddr(at + 8), 0);
    a.memory.store_u8(MachineAddr(at), 0);
    let port = a.events.bind_ipi(VcpuId(0)).unwrap();
    a.events.send(port).unwrap();
    assert_eq!(a.memory.load_u64(MachineAddr(at + 8)), 1);
    assert_eq!(
        a.memory.load_u64(MachineAddr(8)),
        0,
        "the old place is left alone"
    );
}

#[test]
fn a_vcpu_past_the_slots_starts_masked_where_it_registers() {
    let memory = Arc::new(Pages::new(2));
    let counter = Arc::new(Counter::default());
    let sink = TwoLevel::new(memory.clone(), Mfn(0), 40, counter);
    let late = sink.area(VcpuId(33)).unwrap();
    assert!(late.masked(&*memory) && !late.pending(&*memory));
    late.register(&*memory, Mfn(1), 128).unwrap();
    assert!(late.masked(&*memory) && late.pending(&*memory));
}

#[test]
fn a_poll_ends_with_its_port_masked_or_not() {
    let a = Guest::new(1, 1, 1023);
    let [one, other] = [(); 2].map(|()| a.events.bind_ipi(VcpuId(0)).unwrap());
    a.mask_bit(one);
    assert_eq!(a.events.poll(VcpuId(1), &[one]), Ok(PollOutcome::Sleep));
    a.events.send(other).unwrap();
    assert_eq!(a.polls_ended(1), 0);
    a.events.send(one).unwrap();
    assert_eq!(a.polls_ended(1), 1);
    assert_eq!(a.events.poll(VcpuId(1), &[one]), Ok(PollOutcome::Ready));
    a.take_events(0);
    assert_eq!(a.events.poll(VcpuId(1), &[]), Ok(PollOutcome::Sleep));
    a.events.end_poll(VcpuId(1));
    a.events.send(other).unwrap();
    assert_eq!(a.polls_ended(1), 1);
}

#[test]
fn a_poll_does_not_sleep_on_an_upcall() {
    let a = Guest::new(1, 1, 1023);
    let [one, other] = [(); 2].map(|()| a.events.bind_ipi(VcpuId(0)).unwrap());
    a.events.send(one).unwrap();
    assert_eq!(a.events.poll(VcpuId(0), &[other]), Ok(PollOutcome::Sleep));
    a.sink.set_mask(VcpuId(0), 0);
    assert_eq!(a.events.poll(VcpuId(0), &[other]), Ok(PollOutcome::Ready));
}
