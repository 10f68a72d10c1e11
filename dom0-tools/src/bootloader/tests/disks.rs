//! Disks as people have them. Needs `mke2fs`, as `e2fsprogs` has it.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::super::{BootError, Choice, Disk, boot, list};
use crate::{
    config::disk::Format,
    image::{Backing, create},
};

const MIB: u64 = 1 << 20;

/// A directory with a file system's content and images.
pub(super) struct Room(TempDir);

impl Room {
    pub(super) fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An ext file system of 4 MiB with these files.
    pub(super) fn ext(&self, name: &str, kind: &str, files: &[(&str, &str)]) -> PathBuf {
        let tree = self.path(&format!("{name}.tree"));
        fs::create_dir(&tree).expect("a directory");
        for (path, text) in files {
            let path = tree.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        let image = self.path(name);
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", kind, "-d"])
            .args([&tree, &image])
            .arg("4M")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .expect("mke2fs, of e2fsprogs, can be run");
        assert!(made.status.success(), "{made:?}");
        image
    }
}

/// Copies an image into a disk.
fn put(disk: &Path, at: u64, image: &Path) {
    let bytes = fs::read(image).expect("readable");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(disk)
        .expect("writable");
    file.write_all_at(&bytes, at).expect("a write");
}

/// An MBR entry: active, kind, first sector, sectors.
fn entry(active: bool, kind: u8, start: u32, sectors: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = if active { 0x80 } else { 0 };
    bytes[4] = kind;
    bytes[8..12].copy_from_slice(&start.to_le_bytes());
    bytes[12..].copy_from_slice(&sectors.to_le_bytes());
    bytes
}

fn put_table(disk: &Path, sector: u64, entries: &[[u8; 16]]) {
    let mut bytes = [0u8; 66];
    for (i, entry) in entries.iter().enumerate() {
        bytes[16 * i..][..16].copy_from_slice(entry);
    }
    bytes[64..].copy_from_slice(&[0x55, 0xaa]);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(disk)
        .expect("writable");
    file.write_all_at(&bytes, sector * 512 + 446)
        .expect("a write");
}

fn raw(path: &Path) -> Disk<'_> {
    Disk {
        path,
        format: Format::Raw,
        vdev: "xvda",
    }
}

const ROOT: &[(&str, &str)] = &[
    ("/etc/fstab", "LABEL=root / ext4 defaults 0 1\n"),
    ("/boot/vmlinuz-6.1", "the kernel"),
    ("/boot/initrd.img-6.1", "initrd"),
];

#[test]
fn a_file_system_without_partitions_and_without_configuration() {
    let room = Room::new();
    for kind in ["ext2", "ext3", "ext4"] {
        let image = room.ext(kind, kind, ROOT);
        let booted = boot(&raw(&image), &Choice::default()).expect(kind);
        assert_eq!(booted.kernel, b"the kernel");
        assert_eq!(booted.ramdisk.as_deref(), Some(&b"initrd\0\0"[..]));
        assert_eq!(booted.entry.options, "root=/dev/xvda ro");
    }
}

#[test]
fn a_copy_on_write_child_of_a_raw_base() {
    let room = Room::new();
    let (base, child) = (room.ext("base", "ext4", ROOT), room.path("child"));
    let backing = Backing {
        path: base,
        format: Format::Raw,
    };
    create::create_child(&backing, &child).expect("a child");
    let disk = Disk {
        format: Format::Qcow2,
        ..raw(&child)
    };
    assert_eq!(
        boot(&disk, &Choice::default()).expect("boots").kernel,
        b"the kernel"
    );
}

