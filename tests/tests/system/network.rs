//! Stock guests on the network, through `xen-netfront` and netback.
//!
//! **Mechanism.** Each test has a network namespace for its whole
//! installation: the services, the taps and the bridge are in it, and end with
//! it. The guests have Debian's `xen-netfront` and a program that sends and
//! checks streams (`tests/guests/user/traffic.rs`).
//!
//! **Scenario.** Pings and streams both ways through a tap on a bridge; between
//! two guests; through a netback that is killed in the middle; without any
//! privilege, through passt.
//!
//! **Limits.** What a hostile front end does is tested without a guest, in
//! `dom0-tools/src/netback`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use domus_tests::{
    guest::extract_busybox,
    harness::{
        Child, Config, Guest, Installation, PATIENCE, Process, domains_can_run, eventually,
        in_a_network, ip, is_installed, uplink, user_program,
    },
};

/// The program that sends and takes streams.
fn traffic() -> PathBuf {
    user_program("traffic")
}

/// Starts it in a guest, where it takes streams.
fn serve(guest: &mut Guest<'_>) {
    guest.run("(traffic serve 5002 > /tmp/served &)");
    guest.run("until grep -q serving /tmp/served; do sleep 1; done");
}

/// With Debian's front end and the traffic program.
fn config(name: &str, vif: &str) -> Config {
    let program = fs::read(traffic()).expect("built just now");
    Config::debian_with_drivers(name)
        .program("traffic", &program)
        .line(&format!("vif = ['{vif}']"))
}

/// Waits for the interface and gives it an address.
fn bring_up(guest: &mut Guest<'_>, address: &str) {
    // It appears when both halves are connected.
    guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 1; done");
    guest.run(&format!("ifconfig eth0 {address} netmask 255.255.255.0 up"));
}

/// A bridge with the host's address on it, and somebody who takes streams.
fn bridge() -> Child {
    ip("link add br0 type bridge");
    ip("address add 10.9.0.1/24 dev br0");
    ip("link set br0 up");
    Child::start(Command::new(traffic()).args(["serve", "5001"]))
}

fn netback(domus: &Installation, guest: &Guest<'_>) -> Process {
    let name = format!("--domain {} ", guest.id());
    let is_it = |p: &Process| p.command.contains("/netback ") && p.command.contains(&name);
    eventually("a netback", PATIENCE, || {
        domus.processes().into_iter().find(is_it)
    })
}

/// Runs a program on the host's side; what it said.
#[track_caller]
fn on_host(domus: &Installation, program: &Path, args: &[&str]) -> String {
    let mut command = domus.command(program);
    command.args(args);
    domus.run(command).output()
}

#[test]
fn a_guest_on_a_bridge() {
    if !domains_can_run() {
        return;
    }
    in_a_network(|| {
        let _server = bridge();
        let domus = Installation::new();
        let mut guest = Guest::boot(&domus, &config("web", "bridge=br0,mac=00:16:3e:00:00:01"));
        bring_up(&mut guest, "10.9.0.2");
        let address = guest.run("cat /sys/class/net/eth0/address");
        assert_eq!(address, "00:16:3e:00:00:01");

        let ping = guest.run("ping -c 3 -W 20 10.9.0.1");
        assert!(ping.contains("3 packets received"), "{ping}");
        // The name is Xen's, and a packet above the MTU goes in fragments.
        on_host(
            &domus,
            Path::new("ip"),
            &["link", "show", &format!("vif{}.0", guest.id())],
        );
        let busybox = domus.path("busybox");
        extract_busybox(&busybox).expect("a busybox");
        let ping = on_host(
            &domus,
            &busybox,
            &["ping", "-c", "2", "-s", "9000", "10.9.0.2"],
        );
        assert!(ping.contains("2 packets received"), "{ping}");

        // Large packets and blank checksums both ways; the streams are checked
        // byte by byte.
        println!("{}", guest.run("traffic send 10.9.0.1:5001 64"));
        println!("{}", guest.run("traffic fetch 10.9.0.1:5001 64"));
        serve(&mut guest);
        let said = on_host(&domus, &traffic(), &["send", "10.9.0.2:5002", "32"]);
        assert!(said.contains("sent 32 MiB"), "{said}");
        let said = on_host(&domus, &traffic(), &["fetch", "10.9.0.2:5002", "32"]);
        assert!(said.contains("got 32 MiB"), "{said}");
        // Several connections, both ways at once, begun by either side.
        let said = guest.run("traffic load 10.9.0.1:5001 8 3");
        assert!(said.contains("moved 48 MiB"), "{said}");
        let said = on_host(&domus, &traffic(), &["load", "10.9.0.2:5002", "8", "2"]);
        assert!(said.contains("moved 32 MiB"), "{said}");
        // Fewer packets than segments: they were not cut on the way.
        let packets: u64 = guest
            .run("cat /sys/class/net/eth0/statistics/tx_packets")
            .parse()
            .expect("a number");
        assert!(packets < 176 * 1024 * 1024 / 4000, "{packets} packets");
        assert_eq!(
            guest.run("cat /sys/class/net/eth0/statistics/rx_errors"),
            "0"
        );

        domus.xm(&["shutdown", "-w", "web"]).ok();
        domus.assert_no_domain();
        eventually("the interface is gone", PATIENCE, || {
            let links = Command::new("ip").args(["-o", "link"]).output();
            let links = links.expect("ip runs").stdout;
            (!String::from_utf8_lossy(&links).contains("vif")).then_some(())
        });
    });
}

