//! Disks and texts that were made to harm us.

use std::{fs, sync::OnceLock, time::Duration};

use nix::time::{ClockId, clock_gettime};
use proptest::prelude::*;

use super::{
    super::{BootError, Choice, Disk, boot, extlinux, grub, legacy},
    Memory,
    disks::Room,
};
use crate::config::disk::Format;

const SECONDS: u64 = 20;

fn quickly(text: &str) {
    let start = processor_time();
    for path in [
        "/boot/grub/grub.cfg",
        "/boot/grub/menu.lst",
        "/extlinux.conf",
    ] {
        let files = Memory::with(&[(path, text)]);
        let _ = grub::find(&files, "/boot/grub");
        let _ = legacy::find(&files, path);
        let _ = extlinux::find(&files, path);
    }
    let took = processor_time() - start;
    assert!(took.as_secs() < SECONDS, "{took:?} for {:.60}", text);
}

/// What this thread has used: others on the machine do not count.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    Duration::from(now.expect("a thread has a clock"))
}

/// Depth, doubling, and as much of everything as fits into a file.
#[test]
fn texts_that_grow() {
    for text in [
        "{ ".repeat(400_000),
        "if ".repeat(300_000),
        "if true; then ".repeat(60_000),
        "while for until do done fi } ".repeat(30_000),
        "submenu x { ".repeat(80_000),
        "menuentry x { linux /k $a$a$a$a\n} ".repeat(25_000),
        format!("set a=aaaaaaaaaaaaaaaa\n{}", "set a=$a$a\n".repeat(80_000)),
        format!(
            "set a=\"{}\"\n{}",
            "b ".repeat(2000),
            "linux /k $a$a$a $a\n".repeat(40_000)
        ),
        (0..40_000)
            .map(|n| format!("set v{n}={}\n", "x".repeat(10)))
            .collect::<String>()
            + &"menuentry x {}\n".repeat(20_000),
        "title x\nkernel /k\n".repeat(50_000),
        "label x\nkernel /k\n".repeat(50_000),
        "\"".repeat(1_000_000),
        "\\".repeat(1_000_000),
        "$".repeat(1_000_000),
        "[ ! ! ! ! ".repeat(90_000),
    ] {
        quickly(&text);
    }
}

proptest! {
    #[test]
    fn any_text(text in "\\PC{0,200}") {
        quickly(&text);
    }

    #[test]
    fn any_text_near_the_form(
        text in "(if |then|else|elif |fi|\\[ |\\]|menuentry|submenu|'|\"|\\{|\\}|\\$a|\\$\\{b\\}|=|;|\n|set |linux /k|>|é|title |label |kernel |while |do|done){0,60}"
    ) {
        quickly(&text);
    }
}

fn sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let room = Room::new();
        let long = "x".repeat(300_000);
        let image = room.ext(
            "sample",
            "ext4",
            &[
                (
                    "/boot/grub/grub.cfg",
                    "menuentry a {\nlinux /boot/vmlinuz-1 ro\ninitrd /boot/initrd.img-1\n}",
                ),
                ("/boot/vmlinuz-1", &long),
                ("/boot/initrd.img-1", &long),
            ],
        );
        fs::read(image).expect("readable")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bytes of the metadata flipped, the image cut: a kernel or an error, soon.
    #[test]
    fn damaged_file_systems(
        flips in prop::collection::vec((0usize..400_000, 1u8..), 0..40),
        head in prop::collection::vec((1024usize..8192, 1u8..), 0..6),
        cut in prop::option::of(0usize..4 << 20),
    ) {
        let mut bytes = sample().to_vec();
        for (at, value) in flips.into_iter().chain(head) {
            bytes[at] ^= value;
        }
        bytes.truncate(cut.unwrap_or(bytes.len()));
        let room = Room::new();
        let path = room.path("damaged");
        fs::write(&path, bytes).expect("a file");
        let disk = Disk { path: &path, format: Format::Raw, vdev: "xvda" };
        let start = processor_time();
        let booted = boot(&disk, &Choice::default());
        prop_assert!((processor_time() - start).as_secs() < SECONDS);
        prop_assert!(!matches!(booted, Err(BootError::Bug { .. })), "{:?}", booted.err());
    }

    /// A table that says anything.
    #[test]
    fn any_partition_table(
        mbr in prop::collection::vec(any::<u8>(), 64),
        kinds in prop::collection::vec(prop::sample::select(vec![0u8, 5, 0xf, 0x83, 0xee]), 4),
        second in prop::collection::vec(any::<u8>(), 2048),
    ) {
        let mut bytes = vec![0u8; 64 * 1024];
        bytes[446..510].copy_from_slice(&mbr);
        for (i, kind) in kinds.into_iter().enumerate() {
            bytes[446 + 16 * i + 4] = kind;
        }
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes[512..2560].copy_from_slice(&second);
        bytes[512..520].copy_from_slice(b"EFI PART");
        let room = Room::new();
        let path = room.path("table");
        fs::write(&path, bytes).expect("a file");
        let disk = Disk { path: &path, format: Format::Raw, vdev: "xvda" };
        let booted = boot(&disk, &Choice::default());
        prop_assert!(!matches!(booted, Err(BootError::Bug { .. })), "{:?}", booted.err());
    }
}
