//! Whatever is wrong is said, and leaves nothing behind.
//!
//! **Mechanism.** `xm create` checks the configuration, the kernel and the
//! ramdisk before it asks for a domain; what fails later takes back what was
//! done.
//!
//! **Scenario.** Each kind of wrong input once: the error names it, the exit
//! code is not 0, no domain and no node is left.
//!
//! **Limits.** The parsers' own tests go through many more inputs, without
//! processes around them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use domus_tests::harness::{Config, Installation, Programs, Said, domains_can_run};

/// A working kernel to be spoilt.
fn good_kernel() -> Vec<u8> {
    fs::read(Programs::get().kernel("hello")).expect("a test kernel")
}

fn create(domus: &Installation, config: &Config) -> Said {
    let file = config.write(domus);
    domus.xm(&[Path::new("create"), &file])
}

fn with_kernel(domus: &Installation, name: &str, image: &[u8]) -> Config {
    let kernel = domus.path(&format!("{name}.image"));
    fs::write(&kernel, image).expect("the test's directory can be written");
    Config {
        kernel,
        ..Config::test_kernel("hello")
    }
}

#[test]
fn kernels_that_are_none() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let good = good_kernel();
    let mut missing = Config::test_kernel("hello");
    missing.kernel = PathBuf::from("/nonexistent/vmlinuz");
    create(&domus, &missing).fails(1, "/nonexistent/vmlinuz");

    let mut huge = good.clone();
    // The first program header's size in memory: 4 GiB.
    let headers = usize::from(u16::from_le_bytes([good[32], good[33]]));
    huge[headers + 40..headers + 48].copy_from_slice(&(4u64 << 30).to_le_bytes());
    let mut narrow = good.clone();
    // EI_CLASS, and e_machine: i386.
    (narrow[4], narrow[18]) = (1, 3);
    let mut no_notes = good.clone();
    for at in 0..no_notes.len() - 3 {
        if &no_notes[at..at + 4] == b"Xen\0" {
            no_notes[at] = b'x';
        }
    }
    let debian = fs::read(Config::debian("whatever").kernel).expect("Debian's kernel");
    let mut corrupt = debian.clone();
    let middle = corrupt.len() / 2;
    corrupt[middle..middle + 4096].fill(0x5a);
    for (name, image) in [
        ("empty", &[][..]),
        ("text", b"#!/bin/sh\necho this is no kernel\n"),
        // Within its first segment.
        ("truncated", &good[..4096 + 64]),
        ("no-elf-rest", &good[..100]),
        ("huge", &huge),
        ("narrow", &narrow),
        ("no-pv", &no_notes),
        ("corrupt", &corrupt),
        ("truncated-bzimage", &debian[..debian.len() / 2]),
    ] {
        let said = create(&domus, &with_kernel(&domus, name, image));
        println!("{name}: {}", said.err.trim_end());
        said.fails(1, &format!("{name}.image"));
    }
    domus.assert_no_domain();
}

#[test]
fn memory_that_is_not_there() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let hello = Config::test_kernel("hello");
    for (mib, told) in [(0, "memory"), (1, "memory"), (1 << 30, "memory")] {
        let said = create(&domus, &hello.clone().memory(mib));
        println!("{mib} MiB: {}", said.err.trim_end());
        said.fails(1, told);
    }
    let mut laden = hello.clone();
    let ramdisk = domus.path("ramdisk");
    fs::write(&ramdisk, vec![0; 40 << 20]).expect("room for a ramdisk");
    laden.ramdisk = Some(ramdisk);
    let said = create(&domus, &laden);
    println!("ramdisk: {}", said.err.trim_end());
    said.fails(1, "ramdisk");
    laden.ramdisk = Some("/nonexistent/ramdisk".into());
    create(&domus, &laden).fails(1, "/nonexistent/ramdisk");
    domus.assert_no_domain();
}

#[test]
fn names_that_are_taken_or_none() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    let config = Config::test_kernel("spin-masked");
    create(&domus, &config).ok();
    create(&domus, &config).fails(1, "spin-masked");
    let file = config.write(&domus);
    let file = file.to_str().expect("a path of ours");
    for name in ["a/b", "a b", "Domain-0", "new\u{7f}", &"n".repeat(300)] {
        let said = domus.xm(&["create", file, &format!("name={name}")]);
        println!("{name:?}: {}", said.err.trim_end());
        assert_eq!(said.code, Some(1), "{said}");
        assert!(said.err.starts_with("Error: "), "{said}");
    }
    domus.xm(&["destroy", "spin-masked"]).ok();
    domus
        .xm(&["destroy", "spin-masked"])
        .fails(3, "Domain 'spin-masked' does not exist.");
    domus.assert_no_domain();
}

