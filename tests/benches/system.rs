//! What Domus costs, as ratios against a baseline of the same run on the same
//! machine.
//!
//! `cargo bench -p domus-tests --bench system`, and behind `--` the parts wanted:
//! `domains`, `boot`, `disks`, `network`. Times are the best of a few, for a busy
//! machine only ever adds. Nothing is asserted here: what must not grow is
//! counted in the system tests.

#[path = "system/disks.rs"]
mod disks;
#[path = "system/load.rs"]
mod load;
#[path = "system/network.rs"]
mod network;
#[path = "system/qemu.rs"]
mod qemu;
#[path = "system/software.rs"]
mod software;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use dom0_tools::builder::{self, BuildSpec, KernelImage};
use domus_privcmd::{
    client::Client,
    protocol::{CreateDomain, GrantLimits},
};
use domus_tests::{
    guest::{self, READY},
    harness::{Config, Guest, Installation, Programs, Terminal, kvm_is_usable},
};
use guest_abi::addr::DomId;
use tempfile::TempDir;
use uuid::Uuid;

const BOOT_PATIENCE: Duration = Duration::from_secs(300);
/// MiB of a small domain.
const SMALL: u64 = 4;
/// A loop of the shell: no system call, no page fault.
const LOOP: &str = "i=0; while [ $i -lt 2000000 ]; do i=$((i+1)); done";

fn main() -> ExitCode {
    // `cargo test --benches` only wants to know that this can be started.
    if !std::env::args().any(|arg| arg == "--bench") || !kvm_is_usable() {
        return ExitCode::SUCCESS;
    }
    // Fetched before anything is timed, and where there is a network.
    for fetched in [guest::prepare(), guest::prepare_with_drivers()] {
        fetched.unwrap_or_else(|error| panic!("no guest: {error}"));
    }
    let parts: [(&str, fn()); 4] = [
        ("domains", small_domains),
        ("boot", boot_and_compute),
        ("disks", disks::disks),
        ("network", network::network),
    ];
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    for (_, part) in parts
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|word| word == name))
    {
        part();
    }
    ExitCode::SUCCESS
}

/// The time from the create request to a small guest's first line, and the
/// hypervisor's memory for each domain that idles.
fn small_domains() {
    let domus = Installation::new();
    domus.xm(&["list"]).ok();
    let client = domus.client();
    let image = KernelImage::open(&Programs::get().kernel("spin-masked")).expect("a test kernel");
    let best = |n: u32| (0..n).map(|_| first_line(&client, &image)).min();
    first_line(&client, &image);
    let alone = best(5).expect("five");
    println!("create request to a small guest's first line: {alone:?} (target 10 ms)");
    let hypervisor = domus.service("domus-hypervisor");
    for others in [20u32, 100] {
        let before = hypervisor.footprint().anonymous_kib;
        let idle: Vec<_> = (0..others).map(|_| make(&client, &image)).collect();
        let each = (hypervisor.footprint().anonymous_kib - before) / u64::from(others);
        let among = best(5).expect("five");
        println!(
            "  among {others} others: {among:?}, ratio {:.2} (target 1.10)",
            among.as_secs_f64() / alone.as_secs_f64()
        );
        println!("hypervisor memory per idle domain of {others}: {each} KiB (target 1024)");
        for dom in idle {
            client.destroy_domain(dom).expect("destroyed");
        }
    }
}

/// A complete, paused domain.
fn make(client: &Client, image: &KernelImage) -> DomId {
    let wish = CreateDomain {
        dom: None,
        uuid: Uuid::new_v4(),
        max_vcpus: 1,
        max_pages: SMALL * 256,
        grants: GrantLimits::default(),
    };
    let dom = client.create_domain(wish).expect("a domain");
    let port = || {
        client
            .evtchn_alloc_unbound(dom, DomId::DOM0)
            .expect("a port")
    };
    let spec = BuildSpec {
        memory_pages: SMALL * 256,
        ramdisk: None,
        cmdline: String::new(),
        flags: 0,
        store_port: port(),
        console_port: port(),
    };
    builder::build(client, dom, image, &spec).expect("built");
    dom
}

