//! A stock Debian kernel on its disks.
//!
//! **Mechanism.** `xm create` makes the nodes of the disks and starts blkback,
//! which opens the images and serves the rings of the guest's own
//! `xen-blkfront`. Responses go out in order and only when the effect is there,
//! so a back end that was killed is replaced without the guest noticing.
//!
//! **Scenario.** One guest with six disks: a raw one whose blocks are numbered
//! and checksummed, ext4 on a raw image and on a qcow2 child of one, an image
//! that the host has no room for, one that may only be read, and a sparse one of
//! 3 TiB. At the end the host cuts one off, and lets it grow again. blkback is
//! killed again and again in the middle of the writing. Everything that was
//! acknowledged has to be there, for the guest, and for the host afterwards.
//!
//! **Limits.** A kill is not a power cut: what a killed process wrote stays in
//! the host's page cache. That a flush is an `fdatasync` is a matter of the unit
//! tests.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use dom0_tools::{config::disk::Format, image};
use domus_tests::harness::{
    Config, Guest, Installation, PATIENCE, Process, eventually, kvm_is_usable, user_program,
};

const KILLS: u32 = 4;
/// 3 TiB.
const HUGE_MIB: u64 = 3 << 20;

fn host(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output();
    let out = out.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {said}");
}

fn sparse(path: &Path, mib: u64) {
    let file = fs::File::create_new(path).expect("a new image");
    file.set_len(mib << 20).expect("room for a hole");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

/// A file system with so little room that it is full soon.
struct Tight(PathBuf);

impl Tight {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).expect("a directory");
        let options = ["-t", "tmpfs", "-o", "size=8m", "tmpfs", text(&at)];
        host("mount", &options);
        Self(at)
    }
}

impl Drop for Tight {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left somebody in it.
        host("umount", &["-l", text(&self.0)]);
    }
}

fn back_end(domus: &Installation) -> Process {
    eventually("blkback runs", PATIENCE, || {
        let mut all = domus.processes().into_iter();
        all.find(|process| process.command.contains("/blkback "))
    })
}

/// The last block of the huge disk, written and read by the guest, is the file's.
fn beyond_two_tib(guest: &mut Guest<'_>, huge: &Path) {
    let sectors = HUGE_MIB * 2048;
    let size = guest.run("cat /sys/block/xvdf/size");
    assert_eq!(size.trim(), sectors.to_string());
    let last = HUGE_MIB * 256 - 1;
    guest.run("dd if=/dev/urandom of=/tmp/last bs=4096 count=1 2>/dev/null");
    guest.run(&format!(
        "dd if=/tmp/last of=/dev/xvdf bs=4096 seek={last} count=1 conv=fsync 2>/dev/null"
    ));
    let sum = guest.run("md5sum < /tmp/last");
    let (_, code) = guest.try_run(&format!(
        "dd if=/tmp/last of=/dev/xvdf bs=4096 seek={} count=1 2>/dev/null",
        last + 1
    ));
    assert_ne!(code, 0, "written past the end");
    let mut block = [0; 4096];
    let file = fs::File::open(huge).expect("the image");
    file.read_exact_at(&mut block, last * 4096)
        .expect("the last block");
    let copy = huge.with_extension("last");
    fs::write(&copy, block).expect("room");
    let mut md5sum = Command::new("md5sum");
    md5sum.stdin(fs::File::open(copy).expect("it is there"));
    let host = md5sum.output().expect("md5sum of coreutils").stdout;
    assert_eq!(String::from_utf8_lossy(&host).trim(), sum.trim());
}

/// The host cuts an image off that the guest uses: what is gone is an error, what is
/// there is there, and what comes back can be used again.
fn cut_off_in_use(guest: &mut Guest<'_>, raw: &Path) {
    let image = fs::OpenOptions::new().write(true).open(raw);
    let image = image.expect("the image");
    image.set_len(32 << 20).expect("a file of ours");
    guest.run("blkload check /dev/xvda 512 7");
    let (said, code) = guest.try_run("blkload check /dev/xvda 1024 7");
    assert_ne!(code, 0, "the second half is gone: {said}");
    image.set_len(64 << 20).expect("a file of ours");
    guest.run("blkload fill /dev/xvda 64 11 >/dev/null && blkload check /dev/xvda 1024 11");
}

