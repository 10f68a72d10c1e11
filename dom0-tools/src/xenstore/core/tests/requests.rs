//! Each operation, its errors and its replies.

use super::*;

const G: PeerId = PeerId::Guest(DomId(5));

#[test]
fn values_are_kept_byte_for_byte() {
    let mut world = World::new([]);
    world.send(world.dom0, Op::Write.to_wire(), 0, b"/a/b\0x\0y\xff");
    world.drain(world.dom0);
    answers!(world.dom0(Op::Read, "/a/b\0"), Ok::<_, Errno>(b"x\0y\xff"));
    answers!(world.dom0(Op::Read, "/a\0"), Ok::<_, Errno>(b""));
    answers!(world.dom0(Op::Directory, "/a\0"), Ok::<_, Errno>(b"b\0"));
    assert_eq!(world.dom0(Op::Read, "/b\0"), Err(Errno::ENOENT));
}

#[test]
fn malformed_requests_are_told_so() {
    let mut world = World::new([]);
    for (op, payload) in [
        (Op::Read, ""),
        (Op::Read, "/a"),
        (Op::Read, "/a\0/b\0"),
        (Op::Read, "/a/\0"),
        (Op::Write, "/a"),
        (Op::SetPerms, "/\0"),
        (Op::SetPerms, "/\0x0\0"),
        (Op::Watch, "/a\0"),
        (Op::Unwatch, "/a\0"),
        (Op::TransactionEnd, "X\0"),
        (Op::Introduce, "5\x001\0"),
        (Op::Introduce, "0\x001\x001\0"),
        (Op::Introduce, "32752\x001\x001\0"),
        (Op::Release, "x\0"),
        (Op::GetDomainPath, "70000\0"),
        (Op::DirectoryPart, "/\0"),
        (Op::DirectoryPart, "/\x001\0"),
        (Op::Control, "frobnicate\0"),
        (Op::Rm, "/\0"),
    ] {
        assert_eq!(
            world.dom0(op, payload),
            Err(Errno::EINVAL),
            "{op:?} {payload:?}"
        );
    }
    for kind in [15, 16, 20, 23, 0xffff, u32::MAX] {
        world.send(world.dom0, kind, 0, b"/\0");
        let reply = &world.drain(world.dom0)[0];
        assert_eq!(error_from_payload(&reply.payload), Errno::ENOSYS);
    }
}

#[test]
fn mkdir_and_rm_are_forgiving() {
    let mut world = World::new([]);
    world.set("/a/b", "v").unwrap();
    answers!(world.dom0(Op::Mkdir, "/a/b\0"), OK);
    answers!(world.dom0(Op::Read, "/a/b\0"), Ok::<_, Errno>(b"v"));
    answers!(world.dom0(Op::Rm, "/a/x\0"), OK);
    assert_eq!(world.dom0(Op::Rm, "/x/y\0"), Err(Errno::ENOENT));
    answers!(world.dom0(Op::Rm, "/a\0"), OK);
    assert!(!world.exists("/a/b"));
}

#[test]
fn a_guest_lives_in_its_home() {
    let mut world = World::new([5, 6]);
    answers!(world.ask(G, Op::Write, 0, "data/x\x001"), OK);
    answers!(
        world.dom0(Op::Read, "/local/domain/5/data/x\0"),
        Ok::<_, Errno>(b"1")
    );
    assert_eq!(world.perms("/local/domain/5/data/x"), "n5");
    for op in [Op::Read, Op::Mkdir, Op::Rm, Op::Directory, Op::GetPerms] {
        assert_eq!(
            world.ask(G, op, 0, "/local/domain/6\0"),
            Err(Errno::EACCES),
            "{op:?}"
        );
    }
    // What is not there reads EACCES too, where its parent may not be read.
    assert_eq!(world.ask(G, Op::Read, 0, "/nosuch\0"), Err(Errno::EACCES));
    assert_eq!(world.ask(G, Op::Read, 0, "nosuch\0"), Err(Errno::ENOENT));
    answers!(
        world.ask(G, Op::GetDomainPath, 0, "6\0"),
        Ok::<_, Errno>(b"/local/domain/6\0")
    );
    answers!(
        world.ask(G, Op::IsDomainIntroduced, 0, "6\0"),
        Ok::<_, Errno>(b"T\0")
    );
    answers!(
        world.ask(G, Op::IsDomainIntroduced, 0, "7\0"),
        Ok::<_, Errno>(b"F\0")
    );
}

