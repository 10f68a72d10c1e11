//! The client library against the real daemon.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use dom0_tools::xenstore::{
    client::{Client, Error, Nodes, WatchEvent},
    perms::Perm,
};
use guest_abi::{addr::DomId, errno::Errno};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

use crate::installation::Installation;

const SOON: Option<Duration> = Some(Duration::from_secs(10));

fn event(path: &str, token: &str) -> Option<WatchEvent> {
    Some(WatchEvent {
        path: path.into(),
        token: token.into(),
    })
}

#[test]
fn calls_do_what_their_names_say() {
    let installation = Installation::new();
    let mut store = installation.client();
    store.write("/a/b", b"\0\xff").unwrap();
    assert_eq!(store.read("/a/b").unwrap(), b"\0\xff");
    assert!(matches!(store.find("/a/b"), Err(Error::NotText { .. })));
    assert_eq!(store.find("/nosuch").unwrap(), None);
    assert!(store.exists("/a").unwrap() && !store.exists("/b").unwrap());
    store.mkdir("/a/c").unwrap();
    assert_eq!(store.list("/a").unwrap(), ["b", "c"]);
    let perms = [Perm::parse(b"n3").unwrap(), Perm::parse(b"r4").unwrap()];
    store.set_perms("/a/b", &perms).unwrap();
    assert_eq!(store.perms("/a/b").unwrap(), perms);
    store.rm("/a").unwrap();
    assert_eq!(store.read("/a/b").unwrap_err().errno(), Some(Errno::ENOENT));
    assert_eq!(store.domain_path(DomId(3)).unwrap(), "/local/domain/3");
    assert!(!store.is_introduced(DomId(3)).unwrap());
    assert_eq!(
        store.release(DomId(3)).unwrap_err().errno(),
        Some(Errno::ENOENT)
    );
    assert!(store.control(&["quota"]).unwrap().contains("watches"));
    assert!(matches!(
        store.write("/a", [0; 4096]),
        Err(Error::TooLong { .. })
    ));
    store.write("domid", "0").unwrap();
    assert_eq!(
        store.find("/local/domain/0/domid").unwrap().as_deref(),
        Some("0")
    );
}

#[test]
fn long_lists_are_put_together() {
    let installation = Installation::new();
    let mut store = installation.client();
    let names: Vec<String> = (0..2000).map(|n| format!("a-long-name-{n:05}")).collect();
    for name in &names {
        store.mkdir(&format!("/dir/{name}")).unwrap();
    }
    assert_eq!(store.list("/dir").unwrap(), names);
}

#[test]
fn transactions_are_repeated_until_they_succeed() {
    let installation = Installation::new();
    installation.client().write("/count", "0").unwrap();
    let add = || {
        let mut store = installation.client();
        for _ in 0..50 {
            let added = store.transaction(|tx| {
                let count: u32 = tx.find("/count")?.unwrap().parse().unwrap();
                tx.write("/count", (count + 1).to_string())
            });
            added.unwrap();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(add);
        }
    });
    let count = installation.client().find("/count").unwrap();
    assert_eq!(count.as_deref(), Some("200"));
}

#[test]
fn an_error_in_a_transaction_drops_it() {
    let installation = Installation::new();
    let mut store = installation.client();
    let done = store.transaction(|tx| {
        tx.write("/a", "1")?;
        tx.read("/nosuch")
    });
    assert_eq!(done.unwrap_err().errno(), Some(Errno::ENOENT));
    assert!(!store.exists("/a").unwrap());
}

#[test]
fn events_come_in_and_time_out() {
    let installation = Installation::new();
    let (mut store, mut other) = (installation.client(), installation.client());
    store.watch("/a", "t").unwrap();
    assert_eq!(store.next_event(SOON).unwrap(), event("/a", "t"));
    other.write("/a/b", "1").unwrap();
    assert_eq!(store.next_event(SOON).unwrap(), event("/a/b", "t"));
    let start = Instant::now();
    let none = store.next_event(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(none, None);
    assert!(start.elapsed() >= Duration::from_millis(50));
    store.unwatch("/a", "t").unwrap();
    other.write("/a/b", "2").unwrap();
    assert_eq!(store.next_event(Some(Duration::ZERO)).unwrap(), None);
}

/// The socket does not show an event that came with the reply to a request.
#[test]
fn an_event_that_was_read_already_is_known() {
    let installation = Installation::new();
    let (mut store, mut other) = (installation.client(), installation.client());
    store.watch("/a", "t").unwrap();
    assert_eq!(store.next_event(SOON).unwrap(), event("/a", "t"));
    assert!(!store.has_event().unwrap());
    other.write("/a/b", "1").unwrap();
    let is_readable = |store: &Client, patience: u16| {
        let mut fds = [PollFd::new(store.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(patience)).unwrap() == 1
    };
    assert!(is_readable(&store, 10_000));
    assert_eq!(store.find("/a/b").unwrap(), Some("1".into()));
    assert!(!is_readable(&store, 0));
    assert!(store.has_event().unwrap());
    assert_eq!(store.next_event(SOON).unwrap(), event("/a/b", "t"));
    assert!(!store.has_event().unwrap());
}

#[test]
fn a_client_outlives_the_daemon() {
    let mut installation = Installation::new();
    let mut store = installation.client();
    store.watch("/a", "t").unwrap();
    assert_eq!(store.next_event(SOON).unwrap(), event("/a", "t"));
    let before = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&store));
    installation.kill_and_restart();
    assert_eq!(
        store.next_event(SOON).unwrap(),
        event("/a", "t"),
        "registered again"
    );
    store.write("/a/x", "1").unwrap();
    assert_eq!(store.next_event(SOON).unwrap(), event("/a/x", "t"));
    let after = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&store));
    assert_eq!(before, after, "whoever polls the descriptor goes on");
}

#[test]
fn a_transaction_over_a_restart_is_done_anew() {
    let mut installation = Installation::new();
    let mut store = installation.client();
    let mut runs = 0;
    let done = store.transaction(|tx| {
        runs += 1;
        tx.write("/a", runs.to_string())?;
        if runs == 1 {
            installation.kill_and_restart();
        }
        tx.write("/b", runs.to_string())
    });
    done.unwrap();
    assert_eq!(runs, 2);
    assert_eq!(store.find("/a").unwrap().as_deref(), Some("2"));
}

#[test]
fn a_daemon_that_stays_away_is_an_error() {
    let mut installation = Installation::new();
    let mut store = installation.client();
    installation.stop(Signal::SIGTERM);
    let error = store.read("/a").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}
