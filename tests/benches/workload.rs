//! A guest's user space with run-ahead and without, in one run: system calls,
//! page faults, processes, pipes.
//!
//! `cargo bench -p domus-tests --bench workload`. Each side is a domain of its own
//! with Debian's kernel; the program is `workload/guest.rs`. Times are the guest's.
//! Nothing is asserted, for a shared machine may slow either side.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use domus_tests::{
    guest::{
        self, READY,
        cpio::{Archive, Entry},
    },
    harness::{Config, Guest, Installation, Programs, kvm_is_usable},
};

const PATIENCE: Duration = Duration::from_secs(600);
/// What all parts together should gain.
const TARGET: f64 = 4.0;

/// A part of the program: its name, how often, and the seconds.
type Part = (String, f64, f64);

fn main() -> ExitCode {
    // `cargo test --benches` only wants to know that this can be started.
    if !env::args().any(|arg| arg == "--bench") || !kvm_is_usable() {
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(program) = compile(dir.path()) else {
        println!("SKIP: no static program could be made (apt install libc6-dev)");
        return ExitCode::SUCCESS;
    };
    let ramdisk = dir.path().join("initramfs");
    let mut image = fs::read(guest::prepare().expect("a guest").initramfs).expect("readable");
    // The kernel takes archives one after the other, aligned.
    image.resize(image.len().next_multiple_of(4), 0);
    let mut more = Archive::default();
    more.add("bin/workload", Entry::File(0o755, &program));
    image.extend(more.finish());
    fs::write(&ramdisk, image).expect("room");
    let off = run("off", &ramdisk);
    let on = run("on", &ramdisk);
    report(&off, &on);
    ExitCode::SUCCESS
}

fn compile(dir: &Path) -> Option<Vec<u8>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/workload/guest.rs");
    let program = dir.join("workload");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition=2024", "-O", "-Cstrip=symbols"])
        .arg("-Ctarget-feature=+crt-static")
        .arg("-o")
        .args([&program, &source])
        .status();
    status.ok()?.success().then_some(())?;
    fs::read(program).ok()
}

/// Boots a guest with run-ahead as said, and runs the program in it.
fn run(run_ahead: &str, ramdisk: &Path) -> Vec<Part> {
    let domus = Installation::new();
    let mut first = domus.command(Programs::get().program("xm"));
    first.arg("list").env("DOMUS_RUN_AHEAD", run_ahead);
    domus.run(first).ok();
    let mut config = Config::debian("workload");
    config.ramdisk = Some(ramdisk.to_owned());
    let start = Instant::now();
    let mut guest = Guest::create(&domus, &config);
    guest.wait_for(READY, PATIENCE);
    println!("run-ahead {run_ahead}: boot {:.2?}", start.elapsed());
    guest.send("\n");
    let said = guest.run("workload");
    domus.xm(&["destroy", "workload"]).ok();
    let log = fs::read_to_string(domus.path("log/domus-hypervisor.log")).unwrap_or_default();
    for line in log.lines().filter(|line| line.contains("vCPU ends")) {
        let counts = line
            .split_once("counts=")
            .map_or(line, |(_, counts)| counts);
        println!("  {counts}");
    }
    said.lines().filter_map(part).collect()
}

fn part(line: &str) -> Option<Part> {
    let mut words = line.trim().strip_prefix("PART ")?.split(' ');
    let name = words.next()?.to_owned();
    Some((
        name,
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
    ))
}

fn report(off: &[Part], on: &[Part]) {
    println!("{:<12}{:>14}{:>14}{:>9}", "", "off, us", "on, us", "ratio");
    for (without, with) in off.iter().zip(on) {
        let each = |part: &Part| part.2 / part.1 * 1e6;
        println!(
            "{:<12}{:>14.1}{:>14.1}{:>9.1}",
            with.0,
            each(without),
            each(with),
            without.2 / with.2
        );
    }
    let all = |parts: &[Part]| parts.iter().map(|part| part.2).sum::<f64>();
    println!(
        "{:<12}{:>12.2} s{:>12.2} s{:>9.1} (target {TARGET})",
        "all",
        all(off),
        all(on),
        all(off) / all(on)
    );
}
