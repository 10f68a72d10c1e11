//! The back ends' processes: `blkback --domain N`, `netback --domain N`.
//!
//! Law: whether a domain has a back end is asked of the host's processes, so
//! that neither a killed monitor nor a lost file can make two of them serve one
//! ring. A process is held by its pidfd from before it is looked at, so that a
//! number used again is never signalled.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::OpenOptionsExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use guest_abi::addr::DomId;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

use super::Kind;
use crate::{
    paths,
    services::{self, ServiceError},
};

/// How long a back end may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(5);
/// How long a monitor that ends waits for one that may be ending too.
const LINGER: Duration = Duration::from_secs(1);

/// A back end's process.
#[derive(Debug)]
pub struct BackEnd {
    pid: u32,
    fd: OwnedFd,
    /// Where it is a child of this process.
    child: Option<Child>,
}

/// A back end's log.
#[must_use]
pub fn log_of(kind: Kind, name: &str) -> PathBuf {
    paths::log_dir().join(format!("{}-{name}.log", kind.program()))
}

/// Removes the files by which the back ends of a domain that is gone kept a
/// second one away.
pub fn forget(dom: DomId) {
    for kind in Kind::ALL {
        let path = paths::pid_file(&format!("{}-{dom}", kind.program()));
        // There need not be one.
        let _ = fs::remove_file(path);
    }
}

/// Whether all programs that serve these kinds are there.
///
/// # Errors
/// One is missing.
pub fn find_programs(kinds: &[Kind]) -> Result<(), ServiceError> {
    kinds
        .iter()
        .try_for_each(|kind| services::find_program(kind.program()).map(drop))
}

impl BackEnd {
    /// Starts a back end for the devices of a kind that a domain has.
    ///
    /// # Errors
    /// The program is missing, or can't be run.
    pub fn start(kind: Kind, dom: DomId, name: &str) -> Result<Self, ServiceError> {
        let program = services::find_program(kind.program())?;
        services::make_dir(&paths::log_dir())?;
        let path = log_of(kind, name);
        let file = |source| ServiceError::File {
            path: path.clone(),
            source,
        };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(file)?;
        let spawn = |source| ServiceError::Spawn {
            path: program.clone(),
            source,
        };
        let child = Command::new(&program)
            .args(["--domain", &dom.to_string()])
            // Said in full, so that the process can be told from those of
            // other installations.
            .env("DOMUS_RUN_DIR", paths::run_dir())
            .env("DOMUS_LOG_DIR", paths::log_dir())
            .env("XENSTORED_PATH", paths::xenstored_socket())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(file)?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(spawn)?;
        // A child that is not waited for keeps its number.
        let fd = pidfd(child.id()).map_err(spawn)?;
        Ok(Self {
            pid: child.id(),
            fd,
            child: Some(child),
        })
    }

    /// The processes that serve this domain, whoever started them. A child of
    /// one, which looks like it until it runs its own program, is none.
    #[must_use]
    pub fn find(kind: Kind, dom: DomId) -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
        let found: Vec<Self> = pids
            .filter(|pid| is_back_end(*pid, kind, dom))
            .filter_map(|pid| {
                let fd = pidfd(pid).ok()?;
                // Looked at again: the number may have become another's.
                is_back_end(pid, kind, dom).then_some(Self {
                    pid,
                    fd,
                    child: None,
                })
            })
            .collect();
        let all: Vec<u32> = found.iter().map(Self::pid).collect();
        let is_first = |one: &Self| parent_of(one.pid).is_some_and(|p| !all.contains(&p));
        found.into_iter().filter(is_first).collect()
    }

    /// Its number.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended, and how if that is known.
    pub fn ended(&mut self) -> Option<Option<ExitStatus>> {
        if !self.ends_within(Duration::ZERO) {
            return None;
        }
        let status = self.child.as_mut().map(Child::wait);
        Some(status.and_then(Result::ok))
    }

    /// Waits for its end.
    #[must_use]
    pub fn ends_within(&self, time: Duration) -> bool {
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).is_ok_and(|n| n > 0)
    }

    /// Ends it: asks first.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        if !self.ends_within(GRACE) {
            self.signal(Signal::SIGKILL);
            let _ = self.ends_within(GRACE);
        }
        // Leaves no zombie where it is our child.
        let _ = self.ended();
    }

    /// A process that has ended already needs no signal.
    fn signal(&self, signal: Signal) {
        // SAFETY: the call takes numbers and a null pointer, which stands for
        // no details; the descriptor is open while `self` lives.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            );
        }
    }
}

impl Drop for BackEnd {
    /// One that is ending leaves no zombie; one that goes on is let be.
    fn drop(&mut self) {
        if self.child.is_some() && self.ends_within(LINGER) {
            let _ = self.ended();
        }
    }
}

impl AsFd for BackEnd {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How a process ended, for people.
#[must_use]
pub fn ending(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "ended".to_owned();
    };
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: the call takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn is_back_end(pid: u32, kind: Kind, dom: DomId) -> bool {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = read("cmdline");
    let args: Vec<&[u8]> = line.split(|b| *b == 0).collect();
    serves(&args, kind, dom) && is_ours(&read("environ"))
}

/// The fourth field of "PID (NAME) STATE PARENT ...".
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// `blkback --domain 5`, whatever runs it.
fn serves(args: &[&[u8]], kind: Kind, dom: DomId) -> bool {
    let dom = dom.to_string();
    args.windows(3).any(|words| {
        let program = Path::new(OsStr::from_bytes(words[0])).file_name();
        program == Some(OsStr::new(kind.program()))
            && words[1] == b"--domain"
            && words[2] == dom.as_bytes()
    })
}

fn is_ours(environ: &[u8]) -> bool {
    let own = paths::run_dir();
    let mut variables = environ.split(|b| *b == 0);
    variables
        .find_map(|v| v.strip_prefix(b"DOMUS_RUN_DIR="))
        .is_some_and(|dir| Path::new(OsStr::from_bytes(dir)) == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_end_is_known_by_its_words() {
        let (vbd, dom) = (Kind::Vbd, DomId(5));
        let is = |line: &str, kind, dom| {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            serves(&args, kind, dom)
        };
        assert!(is("/usr/bin/blkback --domain 5", vbd, dom));
        assert!(is("/bin/sh /x/blkback --domain 5", vbd, dom));
        assert!(!is("/usr/bin/blkback --domain 51", vbd, dom));
        assert!(!is("/usr/bin/blkback --domain 5", Kind::Vif, dom));
        assert!(!is("/usr/bin/blkback", vbd, dom));
        assert!(!is("vi blkback.rs --domain 5", vbd, dom));
    }

    #[test]
    fn parents() {
        assert_eq!(
            parent_of(std::process::id()),
            Some(std::os::unix::process::parent_id())
        );
        assert_eq!(parent_of(u32::MAX), None);
    }

    #[test]
    fn endings() {
        assert_eq!(ending(None), "ended");
        assert_eq!(
            ending(Some(ExitStatus::from_raw(9))),
            "was killed by signal 9"
        );
        assert_eq!(ending(Some(ExitStatus::from_raw(256))), "ended with code 1");
    }
}
