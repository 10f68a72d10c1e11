//! Domains come and go, and nothing stays.
//!
//! **Mechanism.** A domain costs the hypervisor a VM, memory, threads and
//! ports, xenstored a subtree and a ring, xenconsoled a terminal. Its end has
//! to give back all of it.
//!
//! **Scenario.** Two hundred domains are created and destroyed while they run.
//! After a warm-up, what each service holds is compared with what it holds at
//! the end.
//!
//! **Limits.** Memory is compared with some slack, for an allocator keeps what
//! it got; descriptors, threads and mappings are compared by number, with a
//! little slack for mappings.

use std::{thread, time::Duration};

use domus_tests::harness::{
    Config, Footprint, Installation, PATIENCE, Process, domains_can_run, eventually,
};

const WARM_UP: usize = 20;
const CYCLES: usize = 200;
/// A page a cycle would be 800 KiB.
const SLACK_KIB: u64 = 600;

#[test]
fn two_hundred_domains_leave_nothing() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let file = Config::test_kernel("spin-masked").write(&domus);
    let file = file.to_str().expect("a path of ours");
    let cycle = || {
        domus.xm(&["create", "-q", file]).ok();
        domus.xm(&["destroy", "spin-masked"]).ok();
    };
    (0..WARM_UP).for_each(|_| cycle());
    domus.assert_no_domain();
    let services = ["domus-hypervisor", "xenstored", "xenconsoled"].map(|n| domus.service(n));
    let before = services.each_ref().map(at_rest);
    (0..CYCLES).for_each(|_| cycle());
    domus.assert_no_domain();
    for (service, before) in services.iter().zip(before) {
        let after = at_rest(service);
        println!("{}: {before:?}, then {after:?}", service.command);
        assert!(
            leaves_nothing(before, after),
            "{service:?}: {before:?}, then {after:?}"
        );
    }
    assert_eq!(domus.processes().len(), 3, "{:?}", domus.processes());
}

/// What a service holds when it has put away what it keeps for a moment: the
/// last words of a console wait two seconds for a reader.
fn at_rest(service: &Process) -> Footprint {
    let mut last = service.footprint();
    eventually("the service comes to rest", PATIENCE, || {
        thread::sleep(Duration::from_secs(3));
        let now = service.footprint();
        let rests = (now.descriptors, now.threads) == (last.descriptors, last.threads);
        last = now;
        rests.then_some(now)
    })
}

fn leaves_nothing(before: Footprint, after: Footprint) -> bool {
    after.anonymous_kib <= before.anonymous_kib + SLACK_KIB
        && after.shared_kib <= before.shared_kib + SLACK_KIB
        && after.descriptors <= before.descriptors
        && after.threads <= before.threads
        && after.mappings <= before.mappings + 8
}
