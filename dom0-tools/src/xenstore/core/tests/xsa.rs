//! Rows 23 and 24 of the list of what went wrong with PV interfaces before:
//! one test for each kind of advisory.

use std::time::Duration;

use super::*;
use crate::xenstore::{core::Gate, fairness::BURST};

const EVIL: PeerId = PeerId::Guest(DomId(5));
const GOOD: PeerId = PeerId::Guest(DomId(6));

#[test]
fn xsa_115_watches_tell_only_what_may_be_read() {
    let mut world = World::new([5, 6]);
    for path in [
        "/",
        "/local/domain/6",
        "/local/domain/6/secret",
        "@releaseDomain",
    ] {
        // The first event tells the client nothing but its own words.
        let (answer, events) = world.ask_all(EVIL, Op::Watch, 0, &format!("{path}\0t\0"));
        answers!(answer, OK);
        assert_eq!(events, [format!("{path} t")]);
    }
    world.ask(GOOD, Op::Write, 0, "secret\0key").unwrap();
    world
        .ask(GOOD, Op::SetPerms, 0, "secret\0n6\0r0\0")
        .unwrap();
    world.ask(GOOD, Op::Rm, 0, "secret\0").unwrap();
    let tx = world.start(GOOD);
    world.ask(GOOD, Op::Write, tx, "secret\0key").unwrap();
    world.commit(GOOD, tx).unwrap();
    world.dom0(Op::Rm, "/local/domain/6\0").unwrap();
    world.dom0(Op::Release, "6\0").unwrap();
    assert!(world.events(EVIL).is_empty());
}

#[test]
fn xsa_115_a_reader_hears_of_losing_and_of_removal() {
    let mut world = World::new([5, 6]);
    world.ask(GOOD, Op::Write, 0, "open\0x").unwrap();
    world.watch(EVIL, "/local/domain/6/open\0t\0");
    world.ask(GOOD, Op::SetPerms, 0, "open\0n6\0r5\0").unwrap();
    assert_eq!(world.events(EVIL), ["/local/domain/6/open t"]);
    world.ask(GOOD, Op::SetPerms, 0, "open\0n6\0").unwrap();
    assert_eq!(world.events(EVIL).len(), 1, "the old permissions count");
    world.ask(GOOD, Op::Write, 0, "open\0y").unwrap();
    assert!(world.events(EVIL).is_empty());
    world.ask(GOOD, Op::SetPerms, 0, "open\0n6\0r5\0").unwrap();
    world.events(EVIL);
    world.dom0(Op::Rm, "/local/domain/6\0").unwrap();
    assert_eq!(world.events(EVIL), ["/local/domain/6/open t"]);
}

#[test]
fn xsa_115_special_events_have_permissions() {
    let mut world = World::new([5, 6]);
    world.watch(GOOD, "@releaseDomain\0t\0");
    assert_eq!(
        world.ask(GOOD, Op::GetPerms, 0, "@releaseDomain\0"),
        Err(Errno::EACCES)
    );
    assert_eq!(
        world.ask(GOOD, Op::SetPerms, 0, "@releaseDomain\0n0\0r6\0"),
        Err(Errno::EACCES)
    );
    world.chmod("@releaseDomain", "n0,r6").unwrap();
    world.dom0(Op::Release, "5\0").unwrap();
    assert_eq!(world.events(GOOD), ["@releaseDomain t"]);
}

#[test]
fn xsa_322_a_reused_domid_inherits_nothing() {
    let mut world = World::new([5, 6]);
    world.ask(GOOD, Op::Write, 0, "shared\0x").unwrap();
    world
        .ask(GOOD, Op::SetPerms, 0, "shared\0n6\0b5\0")
        .unwrap();
    world.chmod("@releaseDomain", "n0,r5").unwrap();
    world
        .ask(EVIL, Op::Write, 0, "/local/domain/6/shared/mine\0x")
        .unwrap();
    world.set("/vm/owned", "").unwrap();
    world.chmod("/vm/owned", "n5").unwrap();
    world.domains.destroy(5);
    world.domains.create(5);
    // Nobody has noticed yet; the number's next use does.
    world.dom0(Op::Introduce, "5\x004096\x001\0").unwrap();
    assert_eq!(world.perms("/local/domain/6/shared"), "n6");
    assert_eq!(world.perms("@releaseDomain"), "n0");
    assert!(!world.exists("/vm/owned") && !world.exists("/local/domain/6/shared/mine"));
    assert_eq!(
        world.ask(EVIL, Op::Read, 0, "/local/domain/6/shared\0"),
        Err(Errno::EACCES)
    );
}

