//! A guest whose front ends lie: `tests/guests/examples/hostile-front`.
//!
//! **Mechanism.** The kernel attacks the processes of its own back ends through their
//! rings and through xenstore, and checks what it gets back. Beside it lives a Debian
//! with a disk and an interface on the same bridge.
//!
//! **Scenario.** The neighbour fills its disk with numbered blocks and checks them, and
//! moves checked streams, again and again, while the attacks go on. At the end the very
//! processes that were started are alive, hold no more than a well-behaved guest's
//! would, and the attacker's image holds nothing but its own bytes.
//!
//! **Limits.** That a back end's connection reaches no other guest is tested with the
//! connection; single malformed slots with each back end.

use std::{
    fs,
    net::UdpSocket,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use domus_tests::harness::{
    Child, Config, Footprint, Guest, Installation, PATIENCE, Process, domains_can_run, eventually,
    in_a_network, ip, user_program,
};

const LONG: Duration = Duration::from_secs(300);
const NAME: &str = "hostile-front";
/// What the attacker's disk holds, and its pages.
const DISK: u8 = 0xD5;
const OWN: u8 = 0x3C;
const BYTES: usize = 4 << 20;
/// What the host sends to everybody.
const BROADCAST: [u8; 600] = [0xB7; 600];
/// A process's own memory may grow by so much: the buffers of its queues.
const MOST_KIB: u64 = 24 * 1024;

#[test]
fn back_ends_outlive_a_hostile_guest_and_its_neighbour_notices_nothing() {
    if !domains_can_run() {
        return;
    }
    in_a_network(|| {
        ip("link add br0 type bridge");
        ip("address add 10.9.0.1/24 dev br0");
        ip("link set br0 up");
        let _server = Child::start(Command::new(user_program("traffic")).args(["serve", "5001"]));
        let domus = Installation::new();
        let mut neighbour = neighbour(&domus);
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            // Also when an assertion fails.
            let _end = SetAtEnd(&ended);
            scope.spawn(|| broadcast(&ended));
            attack(&domus);
        });
        is_well(&mut neighbour);
        domus.xm(&["destroy", "neighbour"]).ok();
        domus.assert_no_domain();
    });
}

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// So that something comes to whoever receives.
fn broadcast(ended: &AtomicBool) {
    let socket = UdpSocket::bind("10.9.0.1:0").expect("the bridge's address");
    socket.set_broadcast(true).expect("a socket of ours");
    while !ended.load(Ordering::Relaxed) {
        // Not even the bridge may have a port just now.
        let _ = socket.send_to(&BROADCAST, "10.9.0.255:9");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A guest that goes on and on, and notes what goes wrong.
fn neighbour(domus: &Installation) -> Guest<'_> {
    let image = domus.path("neighbour.img");
    let file = fs::File::create(&image).expect("room");
    file.set_len(BYTES as u64).expect("room for a hole");
    let program = |name: &str| fs::read(user_program(name)).expect("built just now");
    let config = Config::debian_with_drivers("neighbour")
        .program("blkload", &program("blkload"))
        .program("traffic", &program("traffic"))
        .line(&format!("disk = [ 'file:{},xvda,w' ]", image.display()))
        .line("vif = [ 'bridge=br0' ]");
    let mut guest = Guest::boot(domus, &config);
    guest.run("until [ -b /dev/xvda -a -e /sys/class/net/eth0 ]; do sleep 1; done");
    guest.run("ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up");
    for (part, what) in [
        (
            "disk",
            "blkload fill /dev/xvda 4 $n && blkload check /dev/xvda 64 $n",
        ),
        ("net", "traffic load 10.9.0.1:5001 1 2"),
    ] {
        guest.run(&format!(
            "{{ (n=0; until [ -e /tmp/stop ]; do n=$((n+1)); {{ {what}; }} >/tmp/{part} 2>&1 || break; \
             echo $n >/tmp/{part}.n; usleep 300000; done; touch /tmp/{part}.end) & }}"
        ));
    }
    guest.run("until [ -e /tmp/disk.n -a -e /tmp/net.n ]; do sleep 1; done");
    guest
}

/// It has gone on, and nothing went wrong.
fn is_well(guest: &mut Guest<'_>) {
    let rounds = |guest: &mut Guest<'_>| {
        ["disk", "net"].map(|part| -> u32 {
            let text = guest.run(&format!("cat /tmp/{part}.n"));
            text.trim().parse().expect("a number")
        })
    };
    let before = rounds(guest);
    guest.run("sleep 3");
    guest.run("touch /tmp/stop; until [ -e /tmp/disk.end -a -e /tmp/net.end ]; do sleep 1; done");
    let after = rounds(guest);
    let said = guest.run("cat /tmp/disk /tmp/net");
    println!("the neighbour: {after:?} rounds");
    // A round that failed is the last.
    assert!(after[0] > before[0] && after[1] > before[1], "{said}");
    guest.run(&format!("blkload check /dev/xvda 64 {}", after[0]));
}

