//! A guest's disk beside the same file on the host: the same program, direct
//! and asynchronous I/O on both sides.

use std::{fs, path::Path, process::Command};

use domus_tests::harness::{Config, Guest, Installation, user_program};

use super::{load::costs, qemu};

const MIB: u64 = 256;
const SECONDS: u64 = 3;
const DEPTH: u64 = 32;
/// The best of so many counts: a busy machine only ever takes away.
const ROUNDS: u32 = 3;

/// Prints the ratios.
pub fn disks() {
    let domus = Installation::new();
    let (image, program) = (domus.path("disk"), user_program("blkload"));
    // Written, so that no hole and no first allocation is measured.
    fs::write(
        &image,
        vec![0x55; 1 << 20].repeat(usize::try_from(MIB).expect("it fits")),
    )
    .expect("room for a disk");
    let bytes = fs::read(&program).expect("built just now");
    let config = Config::debian_with_modules("disks")
        .program("blkload", &bytes)
        .line(&format!(
            "disk = [\"format=raw,vdev=xvda,access=rw,target={}\"]",
            image.display()
        ));
    let on_host = |work: &str| {
        let args = work.replace("DISK", image.to_str().expect("a path of ours"));
        number(&host(&program, &args))
    };
    let works = [
        (
            "sequential read, 1 MiB",
            format!("sequential read DISK {MIB}"),
            "MiB/s",
            90,
            "MiB",
        ),
        (
            "sequential write, 1 MiB",
            format!("sequential write DISK {MIB}"),
            "MiB/s",
            90,
            "MiB",
        ),
        (
            "random read, 4 KiB, 32 under way",
            format!("random DISK {SECONDS} {DEPTH}"),
            "IOPS",
            50,
            "request",
        ),
    ];
    let mut guest = Guest::boot(&domus, &config);
    guest.run("load xen-blkfront; while [ ! -b /dev/xvda ]; do usleep 100000; done");
    let mut found = Vec::new();
    for (name, work, unit, target, thing) in works {
        let there = format!("blkload {}", work.replace("DISK", "/dev/xvda"));
        // In turns: what else the machine does changes with time.
        let (mut host, mut inside) = (0.0_f64, 0.0_f64);
        for _ in 0..ROUNDS {
            host = host.max(on_host(&work));
            inside = inside.max(number(&guest.run(&there)));
        }
        println!(
            "{name}: guest {inside:.0} {unit}, host {host:.0} {unit}: {:.0} % (target {target})",
            100.0 * inside / host
        );
        found.push((name, work, inside));
        let pieces = number_of_pieces(&guest.run(&there));
        costs(&domus, &mut guest, &there, pieces, thing);
    }
    domus.xm(&["destroy", "disks"]).ok();
    emulated(&domus, &image, &program, &found);
}

/// The same in QEMU's emulation, with virtio-blk.
fn emulated(domus: &Installation, image: &Path, program: &Path, found: &[(&str, String, f64)]) {
    let works = found.iter().map(|(_, work, _)| {
        let work = work.replace("DISK", "/dev/vda");
        format!("blkload {work}")
    });
    let works: Vec<_> = works.collect();
    let drive = format!(
        "file={},format=raw,if=none,id=disk,cache=none",
        image.display()
    );
    let devices = [
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=disk",
        "-nic",
        "none",
    ];
    let blkload = ("blkload", program);
    let said = qemu::run(domus.dir(), blkload, "virtio_blk", "", &works, &devices);
    for ((name, _, inside), said) in found.iter().zip(said.unwrap_or_default()) {
        let emulated = number(&said);
        println!(
            "{name}, in QEMU's TCG with virtio-blk: {emulated:.0}; Domus is {:.1} times as fast",
            inside / emulated
        );
    }
}

fn host(program: &Path, args: &str) -> String {
    let out = Command::new(program).args(args.split(' ')).output();
    let out = out.expect("blkload runs");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The number before the unit at a line's end.
fn number(said: &str) -> f64 {
    let word = said.split_whitespace().rev().nth(1);
    let number = word.and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("no result: {said}"))
}

/// How many MiB or requests a line tells of.
fn number_of_pieces(said: &str) -> f64 {
    let number = said.split(' ').next().and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("no number: {said}"))
}
