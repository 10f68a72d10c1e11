//! Guests through their rings.

use std::time::{Duration, Instant};

use dom0_tools::xenstore::{
    client::Nodes,
    wire::{Header, Op},
};
use guest_abi::{
    addr::DomId,
    errno::Errno,
    xs_wire::{
        XENSTORE_CONNECTED, XENSTORE_ERROR_NONE, XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX,
        XENSTORE_RECONNECT, XENSTORE_SERVER_FEATURE_ERROR, XENSTORE_SERVER_FEATURE_RECONNECTION,
    },
};

use crate::{guest::Guest, installation::Installation};

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_guest_and_dom0_see_each_others_nodes() {
    let installation = Installation::new();
    let mut guest = installation.boot(5);
    let mut store = installation.client();
    let features = XENSTORE_SERVER_FEATURE_ERROR | XENSTORE_SERVER_FEATURE_RECONNECTION;
    assert_eq!(guest.page.features(), features);
    guest.ask(Op::Write, 0, "data/x\0from the guest").unwrap();
    let value = store.find("/local/domain/5/data/x").unwrap();
    assert_eq!(value.as_deref(), Some("from the guest"));
    guest.ask(Op::Watch, 0, "control/shutdown\0t\0").unwrap();
    assert_eq!(guest.event(), "control/shutdown t");
    store
        .write("/local/domain/5/control/shutdown", "poweroff")
        .unwrap();
    assert_eq!(guest.event(), "control/shutdown t");
    assert_eq!(
        guest.ask(Op::Read, 0, "control/shutdown\0").unwrap(),
        b"poweroff"
    );
    assert_eq!(guest.ask(Op::Read, 0, "/vm\0"), Err(Errno::EACCES));
}

#[test]
fn messages_larger_than_the_ring_pass() {
    let installation = Installation::new();
    let mut guest = installation.boot(5);
    let value = "v".repeat(2048);
    guest.ask(Op::Write, 0, &format!("x\0{value}")).unwrap();
    assert_eq!(guest.ask(Op::Read, 0, "x\0").unwrap(), value.as_bytes());
    for n in 0..150 {
        guest
            .ask(Op::Mkdir, 0, &format!("dir/name-of-25-bytes-{n:05}\0"))
            .unwrap();
    }
    assert_eq!(
        guest.ask(Op::Directory, 0, "dir\0").unwrap().len(),
        150 * 23
    );
    assert_eq!(
        guest.ask(Op::Write, 0, &format!("y\0{}", "v".repeat(4094))),
        Err(Errno::ENOSPC)
    );
}

#[test]
fn requests_that_come_in_a_row_are_all_answered_in_order() {
    let installation = Installation::new();
    let mut guest = installation.boot(5);
    let numbers: Vec<u32> = (0..500)
        .map(|n| guest.send(Op::Write, 0, format!("x\0{n}").as_bytes()))
        .collect();
    for number in numbers {
        guest.reply(number, Op::Write).unwrap();
    }
    assert_eq!(guest.ask(Op::Read, 0, "x\0").unwrap(), b"499");
}

#[test]
fn a_guest_that_breaks_the_ring_loses_only_its_own_connection() {
    let installation = Installation::new();
    let (mut evil, mut good) = (installation.boot(5), installation.boot(6));
    evil.ask(Op::Write, 0, "x\x001").unwrap();
    evil.page
        .set_req_prod(evil.page.req_prod().wrapping_add(5000));
    evil.notify();
    until("the error is told", || {
        evil.page.error() == XENSTORE_ERROR_RINGIDX
    });
    good.ask(Op::Write, 0, "x\x001").unwrap();
    let mut store = installation.client();
    assert_eq!(
        store.find("/local/domain/5/x").unwrap().as_deref(),
        Some("1")
    );

    // It may start anew.
    evil.page.set_connection(XENSTORE_RECONNECT);
    evil.notify();
    until("the connection is new", || {
        evil.page.connection() == XENSTORE_CONNECTED
    });
    assert_eq!(evil.page.error(), XENSTORE_ERROR_NONE);
    assert_eq!((evil.page.req_prod(), evil.page.rsp_prod()), (0, 0));
    evil.forget();
    assert_eq!(evil.ask(Op::Read, 0, "x\0").unwrap(), b"1");

    let liar = Header {
        kind: 2,
        len: 5000,
        ..Header::default()
    };
    evil.put(&liar.to_bytes());
    until("the error is told", || {
        evil.page.error() == XENSTORE_ERROR_PROTO
    });
    evil.page.set_rsp_cons(77);
    evil.notify();
    good.ask(Op::Read, 0, "x\0").unwrap();
}

