//! Debian's kernel to its user space on the software engine, beside QEMU's
//! emulation of a machine; and what an instruction of it costs.

use std::{
    fs,
    time::{Duration, Instant},
};

use domus_tests::{
    guest::READY,
    harness::{Config, Guest, Installation},
};

/// A domain's name, as the hypervisor's log has it not.
const NAME: &str = "soft";

/// Prints the ratio to `qemu`'s time, if there is one.
pub fn boot(patience: Duration, qemu: Option<Duration>) {
    let domus = Installation::with(&[("DOMUS_ENGINE", "soft")]);
    domus.xm(&["list"]).ok();
    let start = Instant::now();
    let mut guest = Guest::create(&domus, &Config::debian(NAME));
    guest.wait_for(READY, patience);
    let boot = start.elapsed();
    let seconds = cpu_seconds(&domus);
    domus.xm(&["destroy", NAME]).ok();
    println!("the same on the software engine: {boot:.2?}");
    if let Some(qemu) = qemu {
        println!(
            "  QEMU's TCG: {qemu:.2?}, ratio {:.2} (target 6, then 2)",
            boot.as_secs_f64() / qemu.as_secs_f64()
        );
    }
    if let Some(instructions) = interpreted(&domus) {
        println!(
            "  {:.0} million instructions, {:.1} ns of CPU time each, hypercalls included (target 10)",
            instructions / 1e6,
            seconds * 1e9 / instructions
        );
    }
}

/// The CPU time of the domain.
fn cpu_seconds(domus: &Installation) -> f64 {
    let list = domus.xm(&["list", NAME]).output();
    let last = list
        .lines()
        .last()
        .and_then(|line| line.split(' ').next_back());
    last.and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no time in {list:?}"))
}

/// Instructions executed, as the hypervisor's log tells at the vCPU's end.
fn interpreted(domus: &Installation) -> Option<f64> {
    let log = fs::read_to_string(domus.path("log/domus-hypervisor.log")).ok()?;
    let (_, counts) = log.split_once("instructions: ")?;
    counts.split(',').next()?.parse().ok()
}
