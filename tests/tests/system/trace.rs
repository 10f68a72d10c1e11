//! `xm trace` beside the hypervisor's own counters.
//!
//! **Mechanism.** A trace records each hypercall, exception and delivery where
//! the hypervisor counts it.
//!
//! **Scenario.** A kernel is traced from before its first instruction to its
//! shutdown; then the trace's table and the counters are compared, name by name.
//!
//! **Limits.** Both numbers are taken in the same process: that the guest did
//! what they say is for the kernels' own tests.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Stdio},
};

use domus_tests::harness::{
    Config, Guest, Installation, PATIENCE, Programs, eventually, kvm_is_usable,
};
use guest_abi::addr::DomId;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// `xm trace`, once it listens.
struct Tracing {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
}

impl Tracing {
    fn start(domus: &Installation, args: &[&str]) -> Self {
        let mut command = domus.command(Programs::get().program("xm"));
        command.arg("trace").args(args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("xm starts");
        let mut errors = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        errors.read_line(&mut line).expect("it says something");
        assert!(line.starts_with("Tracing domain"), "{line}");
        Tracing { child, errors }
    }

    /// Ends it as Ctrl+C does: what it printed, and what it said on the way.
    fn interrupt(self) -> (String, String) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGINT).expect("it still runs");
        self.wait()
    }

    fn wait(mut self) -> (String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        let mut pipe = self.child.stdout.take().expect("a pipe");
        pipe.read_to_string(&mut out).expect("text");
        self.errors.read_to_string(&mut err).expect("text");
        self.child.wait().expect("one's own child");
        (out, err)
    }
}

fn create_paused(domus: &Installation, kernel: &str) {
    let config = Config::test_kernel(kernel)
        .line("on_poweroff = \"preserve\"")
        .line("on_crash = \"preserve\"");
    let file = config.write(domus);
    let file = file.to_str().expect("a path of ours");
    domus.xm(&["create", "-p", file]).ok();
}

fn run_to_shutdown(domus: &Installation, name: &str) {
    domus.xm(&["unpause", name]).ok();
    eventually("the domain shuts down", PATIENCE, || {
        let list = domus.xm(&["list", name]).output();
        let row = list.lines().nth(1)?;
        row.split_whitespace().nth(4)?.contains('s').then_some(())
    });
}

/// Calls by the hypercall's name, the operation left out.
fn by_hypercall(table: &Value) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for row in table["names"].as_array().expect("rows") {
        let name = row["name"].as_str().expect("a name");
        let name = name.split('.').next().unwrap_or(name).to_owned();
        *counts.entry(name).or_default() += row["calls"].as_u64().expect("a count");
    }
    counts
}

#[test]
fn its_table_agrees_with_the_hypervisors_counters() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    create_paused(&domus, "user-mode");
    let tracing = Tracing::start(&domus, &["user-mode", "-c", "--json", "-e", "all"]);
    run_to_shutdown(&domus, "user-mode");
    let (out, _) = tracing.interrupt();
    let table: Value = serde_json::from_str(&out).expect("one JSON value");
    assert!(agrees(&domus, "user-mode", &table) >= 8, "{table}");
}

/// How many kinds of the hypervisor's counters are as in a trace's table. All
/// have to be.
fn agrees(domus: &Installation, name: &str, table: &Value) -> usize {
    assert_eq!(table["lost"], 0);
    let traced = by_hypercall(table);
    let id = domus.xm(&["domid", name]).output();
    let id = DomId(id.trim().parse().expect("a number"));
    let counted = domus.client().domain_counters(id).expect("counters");
    let mut compared = 0;
    for (name, count) in counted {
        let name = match name.as_str() {
            "VM entry" | "kick" | "run-ahead instruction" => continue,
            "event delivered" => "upcall",
            "user syscall" => "syscall",
            name => name,
        };
        assert_eq!(traced.get(name), Some(&count), "{name}: {traced:?}");
        compared += 1;
    }
    compared
}

/// A whole boot of Debian, from its first instruction to its shutdown: nothing
/// is missing from the trace, and its shares add up to the vCPU's time.
#[test]
fn a_boot_shows_where_its_time_goes() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    let config = Config::debian("boot").line("on_poweroff = \"preserve\"");
    let mut tracing = None;
    let mut guest = Guest::create_by(&domus, &config, |file| {
        domus.xm(&[Path::new("create"), Path::new("-p"), file]).ok();
        let all = ["boot", "-c", "--json", "-e", "all"];
        tracing = Some(Tracing::start(&domus, &all));
        domus.xm(&["unpause", "boot"]).ok();
    });
    guest.wait_for_shell();
    domus.xm(&["shutdown", "boot"]).ok();
    let (out, said) = tracing.expect("it was started").wait();
    assert!(said.contains("has powered off"), "{said}");
    let table: Value = serde_json::from_str(&out).expect("one JSON value");
    let compared = agrees(&domus, "boot", &table);
    assert!(compared >= 20, "only {compared} kinds: {table}");
    let of = |name: &str| table["time"][name].as_u64().expect("nanoseconds");
    assert_eq!(
        of("traced_ns"),
        of("slept_ns") + of("served_ns") + of("guest_ns"),
        "{table}"
    );
    assert!(of("served_ns") > 0 && of("guest_ns") > 0, "{table}");
    let rows = table["names"].as_array().expect("rows");
    let mmu = rows.iter().find(|row| row["name"] == "mmu_update");
    let calls = mmu.and_then(|row| row["calls"].as_u64()).unwrap_or(0);
    assert!(calls > 1000, "a boot makes page tables: {table}");
    domus.xm(&["destroy", "boot"]).ok();
}

#[test]
fn a_trace_ends_with_its_domain_and_is_a_file_that_viewers_read() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    create_paused(&domus, "events");
    let file = domus.path("trace.json");
    let path = file.to_str().expect("a path of ours");
    let tracing = Tracing::start(&domus, &["events", "-o", path]);
    // Nobody else gets at the same records.
    let second = domus.xm(&["trace", "events", "-n", "1"]);
    second.fails(1, "somebody else traces domain");
    run_to_shutdown(&domus, "events");
    domus.xm(&["destroy", "events"]).ok();
    let (_, said) = tracing.wait();
    assert!(said.contains("the domain has ended"), "{said}");
    let text = fs::read_to_string(&file).expect("the file");
    let events: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let named = |name: &str| events.iter().filter(|it| it["name"] == name).count();
    assert!(named("event_channel_op.send") > 0 && named("upcall") > 0);
    let shutdown = events
        .iter()
        .find(|it| it["name"] == "sched_op.shutdown")
        .expect("the end is in it");
    assert_eq!(shutdown["args"]["reason"], "poweroff");
}

#[test]
fn what_cannot_be_traced_is_said() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    domus
        .xm(&["trace", "nobody"])
        .fails(3, "Domain 'nobody' does not exist");
    domus
        .xm(&["trace", "Domain-0"])
        .fails(1, "ordinary processes");
    let wrong = domus.xm(&["trace", "-e", "nothing", "nobody"]);
    assert_eq!(wrong.code, Some(1), "{wrong}");
}