#[test]
fn xsa_322_a_guest_cannot_name_domains_to_come() {
    let mut world = World::new([6]);
    world.ask(GOOD, Op::Write, 0, "x\x001").unwrap();
    world.ask(GOOD, Op::SetPerms, 0, "x\0n6\0r5\0").unwrap();
    assert_eq!(world.perms("/local/domain/6/x"), "n6");
    world.chmod("/local/domain/6/x", "n6,r5").unwrap();
    assert_eq!(
        world.perms("/local/domain/6/x"),
        "n6,r5",
        "Dom0 prepares them"
    );
}

#[test]
fn xsa_417_an_open_transaction_does_not_bring_a_dead_domain_back() {
    let mut world = World::new([5, 6]);
    world.ask(GOOD, Op::Write, 0, "x\x001").unwrap();
    let (naming, making) = (world.start(GOOD), world.start(GOOD));
    world
        .ask(GOOD, Op::SetPerms, naming, "x\0n6\0r5\0")
        .unwrap();
    world
        .ask(GOOD, Op::SetPerms, making, "x\0n6\0b5\0")
        .unwrap();
    world.ask(GOOD, Op::Mkdir, making, "x/below\0").unwrap();
    world.domains.destroy(5);
    world.review();
    assert_eq!(world.commit(GOOD, naming), Err(Errno::EAGAIN));
    assert_eq!(world.commit(GOOD, making), Err(Errno::EAGAIN));
    assert_eq!(world.perms("/local/domain/6/x"), "n6");
}

#[test]
fn xsa_419_nodes_of_a_dead_domain_do_not_pile_up() {
    let mut world = World::new([6]);
    world.ask(GOOD, Op::Mkdir, 0, "drop\0").unwrap();
    let before = world.core.tree.accounts().of(DomId::DOM0).nodes;
    for _ in 0..5 {
        world.boot(5);
        world.ask(GOOD, Op::SetPerms, 0, "drop\0n6\0b5\0").unwrap();
        for n in 0..50 {
            world
                .ask(
                    EVIL,
                    Op::Mkdir,
                    0,
                    &format!("/local/domain/6/drop/{n}/a/b\0"),
                )
                .unwrap();
        }
        world.domains.destroy(5);
        world.review();
        answers!(
            world.dom0(Op::Directory, "/local/domain/6/drop\0"),
            Ok::<_, Errno>(b"")
        );
    }
    assert_eq!(world.core.tree.accounts().of(DomId::DOM0).nodes, before);
    assert_eq!(world.core.tree.accounts().of(DomId(5)), Default::default());
}

#[test]
fn xsa_72_206_no_reply_is_over_the_payload_limit() {
    let mut world = World::new([5]);
    for n in 0..300 {
        world
            .ask(EVIL, Op::Mkdir, 0, &format!("dir/{n:0>20}\0"))
            .unwrap();
    }
    assert_eq!(
        world.ask(EVIL, Op::Directory, 0, "dir\0"),
        Err(Errno::E2BIG)
    );
    let long = "a".repeat(2048);
    assert_eq!(
        world.ask(EVIL, Op::Watch, 0, &format!("{long}a\0t\0")),
        Err(Errno::EINVAL)
    );
    // Path and token fit into a request; with the event's longer path they
    // don't: the event tells the watch's own path.
    let token = "t".repeat(4000);
    world.watch(EVIL, &format!("x\0{token}\0"));
    world
        .ask(EVIL, Op::Write, 0, &format!("x/{}\x001", "y".repeat(200)))
        .unwrap();
    let tx = world.start(EVIL);
    let (answer, events) = world.ask_all(EVIL, Op::TransactionEnd, tx, "T\0");
    answers!(answer, OK);
    assert!(events.is_empty());
    let (_, events) = world.ask_all(EVIL, Op::Write, 0, &format!("x/{}\x002", "y".repeat(200)));
    assert_eq!(events, [format!("x {token}")]);
}

