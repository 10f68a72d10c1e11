//! What the parsers see of a guest's file system.

use std::io;

/// A configuration file is text for people.
pub const MAX_TEXT: u64 = 1 << 20;
/// More names than anybody has in /boot.
pub const MAX_NAMES: usize = 4096;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is none.
    #[error("there is no such file")]
    Missing,
    /// More than what is accepted.
    #[error("it is larger than the {0} bytes that are accepted")]
    TooLarge(u64),
    /// The file system is damaged or not understood.
    #[error("the file system is damaged, or of a kind that can't be read: {0}")]
    Damaged(String),
    /// The disk.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A guest's file system, for reading.
pub trait Files {
    /// A file's bytes, `limit` at most.
    ///
    /// # Errors
    /// See [`FileError`].
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, FileError>;

    /// The names in a directory, sorted; [`MAX_NAMES`] at most.
    ///
    /// # Errors
    /// See [`FileError`].
    fn names(&self, dir: &str) -> Result<Vec<String>, FileError>;

    /// Whether there is such a file or directory.
    fn exists(&self, path: &str) -> bool;

    /// A text file; bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// See [`FileError`].
    fn text(&self, path: &str) -> Result<String, FileError> {
        let bytes = self.read(path, MAX_TEXT)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Joins a name to a directory: an absolute name stands for itself.
#[must_use]
pub fn join(dir: &str, name: &str) -> String {
    if name.starts_with('/') {
        return name.to_owned();
    }
    format!("{}/{name}", dir.trim_end_matches('/'))
}
