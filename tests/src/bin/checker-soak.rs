//! Runs the checker over a mixed workload for as long as one likes.
//!
//! `checker-soak [--minutes M] [--every N] [--vcpus V]` boots Debian's kernel on KVM again
//! and again, with the checker at every N-th entry, and lets each guest do a bit of
//! everything (`tests/guests/user/mixed.rs`, busybox, a 32-bit program), on each of its V
//! vCPUs. What the guest computes is compared with this host's own; what the checker counted
//! is added up. It fails at the first difference.

use std::{
    env, fs,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use domus_tests::harness::{
    Checked, Config, Guest, Installation, kvm_is_usable, program32, user_program,
};

/// Rounds of the workload in one command.
const ROUNDS: u64 = 2;
/// The most that one command may take on a slow and busy machine.
const LONG: Duration = Duration::from_secs(600);
/// A guest lives so long, then another one boots.
const LIFE: Duration = Duration::from_secs(240);
/// What one pass of busybox does. What it prints is the same in every pass.
const BUSYBOX: &str = "cp /bin/busybox /b && gzip -c /b | gunzip -c | cmp - /b && \
    ls -lR /proc/1 /sys/class >/dev/null 2>&1; seq 1 2000 | sort -r | sha256sum; \
    dd if=/dev/zero of=/d bs=512 count=500 2>/dev/null; md5sum /d; \
    awk 'BEGIN { for (i = 1; i < 300; i++) s += i / 7; print s }'; \
    for i in 1 2 3 4 5 6 7 8; do sleep 0; done; find / -xdev | wc -l >/dev/null";
fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let (mut minutes, mut every, mut vcpus) = (60, 40, 1);
    for pair in args.chunks(2) {
        match (pair[0].as_str(), pair.get(1).and_then(|n| n.parse().ok())) {
            ("--minutes", Some(n)) => minutes = n,
            ("--every", Some(n)) => every = n,
            ("--vcpus", Some(n)) => vcpus = n,
            _ => {
                eprintln!("usage: checker-soak [--minutes M] [--every N] [--vcpus V]");
                return ExitCode::FAILURE;
            }
        }
    }
    if !kvm_is_usable() {
        eprintln!("checker-soak: the checker compares with KVM, which is not here");
        return ExitCode::FAILURE;
    }
    soak(Duration::from_secs(60 * minutes), every, vcpus)
}

fn soak(long: Duration, every: u64, vcpus: u64) -> ExitCode {
    let mixed = user_program("mixed");
    let program = fs::read(&mixed).expect("built just now");
    let every = every.to_string();
    let domus = Installation::with(&[("DOMUS_ENGINE", "kvm"), ("DOMUS_CHECK", &every)]);
    let config = Config::debian("soak")
        .vcpus(u32::try_from(vcpus).expect("a number of vCPUs"))
        .program("mixed", &program)
        .program("hello32", &program32());
    let start = Instant::now();
    let (mut seed, mut guests, mut passes) = (1, 0, 0);
    while start.elapsed() < long {
        let mut guest = Guest::boot(&domus, &config);
        guests += 1;
        let up = Instant::now();
        guest.run("ifconfig lo 127.0.0.1 up");
        let first = guest.run_within(BUSYBOX, LONG);
        for other in 1..vcpus {
            guest.run(&load(other));
        }
        while up.elapsed() < LIFE {
            let command = format!("mixed {seed} {ROUNDS}");
            assert_eq!(
                guest.run_within(&command, LONG),
                on_host(&mixed, seed),
                "{command}"
            );
            guest.run_within("hello32; test $? = 42", LONG);
            assert_eq!(guest.run_within(BUSYBOX, LONG), first);
            guest.run("test ! -e /wrong");
            (seed, passes) = (seed + 1, passes + 1);
        }
        domus.xm(&["shutdown", "-w", "soak"]).ok();
        guest.wait_for_console_end();
        let counts = counts(&domus);
        println!(
            "{:>4} min: {guests} boots, {passes} passes, {} stretches, {} steps, {} compiled, {} probes, {} differences",
            start.elapsed().as_secs() / 60,
            counts.stretches,
            counts.steps,
            counts.compiled,
            counts.probes,
            counts.differences
        );
        if counts.differences != 0 {
            print!("{}", domus.xm(&["dmesg"]).output());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Keeps one more vCPU busy until the guest ends: what it says is the same in each pass, too.
fn load(number: u64) -> String {
    format!(
        "(seq 1 2000 | sha256sum >/want{number}; while true; do \
         seq 1 2000 | sha256sum | cmp - /want{number} || echo WRONG >/wrong; \
         mixed {number} 1 >/dev/null; ls -lR /proc/1 >/dev/null 2>&1; done) >/dev/null 2>&1 & true"
    )
}

/// What the same program says here.
fn on_host(program: &std::path::Path, seed: u64) -> String {
    let said = Command::new(program)
        .args([seed.to_string(), ROUNDS.to_string()])
        .output()
        .expect("a program for this machine");
    String::from_utf8_lossy(&said.stdout).trim_end().to_owned()
}

/// The sum over all vCPUs that have ended.
fn counts(domus: &Installation) -> Checked {
    let log = fs::read_to_string(domus.path("log/domus-hypervisor.log")).unwrap_or_default();
    log.lines().filter_map(Checked::in_line).sum()
}