#[test]
fn xsa_206_a_guest_that_spoils_transactions_has_to_wait() {
    let mut world = World::new([5, 6]);
    world.set("/shared", "0").unwrap();
    world.chmod("/shared", "b0").unwrap();
    let mut spoilt = 0;
    loop {
        let tx = world.start(GOOD);
        world.ask(GOOD, Op::Read, tx, "/shared\0").unwrap();
        world.ask(GOOD, Op::Write, tx, "done\x001").unwrap();
        if world.core.gate(EVIL, world.now) == Gate::Open {
            world
                .ask(EVIL, Op::Write, 0, &format!("/shared\0{spoilt}!"))
                .unwrap();
        }
        if world.commit(GOOD, tx).is_ok() {
            break;
        }
        spoilt += 1;
        assert!(spoilt <= BURST, "the guest starves the others");
    }
    assert_eq!(spoilt, BURST);
    assert!(matches!(world.core.gate(EVIL, world.now), Gate::After(_)));
    assert_eq!(world.core.gate(GOOD, world.now), Gate::Open);
    world.now += Duration::from_secs(1);
    assert_eq!(world.core.gate(EVIL, world.now), Gate::Open);
}

#[test]
fn xsa_206_nobody_waits_for_conflicts_that_another_made_for_itself() {
    let mut world = World::new([5, 6]);
    world.ask(GOOD, Op::Mkdir, 0, "drop\0").unwrap();
    world.ask(GOOD, Op::SetPerms, 0, "drop\0n6\0b5\0").unwrap();
    for n in 0..2 * BURST {
        let tx = world.start(EVIL);
        let make = format!("/local/domain/6/drop/{n}\0");
        world.ask(EVIL, Op::Mkdir, tx, &make).unwrap();
        // Its own quota makes the repetition fail.
        world.core.limits.nodes = 1;
        assert_eq!(world.commit(EVIL, tx), Err(Errno::EAGAIN));
        world.core.limits.nodes = 1000;
        assert_eq!(world.core.gate(GOOD, world.now), Gate::Open);
    }
}

#[test]
fn xsa_326_unread_replies_stop_the_requests() {
    let mut world = World::new([5]);
    let mut sent = 0;
    while world.core.gate(EVIL, world.now) == Gate::Open {
        world.send(EVIL, Op::GetDomainPath.to_wire(), 0, b"5\0");
        sent += 1;
        assert!(sent < 1000, "replies pile up");
    }
    assert_eq!(world.core.gate(EVIL, world.now), Gate::UntilItReads);
    world.drain(EVIL);
    assert_eq!(world.core.gate(EVIL, world.now), Gate::Open);
}

#[test]
fn xsa_326_unread_events_are_bounded_and_none_is_forgotten() {
    let mut world = World::new([5]);
    world.watch(EVIL, "quiet\0q\0");
    world.watch(EVIL, "loud\0l\0");
    world.set("/local/domain/5/quiet/x", "").unwrap();
    let limit = world.core.limits.event_bytes;
    for n in 0..20_000 {
        world
            .set(&format!("/local/domain/5/loud/{n:0>200}"), "")
            .unwrap();
        let waiting = world.core.peer(EVIL).unwrap().outbox.event_bytes();
        assert!(waiting <= limit, "{waiting} bytes of events");
        if n % 100 == 0 {
            world.dom0(Op::Rm, "/local/domain/5/loud\0").unwrap();
        }
    }
    let events = world.events(EVIL);
    assert!(
        events.contains(&"quiet/x q".to_owned()),
        "another watch's event"
    );
    assert!(
        events.contains(&"loud l".to_owned()),
        "one for all that melted"
    );
    assert!(world.events(EVIL).is_empty());
}

#[test]
fn xsa_326_the_same_event_waits_once() {
    let mut world = World::new([5]);
    world.watch(EVIL, "x\0t\0");
    for n in 0..1000 {
        world.set("/local/domain/5/x", &n.to_string()).unwrap();
    }
    assert_eq!(world.events(EVIL), ["x t"]);
}

