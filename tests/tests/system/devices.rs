//! Disks and network interfaces of a living guest, as an operator leads them.
//!
//! **Mechanism.** `xm` writes the nodes, the domain's monitor runs the back ends,
//! Debian's own `xen-blkfront` and `xen-netfront` take the devices.
//!
//! **Scenario.** One guest: a disk is written while its back end is killed, other
//! devices come and go meanwhile, one is taken away while it is open, the guest
//! reboots and has what it had.
//!
//! **Limits.** What the back ends do with requests is tested with them. The
//! interface lives in a network namespace of the test's own and needs root.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use domus_tests::harness::{
    Config, Guest, Installation, Namespace, PATIENCE, Process, Programs, Said, domains_can_run,
    eventually,
};

const REBOOT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

/// A sparse image.
fn image(domus: &Installation, name: &str, mib: u64) -> PathBuf {
    let path = domus.path(name);
    let file = fs::File::create(&path).expect("an image");
    file.set_len(mib * MIB).expect("a sparse file");
    file.write_all_at(name.as_bytes(), 0).expect("a mark");
    path
}

fn back_end(domus: &Installation, program: &str) -> Option<Process> {
    let all = domus.processes();
    all.into_iter().find(|p| p.command.contains(program))
}

#[track_caller]
fn there(guest: &mut Guest<'_>, path: &str, is: bool) {
    let test = if is { "" } else { "! " };
    guest.run(&format!(
        "n=0; until [ {test}-e {path} ] || [ $n = 200 ]; do n=$((n+1)); usleep 50000; done; [ {test}-e {path} ]"
    ));
}

#[test]
fn disks_live_through_kills_hot_plug_and_reboot() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let (first, second) = (image(&domus, "a.img", 64), image(&domus, "b.img", 8));
    let disk = format!(
        "disk = [ 'file:{},xvda,w', ',raw,hdc,cdrom' ]",
        first.display()
    );
    let config = Config::debian_with_drivers("disks").line(&disk);
    let mut guest = Guest::boot(&domus, &config);
    there(&mut guest, "/dev/xvda", true);
    assert_eq!(guest.run("cat /sys/block/xvda/size"), "131072");

    written_through_a_kill(&domus, &mut guest, &first);
    plugged_under_load(&domus, &mut guest, &second);

    // What is there, after a reboot too.
    let sum = guest.run("md5sum < /dev/xvda");
    let attach = [
        "block-attach",
        "disks",
        &format!("file:{}", second.display()),
        "xvdb",
        "r",
    ];
    domus.xm(&attach).ok();
    guest.run("sync");
    domus.xm(&["reboot", "-w", "disks"]).ok();
    guest.attach_again();
    guest.wait_for("Domus guest ready", REBOOT);
    guest.send("\n");
    guest.run("dmesg -n 1");
    there(&mut guest, "/dev/xvda", true);
    there(&mut guest, "/dev/xvdb", true);
    assert_eq!(guest.run("md5sum < /dev/xvda"), sum);
    assert_eq!(guest.run("cat /sys/block/xvdb/ro"), "1");

    domus.xm(&["shutdown", "-w", "disks"]).ok();
    guest.wait_for_console_end();
    domus.assert_no_domain();
    eventually("the back ends end", PATIENCE, || {
        back_end(&domus, "blkback").is_none().then_some(())
    });
}

/// Blocks are written while blkback dies, twice; all of them arrive.
fn written_through_a_kill(domus: &Installation, guest: &mut Guest<'_>, image: &Path) {
    guest.run("dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null");
    guest.send("dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync; echo written $?.\n");
    for _ in 0..2 {
        let victim = eventually("blkback to run", PATIENCE, || back_end(domus, "blkback"));
        victim.kill();
        eventually("another blkback", PATIENCE, || {
            back_end(domus, "blkback").filter(|p| p.pid != victim.pid)
        });
    }
    guest.wait_for("written 0.", PATIENCE * 2);
    let sum = guest.run("md5sum < /tmp/data");
    let bytes = fs::read(image).expect("the image");
    let written = domus.path("written");
    fs::write(
        &written,
        &bytes[..usize::try_from(24 * MIB).expect("small")],
    )
    .expect("a copy");
    let mut md5sum = Command::new("md5sum");
    md5sum.stdin(fs::File::open(&written).expect("the copy"));
    let host = md5sum.output().expect("md5sum of coreutils").stdout;
    assert_eq!(sum, String::from_utf8_lossy(&host).trim());
    let log = fs::read_to_string(domus.path("log/xm-disks.log")).unwrap_or_default();
    assert!(log.matches("was killed by signal 9").count() >= 2, "{log}");
}

