//! Small PV kernels that attack the hypervisor, each in a domain of its own.
//!
//! **Mechanism.** A kernel of `tests/guests` makes its checks from inside and
//! gives its verdict on both consoles; its own page says what it attacks.
//!
//! **Scenario.** Each runs to its end. Its verdict, the shutdown reason, what
//! `xm dmesg` tells, and that the hypervisor serves another domain afterwards
//! are looked at from outside.
//!
//! **Limits.** A kernel that finds no bug has only not found one.

use std::{fs, time::Duration};

use domus_tests::harness::{Config, Installation, PATIENCE, domains_can_run, eventually};

/// The verdict line's mark.
const MARK: &str = "DOMUS-TEST: ";

/// As long as the slowest kernel takes on a slow and busy machine.
const LONG: Duration = Duration::from_secs(240);

/// A kernel that has said what it had to say.
struct Ended {
    verdict: String,
    state: String,
    dmesg: String,
}

/// Runs a kernel until its verdict, and to its end where it ends.
fn run(domus: &Installation, config: &Config) -> Ended {
    let config = config
        .clone()
        .line("on_poweroff = \"preserve\"")
        .line("on_crash = \"preserve\"");
    let file = config.write(domus);
    domus
        .xm(&["create", file.to_str().expect("a path of ours")])
        .ok();
    let verdict = eventually("the kernel's verdict", LONG, || {
        let dmesg = domus.xm(&["dmesg"]).output();
        let line = dmesg.lines().find_map(|line| line.split_once(MARK));
        line.map(|(_, verdict)| verdict.to_owned())
    });
    if !verdict.starts_with("EXPECT-DESTROY") {
        eventually("the domain shuts down", LONG, || {
            let state = state(domus, &config.name);
            state.contains(['s', 'c']).then_some(())
        });
    }
    Ended {
        verdict,
        state: state(domus, &config.name),
        dmesg: domus.xm(&["dmesg"]).output(),
    }
}

/// The six letters of `xm list`.
fn state(domus: &Installation, name: &str) -> String {
    let list = domus.xm(&["list", name]).output();
    let row = list.lines().nth(1).expect("a row");
    row.split_whitespace().nth(4).expect("a state").to_owned()
}

/// What the console daemon kept of a domain's console.
fn console_log(domus: &Installation, name: &str) -> String {
    let path = domus.path(&format!("log/console/{name}.log"));
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// That the hypervisor still runs domains.
fn assert_serves(domus: &Installation) {
    let ended = run_hello(domus);
    assert!(ended.contains("hello"), "{ended}");
}

fn run_hello(domus: &Installation) -> String {
    let config = Config::test_kernel("hello");
    let file = config.write(domus);
    domus
        .xm(&["create", file.to_str().expect("a path of ours")])
        .ok();
    eventually("hello ends", PATIENCE, || {
        let list = domus.xm(&["list"]).output();
        (!list.contains("hello")).then_some(())
    });
    domus.xm(&["dmesg"]).output()
}

/// A kernel that checks and reports.
fn succeeds(config: &Config) {
    if domains_can_run() {
        succeeds_on(&Installation::new(), config);
    }
}

/// The same in this installation, in which nothing has run.
pub(crate) fn succeeds_on(domus: &Installation, config: &Config) {
    let ended = run(domus, config);
    let name = &config.name;
    assert!(
        ended.verdict.starts_with(&format!("SUCCESS {name} ")),
        "{}\n{}\n{}",
        ended.verdict,
        ended.dmesg,
        console_log(domus, name)
    );
    assert_eq!(ended.state, "---s--", "{}", ended.dmesg);
    domus.xm(&["destroy", name]).ok();
    assert_serves(domus);
    domus.assert_no_domain();
}

#[test]
fn event_channels() {
    succeeds(&Config::test_kernel("events"));
}

#[test]
fn user_mode_stays_behind_its_wall() {
    succeeds(&Config::test_kernel("user-mode"));
}

#[test]
fn page_tables_are_never_writable() {
    succeeds(&Config::test_kernel("paging-attacks"));
}

#[test]
fn pointers_into_nowhere_give_efault() {
    succeeds(&Config::test_kernel("wild-pointers"));
}

#[test]
fn two_vcpus_wake_each_other() {
    succeeds(&Config::test_kernel("ping-pong").vcpus(2));
}

#[test]
fn hello_says_so() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let dmesg = run_hello(&domus);
    assert!(dmesg.contains("hello"), "{dmesg}");
    domus.assert_no_domain();
}