/// No service is needed to say so.
#[test]
fn files_with_errors_are_told_of_by_line_and_column() {
    let domus = Installation::new();
    for (text, at) in [
        ("name = \"a\"\nkernel = \"/k\n", "bad.cfg:2:"),
        ("name = \"a\"\nmemory = = 5\n", "bad.cfg:2:10"),
        ("name = \"a\"\n\nimport os\n", "bad.cfg:3:"),
        ("name = [\n", "bad.cfg:"),
    ] {
        let file = domus.path("bad.cfg");
        fs::write(&file, text).expect("the test's directory can be written");
        domus.xm(&[Path::new("create"), &file]).fails(1, at);
    }
    assert!(domus.processes().is_empty());
}

/// A user who may not open `/dev/kvm` gets the software engine and is told why,
/// or, where KVM is asked for, an error that says what to do.
#[test]
fn kvm_that_is_not_ours() {
    if !nix::unistd::geteuid().is_root() {
        // Then this whole run is by such a user, or by one who may.
        return;
    }
    const NOBODY: u32 = 65534;
    if fs::metadata("/dev/kvm").map_or(0o666, |kvm| kvm.permissions().mode()) & 0o006 != 0 {
        return;
    }
    let domus = Installation::new();
    let dir = domus.path("nobody");
    fs::create_dir(&dir).expect("a directory");
    for (path, mode) in [(domus.dir(), 0o711), (dir.as_path(), 0o700)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own directory");
    }
    std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).expect("root may");
    // Where the checkout is may be closed to others.
    let programs = domus.path("programs");
    fs::create_dir(&programs).expect("a directory");
    for name in ["xm", "domus-hypervisor", "xenstored", "xenconsoled"] {
        fs::copy(Programs::get().program(name), programs.join(name)).expect("a copy");
    }
    let nobody = |engine: &str, action: &str| {
        let mut command = domus.command("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(programs.join("xm"))
            .arg(action)
            .env("DOMUS_RUN_DIR", &dir)
            .env("DOMUS_ENGINE", engine)
            .current_dir("/");
        domus.run(command)
    };
    let said = nobody("kvm", "list");
    said.fails(1, "/dev/kvm may not be opened");
    said.fails(1, "group");
    let said = nobody("auto", "dmesg").output();
    assert!(
        said.contains("engine soft: /dev/kvm may not be opened by this user"),
        "{said}"
    );
    nobody("auto", "stop-services").ok();
}

/// On a host without `/dev/kvm` guests run on the software engine, which says
/// why; where KVM is asked for, an error says what to do. The host is this one
/// with a `/dev` of its own, in a mount namespace that ends with the command.
#[test]
fn kvm_that_is_not_there() {
    if !nix::unistd::geteuid().is_root() {
        // Others may not make such a host.
        return;
    }
    const HOST: &str = r#"
        set -e
        dev=$(mktemp -d)
        mount -t tmpfs dev "$dev"
        for node in null zero full random urandom; do
            touch "$dev/$node"
            mount --bind "/dev/$node" "$dev/$node"
        done
        mount --rbind "$dev" /dev
        rmdir "$dev" 2>/dev/null || true
        exec "$0" "$@"
    "#;
    let domus = Installation::new();
    let elsewhere = |engine: &str, args: &[&str]| {
        let mut command = domus.command("unshare");
        command
            .args(["--mount", "sh", "-c", HOST])
            .arg(Programs::get().program("xm"))
            .args(args)
            .env("DOMUS_ENGINE", engine);
        domus.run(command)
    };
    let said = elsewhere("kvm", &["list"]);
    said.fails(1, "/dev/kvm does not exist");
    said.fails(1, "kvm module");
    let said = elsewhere("auto", &["dmesg"]).output();
    assert!(
        said.contains("engine soft: /dev/kvm does not exist"),
        "{said}"
    );
    let info = domus.xm(&["info"]).output();
    assert!(
        info.lines()
            .any(|line| line.starts_with("engine") && line.contains("soft")),
        "{info}"
    );
}
