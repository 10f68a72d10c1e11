//! A Debian as people make it: its own disk, its own kernel.
//!
//! **Mechanism.** `xm image create` bootstraps a Debian into an image without
//! mounting anything, `xm image clone` makes a copy-on-write child, and
//! `bootloader = "pygrub"` takes the kernel out of that child; the disk is served
//! by blkback.
//!
//! **Scenario.** Login on the console; data with a checksum; a second kernel is
//! entered into the boot entries by the hook that Debian's kernel packages run,
//! and is booted by `reboot`; after `xm shutdown` the file system is clean.
//!
//! **Limits.** The second kernel is the first one's file under another name with
//! another option: which file was taken is told by that option.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::Duration,
};

use dom0_tools::{
    config::disk::Format,
    image::{Mode, open},
};
use domus_tests::{
    guest::debian::{PASSWORD, debian},
    harness::{Guest, Installation, domains_can_run, eventually, is_installed},
};
use serde_json::Value;

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
