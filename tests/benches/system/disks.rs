//! A guest's disk beside the same file on the host: the same program, direct
//! and asynchronous I/O on both sides.

use std::{fs, path::Path, process::Command};

use domus_privcmd::client::Client;
use domus_tests::harness::{Config, Guest, Installation, user_program};
use guest_abi::addr::DomId;

const MIB: u64 = 256;
const SECONDS: u64 = 5;
const DEPTH: u64 = 32;

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
        ),
        (
            "sequential write, 1 MiB",
            format!("sequential write DISK {MIB}"),
            "MiB/s",
            90,
        ),
        (
            "random read, 4 KiB, 32 under way",
            format!("random DISK {SECONDS} {DEPTH}"),
            "IOPS",
            50,
        ),
    ];
    let host: Vec<f64> = works.iter().map(|work| best(|| on_host(&work.1))).collect();
    let mut guest = Guest::boot(&domus, &config);
    guest.run("load xen-blkfront; while [ ! -b /dev/xvda ]; do usleep 100000; done");
    for ((name, work, unit, target), host) in works.iter().zip(host) {
        let work = format!("blkload {}", work.replace("DISK", "/dev/xvda"));
        let inside = best(|| number(&guest.run(&work)));
        println!(
            "{name}: guest {inside:.0} {unit}, host {host:.0} {unit}: {:.0} % (target {target})",
            100.0 * inside / host
        );
    }
    notifications(&domus, &mut guest);
}

/// What a request costs in traps, with 32 under way.
fn notifications(domus: &Installation, guest: &mut Guest<'_>) {
    let (client, dom) = (domus.client(), guest.id());
    let before = counts(&client, dom);
    let said = guest.run(&format!("blkload random /dev/xvda {SECONDS} {DEPTH}"));
    let after = counts(&client, dom);
    let requests = said.split(' ').next().and_then(|word| word.parse().ok());
    let requests: f64 = requests.expect("blkload says how many");
    let each = |name: &str| {
        let of = |list: &[(String, u64)]| {
            let found = list.iter().find(|(counter, _)| counter == name);
            found.map_or(0, |(_, count)| *count)
        };
        (of(&after) - of(&before)) as f64 / requests
    };
    println!(
        "notifications by the guest per request: {:.3} (target 0.2); to it: {:.3}",
        each("event_channel_op"),
        each("event delivered")
    );
    for (name, _) in &after {
        if each(name) > 0.05 {
            println!("  {name}: {:.3} per request", each(name));
        }
    }
}

fn counts(client: &Client, dom: DomId) -> Vec<(String, u64)> {
    client.domain_counters(dom).expect("the domain's counters")
}

/// Of three: a busy machine only ever takes away.
fn best(mut run: impl FnMut() -> f64) -> f64 {
    (0..3).map(|_| run()).fold(0.0, f64::max)
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
