//! An installation for tests: a run directory of its own, the real services
//! of Dom0, and in the hypervisor's place a stand-in that keeps the books
//! (domains, ports, frames) and runs no guest.

#![allow(dead_code)] // each test program uses its part

mod hypervisor;
mod kernel;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub use hypervisor::FakeHypervisor;
pub use kernel::pv_kernel;

/// See the module's text. Its end ends the services.
pub struct Installation {
    pub dir: TempDir,
    pub hypervisor: FakeHypervisor,
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The output of a program that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code,
            Some(0),
            "stdout: {}\nstderr: {}",
            self.out,
            self.err
        );
        self.out
    }
}

impl Installation {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("xm")
            .tempdir()
            .expect("dir");
        fs::create_dir(dir.path().join("run")).expect("run dir");
        fs::create_dir(dir.path().join("bin")).expect("bin dir");
        fs::write(dir.path().join("vmlinuz"), pv_kernel()).expect("kernel");
        fs::write(dir.path().join("initrd"), [0x5a; 5000]).expect("ramdisk");
        let hypervisor = FakeHypervisor::start(&dir.path().join("run/privcmd.sock"));
        Self { dir, hypervisor }
    }

    /// With programs in the back ends' place that follow the states of devices
    /// and serve none.
    pub fn with_back_ends() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let installation = Self::new();
        let bin = installation.dir.path().join("bin");
        for program in [
            env!("CARGO_BIN_EXE_xm"),
            env!("CARGO_BIN_EXE_xenstored"),
            env!("CARGO_BIN_EXE_xenconsoled"),
            env!("CARGO_BIN_EXE_xenstore"),
        ] {
            let program = Path::new(program);
            let copy = bin.join(program.file_name().expect("name"));
            if fs::hard_link(program, &copy).is_err() {
                fs::copy(program, &copy).expect("copy");
            }
        }
        for program in ["blkback", "netback"] {
            let path = bin.join(program);
            fs::write(&path, include_str!("back_end.sh")).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        installation
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub fn file(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("write");
    }

    /// A configuration file for a domain of this name.
    pub fn config(&self, name: &str, more: &str) -> String {
        let text = format!(
            "name = '{name}'\nkernel = '{}'\nramdisk = '{}'\nmemory = 8\n{more}\n",
            self.path("vmlinuz"),
            self.path("initrd"),
        );
        let file = format!("{name}.cfg");
        self.file(&file, &text);
        self.path(&file)
    }

    pub fn xm(&self, args: &[&str]) -> Said {
        let output = self.command(args).output().expect("run xm");
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let own = self.dir.path().join("bin/xm");
        let program = if own.exists() {
            own
        } else {
            env!("CARGO_BIN_EXE_xm").into()
        };
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("DOMUS_RUN_DIR", self.run_dir())
            .env_remove("DOMUS_LOG_DIR")
            .env_remove("XENSTORED_PATH")
            .env_remove("XENSTORED_RUNDIR")
            .stdin(Stdio::null());
        command
    }

    pub fn store(&self) -> dom0_tools::xenstore::client::Client {
        let socket = self.run_dir().join("xenstored/socket");
        dom0_tools::xenstore::client::Client::connect_to(&socket).expect("xenstored")
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.run_dir().join("log").join(name)).unwrap_or_default()
    }

    /// The process of a service.
    pub fn service(&self, name: &str) -> Option<u32> {
        domus_privcmd::pidfile::holder(&self.run_dir().join(format!("{name}.pid")))
    }

    pub fn kill(&self, name: &str) {
        let pid = self
            .service(name)
            .unwrap_or_else(|| panic!("{name} does not run"));
        kill(pid);
        wait_until(&format!("{name} to end"), || {
            self.service(name) != Some(pid)
        });
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        for name in ["xenconsoled", "xenstored"] {
            if let Some(pid) = self.service(name) {
                kill(pid);
            }
        }
        // Monitors end with their hypervisor.
        self.hypervisor.stop();
        back_ends(&self.run_dir()).into_iter().for_each(kill);
    }
}

pub fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("pid"));
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
}

/// Waits until something is so, for a time that even a busy machine keeps.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// All nodes below `path`, with their values.
pub fn tree(store: &mut dom0_tools::xenstore::client::Client, path: &str) -> Vec<(String, String)> {
    use dom0_tools::xenstore::client::Nodes;
    let mut all = Vec::new();
    let Ok(names) = store.list(path) else {
        return all;
    };
    for name in names {
        let child = format!("{}/{name}", path.trim_end_matches('/'));
        let value = store.read(&child).unwrap_or_default();
        all.push((child.clone(), String::from_utf8_lossy(&value).into_owned()));
        all.extend(tree(store, &child));
    }
    all
}

/// The monitor processes of this run directory that live.
pub fn monitors(run_dir: &Path) -> Vec<u32> {
    processes(run_dir, "--domain-monitor")
}

/// The back ends' processes of this run directory that live. A child of one
/// looks like it until it runs its own program.
pub fn back_ends(run_dir: &Path) -> Vec<u32> {
    let all = processes(run_dir, "--domain");
    let is_first = |pid: &u32| parent_of(*pid).is_some_and(|parent| !all.contains(&parent));
    all.iter().copied().filter(is_first).collect()
}

/// The process that started this one: "PID (NAME) STATE PARENT ...".
pub fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// The processes of this run directory that have this word as an argument.
fn processes(run_dir: &Path, word: &str) -> Vec<u32> {
    let variable = format!("DOMUS_RUN_DIR={}", run_dir.display());
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let has =
            |bytes: Vec<u8>, text: &str| bytes.split(|b| *b == 0).any(|p| p == text.as_bytes());
        has(read("environ"), &variable) && has(read("cmdline"), word)
    })
    .collect()
}
