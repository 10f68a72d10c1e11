//! Two domains that share pages: `tests/guests/examples/grants.rs`.
//!
//! **Mechanism.** Domain 1 grants, domain 2 maps, each a small kernel of ours.
//!
//! **Scenario.** First the mapping domain ends with mappings left, as many as
//! it could get, and is destroyed; the granting one must get all its pages
//! back. Then the granting domain ends first.
//!
//! And a stock kernel that is told to ask for version 2 of the table gets it, and uses
//! its disk and its interface by it.
//!
//! **Limits.** Stock kernels map grants only as driver domains (`docs/grants.md`),
//! which have no test here.

use std::{fs, time::Duration};

use domus_tests::harness::{
    Config, Guest, Installation, PATIENCE, Programs, Terminal, domains_can_run, eventually,
    in_a_network, ip, kvm_is_usable,
};

const LONG: Duration = Duration::from_secs(240);

/// Creates the kernel in one of its parts.
fn create(domus: &Installation, role: &str, peer: u32, on_poweroff: &str) {
    let vcpus = if role == "mapper" { 2 } else { 1 };
    let mut config = Config::test_kernel("grants")
        .vcpus(vcpus)
        .line(&format!("extra = \"{role} {peer}\""))
        .line(&format!("on_poweroff = \"{on_poweroff}\""));
    config.name = role.into();
    let file = config.write(domus);
    domus
        .xm(&["create", file.to_str().expect("a path of ours")])
        .ok();
}

/// Waits for the verdict of a part, which must be good.
fn succeeds(domus: &Installation, part: &str) {
    let mark = "DOMUS-TEST: ";
    let about = |line: &str| line.split_whitespace().nth(1) == Some(part);
    let (verdict, dmesg) = eventually(&format!("the verdict of the {part}"), LONG, || {
        let dmesg = domus.xm(&["dmesg"]).output();
        let mut verdicts = dmesg.lines().filter_map(|line| line.split_once(mark));
        let verdict = verdicts.find(|(_, verdict)| about(verdict))?.1.to_owned();
        Some((verdict, dmesg))
    });
    assert!(verdict.starts_with("SUCCESS "), "{verdict}\n{dmesg}");
}

#[test]
fn pages_are_shared_and_come_back() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    create(&domus, "granter", 2, "preserve");
    create(&domus, "mapper", 1, "preserve");
    succeeds(&domus, "mapper");
    eventually("the granter waits", LONG, || {
        let dmesg = domus.xm(&["dmesg"]).output();
        dmesg.contains("granter: waits").then_some(())
    });
    domus.xm(&["destroy", "mapper"]).ok();
    succeeds(&domus, "granter");
    domus.xm(&["destroy", "granter"]).ok();
    domus.assert_no_domain();
}

#[test]
fn a_granted_page_outlives_its_domain() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    create(&domus, "granter", 2, "destroy");
    create(&domus, "outlive", 1, "destroy");
    succeeds(&domus, "mapper");
    eventually("both are gone", LONG, || {
        let list = domus.xm(&["list"]).output();
        (!list.contains("granter") && !list.contains("outlive")).then_some(())
    });
    domus.assert_no_domain();
}

#[test]
fn a_stock_kernel_uses_version_2() {
    if !domains_can_run() {
        return;
    }
    in_a_network(|| {
        ip("link add br0 type bridge");
        ip("address add 10.9.0.1/24 dev br0");
        ip("link set br0 up");
        uses_version_2();
    });
}

fn uses_version_2() {
    let domus = Installation::new();
    let image = domus.path("disk.img");
    fs::write(&image, [b'g'; 1 << 20]).expect("room");
    let mut config = Config::debian_with_drivers("asks");
    config.more = "extra = \"console=hvc0 grant_table.version=2\"\n".into();
    let config = config
        .line(&format!("disk = [ 'file:{},xvda,w' ]", image.display()))
        .line("vif = [ 'bridge=br0' ]");
    let mut trace = None;
    let mut guest = Guest::create_by(&domus, &config, |file| {
        domus
            .xm(&["create".as_ref(), "-p".as_ref(), file.as_os_str()])
            .ok();
        let mut command = domus.command(Programs::get().program("xm"));
        command.args(["trace", "asks", "-e", "hypercalls"]);
        let mut terminal = Terminal::start(command);
        terminal.wait_for("Tracing domain", PATIENCE);
        domus.xm(&["unpause", "asks"]).ok();
        trace = Some(terminal);
    });
    let mut trace = trace.expect("started above");
    trace.wait_for("grant_table_op.set_version(", LONG);
    let rest = trace.wait_for("\n", PATIENCE);
    assert!(!rest.contains(" E"), "it did not get version 2: {rest}");
    drop(trace);
    guest.wait_for("Grant tables using version 2 layout", LONG);
    guest.wait_for_shell();
    guest.run("until [ -b /dev/xvda ]; do sleep 1; done");
    assert_eq!(guest.run("head -c 5 /dev/xvda"), "ggggg");
    guest.run("dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null");
    guest.run("dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync 2>/dev/null");
    let sum = guest.run("md5sum < /tmp/data");
    guest.run("echo 3 >/proc/sys/vm/drop_caches");
    assert_eq!(guest.run("md5sum < /dev/xvda"), sum);
    guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 1; done");
    guest.run("ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up");
    let ping = guest.run("ping -c 3 -s 8000 -W 20 10.9.0.1");
    assert!(ping.contains("3 packets received"), "{ping}");
    // The grants come back when the devices go.
    domus.xm(&["block-detach", "asks", "xvda"]).ok();
    domus.xm(&["network-detach", "asks", "0"]).ok();
    domus.xm(&["destroy", "asks"]).ok();
    domus.assert_no_domain();
}
