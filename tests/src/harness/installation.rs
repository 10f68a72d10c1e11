//! An installation of Domus that a test has for itself.

use std::{
    env,
    ffi::OsStr,
    fmt, fs,
    io::Read,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use domus_privcmd::client::Client;
use tempfile::TempDir;

use super::{PATIENCE, Process, Programs, eventually};
use crate::guest;

/// The most that a subcommand of xm may take.
const XM_PATIENCE: Duration = Duration::from_secs(120);

/// How long a domain's monitor may take to clean up after it.
const CLEANING: Duration = Duration::from_secs(20);

const DOM0_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// A run directory, and what runs there.
#[derive(Debug)]
pub struct Installation {
    dir: TempDir,
    programs: &'static Programs,
    /// Variables that its programs have.
    environment: Vec<(String, String)>,
}

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its command line.
    pub command: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            code,
            out,
            err,
        } = self;
        write!(f, "`{command}`: exit code {code:?}\n{out}{err}")
    }
}

impl Said {
    /// Its output, if it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    #[must_use]
    pub fn output(self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.out
    }

    /// That it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) {
        let _ = self.output();
    }

    /// That it failed with this exit code and a text in its message.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn fails(&self, code: i32, text: &str) {
        assert_eq!(self.code, Some(code), "{self}");
        assert!(self.err.contains(text), "no {text:?} in the error: {self}");
        assert!(
            self.err.starts_with("Error: ") || self.err.starts_with("Warning: "),
            "{self}"
        );
        assert!(!self.err.contains("panicked"), "{self}");
    }
}

impl Default for Installation {
    fn default() -> Self {
        Self::new()
    }
}

