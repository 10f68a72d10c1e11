//! The ramdisk: checked before the domain is created, handed over as it is.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// More does not fit any initial mapping (VIRT_BASE leaves 2 GiB at best).
const MAX_LEN: u64 = 4 << 30;

/// A ramdisk that can't be used.
#[derive(Debug, Error)]
#[error("ramdisk {}: {fault}", path.display())]
pub struct RamdiskError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub fault: RamdiskFault,
}

/// What is wrong with a ramdisk.
#[derive(Debug, Error)]
pub enum RamdiskFault {
    /// Missing, or not readable.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A directory, a device.
    #[error("not a regular file")]
    NotAFile,
    /// No bytes.
    #[error("the file is empty; leave `ramdisk` out if there is none")]
    Empty,
    /// Absurdly large.
    #[error("{0} bytes are too many (at most {MAX_LEN})")]
    TooLarge(u64),
}

/// A ramdisk's content.
#[derive(Debug, Clone, PartialEq)]
pub struct Ramdisk(Vec<u8>);

impl Ramdisk {
    /// Reads a ramdisk.
    ///
    /// # Errors
    /// See [`RamdiskFault`].
    pub fn open(path: &Path) -> Result<Self, RamdiskError> {
        Self::read(path).map_err(|fault| RamdiskError {
            path: path.to_owned(),
            fault,
        })
    }

    fn read(path: &Path) -> Result<Self, RamdiskFault> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(RamdiskFault::NotAFile);
        }
        let len = metadata.len();
        if len > MAX_LEN {
            return Err(RamdiskFault::TooLarge(len));
        }
        let mut content = Vec::new();
        File::open(path)?.take(MAX_LEN).read_to_end(&mut content)?;
        if content.is_empty() {
            return Err(RamdiskFault::Empty);
        }
        Ok(Self(content))
    }

    /// A ramdisk that is already in memory.
    #[must_use]
    pub fn from_bytes(content: Vec<u8>) -> Option<Self> {
        (!content.is_empty()).then_some(Self(content))
    }

    /// Its bytes.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.0
    }
}
