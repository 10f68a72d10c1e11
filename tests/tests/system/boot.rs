//! A stock kernel boots, and is looked after.
//!
//! **Mechanism.** All of it: `xm` starts the services, the builder lays out
//! the domain, Debian's unmodified kernel finds itself on Xen, its user space
//! comes up on the PV console, and `control/shutdown` in xenstore ends it.
//!
//! **Scenario.** Guests of the sizes and vCPU counts that are promised; each
//! boots once, and all that can be asked of a living guest is asked of it.
//!
//! **Limits.** One kernel version, the one that the distribution ships now.

use std::{fs, thread, time::Duration};

use domus_tests::harness::{Config, Guest, Installation, PATIENCE, domains_can_run, eventually};
use serde_json::Value;

/// A restart is another boot.
const REBOOT: Duration = Duration::from_secs(300);

/// More traps than a boot of 256 MiB and one vCPU has: measured with nothing
/// answered ahead, and a fifth more. What grows beyond it has to be looked at.
const BOOT_AT_MOST: [(&str, u64); 8] = [
    ("VM entry", WITHOUT_RUN_AHEAD),
    ("mmu_update", 65_000),
    ("mmuext_op", 22_000),
    ("vcpu_op", 16_000),
    ("#GP", 10_000),
    ("#PF", 6_000),
    ("iret", 12_000),
    ("xen_version", 3_000),
];

/// Entries into the VM where no instruction is interpreted.
const WITHOUT_RUN_AHEAD: u64 = 150_000;
/// The same with run-ahead: measured at 2700, on a busy machine.
const WITH_RUN_AHEAD: u64 = 5_000;

/// 256 MiB, one vCPU: what people see of it, and what its boot cost.
#[test]
fn one_vcpu_is_shown_paused_and_shut_down() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let mut guest = Guest::boot(&domus, &Config::debian("one"));
    assert_eq!(guest.run("cat /sys/hypervisor/type"), "xen");
    assert_eq!(guest.run("nproc"), "1");
    assert_eq!(guest.try_run("exit 7 | false").1, 1);
    let kib = memory_of(&mut guest);
    assert!((150_000..262_144).contains(&kib), "{kib} KiB");
    shown(&domus, guest.id().0);
    pause_stops_the_clock_of_its_cpu(&domus);
    guest.run("true");
    let again = Config::debian("one").write(&domus);
    let again = domus.xm(&["create", again.to_str().expect("a path of ours")]);
    again.fails(1, "one");
    domus.xm(&["shutdown", "-w", "one"]).ok();
    guest.wait_for_console_end();
    domus.assert_no_domain();
    // A stock kernel makes no mistake (`mistakes.rs`), and is accused of none.
    let dmesg = domus.xm(&["dmesg"]).output();
    assert!(!dmesg.contains("Remedy: "), "{dmesg}");
    bounded_counts(&domus);
}

fn memory_of(guest: &mut Guest<'_>) -> u64 {
    let line = guest.run("grep MemTotal /proc/meminfo");
    let number = line.split_whitespace().nth(1);
    number.and_then(|n| n.parse().ok()).expect("MemTotal")
}

/// The formats that programs parse.
fn shown(domus: &Installation, id: u16) {
    let list = domus.xm(&["list"]).output();
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(
        lines[0],
        "Name                                        ID   Mem VCPUs      State   Time(s)"
    );
    assert!(lines[1].starts_with("Domain-0 "), "{list}");
    let fields: Vec<_> = lines[2].split_whitespace().collect();
    assert_eq!(fields[..4], ["one", &id.to_string(), "256", "1"], "{list}");
    assert!(
        ["r-----", "-b----", "------"].contains(&fields[4]),
        "{list}"
    );
    assert!(
        fields[5].parse::<f64>().is_ok_and(|time| time > 0.0),
        "{list}"
    );
    assert_eq!((lines.len(), fields.len()), (3, 6), "{list}");

    let list: Value = json(domus, &["list", "--json"]);
    assert_eq!(list[1]["name"], "one");
    assert_eq!(list[1]["memory_mib"], 256);
    let long: Value = json(domus, &["list", "-l", "one"]);
    assert_eq!(long[0]["config"]["c_info"]["name"], "one");

    let vcpus = domus.xm(&["vcpu-list", "one"]).output();
    let fields: Vec<_> = vcpus
        .lines()
        .nth(1)
        .expect("a row")
        .split_whitespace()
        .collect();
    assert_eq!(fields[..3], ["one", &id.to_string(), "0"], "{vcpus}");
    assert_eq!(fields[6..], ["any", "cpu"], "{vcpus}");
    assert_eq!(
        json(domus, &["vcpu-list", "--json", "one"])[0]["name"],
        "one"
    );

    let info = domus.xm(&["info"]).output();
    for key in [
        "host",
        "xen_major",
        "xen_caps",
        "free_memory",
        "cc_compile_date",
    ] {
        let head = format!("{key:<23}: ");
        assert!(
            info.lines().any(|line| line.starts_with(&head)),
            "no {key} in {info}"
        );
    }
    assert_eq!(json(domus, &["info", "--json"])["xen_major"], 4);

    let uptime = domus.xm(&["uptime", "one"]).output();
    assert_eq!(
        uptime.lines().next(),
        Some("Name                                ID Uptime")
    );
    assert!(json(domus, &["uptime", "--json", "one"])[0]["uptime_s"].is_u64());
    assert!(domus.xm(&["dmesg"]).output().starts_with("(XEN) Domus "));
    assert_eq!(domus.xm(&["domname", &id.to_string()]).output(), "one\n");
    domus
        .xm(&["list", "nobody"])
        .fails(3, "Domain 'nobody' does not exist.");
}

