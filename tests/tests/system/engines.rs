//! The same guests on every engine, and from one to another while they run.
//!
//! **Mechanism.** `DOMUS_ENGINE` and `DOMUS_RUN_AHEAD` choose what executes guests'
//! code; `xm engine` changes it for one domain. A guest's state is its vCPUs'
//! registers and its memory, so it notices nothing.
//!
//! **Scenario.** Hostile kernels, a kernel of hard cases and the stock kernel with two
//! vCPUs without KVM; a program that does a bit of everything, and a 32-bit one, on each
//! engine; a loop without end, stopped again and again; twenty changes under load, whose checksums
//! are compared.
//!
//! **Limits.** All other tests of this directory run on the engine that the host
//! gives, or on that of `DOMUS_ENGINE`.

use crate::kernels::succeeds_on;
use domus_tests::harness::{
    Checked, Config, Guest, Installation, domains_can_run, eventually, kvm_is_usable, program32,
    user_program,
};
use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Changes of a domain's engine in the test.
const CHANGES: usize = 20;

/// The three engines, as the environment of an installation.
const SOFT: [(&str, &str); 2] = [("DOMUS_ENGINE", "soft"), ("DOMUS_RUN_AHEAD", "off")];
const KVM_ALONE: [(&str, &str); 2] = [("DOMUS_ENGINE", "kvm"), ("DOMUS_RUN_AHEAD", "off")];
const KVM_AHEAD: [(&str, &str); 2] = [("DOMUS_ENGINE", "kvm"), ("DOMUS_RUN_AHEAD", "on")];

fn soft() -> Installation {
    Installation::with(&SOFT)
}

/// Debian's kernel, and `mixed.rs` and `processor.rs` of `tests/guests/user` among its
/// programs.
fn with_programs(name: &str) -> Config {
    ["mixed", "processor"]
        .iter()
        .fold(Config::debian(name), |config, program| {
            let bytes = fs::read(user_program(program)).expect("built just now");
            config.program(program, &bytes)
        })
}

fn computes_the_same(guest: &mut Guest<'_>) {
    guest.run("ifconfig lo 127.0.0.1 up");
    assert_eq!(guest.run("mixed 7 2"), on_the_host(&["7", "2"]));
    // It knows what a processor does.
    let said = guest.run("processor");
    assert!(said.ends_with("\n0 WRONG"), "{said}");
}

/// What `mixed` says on this processor.
fn on_the_host(args: &[&str]) -> String {
    let said = Command::new(user_program("mixed")).args(args).output();
    let said = said.expect("a program for this machine").stdout;
    String::from_utf8_lossy(&said).trim_end().to_owned()
}

#[test]
fn hostile_kernels_on_the_software_engine() {
    for name in ["events", "user-mode", "paging-attacks", "wild-pointers"] {
        succeeds_on(&soft(), &Config::test_kernel(name));
    }
    for name in ["ping-pong", "bad-cases"] {
        succeeds_on(&soft(), &Config::test_kernel(name).vcpus(2));
    }
}

#[test]
fn hostile_kernels_without_run_ahead() {
    if !kvm_is_usable() {
        return;
    }
    let domus = || Installation::with(&KVM_ALONE);
    for name in ["user-mode", "paging-attacks"] {
        succeeds_on(&domus(), &Config::test_kernel(name));
    }
    succeeds_on(&domus(), &Config::test_kernel("bad-cases").vcpus(2));
}

/// The cases that are hard to execute, on KVM with run-ahead.
#[test]
fn bad_cases_with_run_ahead() {
    if kvm_is_usable() {
        let config = Config::test_kernel("bad-cases").vcpus(2);
        succeeds_on(&Installation::with(&KVM_AHEAD), &config);
    }
}

/// A bit of everything that programs do, signals and single steps among it, gives
/// what it gives on the host.
#[test]
fn programs_compute_the_same_on_kvm() {
    if !kvm_is_usable() {
        return;
    }
    for engine in [&KVM_ALONE, &KVM_AHEAD] {
        let domus = Installation::with(engine);
        let mut guest = Guest::boot(&domus, &with_programs("mixed"));
        computes_the_same(&mut guest);
        domus.xm(&["destroy", "mixed"]).ok();
    }
}

