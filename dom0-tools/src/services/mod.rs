//! The processes of Dom0: started when first needed, started again when lost.
//!
//! ```text
//!   domus-hypervisor <--privcmd.sock-- xenstored <--socket-- xm
//!                    <--privcmd.sock-- xenconsoled
//! ```
//!
//! Law: whether a service lives is asked of the lock on its pid file and of
//! its socket, never of a number alone. Starting happens under one lock, so
//! that two `xm` at once start one set. A service that can't start says why:
//! the end of its log is in the error.

mod log;
mod start;
mod stop;

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::{fs::DirBuilderExt, fs::OpenOptionsExt, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use domus_privcmd::{
    client::{Client, ClientError},
    pidfile,
};
use nix::fcntl::{Flock, FlockArg};

use crate::paths;

pub(crate) use start::detach;
pub use start::find_program;
pub use stop::stop;

/// How long a service may take until it answers.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One of the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The hypervisor.
    Hypervisor,
    /// The xenstore daemon.
    Xenstored,
    /// The console daemon.
    Xenconsoled,
}

/// All services, in the order in which they start.
pub const ALL: [Service; 3] = [
    Service::Hypervisor,
    Service::Xenstored,
    Service::Xenconsoled,
];

/// Why the services could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A directory of ours can't be made.
    #[error("can't make the directory {path}: {source}{}", hint_root(source))]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of ours can't be opened or locked.
    #[error("can't use {path}: {source}{}", hint_root(source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program is nowhere.
    #[error("can't find the program '{program}': looked beside {beside} and in PATH")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// The directory of our own program.
        beside: PathBuf,
    },
    /// The program can't be run.
    #[error("can't run {path}: {source}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended at once.
    #[error("{program} could not start ({status}).{}", told(tail, log))]
    Ended {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: String,
        /// The end of its log.
        tail: String,
        /// Its log.
        log: PathBuf,
    },
    /// It runs but does not answer.
    #[error("{program} does not answer after {} s.{}", PATIENCE.as_secs(), told(tail, log))]
    Silent {
        /// Its name.
        program: &'static str,
        /// The end of its log.
        tail: String,
        /// Its log.
        log: PathBuf,
    },
    /// It would not end.
    #[error("{program} (process {pid}) does not end; '--force' kills it")]
    Undying {
        /// Its name.
        program: &'static str,
        /// Its id.
        pid: u32,
    },
    /// The hypervisor answers, but not us.
    #[error(transparent)]
    Hypervisor(#[from] ClientError),
}

fn hint_root(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; run as root, or set DOMUS_RUN_DIR to a directory of your own"
        }
        _ => "",
    }
}

fn told(tail: &str, log: &Path) -> String {
    if tail.is_empty() {
        format!(" Its log, {}, says nothing.", log.display())
    } else {
        format!(" Its log, {}, ends:\n{tail}", log.display())
    }
}

/// What [`ensure`] had to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ensured {
    /// The services that were started.
    pub started: Vec<Service>,
    /// Of these, the ones that had not ended in an orderly way before, with
    /// the process that they were.
    pub lost: Vec<(Service, u32)>,
}

impl Service {
    /// The name of its program, of its pid file and of its log.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Service::Hypervisor => "domus-hypervisor",
            Service::Xenstored => "xenstored",
            Service::Xenconsoled => "xenconsoled",
        }
    }

    fn args(self) -> Vec<OsString> {
        match self {
            Service::Hypervisor => vec!["--socket".into(), paths::privcmd_socket().into()],
            Service::Xenstored | Service::Xenconsoled => Vec::new(),
        }
    }

    /// Whether its first process ends as soon as it serves: its lock alone
    /// does not say that.
    const fn goes_into_background(self) -> bool {
        matches!(self, Service::Xenconsoled)
    }

    /// Its log.
    #[must_use]
    pub fn log(self) -> PathBuf {
        paths::log_dir().join(format!("{}.log", self.program()))
    }

    /// The process, if it lives.
    #[must_use]
    pub fn pid(self) -> Option<u32> {
        pidfile::holder(&paths::pid_file(self.program()))
    }

    /// Whether it can be used now.
    ///
    /// # Errors
    /// It can be reached, but not by us.
    fn answers(self) -> Result<bool, ServiceError> {
        match self {
            Service::Hypervisor => match Client::connect(&paths::privcmd_socket()) {
                Ok(_) => Ok(true),
                Err(ClientError::NoHypervisor { .. } | ClientError::Disconnected { .. }) => {
                    Ok(false)
                }
                Err(error) => Err(error.into()),
            },
            Service::Xenstored => {
                let path = paths::xenstored_socket();
                match UnixStream::connect(&path) {
                    Ok(_) => Ok(true),
                    Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                        Err(ServiceError::File { path, source })
                    }
                    Err(_) => Ok(false),
                }
            }
            Service::Xenconsoled => Ok(self.pid().is_some()),
        }
    }

    /// The process that it was, if it ended without putting its things away.
    fn lost(self) -> Option<u32> {
        if self.pid().is_some() {
            return None;
        }
        let text = std::fs::read_to_string(paths::pid_file(self.program())).ok()?;
        text.trim().parse().ok()
    }
}

/// Makes sure that all services answer; starts those that don't.
///
/// # Errors
/// Why one can't be had.
pub fn ensure() -> Result<Ensured, ServiceError> {
    if all_answer()? {
        return Ok(Ensured::default());
    }
    make_dir(&paths::run_dir())?;
    make_dir(&paths::log_dir())?;
    let _lock = lock()?;
    let mut ensured = Ensured::default();
    for service in ALL {
        if service.answers()? {
            continue;
        }
        ensured
            .lost
            .extend(service.lost().map(|pid| (service, pid)));
        start::start(service)?;
        ensured.started.push(service);
    }
    Ok(ensured)
}

/// Whether all services can be used now.
///
/// # Errors
/// One can be reached, but not by us.
pub fn all_answer() -> Result<bool, ServiceError> {
    for service in ALL {
        if !service.answers()? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Held while services are started or stopped.
fn lock() -> Result<Flock<File>, ServiceError> {
    let path = paths::run_dir().join("services.lock");
    let failed = |source: io::Error| ServiceError::File {
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))
}

/// Makes a directory that only we can look into.
pub(crate) fn make_dir(path: &Path) -> Result<(), ServiceError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| ServiceError::Directory {
        path: path.to_owned(),
        source,
    })
}
