//! A Debian as people make it: its own disk, its own kernel.
//!
//! **Mechanism.** `xm image create` bootstraps a Debian into an image without
//! mounting anything, `xm image clone` makes a copy-on-write child, and
//! `bootloader = "pygrub"` takes the kernel out of that child; the disk is served
//! by blkback.
//!
//! **Scenario.** Login on the console; ping and ssh between host and guest, both
//! ways; data with a checksum, while both back ends are killed; apt takes a package from the host; a second kernel is
//! entered into the boot entries by the hook that Debian's kernel packages run,
//! and is booted by `reboot`; after `xm shutdown` the file system is clean.
//!
//! An ordinary user, who has nothing but a range of user numbers, makes an image
//! too.
//!
//! **Limits.** The second kernel is the first one's file under another name with
//! another option: which file was taken is told by that option.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use dom0_tools::{
    config::disk::Format,
    image::{Mode, open},
};
use domus_tests::{
    guest::debian::{PASSWORD, debian},
    harness::{
        Guest, Installation, Programs, domains_can_run, eventually, in_a_network,
        in_private_mounts, is_installed, mount,
    },
};
use serde_json::Value;

use super::machine::{Network, can_be_reached, tool};

/// A whole system goes down and comes up.
const REBOOT: Duration = Duration::from_secs(300);

/// What the test itself runs; the image's makers are xm's to find.
fn can_run() -> bool {
    domains_can_run() && is_installed("mmdebstrap", "mmdebstrap")
}

#[test]
fn a_debian_boots_the_kernel_of_its_own_disk() {
    if !can_run() {
        return;
    }
    let base = debian();
    let domus = Installation::new();
    let image = domus.path("deb.qcow2");
    let path = |path: &Path| path.to_str().expect("a path of ours").to_owned();
    domus
        .xm(&["image", "clone", &path(&base), "deb", "-o", &path(&image)])
        .ok();
    let mut guest = Guest::create_from(&domus, "deb", &domus.path("deb.cfg"));
    guest.log_in(PASSWORD);
    assert_eq!(guest.run("hostname"), "deb");
    let version = guest.run("uname -r");
    assert!(!guest.run("cat /proc/cmdline").contains("domus.second"));
    guest.run("dd if=/dev/urandom of=/root/data bs=1M count=8 2>/dev/null");
    guest.run("sha256sum /root/data >/root/sums");
    domus
        .xm(&["image", "delete", &path(&image)])
        .fails(1, "is a disk of the domain deb");
    install_second_kernel(&mut guest, &version);

    let id = guest.id();
    guest.send("reboot\n");
    eventually("the domain comes back", REBOOT, || {
        let list: Value = serde_json::from_str(&domus.xm(&["list", "--json"]).output()).ok()?;
        let found = list.as_array()?.iter().find(|d| d["name"] == "deb")?;
        (found["domid"].as_u64()? != u64::from(id.0)).then_some(())
    });
    guest.attach_again();
    guest.log_in(PASSWORD);
    assert!(guest.run("cat /proc/cmdline").contains("domus.second"));
    assert_eq!(guest.run("sha256sum -c /root/sums"), "/root/data: OK");

    domus.xm(&["shutdown", "deb"]).ok();
    guest.wait_for_console_end();
    eventually("the domain is gone", REBOOT, || {
        let list: Value = serde_json::from_str(&domus.xm(&["list", "--json"]).output()).ok()?;
        let gone = !list.as_array()?.iter().any(|d| d["name"] == "deb");
        gone.then_some(())
    });
    domus.assert_no_domain();
    file_system_is_clean(&domus, &image);
    domus.xm(&["image", "delete", &path(&image)]).ok();
    assert!(!image.exists() && !domus.path("deb.cfg").exists());
}

