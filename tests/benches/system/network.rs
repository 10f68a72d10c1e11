//! A guest's TCP streams beside those between two namespaces of the host that
//! a veth pair joins: the same program on all sides.

use std::{fs, path::Path, process::Command};

use domus_tests::harness::{Child, Config, Guest, Installation, in_a_network, ip, user_program};

use super::{load::costs, qemu};

const MIB: u64 = 256;
/// The best of so many counts: a busy machine only ever takes away.
const ROUNDS: u32 = 3;
/// The namespace behind the veth pair. (`ip netns` names are the host's, so
/// this process' number is in it.)
const PEER: &str = "domus-bench";

/// Prints the ratios.
pub fn network() {
    in_a_network(|| {
        let traffic = user_program("traffic");
        let peer = Namespace::new(format!("{PEER}-{}", std::process::id()));
        ip("link add v0 type veth peer name v1");
        ip(&format!("link set v1 netns {}", peer.0));
        for (device, address) in [("v0", "10.8.0.1"), ("v1", "10.8.0.2")] {
            let there = if device == "v1" {
                format!("-n {} ", peer.0)
            } else {
                String::new()
            };
            ip(&format!("{there}address add {address}/24 dev {device}"));
            ip(&format!("{there}link set {device} up"));
        }
        ip("link add br0 type bridge");
        ip("address add 10.9.0.1/24 dev br0");
        ip("link set br0 up");
        let _server = Child::start(Command::new(&traffic).args(["serve", "5001"]));

        let over_veth = |what: &str| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &peer.0]).arg(&traffic);
            command.args([what, "10.8.0.1:5001", &MIB.to_string()]);
            rate(&String::from_utf8_lossy(
                &command.output().expect("ip runs").stdout,
            ))
        };
        let domus = Installation::new();
        let program = fs::read(&traffic).expect("built just now");
        let config = Config::debian_with_drivers("network")
            .program("traffic", &program)
            .line("vif = ['bridge=br0']");
        let mut guest = Guest::boot(&domus, &config);
        guest.run("ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up");
        let names = [("send", "guest to host"), ("fetch", "host to guest")];
        let mut found = Vec::new();
        for (what, name) in names {
            let command = format!("traffic {what} 10.9.0.1:5001 {MIB}");
            // In turns: what else the machine does changes with time.
            let (mut veth, mut inside) = (0.0_f64, 0.0_f64);
            for _ in 0..ROUNDS {
                veth = veth.max(over_veth(what));
                inside = inside.max(rate(&guest.run(&command)));
            }
            println!(
                "TCP {name}: {inside:.0} MiB/s, over a veth pair {veth:.0} MiB/s: {:.0} % (target 50)",
                100.0 * inside / veth
            );
            found.push((name, what, inside));
            costs(&domus, &mut guest, &command, MIB as f64, "MiB");
        }
        domus.xm(&["destroy", "network"]).ok();
        emulated(&domus, &traffic, &found);
    });
}

/// The same in QEMU's emulation, with virtio-net on the same bridge.
fn emulated(domus: &Installation, traffic: &Path, found: &[(&str, &str, f64)]) {
    ip("tuntap add q0 mode tap vnet_hdr");
    ip("link set q0 master br0");
    ip("link set q0 up");
    let works = found.iter();
    let works = works.map(|(_, what, _)| format!("traffic {what} 10.9.0.1:5001 {MIB}"));
    let works: Vec<_> = works.collect();
    let said = qemu::run(
        domus.dir(),
        ("traffic", traffic),
        "virtio_net",
        "ifconfig eth0 10.9.0.3 netmask 255.255.255.0 up",
        &works,
        &[
            "-netdev",
            "tap,id=net,ifname=q0,script=no,downscript=no",
            "-device",
            "virtio-net-pci,netdev=net",
        ],
    );
    for ((name, _, inside), said) in found.iter().zip(said.unwrap_or_default()) {
        let emulated = rate(&said);
        println!(
            "TCP {name}, in QEMU's TCG with virtio-net: {emulated:.0} MiB/s; Domus is {:.1} times as fast",
            inside / emulated
        );
    }
}

/// A namespace with a name, for `ip`.
struct Namespace(String);

impl Namespace {
    fn new(name: String) -> Self {
        ip(&format!("netns add {name}"));
        Self(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns delete {}", self.0));
    }
}

/// The number before the unit at the line's end.
fn rate(said: &str) -> f64 {
    let word = said.split_whitespace().rev().nth(1);
    let number = word.and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("no result: {said}"))
}
