//! Long work cut in pieces: a guest can't hold the lock for long, each piece
//! gets somewhere, and all counts are true wherever it stops.

use super::*;

/// A tree of an L4 (frame `first`), an L3, `l2s` L2 tables behind it, and for
/// each of them `l1s` L1 tables that map the frame behind all of them. Gives
/// that frame.
fn plant(d: &Domain, first: u64, l2s: u64, l1s: u64) -> u64 {
    let slot = |n: u64| usize::try_from(n).unwrap();
    let (l3, first_l2) = (first + 1, first + 2);
    let first_l1 = first_l2 + l2s;
    let data = first_l1 + l2s * l1s;
    d.poke(first, 3, maps(l3, RW));
    for l2 in 0..l2s {
        d.poke(l3, slot(l2), maps(first_l2 + l2, RW));
        for l1 in 0..l1s {
            let table = first_l1 + l2 * l1s + l1;
            d.poke(first_l2 + l2, slot(2 * l1), maps(table, RW));
            d.poke(table, 0, maps(data, RW));
            d.poke(table, 511, maps(table, RO));
        }
    }
    data
}

fn big_tree(l2s: u64, l1s: u64) -> Domain {
    let d = Domain::new(3 + l2s + l2s * l1s);
    plant(&d, 0, l2s, l1s);
    d
}

/// Repeats until it is not interrupted any more. Gives how often it was.
fn persist<T>(
    d: &mut Domain,
    mut operation: impl FnMut(&mut Domain) -> Result<T, Errno>,
) -> (usize, Result<T, Errno>) {
    for interrupted in 0..10_000 {
        let outcome = operation(d);
        d.audit();
        match outcome {
            Err(Errno::ERESTART) => {}
            other => return (interrupted, other),
        }
    }
    panic!("it does not get anywhere");
}

fn settle(d: &mut Domain) -> usize {
    let mut calls = 1;
    while !d.paging.finish_work(&d.memory) {
        calls += 1;
        d.audit();
    }
    calls
}

#[test]
fn a_long_pin_gets_done_in_pieces() {
    for budget in [0, 4, 5, 7, 20] {
        let mut d = big_tree(6, 9);
        d.paging.set_budget(budget);
        let (interrupted, outcome) = persist(&mut d, |d| d.pin(Level::L4, 0));
        assert_eq!(outcome, Ok(()));
        assert!(interrupted >= 2, "with {budget}: {interrupted}");
        assert!(interrupted <= 60, "with {budget}: {interrupted}");
        assert_eq!(d.frame_type(8), (FrameType::L1, 1), "nothing is kept");
        d.unpin(0).unwrap();
        assert!(settle(&mut d) >= 2);
        d.audit();
        for frame in 0..62 {
            assert_eq!(d.frame_type(frame).1, 0);
        }
    }
}

#[test]
fn no_piece_is_long() {
    let mut d = big_tree(6, 9);
    d.paging.set_budget(4);
    let limit = 5 * 4 * ENTRIES;
    let mut most = 0;
    let mut pin = |d: &mut Domain| {
        d.memory.loads.set(0);
        let outcome = d.pin(Level::L4, 0);
        most = most.max(d.memory.loads.get());
        outcome
    };
    while pin(&mut d) == Err(Errno::ERESTART) {}
    d.memory.loads.set(0);
    d.unpin(0).unwrap();
    most = most.max(d.memory.loads.get());
    loop {
        d.memory.loads.set(0);
        let done = d.paging.finish_work(&d.memory);
        most = most.max(d.memory.loads.get());
        if done {
            break;
        }
    }
    assert!(most <= limit, "{most} loads in one piece");
}

#[test]
fn a_step_of_teardown_is_short() {
    let mut d = big_tree(6, 9);
    d.pin(Level::L4, 0).unwrap();
    loop {
        d.memory.loads.set(0);
        let done = d.paging.relinquish_step(&d.memory, 10);
        assert!(d.memory.loads.get() <= 10);
        if done {
            break;
        }
    }
    assert_eq!(d.paging.owned_frames(), 0);
}

