//! Threads that bind, send, unmask and close at once, for a bounded time.
//!
//! What is looked for: a deadlock (the test would hang), an end that names a
//! peer which does not name it back, a pending bit of a closed port, and an
//! event that nobody was told of.

use super::*;
use std::{
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_millis(300);

/// Runs each of `work` in a thread of its own until the time is up.
fn at_once(work: &[&(dyn Fn(u64) + Sync)]) {
    let end = Instant::now() + LONG;
    std::thread::scope(|scope| {
        for body in work {
            scope.spawn(move || {
                let mut round = 0;
                while Instant::now() < end {
                    body(round);
                    round += 1;
                }
            });
        }
    });
}

fn assert_consistent(world: &World, domains: &[&Guest]) {
    for guest in domains {
        let here = guest.events.key().dom;
        for port in (1..64).map(Port) {
            let state = guest.events.status(world, SELF, port).unwrap().state;
            match state {
                PortState::Interdomain { remote, port: far } => {
                    let peer = world.events(remote).unwrap();
                    let back = peer.status(world, SELF, far).unwrap().state;
                    assert_eq!(back, PortState::Interdomain { remote: here, port });
                }
                PortState::Closed => assert!(!guest.pending_bit(port), "{here:?} {port:?}"),
                _ => {}
            }
        }
    }
}

#[test]
fn bind_send_close_from_all_sides() {
    let (a, b) = (Guest::new(1, 1, 40), Guest::new(2, 1, 40));
    let world = World::of(&[&a.events, &b.events]);
    let port = |round: u64, salt: u64| Port(1 + u32::try_from(round * salt % 40).unwrap());
    let bind = |here: &Guest, there: &Guest, round: u64| {
        let dom = there.events.key().dom;
        let _ = here.events.alloc_unbound(&world, SELF, dom);
        let _ = here.events.bind_interdomain(&world, dom, port(round, 3));
    };
    at_once(&[
        &|round| bind(&a, &b, round),
        &|round| bind(&b, &a, round),
        &|round| drop(a.events.close(port(round, 7))),
        &|round| drop(b.events.close(port(round, 11))),
        &|round| drop(a.events.send(port(round, 13))),
        &|round| drop(b.events.send(port(round, 17))),
        &|round| drop(a.events.bind_interdomain(&world, DomId(1), port(round, 19))),
    ]);
    assert_consistent(&world, &[&a, &b]);
}

#[test]
fn destruction_in_the_middle_of_everything() {
    for generation in 0..20 {
        let (a, b) = (Guest::new(1, generation, 60), Guest::new(2, generation, 60));
        let world = World::of(&[&a.events, &b.events]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for guest in [&a, &b] {
                let (world, stop) = (&world, &stop);
                let other = DomId(3 - guest.events.key().dom.0);
                scope.spawn(move || {
                    for round in 0u32.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let _ = guest.events.alloc_unbound(world, SELF, other);
                        let _ = guest
                            .events
                            .bind_interdomain(world, other, Port(round % 60));
                        let _ = guest.events.send(Port(round % 60));
                        let _ = guest.events.close(Port(round / 2 % 60));
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(5));
            a.events.destroy();
            stop.store(true, Ordering::Relaxed);
        });
        for port in (0..60).map(Port) {
            let state = a.events.status(&world, SELF, port).unwrap().state;
            assert_eq!(state, PortState::Closed);
        }
        assert_consistent(&world, &[&a, &b]);
    }
}

/// The guest's side runs by the book: take everything, sleep only with nothing
/// pending. If an event could slip through between mask, unmask and send, the
/// number of the last one sent would never arrive.
#[test]
fn no_event_is_lost_between_mask_and_unmask() {
    let (a, b) = (Guest::new(1, 1, 100), Guest::new(2, 1, 100));
    let world = World::of(&[&a.events, &b.events]);
    let (pa, pb) = pair(&world, &a.events, &b.events);
    let sent = AtomicU32::new(0);
    let seen = AtomicU32::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + LONG;
            while Instant::now() < end {
                sent.fetch_add(1, Ordering::SeqCst);
                a.events.send(pa).unwrap();
            }
            // The last one is numbered well before it is sent, so that who
            // takes it has read its number.
            sent.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(50));
            a.events.send(pa).unwrap();
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            let mut rest = 0;
            // A few rounds after the last send: then it must have been seen.
            while rest < 3 {
                rest += u32::from(done.load(Ordering::SeqCst));
                let now = sent.load(Ordering::SeqCst);
                if b.take_events(0).contains(&pb) {
                    seen.store(now, Ordering::SeqCst);
                }
                b.mask_bit(pb);
                b.events.unmask(pb).unwrap();
            }
        });
    });
    assert!(seen.load(Ordering::SeqCst) > 0);
    assert_eq!(seen.load(Ordering::SeqCst), sent.load(Ordering::SeqCst));
    assert!(!b.pending_bit(pb));
}

/// The guest takes its events right after it moved its `vcpu_info`: an event
/// that came too late for that must show in the new place.
#[test]
fn moving_a_vcpu_info_loses_nothing() {
    const MOVED: u64 = 4096;
    for _ in 0..2000 {
        let a = Guest::new(1, 1, 100);
        let port = a.events.bind_ipi(VcpuId(0)).unwrap();
        let taken = std::thread::scope(|scope| {
            scope.spawn(|| a.events.send(port).unwrap());
            let guest = scope.spawn(|| {
                a.sink.register(VcpuId(0), Mfn(1), 0).unwrap();
                a.memory.store_u8(MachineAddr(MOVED), 0);
                a.memory.store_u64(MachineAddr(MOVED + 8), 0);
                a.memory.swap_u64(MachineAddr(PENDING), 0) != 0
            });
            guest.join().unwrap()
        });
        let selected = a.memory.load_u64(MachineAddr(MOVED + 8)) & 1 == 1;
        let upcall = a.memory.load_u8(MachineAddr(MOVED)) == 1;
        assert!(taken || (selected && upcall && a.pending_bit(port)));
    }
}

#[test]
fn a_poll_and_a_send_never_miss_each_other() {
    let a = Guest::new(1, 1, 100);
    let port = a.events.bind_ipi(VcpuId(0)).unwrap();
    a.mask_bit(port);
    for _ in 0..2000 {
        let before = a.polls_ended(1);
        let outcome = std::thread::scope(|scope| {
            let poll = scope.spawn(|| a.events.poll(VcpuId(1), &[port]).unwrap());
            scope.spawn(|| a.events.send(port).unwrap());
            poll.join().unwrap()
        });
        let woken = a.polls_ended(1) == before + 1;
        assert_eq!(outcome == PollOutcome::Sleep, woken);
        a.memory.store_u64(MachineAddr(PENDING), 0);
    }
}