impl Installation {
    /// A new one, in which nothing runs.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn new() -> Self {
        // Short: a socket's path may have 107 bytes at most.
        let dir = tempfile::Builder::new().prefix("domus-t.").tempdir();
        Self {
            dir: dir.expect("a temporary directory"),
            programs: Programs::get(),
            environment: Vec::new(),
        }
    }

    /// A new one, whose programs have these variables.
    #[must_use]
    pub fn with(environment: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
        let mut installation = Self::new();
        installation.environment = environment.iter().map(owned).collect();
        installation
    }

    /// Its run directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path for a file of the test's own.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A program, ready to be run in this installation.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("DOMUS_RUN_DIR", self.dir())
            .env("DOMUS_CACHE_DIR", guest::cache_dir().join("unpacked"))
            .envs(self.environment.iter().cloned())
            .current_dir(self.dir())
            .stdin(Stdio::null());
        for other in [
            "DOMUS_LOG_DIR",
            "DOMUS_LOG",
            "XENSTORED_PATH",
            "XENSTORED_RUNDIR",
        ] {
            command.env_remove(other);
        }
        command
    }

    /// Runs `xm`.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn xm<S: AsRef<OsStr>>(&self, args: &[S]) -> Said {
        let mut command = self.command(self.programs.program("xm"));
        command.args(args);
        self.run(command)
    }

    /// Runs a program to its end.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn run(&self, mut command: Command) -> Said {
        let shown = format!("{command:?}").replace('"', "");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        let out = read_all(child.stdout.take());
        let err = read_all(child.stderr.take());
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("one's own child") {
                break status;
            }
            if start.elapsed() > XM_PATIENCE {
                // Its pipes end with it, then.
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(2));
        };
        let took = start.elapsed();
        let said = Said {
            command: shown,
            code: status.code(),
            out: out.join().expect("the reading thread"),
            err: err.join().expect("the reading thread"),
        };
        assert!(
            took < XM_PATIENCE,
            "took more than {XM_PATIENCE:?}: {said}\n{}",
            self.logs()
        );
        said
    }

    /// A connection to its hypervisor.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::connect(&self.path("privcmd.sock")).expect("the hypervisor runs")
    }

    /// One of its services, by its program's name.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    #[track_caller]
    pub fn service(&self, name: &str) -> Process {
        let text = fs::read_to_string(self.path(&format!("{name}.pid"))).unwrap_or_default();
        let process = text.trim().parse().ok().map(Process::of);
        let living = process.filter(Process::lives);
        living.unwrap_or_else(|| panic!("{name} does not run\n{}", self.logs()))
    }

    /// The processes that run in it now.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        Process::all_of(self.dir())
    }

    /// Kills a process of it with this in its command line, as a crash would.
    ///
    /// # Panics
    /// When there is none, or it does not go.
    #[track_caller]
    pub fn kill(&self, name: &str) {
        let all = self.processes();
        let found = all.iter().find(|process| process.command.contains(name));
        let process = found.unwrap_or_else(|| panic!("no {name} in {all:#?}\n{}", self.logs()));
        process.kill();
        eventually("it is gone", PATIENCE, || (!process.lives()).then_some(()));
    }

    /// The end of each of its logs, for a failure's message.
    #[must_use]
    pub fn logs(&self) -> String {
        let dir = self.path("log");
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|p| p.is_file())
            .collect();
        paths.sort();
        paths.iter().fold(String::new(), |all, path| {
            let text = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(20)..].join("\n");
            format!("{all}--- {}\n{end}\n", path.display())
        })
    }

    /// That no domain and nothing of one is left: not in the hypervisor, not
    /// in the store, not in the run directory. A domain that ends by itself
    /// is cleaned up after by its monitor, which takes a moment.
    ///
    /// # Panics
    /// When something is.
    #[track_caller]
    pub fn assert_no_domain(&self) {
        let list = self.xm(&["list"]).output();
        assert_eq!(
            list.lines().count(),
            2,
            "more than the header and Domain-0:\n{list}"
        );
        let give_up = Instant::now() + CLEANING;
        loop {
            let left = self.traces();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < give_up, "left of a domain: {left:#?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What still tells of a domain.
    fn traces(&self) -> Vec<String> {
        let mut ls = self.command(self.programs.program("xenstore"));
        ls.args(["ls", "-f", "/"]);
        let nodes = self.run(ls).output();
        let nodes = nodes.lines().filter(|line| is_of_a_guest(line));
        let records = fs::read_dir(self.path("domains")).into_iter().flatten();
        let records = records.flatten().map(|e| e.path().display().to_string());
        nodes.map(str::to_owned).chain(records).collect()
    }

    fn stop(&self) {
        let mut command = self.command(self.programs.program("xm"));
        command.args(["stop-services", "--force"]);
        let stopped = self.run(command);
        if thread::panicking() {
            eprintln!("{}", self.logs());
            self.processes().iter().for_each(Process::kill);
            return;
        }
        assert_eq!(stopped.code, Some(0), "{stopped}\n{}", self.logs());
        eventually("all processes of the installation end", PATIENCE, || {
            self.processes().is_empty().then_some(())
        });
        let sockets = sockets_below(self.dir());
        assert!(sockets.is_empty(), "sockets are left: {sockets:?}");
        self.assert_no_panic();
    }

    /// That no log tells of a bug in a program.
    fn assert_no_panic(&self) {
        let logs = fs::read_dir(self.path("log"))
            .into_iter()
            .flatten()
            .flatten();
        for log in logs.map(|entry| entry.path()).filter(|path| path.is_file()) {
            let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
            assert!(!text.contains("panicked at"), "{}:\n{text}", log.display());
        }
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if env::var_os("DOMUS_TEST_KEEP").is_some() {
            let dir = self.dir().to_owned();
            self.dir.disable_cleanup(true);
            eprintln!("kept {}", dir.display());
        }
        self.stop();
    }
}

/// Whether a node of the store, as `xenstore ls -f` prints it, tells of a
/// domain other than Domain-0.
fn is_of_a_guest(line: &str) -> bool {
    let path = line.split(" = ").next().unwrap_or(line);
    let mut parts = path.split('/').skip(1);
    match (parts.next(), parts.next(), parts.next()) {
        (Some("local"), Some("domain"), Some(dom)) => dom != "0",
        (Some("vm"), Some(uuid), _) => uuid != DOM0_UUID,
        _ => false,
    }
}

/// Reads a pipe to its end, so that the writer never waits.
fn read_all(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn sockets_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => sockets_below(&entry.path()),
            Ok(kind) if kind.is_socket() => vec![entry.path()],
            _ => Vec::new(),
        })
        .collect()
}
