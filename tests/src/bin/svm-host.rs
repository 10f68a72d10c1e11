//! Runs Domus on a KVM that has hardware assist.
//!
//! **Mechanism.** QEMU emulates a PC with AMD's SVM and nested paging, instruction by
//! instruction. Debian's kernel boots on it with KVM as modules, and `svm-host.sh` as
//! its first process: there `xm` creates domains as on any host.
//!
//! **Scenario.** The hostile kernels that one needs no other domain for, the hard cases,
//! and Debian's own kernel up to its shell and down again; without run-ahead, then with it.
//!
//! **Limits.** One emulated processor: with several, QEMU's time-stamp counters differ.
//! No SMAP: QEMU 7.2 reads the stack of an `iretq` in ring 3 with ring 0's rights. Undefined
//! opcodes are left out of `bad-cases`: QEMU 7.2's translator itself crashes at one. VMX has
//! no emulation.

use std::{
    error::Error,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use domus_tests::{
    guest::{
        READY,
        cpio::{Archive, Entry},
        prepare, prepare_kvm,
    },
    harness::{Programs, Terminal},
};

/// Between two lines of the emulated host.
const PATIENCE: Duration = Duration::from_secs(900);
/// The mark of a line that the script in the host wrote.
const MARK: &str = "svm-host: ";
const SCRIPT: &str = include_str!("svm-host.sh");
const PROGRAMS: [&str; 5] = [
    "xm",
    "domus-hypervisor",
    "xenstored",
    "xenconsoled",
    "xenstore",
];
const KERNELS: [&str; 7] = [
    "hello",
    "events",
    "user-mode",
    "paging-attacks",
    "wild-pointers",
    "ping-pong",
    "bad-cases",
];
/// Without run-ahead and with it.
const PASSES: usize = 2;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("svm-host: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let room = tempfile::tempdir()?;
    let guest = prepare()?;
    let modules = prepare_kvm()?.ok_or("a kernel of one's own has no modules here")?;
    let mut ramdisk = user_space(room.path(), &guest.kernel, &guest.initramfs)?;
    ramdisk.extend(fs::read(modules)?);
    ramdisk.extend(fs::read(&guest.initramfs)?);
    let initrd = room.path().join("initrd");
    fs::write(&initrd, ramdisk)?;
    let lines = host(&guest.kernel, &initrd);
    judge(&lines)
}

/// What is Domus' in the host's user space.
fn user_space(room: &Path, kernel: &Path, initramfs: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let programs = Programs::get();
    let mut archive = Archive::default();
    for directory in ["domus", "kernels"] {
        archive.add(directory, Entry::Directory);
    }
    let mut libraries = Vec::new();
    for name in PROGRAMS {
        let program = programs.program(name);
        libraries.extend(libraries_of(&program)?);
        let bytes = stripped(room, &program)?;
        archive.add(&format!("domus/{name}"), Entry::File(0o755, &bytes));
    }
    for name in KERNELS {
        let bytes = fs::read(programs.kernel(name))?;
        archive.add(&format!("kernels/{name}"), Entry::File(0o644, &bytes));
    }
    for (name, path) in [("vmlinuz", kernel), ("initrd", initramfs)] {
        let bytes = fs::read(path)?;
        archive.add(&format!("kernels/{name}"), Entry::File(0o644, &bytes));
    }
    libraries.sort();
    libraries.dedup();
    for library in &libraries {
        add_with_directories(&mut archive, library, &fs::read(library)?);
    }
    let script = SCRIPT.replace("$READY", READY);
    archive.add("svm-host", Entry::File(0o755, script.as_bytes()));
    Ok(archive.finish())
}

/// The shared libraries that a program is loaded with.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let said = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8(said.stdout)?;
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}

/// The program without what only a debugger reads; as it is where there is no `strip`.
fn stripped(room: &Path, program: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let to = room.join("stripped");
    let strip = Command::new("strip")
        .arg("-o")
        .arg(&to)
        .arg(program)
        .status();
    let from = if strip.is_ok_and(|status| status.success()) {
        &to
    } else {
        program
    };
    Ok(fs::read(from)?)
}

fn add_with_directories(archive: &mut Archive, path: &Path, bytes: &[u8]) {
    let above: Vec<_> = path.ancestors().skip(1).collect();
    let name = |path: &Path| path.to_string_lossy().trim_start_matches('/').to_owned();
    for directory in above.iter().rev().filter(|path| path.parent().is_some()) {
        archive.add(&name(directory), Entry::Directory);
    }
    archive.add(&name(path), Entry::File(0o755, bytes));
}

/// Starts the host; what its script said.
fn host(kernel: &Path, initrd: &Path) -> Vec<String> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-cpu", "EPYC,+npt,-smap", "-m", "1536"]);
    command.args(["-display", "none", "-serial", "stdio", "-monitor", "none"]);
    command.args([
        OsStr::new("-no-reboot"),
        OsStr::new("-kernel"),
        kernel.as_os_str(),
    ]);
    command.args([
        OsStr::new("-initrd"),
        initrd.as_os_str(),
        OsStr::new("-append"),
    ]);
    command.arg("console=ttyS0 quiet panic=-1 rdinit=/svm-host");
    let mut terminal = Terminal::start(command);
    let mut lines = Vec::new();
    loop {
        let line = terminal.wait_for("\n", PATIENCE);
        let Some((_, line)) = line.split_once(MARK) else {
            continue;
        };
        let line = line.trim_end();
        println!("{line}");
        if line.ends_with(": over") {
            return lines;
        }
        lines.push(line.to_owned());
    }
}

/// That all has gone well in both passes.
fn judge(lines: &[String]) -> Result<(), Box<dyn Error>> {
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    let mut missing = Vec::new();
    let verdicts = KERNELS[1..].iter().map(|name| format!("SUCCESS {name} "));
    let other = ["hello: goodbye".to_owned(), format!("Debian: {READY}")];
    for text in verdicts.chain(other) {
        if count(&text) != PASSES {
            missing.push(text);
        }
    }
    if count("engine kvm") != PASSES || count("nested paging: Y") == 0 {
        missing.push("KVM with nested paging".into());
    }
    if missing.is_empty() {
        println!("Domus runs on SVM");
        return Ok(());
    }
    Err(format!("not seen {PASSES} times: {missing:?}").into())
}
