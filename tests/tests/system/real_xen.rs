//! The same kernels on the original: Debian's Xen, inside QEMU.
//!
//! **Mechanism.** QEMU's emulated PC starts Xen with one of our kernels as its
//! first domain. Both consoles of such a kernel are Xen's serial line.
//!
//! **Scenario.** Each kernel that needs no other domain runs on Xen and on
//! Domus. What it says, numbers masked, must be the same: so the crate
//! `guest-abi` and our hypervisor are held to the original, not to each other.
//!
//! **Limits.** The first domain of a Xen is privileged and has no xenstore;
//! timing and frame numbers are not compared, nor are
//! several vCPUs: two emulated ones wake each other too slowly to be timed. Xen runs with `pv-linear-pt=off`,
//! which Domus has always (`docs/direct-paging.md`).

use std::{process::Command, time::Duration};

use domus_tests::{
    guest::xen,
    harness::{Config, Installation, Programs, Terminal, eventually, is_installed, kvm_is_usable},
};

/// From the start of QEMU to the end of a kernel, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// What Xen says when its first domain powers off.
const POWERED_OFF: &str = "Hardware Dom0 halted";

/// Runs a kernel as the first domain of a Xen; what it said.
fn on_xen(kernel: &str, arguments: &str) -> Vec<String> {
    let image = xen().unwrap_or_else(|error| panic!("no Xen: {error}"));
    let module = Programs::get().kernel(kernel);
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-m", "512"]);
    command.args(["-display", "none", "-serial", "stdio", "-monitor", "none"]);
    command.arg("-no-reboot").arg("-kernel").arg(image);
    command.args([
        "-append",
        "console=com1 loglvl=warning noreboot dom0_mem=64M pv-linear-pt=off",
    ]);
    let module = format!("{} {arguments}", module.display());
    command.args(["-initrd", module.trim_end()]);
    let mut terminal = Terminal::start(command);
    let all = terminal.wait_for(POWERED_OFF, PATIENCE);
    said(kernel, all.lines())
}

/// Runs a kernel as a domain of Domus; what it said.
fn on_domus(kernel: &str) -> Vec<String> {
    let domus = Installation::new();
    let config = Config::test_kernel(kernel).memory(64);
    let file = config.write(&domus);
    domus
        .xm(&["create", file.to_str().expect("a path of ours")])
        .ok();
    eventually("the kernel powers off", PATIENCE, || {
        let list = domus.xm(&["list"]).output();
        (!list.contains(kernel)).then_some(())
    });
    let dmesg = domus.xm(&["dmesg"]).output();
    said(kernel, dmesg.lines())
}

/// The kernel's own lines, numbers masked.
fn said<'a>(kernel: &str, lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let own = [format!("{kernel}:"), "  ".into(), "DOMUS-TEST:".into()];
    let begin = format!("{kernel}:");
    lines
        .map(|line| match line.strip_prefix("(d") {
            Some(rest) => rest.split_once(") ").map_or(line, |(_, text)| text),
            None => line,
        })
        .skip_while(|line| !line.starts_with(&begin))
        .filter(|line| own.iter().any(|own| line.starts_with(own.as_str())))
        .map(mask)
        .collect()
}

/// `0x1f` and `42` become `#`.
fn mask(line: &str) -> String {
    let mut masked = String::new();
    let mut rest = line.trim_end();
    while let Some(first) = rest.chars().next() {
        let hex = rest.strip_prefix("0x");
        let digits = hex.map_or(rest, |digits| digits);
        let is_digit = |c: char| match hex {
            Some(_) => c.is_ascii_hexdigit(),
            None => c.is_ascii_digit(),
        };
        let end = digits.find(|c| !is_digit(c)).unwrap_or(digits.len());
        if end > 0 {
            masked.push('#');
            rest = &digits[end..];
        } else {
            masked.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    masked
}

/// That a kernel says the same on both, but for lines that begin with one of
/// `only_on_xen`.
fn same_on_both(kernel: &str, arguments: &str, only_on_xen: &[&str]) {
    if !is_installed("qemu-system-x86_64", "qemu-system-x86") {
        return;
    }
    let xen = on_xen(kernel, arguments);
    let good = xen
        .iter()
        .any(|line| line.starts_with("DOMUS-TEST: SUCCESS"));
    assert!(good || kernel == "hello", "on Xen: {xen:#?}");
    if !kvm_is_usable() {
        return;
    }
    let common = |line: &String| !only_on_xen.iter().any(|only| line.starts_with(only));
    let xen: Vec<_> = xen.into_iter().filter(common).collect();
    assert_eq!(xen, on_domus(kernel), "Xen's is the left one");
}

#[test]
fn hello_runs_on_xen_too() {
    same_on_both("hello", "", &[]);
}

#[test]
fn event_channels_are_xens() {
    same_on_both("events", "", &[]);
}

/// The kernel leaves out what the first domain of a Xen may do. All else that
/// it says on Xen it says on Domus.
#[test]
fn page_tables_are_refused_as_by_xen() {
    if !is_installed("qemu-system-x86_64", "qemu-system-x86") || !kvm_is_usable() {
        return;
    }
    let mut xen = on_xen("paging-attacks", "");
    let domus = on_domus("paging-attacks");
    assert!(xen.len() > 100, "{xen:#?}");
    xen.retain(|line| !domus.contains(line));
    assert!(xen.is_empty(), "not on Domus: {xen:#?}");
}

/// `docs/boundary.md`: Domus has no strict mode of the machine-to-phys table.
/// QEMU's `iretq` loads an address that no processor takes; its kernel is told.
#[test]
fn user_mode_is_as_on_xen() {
    let strict = ["  ok: reading it in strict mode"];
    same_on_both("user-mode", "lax-iretq", &strict);
}

#[test]
fn numbers_are_masked() {
    assert_eq!(mask("a 0x1F, b12 0xg 7"), "a #, b# 0xg #");
}
