//! Debian's xen-tools with our `xm` as their toolstack.
//!
//! **Mechanism.** The test has a mount namespace of its own, in which `/etc/xen` is a
//! directory of the test's: what `xen-create-image` mounts, and forgets, goes with
//! the test, and no configuration file of the host's is touched.
//!
//! **Scenario.** `xen-create-image --pygrub` fills an image by debootstrap, from
//! where the host's apt has its packages; the configuration file that it writes
//! starts a domain that asks for a login and lets root in; `xen-list-images` and
//! `xen-delete-image` know that it runs; after its end it is deleted.
//!
//! **Limits.** One suite, no network in the guest. It needs loop devices.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use dom0_tools::xm::image::apt;
use domus_tests::harness::{
    Guest, Installation, Programs, Said, domains_can_run, eventually, in_a_network,
    in_private_mounts, is_installed, mount,
};

const SUITE: &str = "bookworm";
const NAME: &str = "domus-xt";
const PASSWORD: &str = "domus-test";
/// debootstrap fetches and installs some 200 packages.
const MAKING: Duration = Duration::from_secs(900);
/// Below the installation; xen-tools makes `domains/NAME` in it.
const IMAGES: &str = "xen-tools";
const CONFIGS: &str = "/etc/xen";

#[test]
fn a_machine_by_xen_create_image() {
    if !domains_can_run() || !is_installed("xen-create-image", "xen-tools") {
        return;
    }
    let _removed = Configs::made_if_missing();
    in_private_mounts(|| {
        mount(&["-t", "tmpfs", "tmpfs", CONFIGS]);
        // Packages come over the host's network: only the domain has another.
        let domus = Installation::new();
        create_image(&domus);
        in_a_network(|| live(&domus));
    });
}

/// The directory of configuration files; removed again if it was not there.
struct Configs {
    made: bool,
}

impl Configs {
    fn made_if_missing() -> Self {
        let made = fs::create_dir(CONFIGS).is_ok();
        Self { made }
    }
}

impl Drop for Configs {
    fn drop(&mut self) {
        if self.made {
            let _ = fs::remove_dir(CONFIGS);
        }
        let _ = fs::remove_file(format!("/var/log/xen-tools/{NAME}.log"));
    }
}

/// One of xen-tools' programs, with our xm before any other.
fn tool(domus: &Installation, program: &str) -> Command {
    let mut command = domus.command(program);
    let path = env::var("PATH").unwrap_or_default();
    let own = Programs::get().dir.display();
    command.env("PATH", format!("{own}:{path}:/usr/sbin:/sbin"));
    command
}

fn run(domus: &Installation, program: &str, args: &[&str]) -> Said {
    let mut command = tool(domus, program);
    command.args(args).arg("--hostname").arg(NAME);
    command.arg("--dir").arg(domus.path(IMAGES));
    domus.run(command)
}

fn create_image(domus: &Installation) {
    let sources = apt::sources(SUITE, None);
    let mirror = sources.first().and_then(|line| line.split(' ').nth(1));
    let said = domus.path("xen-create-image.out");
    fs::create_dir(domus.path(IMAGES)).expect("room");
    let mut create = tool(domus, "xen-create-image");
    create
        .args(["--hostname", NAME, "--dist", SUITE, "--pygrub"])
        // One that asks for an address in vain is slow to start.
        .args(["--ip", "10.9.0.2", "--netmask", "255.255.255.0"])
        .args(["--gateway", "10.9.0.1"])
        .args(["--size", "1536M", "--swap", "64M", "--memory", "256M"])
        .args(["--genpass", "0", "--password", PASSWORD, "--nohosts"])
        .arg(format!("--mirror={}", mirror.expect("a source")))
        .arg("--dir")
        .arg(domus.path(IMAGES))
        .stdin(Stdio::null())
        .stdout(fs::File::create(&said).expect("room"))
        .stderr(fs::File::create(said.with_extension("err")).expect("room"));
    let mut child = create.spawn().expect("xen-create-image runs");
    let mut done = None;
    for _ in 0..MAKING.as_secs() {
        done = child.try_wait().expect("one's own child");
        if done.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let text = fs::read_to_string(&said).unwrap_or_default();
    if done.is_none() {
        let _ = child.kill();
    }
    assert!(done.is_some_and(|status| status.success()), "{text}");
}

fn live(domus: &Installation) {
    let config = Path::new(CONFIGS).join(format!("{NAME}.cfg"));
    // On a busy host 90 s are not enough for a unit, nor for the device that the usual
    // login waits for: Debian 12's systemd can't be told otherwise from outside. The
    // login on /dev/console waits for none.
    let patient = "extra='systemd.default_timeout_start_sec=600 systemd.getty_auto=no \
                   systemd.wants=console-getty.service'";
    domus
        .xm(&["create", config.to_str().expect("ASCII"), patient])
        .ok();
    let mut guest = Guest::attach(domus, NAME);
    let listed = tool_output(domus, "xen-list-images");
    assert!(listed.contains(&format!("Name: {NAME}")), "{listed}");
    let refused = run(domus, "xen-delete-image", &[]);
    assert!(
        refused.out.contains("running") || refused.err.contains("running"),
        "{refused}"
    );
    let image = domus.path(IMAGES).join("domains").join(NAME);
    assert!(config.exists() && image.join("disk.img").exists());
    guest.log_in(PASSWORD);
    assert_eq!(guest.run("hostname"), NAME);
    assert_eq!(guest.run("cat /sys/hypervisor/type"), "xen");
    guest.send("poweroff\n");
    guest.wait_for_console_end();
    eventually("the domain is gone", Duration::from_secs(60), || {
        (!domus.xm(&["list"]).output().contains(NAME)).then_some(())
    });
    run(domus, "xen-delete-image", &[]).ok();
    assert!(!config.exists());
    assert!(!image.join("disk.img").exists());
}

fn tool_output(domus: &Installation, program: &str) -> String {
    domus.run(tool(domus, program)).output()
}