/// A kernel that loops for ever is stopped each time that somebody wants it. (How long
/// that takes is printed: a busy machine may make it long. What an engine executes
/// meanwhile is counted in `hypervisor/tests/interp/preempt.rs`.)
#[test]
fn an_endless_loop_is_stopped_on_every_engine() {
    let mut engines = vec![&SOFT];
    if kvm_is_usable() {
        engines.extend([&KVM_ALONE, &KVM_AHEAD]);
    }
    for engine in engines {
        let domus = Installation::with(engine);
        let file = Config::test_kernel("spin-masked").write(&domus);
        domus
            .xm(&["create", file.to_str().expect("a path of ours")])
            .ok();
        eventually("it spins", Duration::from_secs(60), || {
            let dmesg = domus.xm(&["dmesg"]).output();
            dmesg.contains("EXPECT-DESTROY").then_some(())
        });
        let (client, id) = (domus.client(), guest_abi::addr::DomId(1));
        let mut worst = Duration::ZERO;
        for _ in 0..50 {
            let start = Instant::now();
            client.pause_domain(id).expect("it is paused");
            worst = worst.max(start.elapsed());
            client.unpause_domain(id).expect("it goes on");
            thread::sleep(Duration::from_millis(2));
        }
        println!("{engine:?}: paused within {worst:?}");
        domus.xm(&["destroy", "spin-masked"]).ok();
        domus.assert_no_domain();
    }
}

/// Debian's kernel and user space, two vCPUs, no `/dev/kvm`.
#[test]
fn the_stock_kernel_on_the_software_engine() {
    let domus = soft();
    let mut guest = Guest::boot(&domus, &with_programs("soft").vcpus(2));
    assert_eq!(guest.run("nproc"), "2");
    let engine = domus.xm(&["engine", "soft"]).output();
    assert_eq!(engine.trim(), "soft");
    let dmesg = domus.xm(&["dmesg"]).output();
    assert!(dmesg.contains("engine soft: "), "{dmesg}");
    let refused = domus.xm(&["engine", "soft", "kvm"]);
    refused.fails(1, "--engine soft");
    assert_eq!(guest.run("seq 1 1000 | sha256sum"), host_sum());
    runs_32_bit_code(&mut guest);
    computes_the_same(&mut guest);
    assert!(!opens_kvm(&domus), "/dev/kvm is open");
    domus.xm(&["shutdown", "-w", "soft"]).ok();
    guest.wait_for_console_end();
    domus.assert_no_domain();
}

/// Two vCPUs under load change engines again and again, and notice nothing.
#[test]
fn a_domain_changes_engines_under_load() {
    if !domains_can_run() || !kvm_is_usable() {
        return;
    }
    let domus = Installation::with(&[("DOMUS_ENGINE", "kvm")]);
    let mut guest = Guest::boot(&domus, &with_programs("both").vcpus(2));
    runs_32_bit_code(&mut guest);
    guest.run("ifconfig lo 127.0.0.1 up");
    // Each line is a pipe of forks; or a bit of everything, with x87 and vector registers
    // in use, single steps and faults.
    let pipes = "until test -e /stop; do seq 1 1000 | sha256sum; /hello32 >/dev/null; done";
    let mixed = "until test -e /stop; do mixed 7 1; done";
    guest.run(&format!(
        "({pipes}) >/sums1 & ({pipes}) >/sums2 & ({mixed}) >/sums3 2>&1 & true"
    ));
    for change in 0..CHANGES {
        let engine = ["soft", "kvm"][change % 2];
        domus.xm(&["engine", "both", engine]).ok();
        assert_eq!(domus.xm(&["engine", "both"]).output().trim(), engine);
        thread::sleep(Duration::from_millis(300));
    }
    guest.run("touch /stop; wait");
    assert_eq!(guest.run("sort -u /sums1 /sums2"), host_sum());
    let lines = guest.run("cat /sums1 /sums2 | wc -l");
    assert!(
        lines.parse::<u32>().is_ok_and(|n| n >= 2),
        "{lines} checksums"
    );
    assert_eq!(guest.run("sort -u /sums3"), on_the_host(&["7", "1"]));
    let log = guest.run("dmesg | grep -cE 'segfault|BUG: |Oops|detected.*stall' || true");
    assert_eq!(log, "0", "{}", guest.run("dmesg | tail -40"));
    domus.xm(&["shutdown", "-w", "both"]).ok();
    guest.wait_for_console_end();
    domus.assert_no_domain();
}