#[test]
fn a_reboot_by_reconnection_leaves_no_watches() {
    let installation = Installation::new();
    let mut guest = installation.boot(5);
    guest.ask(Op::Watch, 0, "device\0t\0").unwrap();
    guest.send(Op::Read, 0, b"x\0");
    guest.page.set_connection(XENSTORE_RECONNECT);
    guest.notify();
    until("the connection is new", || {
        guest.page.connection() == XENSTORE_CONNECTED
    });
    guest.forget();
    installation
        .client()
        .write("/local/domain/5/device/x", "")
        .unwrap();
    assert!(guest.is_quiet());
    guest.ask(Op::Watch, 0, "device\0t\0").unwrap();
    assert_eq!(guest.event(), "device t");
}

#[test]
fn a_guest_that_floods_does_not_hold_up_the_others() {
    let installation = Installation::new();
    let evil = installation.boot(5);
    let mut good = installation.boot(6);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            let mut evil = evil;
            let mut count = 0u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let numbers: Vec<u32> = (0..15)
                    .map(|n| evil.send(Op::Write, 0, format!("x/{n}\0{count}").as_bytes()))
                    .collect();
                for number in numbers {
                    let _ = evil.reply(number, Op::Write);
                    count += 1;
                }
            }
            count
        });
        let mut store = installation.client();
        let start = Instant::now();
        for n in 0..200 {
            good.ask(Op::Write, 0, &format!("x\0{n}")).unwrap();
            store.write("/x", n.to_string()).unwrap();
        }
        let took = start.elapsed();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let floods = flooding.join().unwrap();
        assert!(floods > 0);
        assert!(took < Duration::from_secs(10), "400 requests took {took:?}");
    });
}

#[test]
fn a_guest_that_never_reads_costs_little_and_holds_up_nobody() {
    let installation = Installation::new();
    let mut deaf = installation.boot(5);
    let mut store = installation.client();
    deaf.ask(Op::Watch, 0, "loud\0t\0").unwrap();
    deaf.event();
    for n in 0..3000 {
        store
            .write(&format!("/local/domain/5/loud/{n:0>500}"), "")
            .unwrap();
    }
    let usage = store.control(&["check"]).unwrap();
    assert_eq!(usage, "OK");
    let memory = installation.daemon_memory();
    assert!(memory < 32 << 20, "{memory} bytes");
    // What waited comes in the end, and then new things.
    let mut told = 0;
    while !deaf.is_quiet() {
        told += 1;
    }
    store.write("/local/domain/5/loud/last", "").unwrap();
    while deaf.event() != "loud/last t" {
        told += 1;
    }
    assert!(told < 3000, "some events have melted into one");
}

#[test]
fn a_destroyed_domain_is_released_at_once() {
    let installation = Installation::new();
    let mut guest = installation.boot(5);
    let mut store = installation.client();
    guest.ask(Op::Write, 0, "x\x001").unwrap();
    store.watch("@releaseDomain", "r").unwrap();
    store.next_event(None).unwrap();
    installation.hypervisor.destroy(5);
    let event = store.next_event(Some(Duration::from_secs(4))).unwrap();
    assert_eq!(event.expect("by its event, not by the clock").token, "r");
    assert!(!store.is_introduced(DomId(5)).unwrap());
    assert!(!store.exists("/local/domain/5").unwrap());
    let mut next = installation.boot(5);
    assert_eq!(next.ask(Op::Read, 0, "x\0"), Err(Errno::ENOENT));
}

#[test]
fn an_introduction_of_a_frame_that_is_not_the_domains_is_refused() {
    let installation = Installation::new();
    installation.hypervisor.create(5);
    let mut store = installation.client();
    for (dom, mfn) in [(5, 1), (5, u64::MAX), (6, Guest::mfn())] {
        let refused = store.introduce(
            DomId(dom),
            guest_abi::addr::Mfn(mfn),
            guest_abi::addr::Port(1),
        );
        assert_eq!(refused.unwrap_err().errno(), Some(Errno::EINVAL));
        assert!(!store.is_introduced(DomId(dom)).unwrap());
    }
}

#[test]
fn a_connection_to_the_hypervisor_that_breaks_is_made_anew() {
    let installation = Installation::new();
    let mut guest = installation.boot(5);
    guest.ask(Op::Watch, 0, "x\0t\0").unwrap();
    guest.event();
    installation.hypervisor.hang_up();
    let mut store = installation.client();
    // Whatever makes the daemon talk to the hypervisor finds it out.
    let _ = store.set_perms("/local/domain/5/x", &store_perms());
    store.write("/local/domain/5/x", "1").unwrap();
    assert_eq!(guest.event(), "x t");
    assert_eq!(guest.ask(Op::Read, 0, "x\0").unwrap(), b"1");
}

fn store_perms() -> [dom0_tools::xenstore::perms::Perm; 1] {
    [dom0_tools::xenstore::perms::Perm::parse(b"n5").unwrap()]
}
