//! Somebody who is not root, with nothing but the programs.
//!
//! **Mechanism.** All programs are copied to a directory of a user's that the host does not
//! even know by name, and run as that user: no capability, no group, and `/dev/kvm` only if
//! everybody may open it.
//!
//! **Scenario.** `xm create` starts the services and a kernel with a disk and an
//! interface with `mode=user`; its page comes through a forwarded port; what would need
//! a privilege is refused with the remedy; after `xm shutdown` and `xm stop-services`
//! none of the user's processes is left.
//!
//! **Limits.** How such a user makes an image: `images.rs`.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
    process::{Command, Output, Stdio},
};

use domus_tests::harness::{
    PATIENCE, Programs, domains_can_run, eventually, in_a_network, is_installed, uplink,
};

use super::unikernel::{image, web};

/// A user that only this test's programs know of.
const USER: u32 = 54_322;
const PROGRAMS: [&str; 6] = [
    "xm",
    "domus-hypervisor",
    "xenstored",
    "xenconsoled",
    "blkback",
    "netback",
];

struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("room");
        let user = Self { home };
        for program in PROGRAMS {
            // The directory of the build may be nobody else's.
            fs::copy(Programs::get().program(program), user.at(program)).expect("room");
        }
        chown(user.home.path(), Some(USER), Some(USER)).expect("root may");
        user
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    fn xm(&self, args: &[&str]) -> Output {
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={USER}"), &format!("--regid={USER}")])
            .arg("--clear-groups")
            .arg(self.at("xm"))
            .args(args)
            // What this user may use is for the hypervisor to find out.
            .env_remove("DOMUS_ENGINE")
            .env("HOME", self.home.path())
            .env("DOMUS_RUN_DIR", self.at("run"))
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command.output().expect("setpriv of util-linux")
    }

    #[track_caller]
    fn succeeds(&self, args: &[&str]) -> String {
        let said = self.xm(args);
        let error = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success(), "xm {args:?}: {error}");
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    #[track_caller]
    fn fails(&self, args: &[&str], words: &str) {
        let said = self.xm(args);
        let error = String::from_utf8_lossy(&said.stderr);
        assert!(!said.status.success() && error.contains(words), "{error}");
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // Also when an assertion failed.
        let _ = self.xm(&["stop-services", "--force"]);
    }
}

/// The user's processes, by their names.
fn processes() -> Vec<String> {
    let all = fs::read_dir("/proc").expect("procfs").flatten();
    all.filter(|entry| entry.metadata().is_ok_and(|data| data.uid() == USER))
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .collect()
}

fn page() -> Option<Vec<u8>> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--max-time", "10"]);
    let said = curl.arg("http://127.0.0.1:8090/").output();
    let said = said.expect("curl runs");
    said.status.success().then_some(said.stdout)
}

#[test]
fn a_page_from_a_guest_of_somebody_who_is_not_root() {
    let needed = [
        ("setpriv", "util-linux"),
        ("curl", "curl"),
        ("passt", "passt"),
    ];
    if !domains_can_run() || !needed.iter().all(|(program, of)| is_installed(program, of)) {
        return;
    }
    let kernel = web();
    in_a_network(|| {
        uplink();
        let user = User::new();
        let (disk, there) = image(300_000, 9);
        let files = [
            ("kernel", fs::read(&kernel).expect("built")),
            ("disk", disk),
        ];
        for (name, bytes) in files {
            fs::write(user.at(name), bytes).expect("room");
            chown(user.at(name), Some(USER), Some(USER)).expect("root may");
        }
        let text = |path: &Path| path.to_str().expect("a path of ours").to_owned();
        let config = user.at("web.cfg");
        fs::write(
            &config,
            format!(
                "name = 'web'\nmemory = 32\nkernel = '{}'\nextra = 'ip=192.0.2.10/24'\n\
                 disk = ['{},raw,xvda,rw']\nvif = ['mode=user,forward=8090:80']\n",
                text(&user.at("kernel")),
                text(&user.at("disk")),
            ),
        )
        .expect("room");
        user.succeeds(&["create", &text(&config)]);
        assert!(eventually("the page", PATIENCE, page) == there);
        user.fails(
            &["network-attach", "web", "bridge=br0"],
            "run as root, or use mode=user",
        );
        assert!(processes().iter().any(|name| name.starts_with("domus-hyp")));
        user.succeeds(&["shutdown", "-w", "web"]);
        user.succeeds(&["stop-services"]);
        eventually("all processes of the user's end", PATIENCE, || {
            processes().is_empty().then_some(())
        });
    });
}
