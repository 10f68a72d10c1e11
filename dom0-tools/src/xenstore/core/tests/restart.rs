//! What the journal tells is what was.

use super::*;
use crate::xenstore::ring::Stream;

const G: PeerId = PeerId::Guest(DomId(5));

/// The state as far as it is told by a snapshot, with waiting messages as
/// plain bytes: their numbers need not be the same.
pub(super) fn told(core: &Core) -> Vec<Change> {
    let mut changes = core.snapshot();
    changes.sort_by_key(|change| format!("{change:?}"));
    changes
}

impl World {
    /// A daemon that knows only what the journal says, and what the rings
    /// show: how much of what was staged is in them.
    pub(super) fn restarted(&self) -> Core {
        let mut core = Core::restored(self.history.clone());
        for (dom, domain) in self.core.domains() {
            let stream = core.stream_mut(dom).unwrap();
            let done = domain.stream.rsp_prod.wrapping_sub(stream.rsp_prod);
            stream.staged.drain(..usize::try_from(done).unwrap());
            stream.rsp_prod = domain.stream.rsp_prod;
        }
        core
    }

    fn restart(&mut self) {
        self.core = self.restarted();
        self.history = self.core.snapshot();
        self.dom0 = self.core.connect();
    }
}

#[test]
fn the_tree_domains_and_watches_come_back() {
    let mut world = World::new([5, 6]);
    world.ask(G, Op::Write, 0, "data\0x").unwrap();
    world.ask(G, Op::SetPerms, 0, "data\0r5\0w6\0").unwrap();
    world.watch(G, "device\0t\0");
    world.watch(G, "control\0u\x000\0");
    world.ask(G, Op::Unwatch, 0, "control\0u\0").unwrap();
    world.dom0(Op::SetTarget, "6\x005\0").unwrap();
    world.chmod("@releaseDomain", "n0,r5").unwrap();
    world
        .dom0(Op::Control, "quota\0set\0watches\x009\0")
        .unwrap();
    world.dom0(Op::Mkdir, "/gone/deep\0").unwrap();
    world.dom0(Op::Rm, "/gone\0").unwrap();
    assert_eq!(told(&world.restarted()), told(&world.core));
    assert_eq!(world.restarted().tree.dump(), world.core.tree.dump());
    world.restart();
    world.set("/local/domain/5/device/vbd", "").unwrap();
    assert_eq!(world.events(G), ["device/vbd t"]);
    assert!(world.core.tree.check());
}

#[test]
fn messages_on_their_way_come_back() {
    let mut world = World::new([5]);
    for n in 0..30 {
        world.send(G, Op::Watch.to_wire(), 0, format!("w{n}\0t\0").as_bytes());
    }
    let before = world.core.peer(G).unwrap().outbox.items().count();
    assert_eq!(before, 60);
    world.core.stage(DomId(5));
    let changes = world.core.take_changes();
    world.history.extend(changes);
    let staged = world.core.stream_mut(DomId(5)).unwrap().staged.clone();
    assert!(staged.len() >= 1024);
    assert_eq!(told(&world.restarted()), told(&world.core));
    let mut restarted = world.restarted();
    assert_eq!(restarted.stream_mut(DomId(5)).unwrap().staged, staged);
    let bytes = |core: &Core| -> Vec<Vec<u8>> {
        let outbox = &core.peer(G).unwrap().outbox;
        outbox.items().map(|item| item.bytes.clone()).collect()
    };
    assert_eq!(bytes(&restarted), bytes(&world.core));
}

#[test]
fn a_commit_comes_back_whole() {
    let mut world = World::new([]);
    let dom0 = world.dom0;
    world.set("/a/old", "1").unwrap();
    let tx = world.start(dom0);
    for (op, payload) in [
        (Op::Write, "/a/x\x001"),
        (Op::Rm, "/a\0"),
        (Op::Write, "/a/y\x002"),
        (Op::Write, "/b/c\x003"),
        (Op::Rm, "/b/c\0"),
        (Op::SetPerms, "/a\0r0\0"),
    ] {
        world.ask(dom0, op, tx, payload).unwrap();
    }
    assert_eq!(
        world.restarted().tree.dump().len(),
        world.core.tree.dump().len()
    );
    world.commit(dom0, tx).unwrap();
    let dump = world.core.tree.dump();
    assert_eq!(dump.keys().filter(|path| path.starts_with("/a")).count(), 2);
    assert_eq!(world.restarted().tree.dump(), dump);
}

#[test]
fn a_transaction_that_was_open_ends_with_eagain() {
    let mut world = World::new([5]);
    let (kept, dropped, ended) = (world.start(G), world.start(G), world.start(G));
    world.ask(G, Op::Write, kept, "x\x001").unwrap();
    world.commit(G, ended).unwrap();
    world.restart();
    assert_eq!(world.commit(G, ended), Err(Errno::ENOENT));
    answers!(world.ask(G, Op::Write, kept, "y\x001"), OK);
    answers!(world.ask(G, Op::Read, kept, "y\0"), Ok::<_, Errno>(b"1"));
    assert_eq!(world.commit(G, kept), Err(Errno::EAGAIN));
    answers!(world.ask(G, Op::TransactionEnd, dropped, "F\0"), OK);
    let next = world.start(G);
    world.ask(G, Op::Write, next, "x\x001").unwrap();
    answers!(world.commit(G, next), OK);
}

#[test]
fn a_guest_that_starts_anew_has_nothing_left() {
    let mut world = World::new([5]);
    world.watch(G, "device\0t\0");
    let tx = world.start(G);
    world.send(G, Op::Read.to_wire(), 0, b"x\0");
    world.core.reconnect(DomId(5), Stream::default());
    let changes = world.core.take_changes();
    world.history.extend(changes);
    assert!(world.drain(G).is_empty());
    assert_eq!(world.commit(G, tx), Err(Errno::ENOENT));
    world.set("/local/domain/5/device/x", "").unwrap();
    assert!(world.events(G).is_empty());
    assert_eq!(told(&world.restarted()), told(&world.core));
}

#[test]
fn a_domain_that_died_meanwhile_is_released() {
    let mut world = World::new([5, 6]);
    world.watch(G, "x\0t\0");
    world.domains.destroy(5);
    world.domains.destroy(6);
    world.domains.create(6);
    world.restart();
    world.review();
    for dom in [5, 6] {
        answers!(
            world.dom0(Op::IsDomainIntroduced, &format!("{dom}\0")),
            Ok::<_, Errno>(b"F\0")
        );
        assert!(!world.exists(&format!("/local/domain/{dom}")));
    }
    assert_eq!(told(&world.restarted()), told(&world.core));
}
