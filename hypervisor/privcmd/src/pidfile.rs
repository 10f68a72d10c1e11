//! One service of a kind in each installation.
//!
//! Law: the lock is the truth, the number in the file is for people. The
//! kernel drops the lock when the process ends, however it ends, so a left
//! over file never stands in the way. The file is never unlinked: somebody who
//! is about to lock it would then lock a file that nobody else can see.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

const ATTEMPTS: u32 = 5;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(5);

/// A pid file that this process has locked.
#[derive(Debug)]
pub struct PidFile {
    file: Flock<File>,
}

/// Why a pid file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Somebody lives.
    #[error("{path} is locked: process {} is already running", holder.map_or("?".into(), |pid| pid.to_string()))]
    Held {
        /// The file.
        path: PathBuf,
        /// The number in it, if there was one.
        holder: Option<u32>,
    },
    /// The file could not be opened, locked or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PidFile {
    /// Locks `path` and writes this process's id into it.
    ///
    /// # Errors
    /// [`PidFileError::Held`] when another process has it locked.
    pub fn acquire(path: &Path) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io {
            path: path.into(),
            source,
        };
        let file = open(path).map_err(failed)?;
        let file = match lock(file) {
            Ok(file) => file,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                return Err(PidFileError::Held {
                    path: path.into(),
                    holder: number_in(&mut file),
                });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        let mut locked = Self { file };
        locked.write(std::process::id()).map_err(failed)?;
        Ok(locked)
    }

    /// Writes the id again: after a fork, by the process that goes on.
    ///
    /// # Errors
    /// What writing the file gives.
    pub fn rewrite(&mut self) -> io::Result<()> {
        self.write(std::process::id())
    }

    fn write(&mut self, pid: u32) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{pid}")
    }
}

impl Drop for PidFile {
    /// An orderly end leaves the file empty.
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

/// The id of the process that holds `path` locked, if one does.
#[must_use]
pub fn holder(path: &Path) -> Option<u32> {
    let file = OpenOptions::new().read(true).open(path).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_unheld) => None,
        Err((mut file, _)) => number_in(&mut file),
    }
}

/// Takes the lock. A refusal counts only after some attempts, because
/// [`holder`] holds it for an instant too.
fn lock(mut file: File) -> Result<Flock<File>, (File, Errno)> {
    for _ in 0..ATTEMPTS {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((file, Errno::EWOULDBLOCK)) => file,
            done => return done,
        };
        thread::sleep(BETWEEN_ATTEMPTS);
    }
    Err((file, Errno::EWOULDBLOCK))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
}

fn number_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let first = PidFile::acquire(&path).unwrap();
        assert_eq!(holder(&path), Some(std::process::id()));
        match PidFile::acquire(&path) {
            Err(PidFileError::Held { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        assert_eq!(holder(&path), None);
        PidFile::acquire(&path).unwrap();
    }

    #[test]
    fn a_dead_holders_file_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        std::fs::write(&path, "999999999\n").unwrap();
        assert_eq!(holder(&path), None);
        let _held = PidFile::acquire(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }
}
