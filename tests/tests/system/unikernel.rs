//! A kernel of our own with a disk and a network: the front ends of `guest-abi`.
//!
//! **Mechanism.** `web` (`tests/unikernel`) serves a page from its
//! disk over its interface, with a TCP/IP stack from crates.io. The test gives
//! it a raw image and a bridge in a network namespace of its own.
//!
//! **Scenario.** The page comes whole; it comes again after each back end was
//! killed with -9, while the guest ran on; what is written to the image comes
//! at the next request; `xm shutdown` ends the guest.
//!
//! **Limits.** One interface, one disk, reading only.

use std::{fs, path::Path, process::Command, time::Duration};

use domus_tests::harness::{
    Config, Installation, Namespace, PATIENCE, Programs, eventually, is_installed, kvm_is_usable,
};

const URL: &str = "http://10.9.7.2/";

/// A disk with a page of `length` bytes.
fn image(length: usize, seed: usize) -> (Vec<u8>, Vec<u8>) {
    let page: Vec<u8> = (0..length)
        .map(|at| (at * 31 + at / 512 + seed).to_le_bytes()[0])
        .collect();
    let mut disk = vec![0; 512];
    disk[..8].copy_from_slice(b"DOMUSWEB");
    disk[8..16].copy_from_slice(&(length as u64).to_le_bytes());
    disk.extend(&page);
    // Whole pieces, as the kernel reads them.
    disk.resize(512 + length.next_multiple_of(4096), 0);
    (disk, page)
}

/// Asks for the page until it comes: a connection may be lost with a back end.
#[track_caller]
fn fetch(domus: &Installation, net: &Namespace) -> Vec<u8> {
    eventually("the page", PATIENCE, || {
        let mut curl = net.inside(domus.command("ip"), "curl");
        curl.args(["--silent", "--fail", "--max-time", "10", URL]);
        let said = curl.output().expect("curl runs");
        said.status.success().then_some(said.stdout)
    })
}

/// Kills a domain's back end as hard as can be.
#[track_caller]
fn kill(domus: &Installation, name: &str) {
    let all = domus.processes();
    let found = all.iter().find(|process| process.command.contains(name));
    let process = found.unwrap_or_else(|| panic!("no {name} in {all:#?}\n{}", domus.logs()));
    process.kill();
    eventually("it is gone", PATIENCE, || (!process.lives()).then_some(()));
}

fn create(domus: &Installation, net: &Namespace, config: &Config) {
    let xm = Programs::get().program("xm");
    let mut create: Command = net.inside(domus.command("ip"), xm);
    create.arg("create").arg(config.write(domus));
    domus.run(create).ok();
}

#[test]
fn a_page_from_the_disk_over_the_network() {
    if !kvm_is_usable() || !is_installed("curl", "curl") || !is_installed("ip", "iproute2") {
        return;
    }
    let net = Namespace::with_bridge("10.9.7.1/24");
    let domus = Installation::new();
    let (disk, page) = image(200_000, 0);
    let path = domus.path("web.img");
    fs::write(&path, disk).expect("room for an image");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("unikernel");
    let kernel = Programs::get().kernel_of(&sources, "web");
    let config = Config::own_kernel("web", &kernel)
        .line(&format!("disk = [ \"file:{},xvda,r\" ]", path.display()))
        .line("vif = [ \"bridge=br0\" ]")
        .line("extra = \"ip=10.9.7.2/24\"");
    create(&domus, &net, &config);
    assert!(fetch(&domus, &net) == page, "{}", domus.logs());

    for back_end in ["blkback", "netback"] {
        kill(&domus, back_end);
        assert!(fetch(&domus, &net) == page, "{}", domus.logs());
    }
    let (disk, page) = image(199_000, 7);
    fs::write(&path, disk).expect("room for an image");
    assert!(fetch(&domus, &net) == page, "{}", domus.logs());

    domus.xm(&["shutdown", "-w", "web"]).ok();
    eventually("the guest is gone", Duration::from_secs(60), || {
        (!domus.xm(&["list"]).output().contains("web")).then_some(())
    });
    domus.assert_no_domain();
}

/// What a newcomer does with `guest-abi/template`: copies it, says where
/// guest-abi is, builds, runs.
#[test]
fn the_template_runs_outside_the_workspace() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    let abi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-abi");
    let abi = abi.canonicalize().expect("it is there");
    let copy = domus.path("my-kernel");
    fs::create_dir_all(copy.join("src")).expect("room for a copy");
    for file in ["Cargo.toml", "build.rs", "src/main.rs", "my-kernel.cfg"] {
        let text = fs::read_to_string(abi.join("template").join(file)).expect("it is there");
        let there = format!("path = \"{}\"", abi.display());
        let text = text.replace("path = \"..\"", &there);
        fs::write(copy.join(file), text).expect("room for a copy");
    }
    let kernel = Programs::get().kernel_of(&copy, "my-kernel");
    let file = Config::own_kernel("my-kernel", &kernel).write(&domus);
    domus
        .xm(&["create", file.to_str().expect("a path of ours")])
        .ok();
    let dmesg = eventually("it powers off", PATIENCE, || {
        let dmesg = domus.xm(&["dmesg"]).output();
        dmesg.contains("goodbye").then_some(dmesg)
    });
    for line in ["a kernel of my own", "my name is my-kernel", "second 3"] {
        assert!(dmesg.contains(line), "no {line:?} in {dmesg}");
    }
    eventually("it is gone", PATIENCE, || {
        (!domus.xm(&["list"]).output().contains("my-kernel")).then_some(())
    });
    domus.assert_no_domain();
}
