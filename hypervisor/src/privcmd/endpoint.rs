//! The socket in the file system: one hypervisor for each directory.
//!
//! Law: whoever holds the pid file's lock owns the socket's name. So a socket
//! that is there when the lock has been taken is a dead hypervisor's, and is
//! replaced; without the lock nothing is touched.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use domus_privcmd::pidfile::{PidFile, PidFileError};
use nix::{
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
    unistd::geteuid,
};

use super::ServerError;

/// The pid file's name, next to the socket.
pub const PID_FILE: &str = "domus-hypervisor.pid";

const BACKLOG: i32 = 128;

/// A bound socket's name, removed at the end.
pub(super) struct Endpoint {
    path: PathBuf,
    _lock: PidFile,
}

impl Endpoint {
    /// Takes the directory's lock and binds the socket, mode 0600.
    pub fn open(path: &Path) -> Result<(Self, UnixListener), ServerError> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        prepare_dir(dir)?;
        let lock = PidFile::acquire(&dir.join(PID_FILE)).map_err(|error| match error {
            PidFileError::Held { holder, .. } => ServerError::AlreadyRunning {
                dir: dir.into(),
                holder: holder.map_or_else(|| "?".into(), |pid| pid.to_string()),
            },
            PidFileError::Io { path, source } => ServerError::Io { path, source },
        })?;
        let listener = bind_at(path).map_err(|source| ServerError::Io {
            path: path.into(),
            source,
        })?;
        let endpoint = Self {
            path: path.into(),
            _lock: lock,
        };
        Ok((endpoint, listener))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Still under the lock, which is a later field's to drop.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the directory, 0700, or checks that nobody else can replace what is
/// in the one that is there.
fn prepare_dir(dir: &Path) -> Result<(), ServerError> {
    let failed = |source| ServerError::Io {
        path: dir.into(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)?;
    let meta = fs::metadata(dir).map_err(failed)?;
    let trusted_owner = meta.uid() == 0 || meta.uid() == geteuid().as_raw();
    let writable_by_others = meta.mode() & 0o022 != 0;
    if trusted_owner && !writable_by_others {
        return Ok(());
    }
    Err(ServerError::OpenDirectory {
        dir: dir.into(),
        uid: meta.uid(),
        mode: meta.mode() & 0o7777,
    })
}

fn bind_at(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    // Before the bind, so that the name never exists with another mode.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd.into())
}
