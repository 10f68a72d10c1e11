//! Those who look at a domain, where there is little to look at.
//!
//! **Mechanism.** `xm trace`, `xm gdb`, `xm dump-core` and `xm engine` work on a
//! domain that exists; its state is another matter.
//!
//! **Scenario.** Each on an unknown domain, a paused one, one that has crashed or
//! shut down and is kept, and one that is destroyed meanwhile; observers that
//! vanish or stop to read. Each gives a result or a clear error, and the domain
//! goes on as if nobody had looked.
//!
//! **Limits.** Two observers at once are in `trace.rs` and `gdb.rs`, the observers'
//! work on running domains too.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use domus_tests::harness::{
    Config, Installation, PATIENCE, Process, Programs, domains_can_run, eventually,
};

/// Creates a domain that is kept when it ends.
fn create(domus: &Installation, kernel: &str, name: &str, paused: bool) {
    let mut config = Config::test_kernel(kernel).memory(16);
    config.name = name.into();
    let config = config
        .line("on_poweroff = \"preserve\"")
        .line("on_crash = \"preserve\"");
    let file = config.write(domus);
    let file = file.to_str().expect("a path of ours");
    if paused {
        domus.xm(&["create", "-p", file]).ok();
    } else {
        domus.xm(&["create", file]).ok();
    }
}

fn state(domus: &Installation, name: &str) -> String {
    let list = domus.xm(&["list", name]).output();
    let row = list.lines().nth(1).unwrap_or_default();
    row.split_whitespace().nth(4).unwrap_or_default().to_owned()
}

fn wait_for_state(domus: &Installation, name: &str, letter: char) {
    eventually(&format!("{name} is {letter}"), PATIENCE, || {
        state(domus, name).contains(letter).then_some(())
    });
}

/// `xm` with its streams in pipes.
fn spawn(domus: &Installation, args: &[&str]) -> Child {
    let mut command = domus.command(Programs::get().program("xm"));
    command.args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().expect("xm starts")
}

/// What one packet to `xm gdb --stdio` gives, without its frame.
fn ask_gdb(domus: &Installation, name: &str, packet: &str) -> String {
    let mut child = spawn(domus, &["gdb", "--stdio", name]);
    let sum = packet.bytes().fold(0u8, u8::wrapping_add);
    let mut to = child.stdin.take().expect("a pipe");
    write!(to, "${packet}#{sum:02x}").expect("xm reads");
    let mut from = child.stdout.take().expect("a pipe");
    let mut said = Vec::new();
    while said.iter().filter(|byte| **byte == b'#').count() == 0 {
        let mut byte = [0];
        assert_eq!(from.read(&mut byte).expect("a pipe"), 1, "{said:?}");
        said.push(byte[0]);
    }
    drop(to);
    assert!(child.wait().expect("one's own child").success());
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn an_unknown_domain_is_said_to_be_none() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    for args in [
        &["trace", "nobody"][..],
        &["gdb", "--stdio", "nobody"],
        &["dump-core", "nobody", "x.core"],
        &["engine", "nobody"],
        &["engine", "nobody", "soft"],
        &["trace", "77"],
    ] {
        domus.xm(args).fails(3, "does not exist");
    }
    for args in [
        &["trace", "Domain-0"][..],
        &["gdb", "--stdio", "0"],
        &["dump-core", "0", "x.core"],
        &["engine", "Domain-0"],
    ] {
        let said = domus.xm(args);
        assert_eq!(said.code, Some(1), "{said}");
        assert!(said.err.contains("Domain-0"), "{said}");
    }
    assert!(!domus.path("x.core").exists());
}

#[test]
fn a_paused_domain_and_one_that_has_ended() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    create(&domus, "hello", "paused", true);
    create(&domus, "hello", "off", false);
    create(&domus, "early-crash", "crashed", false);
    wait_for_state(&domus, "off", 's');
    wait_for_state(&domus, "crashed", 'c');

    let off = domus.xm(&["trace", "off"]);
    off.fails(
        1,
        "domain off has powered off: there is nothing left to trace",
    );
    let crashed = domus.xm(&["trace", "crashed"]);
    crashed.fails(
        1,
        "domain crashed has crashed: there is nothing left to trace",
    );
    let paused = domus.xm(&["trace", "paused", "-t", "1"]);
    assert_eq!(paused.code, Some(0), "{paused}");
    assert!(paused.err.contains("it is paused"), "{paused}");

    // gdb finds each of them stopped.
    for name in ["paused", "off", "crashed"] {
        let stopped = ask_gdb(&domus, name, "?");
        assert!(stopped.contains("T05"), "{name}: {stopped}");
        let core = format!("{name}.core");
        domus.xm(&["dump-core", name, &core]).ok();
        let len = fs::metadata(domus.path(&core)).expect("a dump").len();
        assert!(len > 16 << 20, "{name}: {len}");
        domus
            .xm(&["dump-core", "-F", "xen", name, &format!("{name}.xen")])
            .ok();
        domus.xm(&["engine", name, "soft"]).ok();
        assert_eq!(domus.xm(&["engine", name]).output().trim(), "soft");
    }
    // Nobody has changed anything.
    assert_eq!(state(&domus, "paused"), "--p---");
    assert_eq!(state(&domus, "off"), "---s--");
    assert_eq!(state(&domus, "crashed"), "----c-");
    domus.xm(&["unpause", "paused"]).ok();
    wait_for_state(&domus, "paused", 's');
    for name in ["paused", "off", "crashed"] {
        domus.xm(&["destroy", name]).ok();
    }
    domus.assert_no_domain();
}