#[test]
fn two_guests_talk_over_a_bridge() {
    if !domains_can_run() {
        return;
    }
    in_a_network(|| {
        let _server = bridge();
        let domus = Installation::new();
        let one = config("one", "bridge=br0").vcpus(2);
        let two = config("two", "bridge=br0,vifname=second");
        let [mut one, mut two] = Guest::boot_pair(&domus, [&one, &two]);
        bring_up(&mut one, "10.9.0.2");
        bring_up(&mut two, "10.9.0.3");
        let ping = one.run("ping -c 3 -W 20 10.9.0.3");
        assert!(ping.contains("3 packets received"), "{ping}");
        serve(&mut two);
        println!("{}", one.run("traffic send 10.9.0.3:5002 16"));
        println!("{}", one.run("traffic fetch 10.9.0.3:5002 16"));
        let said = one.run("traffic load 10.9.0.3:5002 8 3");
        assert!(said.contains("moved 48 MiB"), "{said}");
        on_host(&domus, Path::new("ip"), &["link", "show", "second"]);
        for name in ["one", "two"] {
            domus.xm(&["destroy", name]).ok();
        }
        domus.assert_no_domain();
    });
}

#[test]
fn a_guest_outlives_netback_killed_under_traffic() {
    if !domains_can_run() {
        return;
    }
    in_a_network(|| {
        let _server = bridge();
        let domus = Installation::new();
        let mut guest = Guest::boot(&domus, &config("going-on", "bridge=br0"));
        bring_up(&mut guest, "10.9.0.2");
        for (n, direction) in ["send", "fetch"].iter().enumerate() {
            guest.run(&format!(
                "(traffic {direction} 10.9.0.1:5001 192 > /tmp/out{n} 2>&1 &)"
            ));
            for _ in 0..2 {
                std::thread::sleep(Duration::from_millis(500));
                let dead = netback(&domus, &guest);
                dead.kill();
                eventually("another netback", PATIENCE, || {
                    (netback(&domus, &guest).pid != dead.pid).then_some(())
                });
            }
            let done = guest.run(&format!("while ! grep MiB /tmp/out{n}; do sleep 1; done"));
            assert!(done.contains("192 MiB in"), "{done}");
        }
        let ping = guest.run("ping -c 2 -W 20 10.9.0.1");
        assert!(ping.contains("2 packets received"), "{ping}");
        domus.xm(&["destroy", "going-on"]).ok();
        domus.assert_no_domain();
    });
}

#[test]
fn a_guest_without_privilege_on_the_host() {
    if !domains_can_run() || !is_installed("passt", "passt") {
        return;
    }
    in_a_network(|| {
        uplink();
        let _server = Child::start(Command::new(traffic()).args(["serve", "5001"]));
        let domus = Installation::new();
        let mut guest = Guest::boot(&domus, &config("plain", "mode=user"));
        bring_up(&mut guest, "192.0.2.10");
        // The gateway's address is the host itself.
        println!("{}", guest.run("traffic send 192.0.2.1:5001 8"));
        println!("{}", guest.run("traffic fetch 192.0.2.1:5001 8"));
        let dead = netback(&domus, &guest);
        dead.kill();
        let again = "until traffic fetch 192.0.2.1:5001 1; do sleep 1; done";
        assert!(guest.run(again).contains("got 1 MiB"));
        domus.xm(&["destroy", "plain"]).ok();
        domus.assert_no_domain();
    });
}

#[test]
fn what_is_set_up_wrong_is_told_to_the_user() {
    if !domains_can_run() {
        return;
    }
    in_a_network(|| {
        let domus = Installation::new();
        let script = domus.path("vif-broken");
        fs::write(&script, "#!/bin/sh\necho 'the cable is cut' >&2\nexit 7\n").expect("room");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&script, mode).expect("our own file");
        ip("tuntap add taken mode tap");
        for (vif, text) in [
            (
                "bridge=nowhere".to_owned(),
                "cannot find the bridge nowhere",
            ),
            (
                format!("script={}", script.display()),
                "(exit code 7): the cable is cut",
            ),
            (
                "vifname=taken".to_owned(),
                "there is one of that name in use",
            ),
        ] {
            let wrong = Config::test_kernel("spin-masked").line(&format!("vif = ['{vif}']"));
            let file = wrong.write(&domus);
            domus
                .xm(&["create".as_ref(), file.as_os_str()])
                .fails(1, text);
            domus.assert_no_domain();
        }
    });
}