/// Swap first, the root second and active; /boot in a logical partition with
/// paths that are relative to it.
#[test]
fn an_mbr_with_a_boot_partition_among_the_logical_ones() {
    let room = Room::new();
    let grub = "set default=1\nmenuentry old { linux /vmlinuz-6.0 a\n }\nmenuentry new {\n linux /vmlinuz-6.2 root=/dev/xvda2\n}";
    let root = room.ext("root", "ext4", &[("/etc/fstab", "")]);
    let boot_fs = room.ext(
        "boot",
        "ext2",
        &[
            ("/grub/grub.cfg", grub),
            ("/vmlinuz-6.2", "new"),
            ("/vmlinuz-6.0", "old"),
        ],
    );
    let disk = room.path("disk");
    create::create_raw(&disk, 20 * MIB).expect("a disk");
    put_table(
        &disk,
        0,
        &[
            entry(false, 0x82, 2048, 2048),
            entry(true, 0x83, 4096, 8192),
            entry(false, 0x05, 16384, 20000),
        ],
    );
    put_table(
        &disk,
        16384,
        &[entry(false, 0x82, 8, 8), entry(false, 0x05, 1024, 18976)],
    );
    put_table(&disk, 17408, &[entry(false, 0x83, 1024, 8192)]);
    put(&disk, 4096 * 512, &root);
    put(&disk, (17408 + 1024) * 512, &boot_fs);
    let listing = list(&raw(&disk)).expect("a menu");
    assert_eq!(listing.partition, Some(6));
    assert_eq!((listing.menu.entries.len(), listing.menu.default), (2, 1));
    let booted = boot(&raw(&disk), &Choice::default()).expect("boots");
    assert_eq!(
        (booted.kernel, booted.entry.options.as_str()),
        (b"new".to_vec(), "root=/dev/xvda2")
    );
    let old = Choice {
        entry: Some("old".to_owned()),
        ..Choice::default()
    };
    assert_eq!(boot(&raw(&disk), &old).expect("boots").kernel, b"old");
    let none = Choice {
        entry: Some("7".to_owned()),
        ..Choice::default()
    };
    let error = boot(&raw(&disk), &none)
        .expect_err("no such entry")
        .to_string();
    assert!(error.contains("no entry '7'"), "{error}");
    let named = Choice {
        kernel: Some("/vmlinuz-6.0".to_owned()),
        ..Choice::default()
    };
    let booted = boot(&raw(&disk), &named).expect("boots");
    assert_eq!(
        (booted.kernel, booted.entry.options.as_str()),
        (b"old".to_vec(), "root=/dev/xvda2 ro")
    );
}

/// A GPT with its first or its second header, and with sectors of 4 KiB.
#[test]
fn a_gpt() {
    let room = Room::new();
    let image = room.ext("root", "ext4", ROOT);
    for (name, sector, at) in [
        ("first", 512, 1),
        ("second", 512, 12 * MIB / 512 - 1),
        ("large", 4096, 1),
    ] {
        let disk = room.path(name);
        create::create_raw(&disk, 12 * MIB).expect("a disk");
        put_table(&disk, 0, &[entry(false, 0xee, 1, u32::MAX)]);
        let file = fs::OpenOptions::new()
            .write(true)
            .open(&disk)
            .expect("writable");
        let mut header = [0u8; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&2u64.to_le_bytes());
        // As many entries as a hostile table claims, of which three are read.
        header[80..84].copy_from_slice(&u32::MAX.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        file.write_all_at(&header, at * sector).expect("a write");
        let first = MIB / sector;
        let mut partition = [0u8; 128];
        partition[..16].fill(7);
        partition[32..40].copy_from_slice(&first.to_le_bytes());
        partition[40..48].copy_from_slice(&(first + 4 * MIB / sector - 1).to_le_bytes());
        file.write_all_at(&partition, 2 * sector + 2 * 128)
            .expect("a write");
        put(&disk, MIB, &image);
        let booted = boot(&raw(&disk), &Choice::default()).expect(name);
        assert_eq!(booted.entry.options, "root=/dev/xvda3 ro", "{name}");
    }
}

#[test]
fn what_can_t_be_booted_is_named() {
    let room = Room::new();
    let btrfs = room.path("btrfs");
    create::create_raw(&btrfs, MIB).expect("a disk");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&btrfs)
        .expect("writable");
    file.write_all_at(b"_BHRfS_M", 0x10040).expect("a write");
    let error = boot(&raw(&btrfs), &Choice::default())
        .expect_err("btrfs")
        .to_string();
    assert!(error.contains("the disk is btrfs"), "{error}");
    let empty = room.ext("empty", "ext4", &[("/etc/hostname", "x")]);
    let error = boot(&raw(&empty), &Choice::default()).expect_err("no kernel");
    assert!(matches!(error, BootError::NoKernel { .. }), "{error}");
    let dangling = room.ext(
        "dangling",
        "ext4",
        &[("/boot/grub/grub.cfg", "menuentry x {\nlinux /gone\n}")],
    );
    let error = boot(&raw(&dangling), &Choice::default()).expect_err("no kernel");
    assert!(matches!(error, BootError::NoKernel { .. }), "{error}");
    let missing = boot(&raw(&room.path("missing")), &Choice::default()).expect_err("no disk");
    assert!(missing.to_string().contains("No such file"), "{missing}");
}

/// An entry whose kernel was removed does not keep the others from booting.
#[test]
fn a_stale_default_gives_way() {
    let room = Room::new();
    let grub =
        "menuentry gone { linux /boot/gone\n}\nmenuentry there {\nlinux /boot/vmlinuz-6.1 x\n}";
    let mut files = ROOT.to_vec();
    files.push(("/boot/grub/grub.cfg", grub));
    let image = room.ext("stale", "ext4", &files);
    assert_eq!(
        boot(&raw(&image), &Choice::default())
            .expect("boots")
            .entry
            .title,
        "there"
    );
}