#[test]
fn a_debian_boots_the_kernel_of_its_own_disk_and_is_on_the_network() {
    if !can_run() || !can_be_reached() {
        return;
    }
    let base = debian();
    in_a_network(|| {
        let domus = Installation::new();
        let network = Network::new(domus.path("network"));
        let image = child_of(&base, &domus);
        let mut guest = Guest::create_from(&domus, "deb", &domus.path("deb.cfg"));
        guest.log_in(PASSWORD);
        assert_eq!(guest.run("hostname"), "deb");
        let version = guest.run("uname -r");
        assert!(!guest.run("cat /proc/cmdline").contains("domus.second"));
        domus
            .xm(&["image", "delete", path(&image)])
            .fails(1, "is a disk of the domain deb");

        network.introduce(&mut guest);
        network.wait_for_guest();
        network.both_ways(&domus);
        network.apt_works();
        install_second_kernel(&mut guest, &version);

        let id = guest.id();
        // The connection may be cut before it says how it ended.
        let _ = network.try_in_guest("reboot");
        eventually("the domain comes back", REBOOT, || {
            let found = domain(&domus)?;
            (found["domid"].as_u64()? != u64::from(id.0)).then_some(())
        });
        network.wait_for_guest();
        assert!(
            network
                .in_guest("cat /proc/cmdline")
                .contains("domus.second")
        );
        network.data_are_there(&domus);
        guest.attach_again();
        guest.log_in(PASSWORD);

        domus.xm(&["shutdown", "deb"]).ok();
        guest.wait_for_console_end();
        eventually("the domain is gone", REBOOT, || {
            domain(&domus).is_none().then_some(())
        });
        domus.assert_no_domain();
        file_system_is_clean(&domus, &image);
        domus.xm(&["image", "delete", path(&image)]).ok();
        assert!(!image.exists() && !domus.path("deb.cfg").exists());
    });
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

/// A copy-on-write child with an interface on the bridge.
fn child_of(base: &Path, domus: &Installation) -> PathBuf {
    let image = domus.path("deb.qcow2");
    domus
        .xm(&["image", "clone", path(base), "deb", "-o", path(&image)])
        .ok();
    let file = domus.path("deb.cfg");
    let text = fs::read_to_string(&file).expect("xm wrote it");
    fs::write(&file, text + "vif = [ 'bridge=br0' ]\n").expect("room");
    image
}

/// What `xm list` tells of the domain, if it is there.
fn domain(domus: &Installation) -> Option<Value> {
    let list: Value = serde_json::from_str(&domus.xm(&["list", "--json"]).output()).ok()?;
    list.as_array()?
        .iter()
        .find(|d| d["name"] == "deb")
        .cloned()
}

/// As the package of another kernel does it: files in /boot, then the hooks.
fn install_second_kernel(guest: &mut Guest<'_>, version: &str) {
    let second = format!("{version}.1");
    guest.run(&format!(
        "cp /boot/vmlinuz-{version} /boot/vmlinuz-{second}"
    ));
    guest.run(&format!(
        "cp /boot/initrd.img-{version} /boot/initrd.img-{second}"
    ));
    guest.run("sed -i s/$/\\ domus.second/ /etc/kernel/cmdline");
    guest.run(&format!(
        "/etc/kernel/postinst.d/zz-domus-boot {second} /boot/vmlinuz-{second}"
    ));
}

/// A user that only this test's programs know of.
const USER: u32 = 54_321;

#[test]
fn an_ordinary_user_makes_an_image() {
    let packages = [
        ("mmdebstrap", "mmdebstrap"),
        ("newuidmap", "uidmap"),
        ("fakeroot", "fakeroot"),
        ("setpriv", "util-linux"),
    ];
    if !packages
        .iter()
        .all(|(program, of)| is_installed(program, of))
    {
        return;
    }
    let home = tempfile::tempdir().expect("room");
    chown(home.path(), Some(USER), Some(USER)).expect("root may");
    let at = |name: &str| home.path().join(name);
    // The directory of the build may be nobody else's.
    let xm = at("xm");
    fs::copy(Programs::get().program("xm"), &xm).expect("room");
    fs::write(at("password"), format!("{PASSWORD}\n")).expect("room");
    in_private_mounts(|| {
        for (file, line) in [
            (
                "passwd",
                format!("domus-t:x:{USER}:{USER}::/nowhere:/bin/sh"),
            ),
            ("group", format!("domus-t:x:{USER}:")),
            ("subuid", "domus-t:700000:65536".to_owned()),
            ("subgid", "domus-t:700000:65536".to_owned()),
        ] {
            let etc = Path::new("/etc").join(file);
            let text = fs::read_to_string(&etc).unwrap_or_default();
            fs::write(at(file), text + &line + "\n").expect("room");
            mount(&["--bind", path(&at(file)), path(&etc)]);
        }
        let mut create = Command::new("setpriv");
        create
            .args([&format!("--reuid={USER}"), &format!("--regid={USER}")])
            .arg("--clear-groups")
            .arg(&xm)
            .args(["image", "create", "mine", "--size", "1536M"])
            .args(["--output", path(&at("mine.img"))])
            .args(["--password-file", path(&at("password"))])
            .env("HOME", home.path())
            .env("TMPDIR", home.path())
            .stdin(Stdio::null())
            .current_dir(home.path());
        let said = create.output().expect("setpriv runs");
        let text = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success(), "{text}");
    });
    let image = at("mine.img");
    assert_eq!(fs::metadata(&image).expect("the image").uid(), USER);
    // What is root's in the image is root's, and there is a kernel.
    let owner = tool("debugfs", &["-R", "stat /etc/shadow", path(&image)]);
    let words: Vec<&str> = owner.split_whitespace().collect();
    let user = words.iter().position(|word| *word == "User:");
    assert_eq!(user.map(|at| words[at + 1]), Some("0"), "{owner}");
    tool("e2fsck", &["-f", "-n", path(&image)]);
    let boot = Programs::get().program("domus-boot");
    let list = tool(path(&boot), &["--list", path(&image)]);
    assert!(list.contains("Debian GNU/Linux"), "{list}");
}

/// What the guest's image holds, as a raw file, is looked at by e2fsck.
fn file_system_is_clean(domus: &Installation, image: &Path) {
    const CHUNK: usize = 1 << 20;
    let image = open(image, Format::Qcow2, Mode::default()).expect("the image opens");
    let raw = domus.path("raw");
    let file = File::create(&raw).expect("a file");
    file.set_len(image.size()).expect("room");
    let mut chunk = vec![0u8; CHUNK];
    for offset in (0..image.size()).step_by(CHUNK) {
        image.read(chunk.as_mut_slice(), offset).expect("a read");
        if chunk.iter().any(|byte| *byte != 0) {
            file.write_all_at(&chunk, offset).expect("a write");
        }
    }
    let checked = Command::new("/sbin/e2fsck")
        .args(["-f", "-n"])
        .arg(&raw)
        .output();
    let checked = checked.expect("e2fsck, of e2fsprogs, can be run");
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success(), "{text}");
    assert!(!text.contains("recovering journal"), "{text}");
    fs::remove_file(raw).expect("one's own file");
}