fn first_line(client: &Client, image: &KernelImage) -> Duration {
    let (end, _) = client.read_console(u64::MAX, true).expect("the console");
    let start = Instant::now();
    let dom = make(client, image);
    client.unpause_domain(dom).expect("unpaused");
    while client
        .read_console(end, false)
        .expect("the console")
        .1
        .is_empty()
    {
        assert!(start.elapsed() < BOOT_PATIENCE, "the guest says nothing");
    }
    let took = start.elapsed();
    client.destroy_domain(dom).expect("destroyed");
    took
}

/// Debian's kernel to its user space, beside QEMU's emulation; and work in the
/// guest's user space beside the same program on the host.
fn boot_and_compute() {
    let kept = TempDir::new().expect("a directory");
    let domus = Installation::with(&[("DOMUS_CACHE_DIR", kept.path().to_str().expect("a name"))]);
    domus.xm(&["list"]).ok();
    let (first, guest) = boot(&domus);
    drop(guest);
    domus.xm(&["destroy", "bench"]).ok();
    let (again, mut guest) = boot(&domus);
    println!(
        "Debian's kernel to user space, 256 MiB, 1 vCPU: {first:.2?} at first, {again:.2?} with its kernel kept unpacked"
    );
    let qemu = qemu_boot();
    match qemu {
        Some(qemu) => println!(
            "  QEMU's TCG: {qemu:.2?}, ratio {:.2} at first, {:.2} then (target 0.33)",
            first.as_secs_f64() / qemu.as_secs_f64(),
            again.as_secs_f64() / qemu.as_secs_f64()
        ),
        None => println!("  SKIP beside QEMU: no qemu-system-x86_64 (apt install qemu-system-x86)"),
    }
    guest.send("\n");
    let inside = (0..3).map(|_| time_in(&mut guest)).fold(f64::MAX, f64::min);
    let busybox = domus.path("busybox");
    guest::extract_busybox(&busybox).expect("a busybox");
    let host = (0..3).map(|_| time_of(&busybox)).fold(f64::MAX, f64::min);
    println!(
        "a loop in the guest's user space: {inside:.2} s, on the host {host:.2} s: {:.1} % of native (target 98)",
        host / inside * 100.0
    );
    domus.xm(&["destroy", "bench"]).ok();
    let log = fs::read_to_string(domus.path("log/domus-hypervisor.log")).unwrap_or_default();
    if let Some((_, counts)) = log.split_once("counts=set_trap_table") {
        let counts = counts.lines().next().unwrap_or_default();
        println!("traps of that guest: set_trap_table{counts}");
    }
    software::boot(BOOT_PATIENCE, qemu);
}

/// From `xm create` to user space.
fn boot(domus: &Installation) -> (Duration, Guest<'_>) {
    let start = Instant::now();
    let mut guest = Guest::create(domus, &Config::debian("bench"));
    guest.wait_for(READY, BOOT_PATIENCE);
    (start.elapsed(), guest)
}

fn qemu_boot() -> Option<Duration> {
    let files = guest::prepare().ok()?;
    let mut command = Command::new("qemu-system-x86_64");
    Command::new("qemu-system-x86_64")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .ok()?;
    command
        .args([
            "-accel",
            "tcg",
            "-m",
            "256",
            "-nographic",
            "-no-reboot",
            "-net",
            "none",
        ])
        .arg("-kernel")
        .arg(files.kernel)
        .arg("-initrd")
        .arg(files.initramfs)
        .args(["-append", "console=ttyS0"]);
    let start = Instant::now();
    let mut terminal = Terminal::start(command);
    terminal.wait_for(READY, BOOT_PATIENCE);
    Some(start.elapsed())
}

/// Seconds of user time of the loop in the guest.
fn time_in(guest: &mut Guest<'_>) -> f64 {
    user_seconds(&guest.run(&format!("time -p sh -c '{LOOP}' 2>&1")))
}

fn time_of(busybox: &Path) -> f64 {
    let mut command = Command::new(busybox);
    command
        .args(["time", "-p"])
        .arg(busybox)
        .args(["sh", "-c", LOOP]);
    let output = command.output().expect("busybox runs");
    user_seconds(&String::from_utf8_lossy(&output.stderr))
}

fn user_seconds(text: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("user "));
    let seconds = line.and_then(|rest| rest.trim().parse().ok());
    seconds.unwrap_or_else(|| panic!("no user time in {text:?}"))
}