fn json(domus: &Installation, args: &[&str]) -> Value {
    let text = domus.xm(args).output();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn state_and_time(domus: &Installation, name: &str) -> (String, f64) {
    let list: Value = json(domus, &["list", "--json", name]);
    let state = list[0]["state"].as_str().expect("a state").to_owned();
    (state, list[0]["cpu_time_s"].as_f64().expect("a time"))
}

fn pause_stops_the_clock_of_its_cpu(domus: &Installation) {
    domus.xm(&["pause", "one"]).ok();
    let (state, before) = state_and_time(domus, "one");
    assert_eq!(state, "--p---");
    thread::sleep(Duration::from_secs(2));
    let (_, after) = state_and_time(domus, "one");
    assert!((after - before).abs() < 0.05, "{before} s, then {after} s");
    domus.xm(&["unpause", "one"]).ok();
}

/// The hypervisor's log tells, at the end of a domain, what it had done.
fn bounded_counts(domus: &Installation) {
    let log = fs::read_to_string(domus.path("log/domus-hypervisor.log")).expect("a log");
    let counts = log
        .lines()
        .find_map(|line| line.split_once("destroyed domain=1 counts="));
    let counts = counts.expect("the counts in the log").1;
    println!("counts of the boot, the checks and the shutdown: {counts}");
    let ahead = domus
        .xm(&["dmesg"])
        .output()
        .lines()
        .next()
        .is_some_and(|line| line.contains("run-ahead"));
    for (name, most) in BOOT_AT_MOST {
        let most = match most {
            WITHOUT_RUN_AHEAD if ahead => WITH_RUN_AHEAD,
            most => most,
        };
        let count = counts
            .split(", ")
            .find_map(|one| one.strip_prefix(name)?.trim().parse().ok());
        let count: u64 = count.unwrap_or(0);
        assert!(count <= most, "{name}: {count}, more than {most}: {counts}");
    }
}

/// Two vCPUs run and interrupt each other; `reboot` inside gives a new domain;
/// a domain that is to be preserved is.
#[test]
fn two_vcpus_reboot_and_are_preserved() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let config = Config::debian("two")
        .vcpus(2)
        .line("on_poweroff = \"preserve\"");
    let mut guest = Guest::boot(&domus, &config);
    assert_eq!(guest.run("nproc"), "2");
    let before = interrupts(&mut guest);
    guest.run("for i in 1 2 3 4 5 6 7 8; do (true | cat | cat) & done; wait");
    let after = interrupts(&mut guest);
    assert!(after > before, "IPIs: {before}, then {after}");
    let id = guest.id();
    guest.send("reboot\n");
    eventually("the domain comes back", REBOOT, || {
        let list: Value = json(&domus, &["list", "--json"]);
        let found = list.as_array()?.iter().find(|d| d["name"] == "two")?["domid"].as_u64()?;
        (found != u64::from(id.0)).then_some(())
    });
    guest.attach_again();
    guest.wait_for_shell();
    assert_eq!(guest.run("nproc"), "2");
    guest.send("poweroff\n");
    eventually("the domain is shut down", REBOOT, || {
        (state_and_time(&domus, "two").0 == "---s--").then_some(())
    });
    domus.xm(&["destroy", "two"]).ok();
    domus.assert_no_domain();
}

fn interrupts(guest: &mut Guest<'_>) -> u64 {
    let lines = guest.run("grep -E 'RES:|CAL:' /proc/interrupts");
    let numbers = lines
        .split_whitespace()
        .filter_map(|word| word.parse::<u64>().ok());
    numbers.sum()
}

/// 128 MiB is enough, and a kernel that panics is kept to be looked at.
#[test]
fn a_small_guest_panics_and_is_preserved() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let config = Config::debian("small")
        .memory(128)
        .line("on_crash = \"preserve\"");
    let mut guest = Guest::boot(&domus, &config);
    guest.send("echo c > /proc/sysrq-trigger\n");
    eventually("the domain has crashed", PATIENCE, || {
        (state_and_time(&domus, "small").0 == "----c-").then_some(())
    });
    let log = eventually("the monitor's report", PATIENCE, || {
        let log = fs::read_to_string(domus.path("log/xm-small.log")).ok()?;
        log.contains("calls, as far as the stack tells")
            .then_some(log)
    });
    assert!(log.contains("panic"), "no symbol of the kernel in {log}");
    domus.xm(&["destroy", "small"]).ok();
    domus.assert_no_domain();
}

/// 2 GiB, destroyed while it runs.
#[test]
fn a_large_guest_is_destroyed() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let mut guest = Guest::boot(&domus, &Config::debian("large").memory(2048));
    let kib = memory_of(&mut guest);
    assert!((1_900_000..2_097_152).contains(&kib), "{kib} KiB");
    domus.xm(&["destroy", "large"]).ok();
    guest.wait_for_console_end();
    domus.assert_no_domain();
}
