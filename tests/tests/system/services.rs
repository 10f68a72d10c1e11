//! Services that die under a running guest.
//!
//! **Mechanism.** Each service is a process of its own. xenstored keeps a
//! journal, xenconsoled keeps nothing that it can't find again; the
//! hypervisor holds the domains, and they go with it.
//!
//! **Scenario.** Each is killed as by a crash while a guest runs; the next
//! `xm` says what was lost and starts it again. The guest goes on without
//! knowing, can be typed to, and can still be asked to shut down.
//!
//! **Limits.** Killed at rest, not in the middle of an operation: the journal's
//! own tests cut it at every byte.

use domus_tests::harness::{
    Config, Guest, Installation, PATIENCE, Process, domains_can_run, eventually,
};

fn kill(domus: &Installation, name: &str) -> Process {
    let service = domus.service(name);
    service.kill();
    eventually("the service is dead", PATIENCE, || {
        (!service.lives()).then_some(())
    });
    service
}

#[test]
fn a_guest_outlives_xenstored_and_xenconsoled() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let mut guest = Guest::boot(&domus, &Config::debian("survivor"));
    for name in ["xenstored", "xenconsoled"] {
        let dead = kill(&domus, name);
        let list = domus.xm(&["list"]);
        let told = format!("{name} (process {}) had ended unexpectedly", dead.pid);
        assert!(list.err.contains(&told), "{list}");
        assert!(list.output().contains("survivor"));
        // `xm console` finds the new daemon by itself.
        guest.send("\n");
        assert_eq!(guest.run("echo after $((40 + 2))"), "after 42");
    }
    domus.xm(&["shutdown", "-w", "survivor"]).ok();
    domus.assert_no_domain();
}

#[test]
fn a_lost_hypervisor_is_told_of_and_started_again() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let config = Config::test_kernel("spin-masked");
    let file = config.write(&domus);
    let file = file.to_str().expect("a path of ours");
    domus.xm(&["create", file]).ok();
    let dead = kill(&domus, "domus-hypervisor");
    let list = domus.xm(&["list"]);
    for told in [
        format!(
            "domus-hypervisor (process {}) had ended unexpectedly",
            dead.pid
        ),
        "these domains with it: spin-masked (1)".to_owned(),
    ] {
        assert!(list.err.contains(&told), "{list}");
    }
    assert_eq!(list.code, Some(0), "{list}");
    domus.assert_no_domain();
    domus.xm(&["create", file]).ok();
    let list = domus.xm(&["list"]);
    assert!(list.err.is_empty(), "it is told of once: {list}");
    domus.xm(&["destroy", "spin-masked"]).ok();
    domus.assert_no_domain();
}
