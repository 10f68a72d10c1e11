//! The labs of `docs/labs`: what a student sees is what its page says.
//!
//! **Mechanism.** The eight kernels are built as a student builds them, in
//! their own workspace, and run, most of them in one installation.
//!
//! **Limits.** What they print is looked for, not when.

use std::{fs, path::Path};

use domus_tests::harness::{Config, Installation, PATIENCE, Programs, eventually, kvm_is_usable};

/// Creates a domain of a lab with these lines in its configuration.
fn create(domus: &Installation, lab: &str, name: &str, more: &str) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/labs");
    let kernel = Programs::get().kernel_of(&sources, lab);
    let config = Config::own_kernel(name, &kernel).line(more);
    let file = config.write(domus);
    domus
        .xm(&["create", file.to_str().expect("a path of ours")])
        .ok();
}

/// Waits until the hypervisor's console has all these lines.
#[track_caller]
fn says(domus: &Installation, lines: &[&str]) {
    let mut missing = Vec::new();
    let all = eventually(&format!("{lines:#?}"), PATIENCE, || {
        let dmesg = domus.xm(&["dmesg"]).output();
        missing = lines
            .iter()
            .filter(|line| !dmesg.contains(**line))
            .collect();
        let over = missing.is_empty() || dmesg.contains("domain crashes");
        over.then_some(dmesg)
    });
    assert!(missing.is_empty(), "no {missing:?} in {all}");
}

#[test]
fn one_domain() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    create(&domus, "lab1-hello", "one", "");
    says(
        &domus,
        &["lab1: hello", "that gave 0, and a bad pointer -14"],
    );
    create(&domus, "lab2-traps", "two", "");
    let faults = [
        "lab2: reading 0: vector 14, error 0x0",
        "lab2: the machine-to-phys table: error 0x3",
        "lab2: no canonical address: vector 13",
    ];
    says(&domus, &faults);
    create(&domus, "lab3-tables", "three", "");
    let answers = [
        "lab3: mapped",
        "lab3: a page table, writable: EBUSY",
        "lab3: a page table, read-only: Ok(())",
        "lab3: a table that is mapped writable: EINVAL",
        "lab3: a table that maps a table writable: EBUSY",
    ];
    says(&domus, &answers);
    create(&domus, "lab6-store", "six", "");
    let store = [
        "lab6: I am six, at /local/domain/4",
        "lab6: fired: true",
        "lab6: fired: false",
        "lab6: writing in Dom0's home: Err(Refused(EACCES))",
    ];
    says(&domus, &store);
    create(&domus, "lab8-switch", "eight", "");
    let turns = [
        "lab8: ping says 1",
        "lab8: pong says 101",
        "lab8: pong says 103",
    ];
    says(&domus, &turns);
    let image = domus.path("lab.img");
    fs::write(&image, [&b"LAB SEVEN SECTOR"[..], &[0; 65520]].concat()).expect("room");
    let disk = format!("disk = [ \"file:{},xvda,r\" ]", image.display());
    create(&domus, "lab7-block", "seven", &disk);
    let block = [
        "lab7: a disk of 128 sectors",
        "lab7: response 42 status 0: LAB SEVEN SECTOR",
    ];
    says(&domus, &block);
    gone(&domus);
}

#[test]
fn two_domains() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    create(&domus, "lab4-events", "ring", "extra = \"of=2\"");
    create(&domus, "lab4-events", "wait", "extra = \"peer=1\"");
    says(&domus, &["lab4: it rang", "of domain 2"]);
    create(&domus, "lab5-grants", "take", "extra = \"of=4\"");
    create(&domus, "lab5-grants", "give", "extra = \"peer=3\"");
    let shared = [
        "lab5: mapping it writable: Err(Status(",
        "lab5: read: written by the granter",
        "lab5: writing to it faults: true",
        "lab5: in use; taking it back now: Err(InUse(",
        "lab5: taken back",
    ];
    says(&domus, &shared);
    gone(&domus);
}

/// All have powered off.
fn gone(domus: &Installation) {
    eventually("all domains are gone", PATIENCE, || {
        (domus.xm(&["list"]).output().lines().count() == 2).then_some(())
    });
    domus.assert_no_domain();
}
