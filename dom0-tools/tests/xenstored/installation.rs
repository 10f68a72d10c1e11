//! A directory with a hypervisor that is none and a real xenstored.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use dom0_tools::xenstore::{
    client::{Client, Nodes},
    perms::{Access, Perm},
};
use guest_abi::addr::{DomId, Mfn, Port};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    fake_hypervisor::FakeHypervisor,
    guest::{Guest, PORT},
};

pub struct Installation {
    dir: TempDir,
    pub hypervisor: FakeHypervisor,
    daemon: Option<Child>,
}

impl Installation {
    pub fn new() -> Installation {
        let dir = tempfile::tempdir().unwrap();
        let hypervisor = FakeHypervisor::listen(&dir.path().join("privcmd.sock"));
        let mut installation = Installation {
            dir,
            hypervisor,
            daemon: None,
        };
        installation.start();
        installation
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("xenstored/socket")
    }

    /// A program of ours that works in this installation.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("DOMUS_RUN_DIR", self.dir.path())
            .env_remove("XENSTORED_PATH")
            .env_remove("XENSTORED_RUNDIR")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null());
        command
    }

    pub fn xenstored(&self) -> Command {
        self.command(Path::new(env!("CARGO_BIN_EXE_xenstored")))
    }

    /// Runs `xenstore` with these words.
    pub fn xenstore(&self, words: &[&str]) -> Output {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_xenstore")));
        command.args(words).output().unwrap()
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        assert!(self.daemon.is_none());
        self.daemon = Some(self.xenstored().spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(self.socket()).is_err() {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "xenstored ended: {ended:?}");
            assert!(Instant::now() < deadline, "xenstored does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the daemon.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        let mut daemon = self.daemon.take().unwrap();
        let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap());
        kill(pid, signal).unwrap();
        daemon.wait().unwrap()
    }

    /// kill -9, and a new one.
    pub fn kill_and_restart(&mut self) {
        self.stop(Signal::SIGKILL);
        self.start();
    }

    /// The most memory that the daemon has had, in bytes.
    pub fn daemon_memory(&self) -> u64 {
        let pid = self.daemon.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib * 1024
    }

    pub fn client(&self) -> Client {
        Client::connect_to(&self.socket()).unwrap()
    }

    /// A domain with its home and its ring introduced.
    pub fn boot(&self, dom: u16) -> Guest {
        let memory = self.hypervisor.create(dom);
        let guest = Guest::new(&self.hypervisor, dom, &memory);
        let mut store = self.client();
        let home = format!("/local/domain/{dom}");
        store.mkdir(&home).unwrap();
        let perms = [Perm::new(Access::None, DomId(dom))];
        store.set_perms(&home, &perms).unwrap();
        store
            .introduce(DomId(dom), Mfn(Guest::mfn()), Port(PORT))
            .unwrap();
        guest
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