/// A crash tells what there is to know: registers and stack on the
/// hypervisor's console, a symbolised report in the monitor's log.
#[test]
fn an_early_crash_is_told_of() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let ended = run(&domus, &Config::test_kernel("early-crash"));
    assert!(
        ended.verdict.starts_with("EXPECT-CRASH "),
        "{}",
        ended.verdict
    );
    assert_eq!(ended.state, "----c-");
    let dmesg = &ended.dmesg;
    for told in [
        "domain 1 vCPU 0 crashed",
        "rip: ffffffff8000",
        "rsp: ffffffff800",
        "stack from rsp",
    ] {
        assert!(dmesg.contains(told), "no {told:?} in {dmesg}");
    }
    let log = eventually("the monitor's report", PATIENCE, || {
        let log = fs::read_to_string(domus.path("log/xm-early-crash.log")).ok()?;
        log.contains("calls, as far as the stack tells")
            .then_some(log)
    });
    assert!(
        log.contains("early_crash10start_rust+0x"),
        "no symbols in {log}"
    );
    domus.xm(&["destroy", "early-crash"]).ok();
    assert_serves(&domus);
    domus.assert_no_domain();
}

#[test]
fn a_fault_in_the_fault_handler_ends_the_domain() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let ended = run(&domus, &Config::test_kernel("trap-loop"));
    assert!(
        ended.verdict.starts_with("EXPECT-CRASH "),
        "{}",
        ended.verdict
    );
    assert_eq!(ended.state, "----c-");
    domus.xm(&["destroy", "trap-loop"]).ok();
    assert_serves(&domus);
    domus.assert_no_domain();
}

/// A guest that takes no event can't be asked to end, but can be paused,
/// looked at, and destroyed, and does not keep others from running.
#[test]
fn a_guest_that_never_lets_go_is_let_go_of() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let ended = run(&domus, &Config::test_kernel("spin-masked"));
    assert!(
        ended.verdict.starts_with("EXPECT-DESTROY "),
        "{}",
        ended.verdict
    );
    assert_serves(&domus);
    domus.xm(&["pause", "spin-masked"]).ok();
    assert_eq!(state(&domus, "spin-masked"), "--p---");
    domus.xm(&["unpause", "spin-masked"]).ok();
    domus.xm(&["shutdown", "spin-masked"]).ok();
    assert_eq!(state(&domus, "spin-masked"), "r-----");
    domus.xm(&["destroy", "spin-masked"]).ok();
    domus.assert_no_domain();
}

/// Whoever floods the console fills neither the hypervisor's memory nor the
/// daemon's nor the disk.
#[test]
fn a_flood_on_the_console_is_bounded() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    domus.xm(&["list"]).ok();
    let services = ["domus-hypervisor", "xenconsoled"].map(|name| domus.service(name));
    let before = services.each_ref().map(|p| p.footprint());
    let ended = run(&domus, &Config::test_kernel("console-flood"));
    assert!(ended.verdict.starts_with("SUCCESS "), "{}", ended.verdict);
    domus.xm(&["destroy", "console-flood"]).ok();
    for (service, before) in services.iter().zip(before) {
        let after = service.footprint();
        println!("{before:?} {after:?}");
        assert!(
            after.anonymous_kib < before.anonymous_kib + 8 * 1024,
            "{service:?}: {before:?}, then {after:?}"
        );
    }
    assert_serves(&domus);
    domus.assert_no_domain();
}