#[test]
fn acknowledged_writes_survive_killed_back_ends_and_a_full_host() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    let tight = Tight::mount(domus.path("tight"));
    let [raw, ext4, base] = ["raw", "ext4", "base"].map(|name| domus.path(name));
    let (child, full) = (domus.path("child"), tight.0.join("full"));
    let huge = domus.path("huge");
    sparse(&huge, HUGE_MIB);
    sparse(&raw, 64);
    sparse(&full, 64);
    for path in [&ext4, &base] {
        sparse(path, 48);
        host("mkfs.ext4", &["-q", text(path)]);
    }
    let backing = image::Backing {
        path: base.clone(),
        format: Format::Raw,
    };
    image::create::create_child(&backing, &child).expect("a child of a raw image");
    let base_before = fs::read(&base).expect("the base");

    let disk = |format, name, access, path: &Path| {
        format!(
            "\"format={format},vdev={name},access={access},target={}\"",
            path.display()
        )
    };
    let disks = [
        disk("raw", "xvda", "rw", &raw),
        disk("raw", "xvdb", "rw", &ext4),
        disk("qcow2", "xvdc", "rw", &child),
        disk("raw", "xvdd", "rw", &full),
        disk("raw", "xvde", "ro", &base),
        disk("raw", "xvdf", "rw", &huge),
    ];
    let program = fs::read(user_program("blkload")).expect("built just now");
    let config = Config::debian_with_modules("disks")
        .program("blkload", &program)
        .line(&format!("disk = [{}]", disks.join(", ")));
    let mut guest = Guest::boot(&domus, &config);
    guest.run("load xen-blkfront && load ext4");
    guest.run("for d in a b c d e f; do while [ ! -b /dev/xvd$d ]; do usleep 100000; done; done");
    guest.run("for d in b c; do mkdir /mnt/$d; mount -t ext4 /dev/xvd$d /mnt/$d; done");
    assert_eq!(guest.run("cat /sys/block/xvda/size").trim(), "131072");
    assert_eq!(guest.run("cat /sys/block/xvde/ro").trim(), "1");

    // All three at once, and no mercy.
    guest.run("{ (blkload fill /dev/xvda 64 7 >/tmp/fill 2>&1; echo $? >/tmp/filled) & }");
    for d in ["b", "c"] {
        guest.run(&format!(
            "{{ (for i in 1 2 3 4 5 6; do \
             dd if=/dev/urandom of=/tmp/{d}$i bs=64k count=40 2>/dev/null; \
             cp /tmp/{d}$i /mnt/{d}/$i && sync; done; \
             cat /tmp/{d}[1-6] | md5sum >/tmp/sum.{d}; echo done >/tmp/copied.{d}) & }}"
        ));
    }
    for _ in 0..KILLS {
        let victim = back_end(&domus);
        sleep(Duration::from_millis(700));
        victim.kill();
        eventually("the killed back end is gone", PATIENCE, || {
            (!victim.lives()).then_some(())
        });
    }
    guest.run(
        "while [ ! -e /tmp/filled -o ! -e /tmp/copied.b -o ! -e /tmp/copied.c ]; do sleep 1; done",
    );
    assert_eq!(
        guest.run("cat /tmp/filled").trim(),
        "0",
        "{}",
        guest.run("cat /tmp/fill")
    );
    guest.run("blkload check /dev/xvda 1024 7");
    guest.run("echo 3 >/proc/sys/vm/drop_caches");
    for d in ["b", "c"] {
        let sums = guest.run(&format!("cat /tmp/sum.{d}; cat /mnt/{d}/[1-6] | md5sum"));
        let sums: Vec<&str> = sums.lines().map(str::trim).collect();
        assert_eq!(sums[0], sums[1], "xvd{d}");
    }

    // The host's disk is full: an error, and what was acknowledged is there.
    let (said, code) = guest.try_run("blkload fill /dev/xvdd 64 9");
    assert_ne!(code, 0, "8 MiB hold 64: {said}");
    let failed = said
        .lines()
        .find_map(|line| line.strip_prefix("failed after "));
    let blocks = failed
        .and_then(|line| line.split(':').next())
        .expect("it says where");
    assert!(blocks.parse::<u32>().expect("a number") >= 16, "{said}");
    guest.run(&format!("blkload check /dev/xvdd {blocks} 9"));
    guest.run("blkload check /dev/xvda 1024 7");
    let (_, code) = guest.try_run("dd if=/dev/zero of=/dev/xvde bs=4k count=1");
    assert_ne!(code, 0, "a read-only disk was written");

    beyond_two_tib(&mut guest, &huge);
    cut_off_in_use(&mut guest, &raw);
    guest.run("umount /mnt/b /mnt/c");
    domus.xm(&["shutdown", "-w", "disks"]).ok();
    guest.wait_for_console_end();
    domus.assert_no_domain();
    eventually("blkback ends with its guest", PATIENCE, || {
        let all = domus.processes();
        (!all
            .iter()
            .any(|process| process.command.contains("/blkback ")))
        .then_some(())
    });
    host("e2fsck", &["-fn", text(&ext4)]);
    assert!(
        fs::read(&base).expect("the base") == base_before,
        "the base was written"
    );
    let whole = image::open(&child, Format::Qcow2, image::Mode::default()).expect("the child");
    let mut bytes = vec![0; 48 << 20];
    whole.read(&mut bytes[..], 0).expect("the child's bytes");
    let flat = domus.path("flat");
    fs::write(&flat, bytes).expect("room");
    host("e2fsck", &["-fn", text(&flat)]);
}
