//! kill -9 and start again, with guests that know nothing of it.

use std::time::Duration;

use dom0_tools::xenstore::{
    client::Nodes,
    wire::{Message, Op},
};
use guest_abi::{addr::DomId, errno::Errno};
use nix::sys::signal::Signal;

use crate::installation::Installation;

#[test]
fn guests_go_on_with_their_watches_and_permissions() {
    let mut installation = Installation::new();
    let (mut a, mut b) = (installation.boot(5), installation.boot(6));
    a.ask(Op::Watch, 0, "device\0t\0").unwrap();
    a.event();
    a.ask(Op::Write, 0, "shared\x001").unwrap();
    a.ask(Op::SetPerms, 0, "shared\0n5\0r6\0").unwrap();
    let before = installation.xenstore(&["ls", "-f", "-p"]).stdout;
    installation.kill_and_restart();
    assert_eq!(installation.xenstore(&["ls", "-f", "-p"]).stdout, before);
    assert_eq!(
        b.ask(Op::Read, 0, "/local/domain/5/shared\0").unwrap(),
        b"1"
    );
    assert_eq!(b.ask(Op::Read, 0, "/local/domain/5\0"), Err(Errno::EACCES));
    let mut store = installation.client();
    assert!(store.is_introduced(DomId(5)).unwrap());
    store.write("/local/domain/5/device/vbd", "").unwrap();
    assert_eq!(a.event(), "device/vbd t");
    assert!(a.is_quiet(), "no event is told twice");
}

#[test]
fn what_was_on_its_way_arrives() {
    let mut installation = Installation::new();
    let mut guest = installation.boot(5);
    guest.ask(Op::Watch, 0, "x\0t\0").unwrap();
    guest.event();
    let value = "v".repeat(2000);
    guest.ask(Op::Write, 0, &format!("big\0{value}")).unwrap();
    // A reply of which the ring holds a half, events behind it, and a request
    // of which the daemon has a half.
    let reading = guest.send(Op::Read, 0, b"big\0");
    let mut store = installation.client();
    for n in 0..20 {
        store
            .write(&format!("/local/domain/5/x/{n:02}"), "")
            .unwrap();
    }
    let request = Message::new(Op::Write, 99, 0, b"late\0there".to_vec()).unwrap();
    let bytes = request.to_bytes();
    guest.put(&bytes[..20]);
    store.write("/marker", "").unwrap();
    installation.kill_and_restart();
    assert_eq!(guest.reply(reading, Op::Read).unwrap(), value.as_bytes());
    for n in 0..20 {
        assert_eq!(guest.event(), format!("x/{n:02} t"));
    }
    installation.kill_and_restart();
    guest.put(&bytes[20..]);
    assert_eq!(guest.reply(99, Op::Write).unwrap(), b"OK\0");
    assert_eq!(
        store.find("/local/domain/5/late").unwrap().as_deref(),
        Some("there")
    );
}

#[test]
fn a_guests_open_transaction_ends_with_eagain() {
    let mut installation = Installation::new();
    let mut guest = installation.boot(5);
    let tx = guest.start();
    guest.ask(Op::Write, tx, "x\x001").unwrap();
    installation.kill_and_restart();
    guest.ask(Op::Write, tx, "y\x001").unwrap();
    assert_eq!(guest.ask(Op::TransactionEnd, tx, "T\0"), Err(Errno::EAGAIN));
    assert_eq!(guest.ask(Op::Read, 0, "x\0"), Err(Errno::ENOENT));
    let tx = guest.start();
    guest.ask(Op::Write, tx, "x\x001").unwrap();
    guest.ask(Op::TransactionEnd, tx, "T\0").unwrap();
}

#[test]
fn requests_made_while_the_daemon_is_away_are_done_later() {
    let mut installation = Installation::new();
    let mut guest = installation.boot(5);
    installation.stop(Signal::SIGKILL);
    let number = guest.send(Op::Write, 0, b"x\x001");
    installation.start();
    guest.reply(number, Op::Write).unwrap();
    assert_eq!(guest.ask(Op::Read, 0, "x\0").unwrap(), b"1");
}

#[test]
fn a_domain_that_died_while_the_daemon_was_away_is_released() {
    let mut installation = Installation::new();
    installation.boot(5);
    let mut reborn = installation.boot(6);
    reborn.ask(Op::Write, 0, "x\x001").unwrap();
    installation.stop(Signal::SIGKILL);
    installation.hypervisor.destroy(5);
    installation.hypervisor.destroy(6);
    installation.hypervisor.create(6);
    installation.start();
    let mut store = installation.client();
    for dom in [5, 6] {
        assert!(!store.is_introduced(DomId(dom)).unwrap());
        assert!(!store.exists(&format!("/local/domain/{dom}")).unwrap());
    }
}

/// A guest counts up in transactions and reads back, a client of Dom0 writes,
/// and the daemon is killed again and again in the middle of it: each request
/// gets exactly one reply, and each acknowledged write stands.
#[test]
fn a_storm_of_kills_loses_and_doubles_nothing() {
    let mut installation = Installation::new();
    let guest = installation.boot(5);
    guest_counts(guest, &mut installation);
}

fn guest_counts(mut guest: crate::guest::Guest, installation: &mut Installation) {
    let worker = std::thread::spawn(move || {
        guest.ask(Op::Watch, 0, "count\0t\0").unwrap();
        let mut committed = 0u32;
        let mut again = 0u32;
        while committed < 400 {
            let tx = guest.start();
            let value = guest.ask(Op::Read, tx, "count\0");
            let value = value.map_or(0, |text| String::from_utf8(text).unwrap().parse().unwrap());
            assert_eq!(value, committed, "an acknowledged commit stands, once");
            let filling = "f".repeat(usize::try_from(committed % 900).unwrap());
            guest
                .ask(Op::Write, tx, &format!("fill\0{filling}"))
                .unwrap();
            guest
                .ask(Op::Write, tx, &format!("count\0{}", value + 1))
                .unwrap();
            match guest.ask(Op::TransactionEnd, tx, "T\0") {
                Ok(_) => committed += 1,
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN);
                    again += 1;
                }
            }
            // The watch's first event, then one for each commit at most.
            while guest.page.rsp_prod() != guest.page.rsp_cons() {
                guest.event();
            }
        }
        again
    });
    let mut kills = 0u64;
    while !worker.is_finished() {
        std::thread::sleep(Duration::from_millis(3 + kills % 17));
        installation.kill_and_restart();
        kills += 1;
    }
    worker.join().unwrap();
    assert!(kills > 3, "{kills} kills are no storm");
    let count = installation.client().find("/local/domain/5/count").unwrap();
    assert_eq!(count.as_deref(), Some("400"));
    assert_eq!(installation.client().control(&["check"]).unwrap(), "OK");
}
