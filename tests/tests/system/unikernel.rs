//! A kernel of our own with a disk and a network: the front ends of `guest-abi`.
//!
//! **Mechanism.** `web` (`tests/unikernel`) serves a page from its
//! disk over its interface, with a TCP/IP stack from crates.io. The test gives
//! it a raw image and a bridge in a network namespace of its own.
//!
//! **Scenario.** The page comes whole; it comes again after each back end was
//! killed with -9, while the guest ran on; what is written to the image comes
//! at the next request; another page is written by `PUT`, in large packets and
//! indirect requests over two rings, while blkback is killed, and is in the
//! image with the room behind it given back; `xm shutdown` ends the guest. Without
//! privilege, the page comes through a forwarded port.
//!
//! **Limits.** One interface, one disk.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use domus_tests::harness::{
    Config, Installation, Namespace, PATIENCE, Programs, eventually, in_a_network, is_installed,
    kvm_is_usable, uplink,
};

const URL: &str = "http://10.9.7.2/";

/// A disk with a page of `length` bytes.
pub fn image(length: usize, seed: usize) -> (Vec<u8>, Vec<u8>) {
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
    let (disk, page) = image(6_000_000, 0);
    let path = domus.path("web.img");
    fs::write(&path, disk).expect("room for an image");
    let config = Config::own_kernel("web", &web())
        .line(&format!("disk = [ \"file:{},xvda,w\" ]", path.display()))
        .line("vif = [ \"bridge=br0\" ]")
        .line("extra = \"ip=10.9.7.2/24\"");
    create(&domus, &net, &config);
    assert!(fetch(&domus, &net) == page, "{}", domus.logs());

    for back_end in ["blkback", "netback"] {
        domus.kill(back_end);
        assert!(fetch(&domus, &net) == page, "{}", domus.logs());
    }
    let (disk, page) = image(5_999_000, 7);
    fs::write(&path, disk).expect("room for an image");
    assert!(fetch(&domus, &net) == page, "{}", domus.logs());

    let before = fs::metadata(&path).expect("the image").blocks();
    let (disk, page) = image(3_000_007, 3);
    let new = domus.path("page");
    fs::write(&new, &page).expect("room for a page");
    put(&domus, &net, &new);
    assert!(fetch(&domus, &net) == page, "{}", domus.logs());
    let there = fs::read(&path).expect("the image");
    assert!(there[..3_000_519] == disk[..3_000_519], "what was written");
    let after = fs::metadata(&path).expect("the image").blocks();
    assert!(
        after * 3 < before * 2,
        "{before} blocks before, {after} now"
    );
    let dmesg = domus.xm(&["dmesg"]).output();
    let rings = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
    for line in [
        format!("rings {rings}, requests of 128 KiB"),
        format!("queues {rings}"),
    ] {
        assert!(dmesg.contains(&line), "no {line:?} in {dmesg}");
    }

    domus.xm(&["shutdown", "-w", "web"]).ok();
    eventually("the guest is gone", Duration::from_secs(60), || {
        (!domus.xm(&["list"]).output().contains("web")).then_some(())
    });
    domus.assert_no_domain();
    let dmesg = domus.xm(&["dmesg"]).output();
    assert!(
        dmesg.contains("packets were larger") && !dmesg.contains("goodbye; 0 "),
        "no large packets came: {dmesg}"
    );
}

pub fn web() -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("unikernel");
    Programs::get().kernel_of(&sources, "web")
}

/// Writes a page, while blkback dies.
#[track_caller]
fn put(domus: &Installation, net: &Namespace, page: &Path) {
    let mut curl = net.inside(domus.command("ip"), "curl");
    curl.args([
        "--silent",
        "--fail",
        "--max-time",
        "100",
        "--limit-rate",
        "4M",
    ])
    // The server knows no "100 Continue".
    .args(["--header", "Expect:", "--upload-file"])
    .arg(page)
    .arg(URL)
    .stdout(Stdio::null());
    let mut child = curl.spawn().expect("curl runs");
    std::thread::sleep(Duration::from_millis(200));
    domus.kill("blkback");
    let status = child.wait().expect("one's own child");
    assert!(status.success(), "curl: {status}\n{}", domus.logs());
}

#[test]
fn a_page_through_a_port_of_the_hosts() {
    if !kvm_is_usable() || !is_installed("curl", "curl") || !is_installed("passt", "passt") {
        return;
    }
    in_a_network(|| {
        uplink();
        let domus = Installation::new();
        let (disk, page) = image(700_000, 5);
        let path = domus.path("web.img");
        fs::write(&path, disk).expect("room for an image");
        let config = Config::own_kernel("web", &web())
            .line(&format!("disk = [ \"file:{},xvda,r\" ]", path.display()))
            .line("vif = [ \"mode=user,forward=8080:80\" ]")
            .line("extra = \"ip=192.0.2.10/24\"");
        domus
            .xm(&["create".as_ref(), config.write(&domus).as_os_str()])
            .ok();
        let got = eventually("the page", PATIENCE, || {
            let mut curl = domus.command("curl");
            curl.args(["--silent", "--fail", "--max-time", "10"]);
            let said = curl.arg("http://127.0.0.1:8080/").output();
            let said = said.expect("curl runs");
            said.status.success().then_some(said.stdout)
        });
        assert!(got == page, "{}", domus.logs());
        // Nothing of it is an interface of the host's.
        let links = Command::new("ip").args(["-o", "link"]).output();
        let links = String::from_utf8_lossy(&links.expect("ip runs").stdout).into_owned();
        assert!(!links.contains("vif") && !links.contains("tap"), "{links}");

        // A port that is taken is told of, and the domain does not stay.
        let mut taken = config.clone();
        taken.name = "second".into();
        taken.more = "vif = [ \"mode=user,forward=8080:80\" ]\n".into();
        let file = taken.write(&domus);
        domus
            .xm(&["create".as_ref(), file.as_os_str()])
            .fails(1, "8080");
        domus.xm(&["destroy", "web"]).ok();
        domus.assert_no_domain();
    });
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
