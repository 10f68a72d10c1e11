//! The directory in which an image is made, beside where it will lie.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::{ImageCommandError, error::at};

/// A directory that goes when it is done with, whatever has happened; one that
/// a killed xm has left behind is cleared away by the next.
#[derive(Debug)]
pub struct Workshop {
    dir: PathBuf,
    lock: PathBuf,
    _held: Flock<File>,
}

impl Workshop {
    /// Opens one for the image `output`.
    ///
    /// # Errors
    /// Another xm makes the same image, or the file system's.
    pub fn open(output: &Path) -> Result<Self, ImageCommandError> {
        let beside = |end: &str| {
            let mut name = OsString::from(".");
            name.push(output.file_name().unwrap_or_default());
            name.push(end);
            output.with_file_name(name)
        };
        let (dir, lock) = (beside(".making"), beside(".lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock)
            .map_err(at(&lock))?;
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| ImageCommandError::Busy(output.to_owned()))?;
        remove(&dir).map_err(at(&dir))?;
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(at(&dir))?;
        Ok(Self {
            dir,
            lock,
            _held: held,
        })
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            eprintln!("Warning: {} can't be removed: {error}", self.dir.display());
        }
        // Another that waits for this name makes it anew.
        let _ = fs::remove_file(&self.lock);
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