fn attack(domus: &Installation) {
    let disk = domus.path("disk.img");
    fs::write(&disk, vec![DISK; BYTES]).expect("room for an image");
    let config = Config::test_kernel(NAME)
        .line(&format!("disk = [ 'file:{},xvda,w' ]", disk.display()))
        .line("vif = [ 'bridge=br0' ]");
    let file = config.write(domus);
    domus.xm(&["create".as_ref(), file.as_os_str()]).ok();
    let processes = eventually("the back ends", PATIENCE, || processes(domus));
    let before = processes.each_ref().map(Process::footprint);

    let (verdict, dmesg) = eventually("the kernel's verdict", LONG, || {
        let dmesg = domus.xm(&["dmesg"]).output();
        let verdict = dmesg.lines().find(|line| line.contains("DOMUS-TEST: "))?;
        Some((verdict.to_owned(), dmesg.clone()))
    });
    for line in dmesg.lines().filter(|line| line.contains(" ok: ")) {
        println!("{line}");
    }
    println!("{verdict}");
    assert!(
        verdict.contains("SUCCESS"),
        "{verdict}\n{dmesg}\n{}",
        domus.logs()
    );
    for (process, before) in processes.iter().zip(before) {
        assert!(process.lives(), "{process:?}\n{}", domus.logs());
        let after = process.footprint();
        println!("{}: {before:?}, then {after:?}", process.command);
        assert!(
            is_bounded(before, after),
            "{process:?}: {before:?} {after:?}"
        );
    }
    domus.xm(&["destroy", NAME]).ok();
    holds_its_own(&disk);
}

/// The attacker's back ends, and what all guests share.
fn processes(domus: &Installation) -> Option<[Process; 4]> {
    let id = domus.xm(&["domid", NAME]).output();
    let domain = format!("--domain {} ", id.trim());
    let all = domus.processes();
    let find = |name: &str, mark: &str| {
        let is_it = |p: &&Process| p.command.contains(name) && p.command.contains(mark);
        all.iter().find(is_it).cloned()
    };
    Some([
        find("/blkback ", &domain)?,
        find("/netback ", &domain)?,
        domus.service("domus-hypervisor"),
        domus.service("xenstored"),
    ])
}

fn is_bounded(before: Footprint, after: Footprint) -> bool {
    after.anonymous_kib < before.anonymous_kib + MOST_KIB
        && after.threads < before.threads + 8
        && after.descriptors < before.descriptors + 32
        && after.mappings < before.mappings + 64
}

/// Written were its pages, and holes were made; nothing else came to its disk.
fn holds_its_own(disk: &PathBuf) {
    let bytes = fs::read(disk).expect("the image");
    assert_eq!(bytes.len(), BYTES);
    let foreign = bytes.iter().filter(|byte| ![DISK, OWN, 0].contains(byte));
    assert_eq!(foreign.count(), 0, "bytes that are not the guest's");
}
