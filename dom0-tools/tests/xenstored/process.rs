//! The daemon as a process.

use std::{os::unix::fs::PermissionsExt, os::unix::process::ExitStatusExt};

use dom0_tools::xenstore::client::Nodes;
use nix::sys::signal::Signal;

use crate::installation::Installation;

#[test]
fn a_second_daemon_is_refused() {
    let installation = Installation::new();
    let second = installation.xenstored().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(
        said.contains("another xenstored serves this installation"),
        "{said}"
    );
    assert!(said.contains("is already running"), "{said}");
    installation.client().write("/still", "there").unwrap();
}

#[test]
fn sigterm_ends_it_in_order_and_nothing_is_lost() {
    let mut installation = Installation::new();
    installation.client().write("/a", "1").unwrap();
    let status = installation.stop(Signal::SIGTERM);
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    assert!(!installation.socket().exists());
    installation.start();
    assert_eq!(
        installation.client().find("/a").unwrap().as_deref(),
        Some("1")
    );
}

#[test]
fn a_socket_left_by_a_dead_daemon_is_replaced() {
    let mut installation = Installation::new();
    installation.stop(Signal::SIGKILL);
    assert!(installation.socket().exists());
    installation.start();
    installation.client().write("/a", "1").unwrap();
}

#[test]
fn only_its_user_may_connect() {
    let installation = Installation::new();
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(installation.socket()), 0o600);
    assert_eq!(mode(installation.path("xenstored.journal")), 0o600);
}

#[test]
fn a_foreign_journal_is_not_overwritten() {
    let mut installation = Installation::new();
    installation.stop(Signal::SIGTERM);
    std::fs::write(installation.path("xenstored.journal"), "precious").unwrap();
    let refused = installation.xenstored().output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("move it away"), "{said}");
    let kept = std::fs::read(installation.path("xenstored.journal")).unwrap();
    assert_eq!(kept, b"precious");
}

#[test]
fn the_command_line_speaks_as_xens_does() {
    let installation = Installation::new();
    let run = |words: &[&str]| {
        let output = installation.xenstore(words);
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let prints = |words: &[&str], expected: &str| {
        assert_eq!(
            run(words),
            (0, expected.to_owned(), String::new()),
            "{words:?}"
        );
    };
    prints(&["write", "/a/b", "1", "/a/c", "x\\ty"], "");
    prints(&["read", "/a/b", "/a/c"], "1\nx\\ty\n");
    prints(&["read", "-p", "/a/b"], "/a/b: 1\n");
    prints(&["read", "-R", "/a/c"], "x\ty");
    prints(&["read", "--json", "/a/c"], "{\"/a/c\":\"x\\ty\"}\n");
    prints(&["list", "/a"], "b\nc\n");
    prints(&["list", "-p", "/a"], "/a/b\n/a/c\n");
    prints(&["ls", "/"], "a = \"\"\n b = \"1\"\n c = \"x\\ty\"\n");
    prints(
        &["ls", "-f", "-p", "/a"],
        "/a/b = \"1\"   (n0)\n/a/c = \"x\\ty\"   (n0)\n",
    );
    prints(&["chmod", "-r", "/a", "n0", "r5"], "");
    prints(
        &["ls", "-f", "-p"],
        "/a = \"\"   (n0,r5)\n/a/b = \"1\"   (n0,r5)\n/a/c = \"x\\ty\"   (n0,r5)\n",
    );
    prints(&["exists", "/a", "/a/b"], "");
    assert_eq!(run(&["exists", "/a", "/b"]).0, 1);
    prints(&["watch", "-n", "1", "/w"], "/w\n");
    prints(&["control", "check"], "OK\n");
    assert_eq!(run(&["control", "frobnicate"]).0, 1);
    prints(&["rm", "-t", "/a/b"], "");
    prints(&["rm", "-t", "/a/c"], "");
    prints(&["ls"], "");
    let (code, out, err) = run(&["read", "/nosuch"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.starts_with("xenstore: couldn't read path /nosuch"),
        "{err}"
    );
    assert_eq!(run(&["frobnicate"]).0, 1);
    assert_eq!(run(&["write", "/odd"]).0, 1);

    let link = installation.path("xenstore-read");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_xenstore"), &link).unwrap();
    let output = installation.command(&link).arg("/nosuch").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("xenstore-read: couldn't read path /nosuch"),
        "{said}"
    );
}