#[test]
fn only_dom0_manages_domains() {
    let mut world = World::new([5, 6]);
    for (op, payload) in [
        (Op::Introduce, "6\x001\x001\0"),
        (Op::Release, "6\0"),
        (Op::Resume, "6\0"),
        (Op::SetTarget, "5\x006\0"),
        (Op::Control, "check\0"),
    ] {
        assert_eq!(world.ask(G, op, 0, payload), Err(Errno::EACCES), "{op:?}");
    }
}

#[test]
fn permissions_are_set_by_their_owner_alone() {
    let mut world = World::new([5, 6]);
    world.set("/local/domain/5/dev", "").unwrap();
    answers!(world.ask(G, Op::SetPerms, 0, "dev\0n5\0r6\0"), OK);
    let other = PeerId::Guest(DomId(6));
    answers!(
        world.ask(other, Op::Read, 0, "/local/domain/5/dev\0"),
        Ok::<_, Errno>(b"")
    );
    assert_eq!(
        world.ask(other, Op::SetPerms, 0, "/local/domain/5/dev\0n6\0"),
        Err(Errno::EACCES)
    );
    world.chmod("/local/domain/5/dev", "n5,b6").unwrap();
    assert_eq!(
        world.ask(other, Op::SetPerms, 0, "/local/domain/5/dev\0n6\0"),
        Err(Errno::EACCES)
    );
    assert_eq!(
        world.ask(G, Op::SetPerms, 0, "dev\0n6\0"),
        Err(Errno::EPERM),
        "an owner cannot give a node away"
    );
}

#[test]
fn long_lists_come_in_parts() {
    let mut world = World::new([]);
    let names: Vec<String> = (0..600).map(|n| format!("name-{n:04}")).collect();
    for name in &names {
        world.set(&format!("/dir/{name}"), "").unwrap();
    }
    assert_eq!(world.dom0(Op::Directory, "/dir\0"), Err(Errno::E2BIG));
    let (mut list, mut generation) = (Vec::new(), None);
    loop {
        let part = world.dom0(Op::DirectoryPart, &format!("/dir\0{}\0", list.len()));
        let part = part.unwrap();
        assert!(part.len() <= 4096);
        let nul = part.iter().position(|byte| *byte == 0).unwrap();
        assert_eq!(&part[..nul], generation.get_or_insert(part[..nul].to_vec()));
        list.extend_from_slice(&part[nul + 1..]);
        if list.ends_with(&[0, 0]) {
            break;
        }
    }
    list.pop();
    let expected: Vec<u8> = names
        .iter()
        .flat_map(|name| format!("{name}\0").into_bytes())
        .collect();
    assert_eq!(list, expected);
    world.set("/dir/new", "").unwrap();
    let part = world.dom0(Op::DirectoryPart, "/dir\x000\0").unwrap();
    assert!(
        !part.starts_with(&generation.unwrap()),
        "the list has changed"
    );
    answers!(
        world
            .dom0(Op::DirectoryPart, "/dir/new\x000\0")
            .map(|part| part[part.len() - 2..].to_vec()),
        Ok::<_, Errno>(b"\0\0")
    );
}

