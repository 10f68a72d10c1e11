//! Why a disk can't be served. These texts stand in xenstore and in the log.

use std::{io, path::PathBuf};

use domus_privcmd::client::ClientError;

use crate::{
    backend::{BusError, RingError},
    image::ImageError,
};

/// What is wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// Nodes.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] ClientError),
    /// The front end's ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A qcow2 image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The `params` node.
    #[error("params = \"{0}\" is not FORMAT:/absolute/path with FORMAT raw or qcow2")]
    Params(String),
    /// The `throttle` node.
    #[error("throttle = \"{0}\" is not bps=BYTES,iops=OPERATIONS")]
    Limits(String),
    /// The file.
    #[error("cannot open {path}: {source}{hint}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// A directory, a pipe.
    #[error("{0} is neither a file nor a block device")]
    Kind(PathBuf),
    /// Not even one sector.
    #[error("{path} has {bytes} bytes, which is not even one sector")]
    Empty {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Somebody else uses the image.
    #[error("{path} is busy: {holder}")]
    Busy {
        /// The file.
        path: PathBuf,
        /// Who, as far as is known.
        holder: String,
    },
    /// The front end wants what we did not offer.
    #[error("the front end's {node} = {value} is more than the {limit} that were offered")]
    TooMuch {
        /// Its node.
        node: &'static str,
        /// Its value.
        value: u32,
        /// What we had offered.
        limit: u32,
    },
    /// A front end of another word size.
    #[error("the front end's protocol \"{0}\" is not x86_64-abi")]
    Protocol(String),
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// A queue's thread ended.
    #[error("{0}")]
    Queue(String),
}
