//! A kernel that others wrote: ArceOS, of crates.io, as a PV domain.
//!
//! **Mechanism.** `guest-kernel-patches/arceos/build` fetches ArceOS' crates by
//! cargo, patches them, and builds three applications: ArceOS' shell, its HTTP
//! server, and checks of what these do not come by. Each is a kernel; its disk
//! is an ext4 image, its network a tap on a bridge in a network namespace.
//!
//! **Scenario.** Somebody types into the shell, which reads and writes files.
//! `curl` on the host fetches files of the server's disk, also after each back
//! end was killed with -9; `xm shutdown` ends the server. The checks (exceptions,
//! page tables, timers, threads, vCPUs) end with a line that says so, with one
//! vCPU and with two.
//!
//! **Limits.** One disk, one interface. What ArceOS' ext4 writes is
//! not looked for on the host: ArceOS does not write it back at its end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use domus_tests::harness::{
    Config, Guest, Installation, Namespace, PATIENCE, Programs, eventually, is_installed,
    kvm_is_usable,
};

/// The server's address and the bridge's, compiled into ArceOS.
const SERVER: &str = "10.9.8.2";
const BRIDGE: &str = "10.9.8.1";

/// The kernel of one of ArceOS' applications; all are built by the first that
/// asks.
fn kernel(application: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let script = "../guest-kernel-patches/arceos/build";
        let target = Programs::get().dir.with_file_name("arceos");
        let mut build = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(script));
        build.arg("--quiet").env("CARGO_TARGET_DIR", &target);
        build.env("AX_IP", SERVER).env("AX_GW", BRIDGE);
        build.env("CARGO_INCREMENTAL", "0");
        let built = build.output().expect("the script can be run");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{build:?}:\n{said}");
        target.join("x86_64-unknown-linux-gnu/debug")
    });
    directory.join(format!("arceos-{application}"))
}

/// What all three need.
fn can_run() -> bool {
    kvm_is_usable() && is_installed("mke2fs", "e2fsprogs") && is_installed("patch", "patch")
}

/// A file with something different in each part.
fn contents(length: usize) -> Vec<u8> {
    let byte = |at: usize| (at * 31 + at / 512).to_le_bytes()[0];
    (0..length).map(byte).collect()
}

/// An ext4 image with these files in its root, as ArceOS' ext4 wants it.
fn image(domus: &Installation, files: &[(&str, &[u8])]) -> PathBuf {
    let (root, image) = (domus.path("root"), domus.path("disk.img"));
    fs::create_dir(&root).expect("room for files");
    for (name, bytes) in files {
        fs::write(root.join(name), bytes).expect("room for a file");
    }
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-b", "4096"]);
    make.args(["-O", "^64bit,^metadata_csum", "-d"]);
    make.arg(&root).arg(&image).arg("16M");
    let made = make.output().expect("mke2fs runs");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{make:?}: {said}");
    image
}

fn config(name: &str, domus: &Installation, files: &[(&str, &[u8])]) -> Config {
    let image = image(domus, files);
    Config::own_kernel(name, &kernel(name))
        .memory(64)
        .line(&format!("disk = [ \"file:{},xvda,w\" ]", image.display()))
}

/// Types a command; what the shell says until it asks again.
#[track_caller]
fn say(shell: &mut Guest<'_>, command: &str) -> String {
    shell.send(&format!("{command}\r"));
    shell.wait_for(&format!("{command}\r\n"), PATIENCE);
    shell.wait_for("# ", PATIENCE).replace("\r\n", "\n")
}