#[test]
fn roots_and_upper_entries_are_installed_in_pieces_too() {
    let mut d = big_tree(6, 9);
    d.paging.set_budget(4);
    let (interrupted, outcome) = persist(&mut d, |d| d.paging.new_baseptr(&d.memory, V0, mfn(0)));
    assert!(outcome.is_ok() && interrupted > 1);
    let l4e = d.pte(0, 3);
    d.update(0, 3, Pte(0)).unwrap();
    let (interrupted, outcome) = persist(&mut d, |d| d.update(0, 3, l4e));
    assert!(outcome.is_ok() && interrupted > 1);
    d.paging.new_user_baseptr(&d.memory, V0, mfn(0)).unwrap();
    d.paging.release_vcpu(&d.memory, V0).unwrap();
    settle(&mut d);
    d.audit();
}

#[test]
fn a_long_pin_that_is_refused_leaves_nothing() {
    let mut d = big_tree(6, 9);
    let last_l1 = 61;
    let before = d.snapshot();
    d.poke(last_l1, 300, maps(0, RW));
    d.paging.set_budget(4);
    let (interrupted, outcome) = persist(&mut d, |d| d.pin(Level::L4, 0));
    assert_eq!(outcome, Err(Errno::EBUSY));
    assert!(interrupted > 1);
    settle(&mut d);
    assert_eq!(d.snapshot(), before);
}

/// The guest changes the tree between two pieces: what counts is what is there
/// when the last piece is done.
#[test]
fn the_tree_may_change_between_pieces() {
    let mut d = big_tree(6, 9);
    d.paging.set_budget(4);
    assert_eq!(d.pin(Level::L4, 0), Err(Errno::ERESTART));
    let kept_l1 = 8;
    assert_eq!(d.frame_type(kept_l1), (FrameType::L1, 1), "kept");
    d.refuses(Errno::EBUSY, |d| d.update(kept_l1, 5, maps(kept_l1, RW)));
    d.poke(2, 0, Pte(0)); // an L2 that is still data
    d.poke(1, 5, Pte(0));
    let (_, outcome) = persist(&mut d, |d| d.pin(Level::L4, 0));
    assert_eq!(outcome, Ok(()));
    settle(&mut d);
    assert_eq!(d.frame_type(kept_l1).1, 0, "not needed after all");
    assert_eq!(d.frame_type(7).1, 0);
}

/// What another vCPU leaves to be let go, each time anew, costs its own share
/// and not that of the operation that has to do it first.
#[test]
fn others_leftovers_do_not_stop_a_long_pin() {
    let mut d = Domain::new(64);
    plant(&d, 0, 2, 9);
    plant(&d, 40, 1, 4); // seven tables: three are left each time
    let mut rounds = 0;
    let outcome = loop {
        d.paging.set_budget(u32::MAX);
        d.pin(Level::L4, 40).unwrap();
        d.paging.set_budget(4);
        d.unpin(40).unwrap();
        assert_eq!(d.paging.work.doomed().len(), 3);
        let outcome = d.pin(Level::L4, 0);
        d.audit();
        rounds += 1;
        assert!(rounds < 60, "it does not get anywhere");
        if outcome != Err(Errno::ERESTART) {
            break outcome;
        }
    };
    assert_eq!(outcome, Ok(()));
}

#[test]
fn operations_that_nobody_resumes_do_not_pile_up() {
    let mut d = Domain::new(400);
    d.paging.set_budget(4);
    for top in 0..60 {
        for child in 0..6u64 {
            let index = usize::try_from(child).unwrap();
            d.poke(top, index, maps(60 + top * 5 + child, RW));
        }
        let mut attempts = 0;
        while d.pin(Level::L2, top) != Err(Errno::ERESTART) {
            d.unpin(top).unwrap();
            attempts += 1;
            assert!(attempts < 3);
        }
        d.audit();
    }
    let kept = d.paging.work.kept().count();
    assert!(kept <= 32 * 3, "{kept} tables kept");
    while !d.paging.relinquish_step(&d.memory, 50) {}
    assert_eq!(d.paging.owned_frames(), 0);
}

/// Killed at any piece of a pin or of an unpin.
#[test]
fn killed_halfway_leaks_nothing() {
    for pieces in 0..30 {
        let mut d = big_tree(3, 5);
        d.paging.set_budget(4);
        for _ in 0..pieces {
            if d.pin(Level::L4, 0).is_ok() {
                d.unpin(0).unwrap();
                break;
            }
        }
        while !d.paging.relinquish_step(&d.memory, 3) {}
        assert_eq!(d.paging.owned_frames(), 0, "after {pieces} pieces");
        for (refs, _, _, _, uses) in d.snapshot() {
            assert_eq!((refs, uses), (0, 0));
        }
    }
}