#[test]
fn a_watch_fires_at_once_and_on_all_below() {
    let mut world = World::new([]);
    let dom0 = world.dom0;
    let (answer, events) = world.ask_all(dom0, Op::Watch, 0, "/a\0tok\0");
    answers!(answer, OK);
    assert_eq!(events, ["/a tok"]);
    assert_eq!(world.dom0(Op::Watch, "/a\0tok\0"), Err(Errno::EEXIST));
    let events_of = |world: &mut World, op, payload: &str| world.ask_all(dom0, op, 0, payload).1;
    assert_eq!(
        events_of(&mut world, Op::Write, "/a/b/c\x001"),
        ["/a/b/c tok"]
    );
    assert_eq!(
        events_of(&mut world, Op::Write, "/ab\x001"),
        [] as [&str; 0]
    );
    assert_eq!(events_of(&mut world, Op::Mkdir, "/a/b\0"), [] as [&str; 0]);
    assert_eq!(
        events_of(&mut world, Op::SetPerms, "/a/b\0n0\0"),
        ["/a/b tok"]
    );
    world.watch(dom0, "/a/b/c\0deep\0");
    let mut events = events_of(&mut world, Op::Rm, "/a\0");
    events.sort();
    assert_eq!(events, ["/a tok", "/a/b/c deep"]);
    assert_eq!(events_of(&mut world, Op::Rm, "/a\0"), [] as [&str; 0]);
    answers!(world.dom0(Op::Unwatch, "/a\0tok\0"), OK);
    assert_eq!(world.dom0(Op::Unwatch, "/a\0tok\0"), Err(Errno::ENOENT));
    assert_eq!(events_of(&mut world, Op::Write, "/a\x001"), [] as [&str; 0]);
}

#[test]
fn a_watch_may_be_limited_in_depth() {
    let mut world = World::new([]);
    let dom0 = world.dom0;
    world.watch(dom0, "/a\0t\x001\0");
    assert_eq!(world.ask_all(dom0, Op::Write, 0, "/a/b\x001").1, ["/a/b t"]);
    assert!(
        world
            .ask_all(dom0, Op::Write, 0, "/a/b/c\x001")
            .1
            .is_empty()
    );
    assert_eq!(world.dom0(Op::Watch, "/a\0u\0x\0"), Err(Errno::EINVAL));
}

#[test]
fn a_guests_relative_watch_tells_relative_paths() {
    let mut world = World::new([5]);
    let (_, events) = world.ask_all(G, Op::Watch, 0, "device\0t\0");
    assert_eq!(events, ["device t"]);
    world.watch(G, "/local/domain/5/device\0u\0");
    world.set("/local/domain/5/device/vif/0", "").unwrap();
    let mut events = world.events(G);
    events.sort();
    assert_eq!(events, ["/local/domain/5/device/vif/0 u", "device/vif/0 t"]);
}

#[test]
fn transactions_show_their_changes_at_the_end() {
    let mut world = World::new([5]);
    let dom0 = world.dom0;
    world.watch(dom0, "/local/domain/5\0t\0");
    let tx = world.start(G);
    answers!(world.ask(G, Op::Write, tx, "x\x001"), OK);
    answers!(world.ask(G, Op::Read, tx, "x\0"), Ok::<_, Errno>(b"1"));
    assert_eq!(world.ask(G, Op::Read, 0, "x\0"), Err(Errno::ENOENT));
    assert!(world.events(dom0).is_empty());
    answers!(world.commit(G, tx), OK);
    assert_eq!(world.events(dom0), ["/local/domain/5/x t"]);
    answers!(world.ask(G, Op::Read, 0, "x\0"), Ok::<_, Errno>(b"1"));
    assert_eq!(world.commit(G, tx), Err(Errno::ENOENT));
    assert_eq!(world.ask(G, Op::Read, tx, "x\0"), Err(Errno::ENOENT));
    let tx = world.start(G);
    assert_eq!(
        world.ask(G, Op::TransactionStart, tx, "\0"),
        Err(Errno::EBUSY)
    );
    answers!(world.ask(G, Op::Write, tx, "x\x002"), OK);
    answers!(world.ask(G, Op::TransactionEnd, tx, "F\0"), OK);
    answers!(world.ask(G, Op::Read, 0, "x\0"), Ok::<_, Errno>(b"1"));
}

#[test]
fn reset_watches_ends_transactions_too() {
    let mut world = World::new([5]);
    world.watch(G, "x\0t\0");
    let tx = world.start(G);
    answers!(world.ask(G, Op::ResetWatches, 0, "\0"), OK);
    assert_eq!(world.commit(G, tx), Err(Errno::ENOENT));
    world.set("/local/domain/5/x", "1").unwrap();
    assert!(world.events(G).is_empty());
}

