//! Named after the advisories whose class of mistake each one excludes.

use super::*;
use guest_abi::errno::Errno;

#[test]
fn xsa_221_poll_checks_each_port() {
    let a = Guest::new(1, 1, 4095);
    let last_in_table = Port(63);
    for bad in [Port(64), Port(4095), Port(4096), Port(u32::MAX)] {
        let refused = a.events.poll(VcpuId(0), &[last_in_table, bad]).unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL, "{bad:?}");
    }
    assert_eq!(
        a.events.poll(VcpuId(0), &[last_in_table]),
        Ok(PollOutcome::Sleep)
    );
    let refused = a.events.poll(VcpuId(0), &[Port(1); 129]).unwrap_err();
    assert_eq!(refused.errno(), Errno::EINVAL);
}

/// All ports taken, then every operation that wants one.
fn exhaust(max_port: u32, expected: u32) {
    let (a, dom0) = (Guest::new(1, 1, max_port), Dom0::new());
    let world = World::of(&[&a.events, &dom0.events]);
    let waiting = dom0.events.alloc_unbound(&world, SELF, DomId(1)).unwrap();
    for _ in 0..expected {
        a.events.bind_ipi(VcpuId(0)).unwrap();
    }
    let outcomes = [
        a.events.alloc_unbound(&world, SELF, DomId(0)),
        dom0.events.alloc_unbound(&world, DomId(1), SELF),
        a.events.bind_interdomain(&world, DomId(0), waiting),
        a.events.bind_virq(0, VcpuId(0)),
        a.events.bind_virq(3, VcpuId(0)),
        a.events.bind_ipi(VcpuId(0)),
    ];
    for outcome in outcomes {
        assert_eq!(outcome.unwrap_err().errno(), Errno::ENOSPC);
    }
    let untouched = dom0.events.status(&world, SELF, waiting).unwrap().state;
    assert_eq!(untouched, PortState::Unbound { remote: DomId(1) });
    a.events.close(Port(expected)).unwrap();
    assert_eq!(a.events.bind_virq(0, VcpuId(0)), Ok(Port(expected)));
}

#[test]
fn xsa_317_342_port_limits() {
    exhaust(1023, 1023);
    exhaust(63, 63);
    exhaust(64, 64);
    exhaust(1, 1);
    // The bitmaps end at 4096, whatever the configuration says.
    exhaust(u32::MAX, 4095);
}

#[test]
fn xsa_317_the_last_bit_stays_inside_the_bitmaps() {
    let a = Guest::new(1, 1, u32::MAX);
    let last = bind_ipis(&a, 4095, VcpuId(0));
    let after = MachineAddr(PENDING + 512);
    a.events.send(last).unwrap();
    assert!(a.pending_bit(Port(4095)));
    assert_eq!(a.memory.load_u64(after), 0, "the mask array begins here");
    assert_eq!(
        a.events.send(Port(4096)).unwrap_err().errno(),
        Errno::EINVAL
    );
}

#[test]
fn xsa_340_344_destruction_leaves_no_half_pair() {
    let (a, b) = (Guest::new(1, 1, 4095), Guest::new(2, 1, 4095));
    let world = World::of(&[&a.events, &b.events]);
    let pairs: Vec<_> = (0..500)
        .map(|_| pair(&world, &a.events, &b.events))
        .collect();
    a.events.destroy();
    for (pa, pb) in &pairs {
        let left = b.events.status(&world, SELF, *pb).unwrap().state;
        assert_eq!(left, PortState::Unbound { remote: DomId(1) });
        let gone = a.events.status(&world, SELF, *pa).unwrap().state;
        assert_eq!(gone, PortState::Closed);
    }
    assert_eq!(
        a.events.bind_ipi(VcpuId(0)).unwrap_err().errno(),
        Errno::EINVAL
    );
    let refused = b.events.alloc_unbound(&world, SELF, DomId(1)).map(|_| ());
    assert_eq!(refused, Ok(()), "waiting for a domain needs nothing of it");
    assert!(
        b.events
            .bind_interdomain(&world, DomId(1), pairs[0].0)
            .is_err()
    );
}

#[test]
fn xsa_343_344_reset_closes_all_and_the_domain_goes_on() {
    let (a, b) = (Guest::new(1, 1, 1023), Guest::new(2, 1, 1023));
    let world = World::of(&[&a.events, &b.events]);
    let (pa, pb) = pair(&world, &a.events, &b.events);
    let timer = a.events.bind_virq(0, VcpuId(1)).unwrap();
    a.events.send_virq(VcpuId(1), 0);
    a.events.reset();
    assert!(!a.pending_bit(timer));
    assert_eq!(a.events.close(pa).unwrap_err().errno(), Errno::EINVAL);
    b.events.send(pb).unwrap();
    assert!(!a.pending_bit(pa));
    assert_eq!(a.events.bind_virq(0, VcpuId(1)), Ok(Port(1)));
}

#[test]
fn xsa_391_a_storm_costs_one_kick_until_it_is_seen() {
    let (a, b) = (Guest::new(1, 1, 1023), Guest::new(2, 1, 1023));
    let world = World::of(&[&a.events, &b.events]);
    let (pa, pb) = pair(&world, &a.events, &b.events);
    b.take_events(0);
    let before = b.kicks(0);
    for _ in 0..100_000 {
        a.events.send(pa).unwrap();
    }
    assert_eq!(b.kicks(0), before + 1);
    assert_eq!(b.take_events(0), [pb]);
}

#[test]
fn xsa_419_a_reused_domid_inherits_no_port() {
    let (front, old) = (Guest::new(1, 1, 1023), Guest::new(7, 1, 1023));
    let world = World::of(&[&front.events, &old.events]);
    let waiting = front.events.alloc_unbound(&world, SELF, DomId(7)).unwrap();
    let (end, _) = pair(&world, &front.events, &old.events);
    old.events.destroy();
    let new = Guest::new(7, 2, 1023);
    world.put(&new.events);
    for port in [waiting, end] {
        let refused = new
            .events
            .bind_interdomain(&world, DomId(1), port)
            .unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL);
    }
    let fresh = front.events.alloc_unbound(&world, SELF, DomId(7)).unwrap();
    assert!(new.events.bind_interdomain(&world, DomId(1), fresh).is_ok());
}

#[test]
fn a_port_waiting_for_a_domain_to_come_is_bound_by_it() {
    let front = Guest::new(1, 1, 1023);
    let world = World::of(&[&front.events]);
    let waiting = front.events.alloc_unbound(&world, SELF, DomId(7)).unwrap();
    let back = Guest::new(7, 9, 1023);
    world.put(&back.events);
    assert!(
        back.events
            .bind_interdomain(&world, DomId(1), waiting)
            .is_ok()
    );
}

#[test]
fn a_forgotten_domain_keeps_nobody_from_closing() {
    let a = Guest::new(1, 1, 1023);
    let world = World::of(&[&a.events]);
    let pa = {
        let b = Guest::new(2, 1, 1023);
        let (pa, _) = pair(&world, &a.events, &b.events);
        pa
    };
    assert_eq!(a.events.send(pa), Ok(()));
    assert_eq!(a.events.close(pa), Ok(()));
}
