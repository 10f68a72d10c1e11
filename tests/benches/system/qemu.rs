//! The same kernel and programs in QEMU without hardware's help (`-accel tcg`),
//! on virtio devices.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use domus_tests::{
    guest::{
        self,
        cpio::{Archive, Entry},
    },
    harness::Terminal,
};

const PATIENCE: Duration = Duration::from_secs(120);
/// What a result's line begins with.
const MARK: &str = "RESULT";

/// Runs each work once in one machine with these devices, and gives what each
/// said; `None` where there is no QEMU or no driver.
pub fn run(
    dir: &Path,
    (name, program): (&str, &Path),
    driver: &str,
    before: &str,
    works: &[String],
    devices: &[&str],
) -> Option<Vec<String>> {
    let there = Command::new("qemu-system-x86_64")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    let modules = guest::prepare_virtio().inspect_err(|error| println!("  {error}"));
    let (Ok(_), Ok(Some(modules))) = (there, modules) else {
        println!("  SKIP beside QEMU: no qemu-system-x86_64, or no drivers for it");
        return None;
    };
    let mut script = format!(
        "#!/bin/sh\nexport PATH=/bin:/sbin\nmount -t proc proc /proc\nmount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\nload virtio_pci\nload {driver}\nsleep 1\n{before}\n"
    );
    for (n, work) in works.iter().enumerate() {
        script += &format!("echo {MARK}{n} $({work})\n");
    }
    script += "echo DONE\nbusybox poweroff -f\n";
    let program = fs::read(program).expect("built just now");
    let mut archive = Archive::default();
    archive.add("bin", Entry::Directory);
    archive.add(&format!("bin/{name}"), Entry::File(0o755, &program));
    archive.add("measure", Entry::File(0o755, script.as_bytes()));
    let mut all = archive.finish();
    all.extend(fs::read(modules).expect("prepared just now"));
    let files = guest::prepare().expect("prepared before");
    all.extend(fs::read(files.initramfs).expect("prepared before"));
    let initrd = dir.join("qemu.initrd");
    fs::write(&initrd, all).expect("room for a ramdisk");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-m", "256", "-nographic", "-no-reboot"]);
    command.arg("-kernel").arg(files.kernel);
    command.arg("-initrd").arg(initrd);
    command.args(["-append", "console=ttyS0 quiet rdinit=/measure"]);
    command.args(devices);
    let mut terminal = Terminal::start(command);
    let said = terminal.wait_for("DONE", PATIENCE);
    // The kernel may have written something before it in the line.
    let result = |n: usize| {
        let (_, rest) = said.split_once(&format!("{MARK}{n} "))?;
        Some(rest.lines().next()?.trim().to_owned())
    };
    let results: Option<Vec<_>> = (0..works.len()).map(result).collect();
    if results.is_none() {
        println!("  QEMU's guest did not say all its results: {said}");
    }
    results
}