/// Sampled stretches of a boot and of a mixed workload do the same interpreted and
/// on KVM, and KVM's own page tables are those in memory.
#[test]
fn sampled_code_does_the_same_interpreted_and_on_kvm() {
    if !domains_can_run() || !kvm_is_usable() {
        return;
    }
    let domus = Installation::with(&[("DOMUS_ENGINE", "kvm"), ("DOMUS_CHECK", "200")]);
    let mut guest = Guest::boot(&domus, &Config::debian("checked"));
    assert_eq!(guest.run("seq 1 1000 | sha256sum"), host_sum());
    guest.run("cp /bin/busybox /b; gzip -c /b | gunzip -c | cmp - /b");
    guest.run("for i in 1 2 3 4 5 6 7 8; do ls -lR /proc/1 >/dev/null 2>&1; sleep 0; done");
    assert_eq!(guest.run("awk 'BEGIN { print 355 / 113 }'"), "3.14159");
    domus.xm(&["shutdown", "-w", "checked"]).ok();
    guest.wait_for_console_end();
    let counts = checked(&domus);
    let [counts] = counts[..] else {
        panic!("one vCPU: {counts:?}");
    };
    assert!(
        counts.stretches > 50 && counts.steps > 500 && counts.probes > 50,
        "{counts:?}"
    );
    assert!(counts.compiled > 20, "{counts:?}");
}

/// The same with two vCPUs that are both busy: while a stretch of one is checked, the other
/// one stands still.
#[test]
fn two_vcpus_are_checked_one_at_a_time() {
    if !domains_can_run() || !kvm_is_usable() {
        return;
    }
    let domus = Installation::with(&[("DOMUS_ENGINE", "kvm"), ("DOMUS_CHECK", "200")]);
    let mut guest = Guest::boot(&domus, &Config::debian("still").vcpus(2));
    assert_eq!(guest.run("nproc"), "2");
    let load = "until test -e /stop; do seq 1 1000 | sha256sum; ls -lR /sys/class | wc -l; done";
    guest.run(&format!("({load}) >/sums1 & ({load}) >/sums2 & true"));
    guest.run("for i in 1 2 3 4 5; do sleep 1; done");
    guest.run("touch /stop; wait");
    let sums = guest.run("grep -h -- - /sums1 /sums2 | sort -u");
    assert_eq!(sums, host_sum());
    let log = guest.run("dmesg | grep -cE 'segfault|BUG: |Oops|detected.*stall' || true");
    assert_eq!(log, "0", "{}", guest.run("dmesg | tail -40"));
    domus.xm(&["shutdown", "-w", "still"]).ok();
    guest.wait_for_console_end();
    let counts = checked(&domus);
    assert_eq!(counts.len(), 2, "{counts:?}");
    for vcpu in &counts {
        assert!(vcpu.stretches > 50 && vcpu.compiled > 20, "{counts:?}");
    }
}

/// What the checker counted for each vCPU; it has found no difference.
fn checked(domus: &Installation) -> Vec<Checked> {
    let log = fs::read_to_string(domus.path("log/domus-hypervisor.log")).expect("its log");
    let counts: Vec<_> = log.lines().filter_map(Checked::in_line).collect();
    println!("{counts:?}");
    let differences: u64 = counts.iter().map(|vcpu| vcpu.differences).sum();
    assert_eq!(differences, 0, "{}", domus.xm(&["dmesg"]).output());
    counts
}

/// What `seq 1 1000 | sha256sum` says.
fn host_sum() -> String {
    let output = Command::new("sh")
        .args(["-c", "seq 1 1000 | sha256sum"])
        .output();
    let output = output.expect("a shell").stdout;
    String::from_utf8_lossy(&output).trim().to_owned()
}

/// Whether the hypervisor has `/dev/kvm` open.
fn opens_kvm(domus: &Installation) -> bool {
    let info = domus.client().host_info().expect("HostInfo");
    let open = fs::read_dir(format!("/proc/{}/fd", info.pid)).expect("its descriptors");
    open.flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|path| path.to_string_lossy().contains("kvm"))
}

/// Writes a program of 32-bit code into the guest and runs it: it prints by
/// `int 0x80` and ends with 42.
fn runs_32_bit_code(guest: &mut Guest<'_>) {
    let octal: String = program32()
        .iter()
        .map(|byte| format!("\\{byte:03o}"))
        .collect();
    guest.run(&format!("printf '{octal}' >/hello32; chmod +x /hello32"));
    let (said, code) = guest.try_run("/hello32");
    assert_eq!(
        (said.lines().last(), code),
        (Some("hello from 32 bits"), 42),
        "{said}"
    );
}