#[test]
fn xsa_326_every_resource_has_a_limit() {
    let mut world = World::new([5]);
    let limits = world.core.limits.clone();
    let mut refused = |op: Op, payload: fn(usize) -> String, most: usize| {
        for n in 0..=most {
            match world.ask(EVIL, op, 0, &payload(n)) {
                Ok(_) => {}
                Err(errno) => return (n, errno),
            }
        }
        panic!("{op:?} is not limited");
    };
    let watches = refused(Op::Watch, |n| format!("w{n}\0t\0"), 10_000);
    assert_eq!(watches, (limits.watches, Errno::E2BIG));
    let transactions = refused(Op::TransactionStart, |_| "\0".into(), 10_000);
    assert_eq!(transactions, (limits.transactions, Errno::ENOSPC));
    let nodes = refused(Op::Mkdir, |n| format!("d/{n}\0"), 10_000);
    assert_eq!(nodes, (limits.nodes - 2, Errno::ENOSPC));
    let deep = refused(Op::Mkdir, |_| format!("{}\0", vec!["x"; 1000].join("/")), 1);
    assert_eq!(deep, (0, Errno::ENOSPC));
    let value = refused(Op::Write, |_| format!("d\0{}", "v".repeat(2049)), 1);
    assert_eq!(value, (0, Errno::ENOSPC));
    let perms = refused(Op::SetPerms, |_| format!("d\0n5\0{}", "r0\0".repeat(5)), 1);
    assert_eq!(perms, (0, Errno::ENOSPC));
    let requests = (0..=limits.transaction_requests).find_map(|n| {
        world
            .ask(EVIL, Op::Read, 1, "/local/domain/5\0")
            .err()
            .map(|errno| (n, errno))
    });
    assert_eq!(requests, Some((limits.transaction_requests, Errno::ENOSPC)));
}

#[test]
fn xsa_326_memory_is_limited_in_all() {
    let mut world = World::new([5]);
    let value = "v".repeat(2048);
    let limit = world.core.limits.memory;
    let transactions: Vec<u32> = (0..10).map(|_| world.start(EVIL)).collect();
    let mut taken = 0;
    'full: for n in 0..1000 {
        for tx in &transactions {
            if let Err(errno) = world.ask(EVIL, Op::Write, *tx, &format!("{n}\0{value}")) {
                assert_eq!(errno, Errno::ENOMEM);
                break 'full;
            }
            taken += value.len();
        }
    }
    assert!(taken > limit / 2 && taken <= limit, "{taken} of {limit}");
    assert_eq!(
        world.ask(EVIL, Op::Write, 0, &format!("a\0{value}")),
        Err(Errno::ENOMEM)
    );
    for tx in transactions {
        world.ask(EVIL, Op::TransactionEnd, tx, "F\0").unwrap();
    }
    answers!(world.ask(EVIL, Op::Mkdir, 0, "a\0"), OK);
}

#[test]
fn xsa_418_420_depth_costs_no_stack() {
    let mut world = World::new([5]);
    world.core.limits.nodes = 5000;
    let deep = vec!["x"; 1024].join("/");
    let work = move || {
        for _ in 0..3 {
            world.ask(EVIL, Op::Mkdir, 0, &format!("{deep}\0")).unwrap();
            let tx = world.start(EVIL);
            world.ask(EVIL, Op::Rm, tx, "x\0").unwrap();
            world.commit(EVIL, tx).unwrap();
        }
        world.ask(EVIL, Op::Mkdir, 0, &format!("{deep}\0")).unwrap();
        assert_eq!(world.core.tree.accounts().of(DomId(5)).nodes, 1025);
        assert!(world.core.tree.check());
        assert_eq!(
            world.core.snapshot().len(),
            world.restarted().snapshot().len()
        );
        world.domains.destroy(5);
        world.review();
        assert!(world.core.tree.check());
    };
    // A tenth of what recursion through 1024 levels would need.
    let thread = std::thread::Builder::new()
        .stack_size(64 * 1024)
        .spawn(work);
    thread.unwrap().join().unwrap();
}

#[test]
fn xsa_421_a_guest_can_always_go_on_after_an_error() {
    let mut world = World::new([5]);
    for op in (0..23).filter_map(Op::from_wire) {
        for payload in ["", "\0", "a", "\0\0\0\0\0\0\0\0"] {
            let _ = world.ask(EVIL, op, 9, payload);
        }
    }
    answers!(world.ask(EVIL, Op::Mkdir, 0, "a\0"), OK);
}