#[test]
fn domains_come_and_go_with_events() {
    let mut world = World::new([]);
    let dom0 = world.dom0;
    world.watch(dom0, "@introduceDomain\0i\0");
    world.watch(dom0, "@releaseDomain\0r\0");
    world.domains.create(5);
    let (answer, events) = world.ask_all(dom0, Op::Introduce, 0, "5\x004096\x001\0");
    answers!(answer, OK);
    assert_eq!(events, ["@introduceDomain i"]);
    assert_eq!(world.domains.attached[&DomId(5)], (Mfn(4096), Port(1)));
    world.review();
    assert!(world.events(dom0).is_empty());
    world.domains.present.get_mut(&DomId(5)).unwrap().shutdown = true;
    world.review();
    world.review();
    assert_eq!(world.events(dom0), ["@releaseDomain r"], "told once");
    answers!(world.dom0(Op::Resume, "5\0"), OK);
    world.review();
    assert_eq!(
        world.events(dom0),
        ["@releaseDomain r"],
        "and again after a resume"
    );
    world.domains.destroy(5);
    world.review();
    assert_eq!(world.events(dom0), ["@releaseDomain r"]);
    assert!(world.domains.attached.is_empty());
    assert_eq!(world.dom0(Op::Release, "5\0"), Err(Errno::ENOENT));
    assert_eq!(world.dom0(Op::Resume, "5\0"), Err(Errno::ENOENT));
    assert_eq!(
        world.dom0(Op::Introduce, "5\x004096\x001\0"),
        Err(Errno::EINVAL),
        "there is no such domain"
    );
}

#[test]
fn an_introduction_that_fails_leaves_no_connection() {
    let mut world = World::new([5]);
    world.watch(G, "x\0t\0");
    world.domains.refuse = true;
    assert_eq!(
        world.dom0(Op::Introduce, "5\x004096\x001\0"),
        Err(Errno::ENOENT)
    );
    answers!(
        world.dom0(Op::IsDomainIntroduced, "5\0"),
        Ok::<_, Errno>(b"F\0")
    );
    assert!(world.core.peer(G).is_none());
    assert_eq!(world.core.watches.usage(G).count, 0);
}

#[test]
fn a_target_opens_its_nodes_to_its_helper() {
    let mut world = World::new([5, 6]);
    let helper = PeerId::Guest(DomId(6));
    world.set("/local/domain/5/x", "1").unwrap();
    assert_eq!(
        world.ask(helper, Op::Read, 0, "/local/domain/5/x\0"),
        Err(Errno::EACCES)
    );
    assert_eq!(world.dom0(Op::SetTarget, "6\x000\0"), Err(Errno::EINVAL));
    answers!(world.dom0(Op::SetTarget, "6\x005\0"), OK);
    answers!(
        world.ask(helper, Op::Read, 0, "/local/domain/5/x\0"),
        Ok::<_, Errno>(b"1")
    );
    answers!(world.dom0(Op::Release, "5\0"), OK);
    world.boot(5);
    assert_eq!(
        world.ask(helper, Op::Read, 0, "/local/domain/5\0"),
        Err(Errno::EACCES),
        "the next domain of the number is another one"
    );
}

#[test]
fn control_shows_and_sets_limits() {
    let mut world = World::new([5]);
    answers!(world.dom0(Op::Control, "check\0"), Ok::<_, Errno>(b"OK\0"));
    answers!(
        world.dom0(Op::Control, "quota\0set\0nodes\x002\0"),
        Ok::<_, Errno>(b"OK\0")
    );
    answers!(world.ask(G, Op::Mkdir, 0, "a\0"), OK);
    assert_eq!(world.ask(G, Op::Mkdir, 0, "b\0"), Err(Errno::ENOSPC));
    let usage = world.dom0(Op::Control, "quota\x005\0").unwrap();
    let usage = String::from_utf8(usage).unwrap();
    assert!(usage.starts_with("nodes                 2\n"), "{usage}");
    assert_eq!(
        world.dom0(Op::Control, "quota\0set\0none\x002\0"),
        Err(Errno::EINVAL)
    );
}
