//! Why an image can't be used.

use std::{io, path::PathBuf};

use super::MAX_CHAIN;
use crate::config::disk::Format;

/// An image that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("image {}: {fault}", path.display())]
pub struct ImageError {
    /// The image.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub fault: Fault,
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Missing, not readable, or not what its format says.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It made its reader panic.
    #[error("it is damaged ({0}); 'qemu-img check' tells more")]
    Damaged(String),
    /// Shorter than its own tables say.
    #[error(
        "it was cut off: it has {length} bytes, and there were at least {needed}. Copy it again; \
         'qemu-img check' tells more"
    )]
    CutOff {
        /// Bytes that its tables name.
        needed: u64,
        /// Bytes that it has.
        length: u64,
    },
    /// A directory, a pipe, a character device.
    #[error("{} is neither a regular file nor a block device", .0.display())]
    Kind(PathBuf),
    /// No code for it.
    #[error(
        "the format {0:?} can't be read; make it qcow2 or raw, as with 'qemu-img convert -O qcow2 OLD NEW'"
    )]
    Format(Format),
    /// Too many layers, or a ring of them.
    #[error("its backing chain has more than {MAX_CHAIN} layers, or leads back to itself")]
    Chain,
    /// A backing file of which nobody said what it is.
    #[error("{} can't be the base: {why}", path.display())]
    Base {
        /// The backing file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}
