//! A person's side of a console: `xm console`.
//!
//! Bytes pass as they are, both ways: what they mean (UTF-8, colours, control
//! keys) is between the guest and the person's terminal. One byte is ours:
//! [`DETACH`] leaves. A PV console knows no window size, so a resize stays on
//! this side; in the guest, `stty rows R cols C` tells its programs.
//!
//! Law: the terminal is given back as it was found, however this ends. The
//! detaching key works also when the guest reads nothing.

mod pump;
mod terminal;

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use domus_privcmd::{client as privcmd, pidfile};
use guest_abi::addr::DomId;
use nix::fcntl::{Flock, FlockArg};

use pump::{Pump, Stop};
use terminal::{RawTerminal, Signals};

use crate::{
    paths,
    xenstore::client::{self as xenstore, Nodes},
};

/// Ctrl+].
pub const DETACH: u8 = 0x1d;

/// How long a console may take to appear, or to come back with a new daemon.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Where the console of one domain is found.
pub trait Source {
    /// Its terminal now, if the console daemon has announced one.
    fn tty(&mut self) -> Option<PathBuf>;
    /// Whether the domain still exists.
    fn alive(&mut self) -> bool;
    /// Whether a console daemon runs now. A terminal that has hung up comes
    /// back under its old name where the kernel gives the number to the next
    /// daemon; without one, it is somebody else's.
    fn served(&mut self) -> bool {
        false
    }
}

/// How a visit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The person left.
    Detached,
    /// The guest is gone.
    GuestEnded,
    /// A signal (its number) told this process to end.
    Signal(i32),
}

/// Why a visit was not possible, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No daemon serves this console.
    #[error("the console does not appear: is xenconsoled running?")]
    NoConsole,
    /// Somebody else is there.
    #[error("{0}: somebody else is attached to this console")]
    Busy(PathBuf),
    /// What the store names is not a terminal.
    #[error("{0} is not a terminal: somebody has tampered with the console's tty node")]
    NotATerminal(PathBuf),
    /// The system said no.
    #[error("console: {0}")]
    Io(#[from] io::Error),
}

/// Connects this process's standard input and output with a console, until
/// the person leaves or the guest ends. When standard input is not a terminal
/// its end ends nothing: output goes on until the guest's end.
///
/// # Errors
/// See [`AttachError`].
pub fn attach(source: &mut dyn Source) -> Result<End, AttachError> {
    attach_to(source, io::stdin().as_fd(), io::stdout().as_fd())
}

/// [`attach`] with other descriptors than the standard ones.
///
/// # Errors
/// See [`AttachError`].
pub fn attach_to(
    source: &mut dyn Source,
    keys: BorrowedFd<'_>,
    screen: BorrowedFd<'_>,
) -> Result<End, AttachError> {
    // Before the terminal is changed, so that no signal finds it raw.
    let signals = Signals::catch()?;
    let mut pump = Pump::new(keys, screen, signals.as_fd());
    let mut raw = None;
    let mut last = None;
    loop {
        let Some(tty) = find(source, last.as_deref())? else {
            return Ok(End::GuestEnded);
        };
        if raw.is_none() {
            raw = RawTerminal::enter(keys)?;
        }
        match pump.run(tty.file.as_fd())? {
            Stop::Detached => return Ok(End::Detached),
            Stop::Signal => return Ok(End::Signal(signals.taken())),
            // The guest's end or the daemon's: find out.
            Stop::HungUp => last = Some(tty.path),
        }
    }
}

/// The console of a domain of this installation.
pub struct DomainConsole<'a> {
    client: &'a privcmd::Client,
    store: &'a mut xenstore::Client,
    dom: DomId,
    generation: u64,
}

impl<'a> DomainConsole<'a> {
    /// The console of the domain that has the number `dom` now.
    ///
    /// # Errors
    /// The hypervisor's: `ESRCH` when there is no such domain.
    pub fn new(
        client: &'a privcmd::Client,
        store: &'a mut xenstore::Client,
        dom: DomId,
    ) -> Result<Self, privcmd::ClientError> {
        let generation = client.domain_info(dom)?.generation;
        Ok(Self {
            client,
            store,
            dom,
            generation,
        })
    }
}

impl Source for DomainConsole<'_> {
    fn tty(&mut self) -> Option<PathBuf> {
        let node = format!("/local/domain/{}/console/tty", self.dom);
        let name = self.store.find(&node).ok().flatten()?;
        (!name.is_empty()).then(|| name.into())
    }

    fn alive(&mut self) -> bool {
        self.client
            .domain_info(self.dom)
            .is_ok_and(|info| info.generation == self.generation && !info.dying)
    }

    fn served(&mut self) -> bool {
        pidfile::holder(&paths::pid_file("xenconsoled")).is_some()
    }
}

struct Tty {
    path: PathBuf,
    /// Locked, so that two people don't share out the bytes.
    file: Flock<File>,
}

/// The console's terminal, once there is one that has not hung up before;
/// `None` when the guest has ended.
fn find(source: &mut dyn Source, hung_up: Option<&Path>) -> Result<Option<Tty>, AttachError> {
    let give_up = Instant::now() + PATIENCE;
    while source.alive() {
        let tty = source.tty();
        if let Some(path) = tty.filter(|path| Some(path.as_path()) != hung_up || source.served()) {
            match open(&path) {
                Ok(file) => return Ok(Some(Tty { path, file })),
                // Of a daemon that has died; the next one will say its own.
                Err(AttachError::Io(error)) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if Instant::now() >= give_up {
            return Err(AttachError::NoConsole);
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    Ok(None)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EIO | libc::ENXIO)
    )
}

fn open(path: &Path) -> Result<Flock<File>, AttachError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let is_terminal = file.metadata()?.file_type().is_char_device()
        && nix::unistd::isatty(&file).unwrap_or(false);
    if !is_terminal {
        return Err(AttachError::NotATerminal(path.into()));
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => AttachError::Busy(path.into()),
        other => AttachError::Io(other.into()),
    })
}

#[cfg(test)]
mod tests;