#[test]
fn its_shell_reads_and_writes_its_disk() {
    if !can_run() {
        return;
    }
    let domus = Installation::new();
    let files: [(&str, &[u8]); 1] = [("motto", b"read from ext4\n")];
    let mut shell = Guest::create(&domus, &config("shell", &domus, &files));
    shell.wait_for("/# ", PATIENCE);
    assert!(say(&mut shell, "ls").contains("motto\n"), "{shell:?}");
    let motto = say(&mut shell, "cat motto");
    assert!(motto.starts_with("read from ext4\n"), "{motto}");
    say(&mut shell, "mkdir new");
    say(&mut shell, "echo written by ArceOS > new/file");
    let written = say(&mut shell, "cat new/file");
    assert!(written.starts_with("written by ArceOS\n"), "{written}");
    assert!(say(&mut shell, "ls new").starts_with("file\n"), "{shell:?}");
    let refused = say(&mut shell, "cat nothing");
    assert!(refused.starts_with("cat: "), "{refused}");
    say(&mut shell, "sleep 1");
    shell.send("exit\r");
    shell.wait_for("Bye~", PATIENCE);
    shell.wait_for_console_end();
    drop(shell);
    domus.assert_no_domain();
}

/// Asks the server; `None` if it does not answer, or does not have it.
fn try_fetch(domus: &Installation, net: &Namespace, path: &str) -> Option<Vec<u8>> {
    let mut curl = net.inside(domus.command("ip"), "curl");
    curl.args(["--silent", "--fail", "--max-time", "10"]);
    curl.arg(format!("http://{SERVER}:5555{path}"));
    let said = curl.output().expect("curl runs");
    said.status.success().then_some(said.stdout)
}

/// Asks until it comes: a connection may be lost with a back end.
#[track_caller]
fn fetch(domus: &Installation, net: &Namespace, path: &str) -> Vec<u8> {
    eventually("a file from the server", PATIENCE, || {
        try_fetch(domus, net, path)
    })
}

#[test]
fn its_http_server_answers_curl_from_its_disk() {
    if !can_run() || !is_installed("curl", "curl") || !is_installed("ip", "iproute2") {
        return;
    }
    let net = Namespace::with_bridge(&format!("{BRIDGE}/24"));
    let domus = Installation::new();
    let (large, larger) = (contents(100_000), contents(150_000));
    let page: &[u8] = b"<h1>ArceOS on Domus</h1>\n";
    let files = [
        ("index.html", page),
        ("large", &large[..]),
        ("larger", &larger[..]),
    ];
    let config = config("httpserver", &domus, &files).line("vif = [ \"bridge=br0\" ]");
    let mut create = net.inside(domus.command("ip"), Programs::get().program("xm"));
    create.arg("create").arg(config.write(&domus));
    domus.run(create).ok();

    assert_eq!(fetch(&domus, &net, "/"), page, "{}", domus.logs());
    assert!(fetch(&domus, &net, "/large") == large, "{}", domus.logs());
    assert!(try_fetch(&domus, &net, "/none").is_none());
    for back_end in ["netback", "blkback"] {
        domus.kill(back_end);
        assert!(fetch(&domus, &net, "/larger") == larger, "{}", domus.logs());
    }
    domus.xm(&["shutdown", "-w", "httpserver"]).ok();
    eventually("the server is gone", PATIENCE, || {
        let list = domus.xm(&["list"]).output();
        (!list.contains("httpserver")).then_some(())
    });
    domus.assert_no_domain();
}

#[test]
fn its_traps_page_tables_timers_and_threads_work() {
    if can_run() {
        run_checks(1);
    }
}

#[test]
fn two_vcpus_run_and_interrupt_each_other() {
    if can_run() {
        run_checks(2);
    }
}

/// Runs the checks on so many vCPUs.
fn run_checks(vcpus: u32) {
    let domus = Installation::new();
    let file = config("checks", &domus, &[]).vcpus(vcpus).write(&domus);
    let file = file.to_str().expect("a path of ours");
    domus.xm(&["create", file]).ok();
    let log = domus.path("log/console/checks.log");
    let said = eventually("the checks' last line", PATIENCE, || {
        let said = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        let ended = said.contains("all is well") || said.contains("panicked");
        ended.then_some(said)
    });
    assert!(said.contains("checks: all is well"), "{said}");
    assert!(
        said.contains(&format!("checks: {vcpus} vCPUs met")),
        "{said}"
    );
    eventually("it powers off", PATIENCE, || {
        let list = domus.xm(&["list"]).output();
        (!list.contains("checks")).then_some(())
    });
    domus.assert_no_domain();
}
