//! Isolation and conflicts of transactions, against the simplest model: the
//! committed transactions one after the other.

use proptest::prelude::*;

use super::*;

#[test]
fn transactions_on_different_nodes_don_t_disturb_each_other() {
    let mut world = World::new([5, 6]);
    let (a, b) = (PeerId::Guest(DomId(5)), PeerId::Guest(DomId(6)));
    let (ta, tb) = (world.start(a), world.start(b));
    answers!(world.ask(a, Op::Write, ta, "x\x001"), OK);
    answers!(world.ask(b, Op::Write, tb, "x\x002"), OK);
    world.set("/unrelated", "").unwrap();
    answers!(world.commit(a, ta), OK);
    answers!(world.commit(b, tb), OK);
    assert!(world.exists("/local/domain/5/x") && world.exists("/local/domain/6/x"));
}

#[test]
fn a_read_that_would_read_otherwise_now_is_a_conflict() {
    let mut world = World::new([]);
    let dom0 = world.dom0;
    for (read, spoil) in [
        ((Op::Read, "/a\0"), (Op::Write, "/a\x002")),
        ((Op::Read, "/none\0"), (Op::Mkdir, "/none\0")),
        ((Op::Directory, "/\0"), (Op::Mkdir, "/new\0")),
        ((Op::GetPerms, "/a\0"), (Op::SetPerms, "/a\0r0\0")),
        ((Op::Rm, "/a/x\0"), (Op::Rm, "/a\0")),
    ] {
        world.set("/a", "1").unwrap();
        let tx = world.start(dom0);
        let _ = world.ask(dom0, read.0, tx, read.1);
        answers!(world.ask(dom0, Op::Write, tx, "/b\x001"), OK);
        world.dom0(spoil.0, spoil.1).unwrap();
        assert_eq!(world.commit(dom0, tx), Err(Errno::EAGAIN), "{read:?}");
    }
    assert!(!world.exists("/b"));
}

#[test]
fn a_transaction_that_only_read_cannot_fail() {
    let mut world = World::new([]);
    let dom0 = world.dom0;
    world.set("/a", "1").unwrap();
    let tx = world.start(dom0);
    answers!(world.ask(dom0, Op::Read, tx, "/a\0"), Ok::<_, Errno>(b"1"));
    world.set("/a", "2").unwrap();
    answers!(world.ask(dom0, Op::Read, tx, "/a\0"), Ok::<_, Errno>(b"1"));
    answers!(world.commit(dom0, tx), OK);
}

/// A transaction's number and what was asked in it.
type Open = (u32, Vec<(Op, String, Answer)>);

#[derive(Clone, Debug)]
enum Step {
    Start(usize),
    Ask(usize, Op, String),
    End(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let path = prop::sample::select(vec!["/a", "/a/b", "/a/c", "/d", "/d/e"]);
    let op = prop::sample::select(vec![
        Op::Read,
        Op::Directory,
        Op::Write,
        Op::Mkdir,
        Op::Rm,
        Op::GetPerms,
        Op::SetPerms,
    ]);
    let ask = (0usize..4, op, path, 0u8..3).prop_map(|(who, op, path, salt)| {
        let payload = match op {
            Op::Write => format!("{path}\0{salt}"),
            Op::SetPerms => format!("{path}\0n0\0r{}\0", salt + 1),
            _ => format!("{path}\0"),
        };
        Step::Ask(who, op, payload)
    });
    prop_oneof![
        2 => (0usize..4).prop_map(Step::Start),
        6 => ask,
        2 => (0usize..4).prop_map(Step::End),
    ]
}

proptest! {
    /// Whatever four clients do in and out of transactions: the committed
    /// transactions, done one after the other in the order of their commits by
    /// a daemon that knows no concurrency, give each client the same answers
    /// and the same tree.
    #[test]
    fn committed_transactions_are_serial(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new([]);
        let mut serial = World::new([]);
        let clients: Vec<PeerId> = (0..4).map(|_| world.core.connect()).collect();
        let mut open: Vec<Option<Open>> = vec![None; 4];
        for step in steps {
            match step {
                Step::Start(who) => {
                    if open[who].is_none() {
                        open[who] = Some((world.start(clients[who]), Vec::new()));
                    }
                }
                Step::Ask(who, op, payload) => match &mut open[who] {
                    Some((tx, log)) => {
                        let answer = world.ask(clients[who], op, *tx, &payload);
                        log.push((op, payload, answer));
                    }
                    None => {
                        let answer = world.ask(clients[who], op, 0, &payload);
                        prop_assert_eq!(serial.dom0(op, &payload), answer);
                    }
                },
                Step::End(who) => {
                    let Some((tx, log)) = open[who].take() else { continue };
                    let wrote = log.iter().any(|(op, ..)| {
                        !matches!(op, Op::Read | Op::Directory | Op::GetPerms)
                    });
                    match world.commit(clients[who], tx) {
                        Ok(_) if wrote => {
                            for (op, payload, answer) in log {
                                prop_assert_eq!(serial.dom0(op, &payload), answer);
                            }
                        }
                        Ok(_) => {}
                        Err(errno) => prop_assert_eq!(errno, Errno::EAGAIN),
                    }
                }
            }
        }
        prop_assert_eq!(world.core.tree.dump(), serial.core.tree.dump());
        prop_assert!(world.core.tree.check());
    }
}