/// A second disk comes and goes while the first is busy; an open one goes by
/// force; a CD is put in.
fn plugged_under_load(domus: &Installation, guest: &mut Guest<'_>, second: &Path) {
    guest.run("(while :; do dd if=/dev/xvda of=/dev/null bs=1M iflag=direct 2>/dev/null; done) & echo $! > /tmp/load");
    let spec = format!("file:{}", second.display());
    let attach = ["block-attach", "disks", &spec, "xvdb", "w"];
    for _ in 0..2 {
        domus.xm(&attach).ok();
        there(guest, "/dev/xvdb", true);
        assert_eq!(guest.run("head -c 5 /dev/xvdb"), "b.img");
        domus.xm(&["block-detach", "disks", "xvdb"]).ok();
        there(guest, "/dev/xvdb", false);
    }
    domus.xm(&attach).ok();
    there(guest, "/dev/xvdb", true);
    guest.run("sleep 1000 < /dev/xvdb & sleep 0.2");
    domus.xm(&["block-detach", "-f", "disks", "xvdb"]).ok();
    let list = domus.xm(&["block-list", "disks"]).output();
    assert!(!list.contains("51728"), "{list}");
    there(guest, "/dev/xvdb", false);
    domus
        .xm(&["cd-insert", "disks", "hdc", &second.display().to_string()])
        .ok();
    let list = domus.xm(&["block-list", "disks"]).output();
    let rows: Vec<Vec<&str>> = list
        .lines()
        .skip(1)
        .map(|row| row.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 2, "{list}");
    assert!(rows.iter().all(|row| row[3] == "4"), "{list}");
    domus.xm(&["cd-eject", "disks", "hdc"]).ok();
    guest.run("kill $(cat /tmp/load)");
}

/// A program, run in a namespace, in the test's installation.
fn inside(net: &Namespace, domus: &Installation, program: &Path, args: &[&str]) -> Said {
    let mut command = net.inside(domus.command("ip"), program);
    command.args(args);
    domus.run(command)
}

#[test]
fn interfaces_come_and_go_and_their_back_end_may_die() {
    if !domains_can_run() {
        return;
    }
    let net = Namespace::with_bridge("10.78.0.1/24");
    let domus = Installation::new();
    let xm = Programs::get().program("xm");
    // The services are started outside; the monitor, and so netback, inside.
    domus.xm(&["list"]).ok();
    let config = Config::debian_with_drivers("net");
    let mut guest = Guest::create_by(&domus, &config, |file| {
        inside(&net, &domus, &xm, &["create", &file.display().to_string()]).ok();
    });
    guest.wait_for_shell();
    let mac = "mac=00:16:3e:00:00:07";
    domus
        .xm(&["network-attach", "net", mac, "vifname=dt0"])
        .ok();
    there(&mut guest, "/sys/class/net/eth0", true);
    assert_eq!(
        guest.run("cat /sys/class/net/eth0/address"),
        "00:16:3e:00:00:07"
    );
    let set_up = || {
        let ip = |args: &[&str]| inside(&net, &domus, Path::new("ip"), args);
        // A back end that has just started needs a moment to make it.
        eventually("an interface", PATIENCE, || {
            (ip(&["link", "show", "dt0"]).code == Some(0)).then_some(())
        });
        ip(&["addr", "replace", "10.77.0.1/24", "dev", "dt0"]).ok();
        ip(&["link", "set", "dt0", "up"]).ok();
    };
    set_up();
    guest.run("ifconfig eth0 10.77.0.2 netmask 255.255.255.0 up");
    answered(&mut guest);

    let victim = back_end(&domus, "netback").expect("netback runs");
    victim.kill();
    eventually("another netback", PATIENCE, || {
        back_end(&domus, "netback").filter(|p| p.pid != victim.pid)
    });
    set_up();
    answered(&mut guest);

    // Detached in the middle of traffic.
    guest.run("ping -i 0.01 10.77.0.1 > /dev/null & sleep 0.5");
    domus
        .xm(&["network-detach", "net", "00:16:3e:00:00:07"])
        .ok();
    there(&mut guest, "/sys/class/net/eth0", false);
    let list = domus.xm(&["network-list", "net"]).output();
    assert_eq!(list, "");
    domus.xm(&["destroy", "net"]).ok();
    domus.assert_no_domain();
}

#[track_caller]
fn answered(guest: &mut Guest<'_>) {
    guest.run("n=0; until ping -c 1 -W 1 10.77.0.1 > /dev/null || [ $n = 30 ]; do n=$((n+1)); done; [ $n -lt 30 ]");
}