/// Each is under way when its domain is destroyed.
#[test]
fn a_domain_that_goes_away_meanwhile() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    for (round, live) in [(0, "-L"), (1, "-F=gdb")] {
        create(&domus, "spin-masked", "going", false);
        let mut trace = spawn(&domus, &["trace", "going"]);
        let mut gdb = spawn(&domus, &["gdb", "--stdio", "going"]);
        eventually("gdb stops it", PATIENCE, || {
            state(&domus, "going").contains('p').then_some(())
        });
        let core = format!("going{round}.core");
        let mut dump = spawn(&domus, &["dump-core", live, "going", &core]);
        domus.xm(&["destroy", "going"]).ok();
        assert!(trace.wait().expect("a child").success());
        let dumped = dump.wait().expect("a child").success();
        assert_eq!(
            domus.path(&core).exists(),
            dumped,
            "a dump is whole or none"
        );
        drop(gdb.stdin.take());
        gdb.wait().expect("a child");
        eventually("the domain is gone", PATIENCE, || {
            (domus.xm(&["list"]).output().lines().count() == 2).then_some(())
        });
    }
    domus.assert_no_domain();
}

/// A reader that stops to read, or goes, does not hold the guest up.
#[test]
fn a_traces_reader_that_stops_or_vanishes() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let memory = || {
        let process: Process = domus.service("domus-hypervisor");
        process.footprint().anonymous_kib
    };
    create(&domus, "wild-pointers", "stuck", true);
    let before = memory();
    // Nobody reads what it prints.
    let mut stuck = spawn(&domus, &["trace", "-e", "all", "stuck"]);
    thread::sleep(Duration::from_millis(300));
    domus.xm(&["unpause", "stuck"]).ok();
    wait_for_state(&domus, "stuck", 's');
    let grown = memory().saturating_sub(before);
    assert!(grown < 64 << 10, "the hypervisor has grown by {grown} KiB");
    stuck.kill().expect("one's own child");
    stuck.wait().expect("one's own child");
    domus.xm(&["destroy", "stuck"]).ok();

    create(&domus, "wild-pointers", "headed", true);
    let mut pipe = Command::new("sh");
    let xm = Programs::get().program("xm");
    let line = format!("{} trace -e all headed 2>&1 | head -n 3", xm.display());
    let mut headed = pipe
        .args(["-c", &line])
        .env("DOMUS_RUN_DIR", domus.dir())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    thread::sleep(Duration::from_millis(300));
    domus.xm(&["unpause", "headed"]).ok();
    headed.wait().expect("a shell");
    wait_for_state(&domus, "headed", 's');
    domus.xm(&["destroy", "headed"]).ok();
    domus.assert_no_domain();
}

/// gdb's side of the socket is closed without a word: the domain runs on.
#[test]
fn a_gdb_that_vanishes_from_its_socket() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    create(&domus, "hello", "hello", true);
    let mut gdb = spawn(&domus, &["gdb", "hello"]);
    let socket = domus.path("gdb-1.sock");
    let stream = eventually("the socket", PATIENCE, || UnixStream::connect(&socket).ok());
    thread::sleep(Duration::from_millis(200));
    drop(stream);
    assert!(gdb.wait().expect("a child").success());
    assert!(!socket.exists());
    domus.xm(&["unpause", "hello"]).ok();
    wait_for_state(&domus, "hello", 's');
    domus.xm(&["destroy", "hello"]).ok();
    domus.assert_no_domain();
}

#[test]
fn a_dump_that_finds_no_room_leaves_nothing() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    create(&domus, "hello", "hello", true);
    for path in ["/nonexistent/x.core", "/dev/full/x.core", "/proc/x.core"] {
        domus
            .xm(&["dump-core", "hello", path])
            .fails(1, "nothing is left of the dump");
    }
    if nix::unistd::geteuid().is_root() {
        // A disk of 16 KiB, in a mount namespace that ends with the command.
        const FULL: &str = r#"
            set -e
            mkdir small
            mount -t tmpfs -o size=16k small small
            cd small
            "$0" dump-core hello x.core && exit 9
            test -z "$(ls)"
        "#;
        let mut command = domus.command("unshare");
        command.args(["--mount", "sh", "-c", FULL]);
        command.arg(Programs::get().program("xm"));
        let said = domus.run(command);
        assert_eq!(said.code, Some(0), "{said}");
        assert!(
            said.err
                .contains("the disk is full; the dump was removed again"),
            "{said}"
        );
    }
    // It is as paused as before.
    assert_eq!(state(&domus, "hello"), "--p---");
    assert!(Path::new(&domus.path("log/dump")).read_dir().is_err());
    domus.xm(&["destroy", "hello"]).ok();
    domus.assert_no_domain();
}
