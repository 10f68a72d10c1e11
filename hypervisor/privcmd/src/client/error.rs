//! Why a call of a Dom0 process did not succeed.

use std::{
    io,
    path::{Path, PathBuf},
};

use guest_abi::errno::Errno;

use crate::{
    protocol::{Failure, Reply, Request},
    wire::WireError,
};

/// What can go wrong between a Dom0 process and the hypervisor.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no hypervisor is running ({path}: {source}); start one with domus-hypervisor, \
         or set DOMUS_RUN_DIR to where it runs"
    )]
    NoHypervisor {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket's mode or directory forbids it.
    #[error("{path}: permission denied; run as the hypervisor's user or as root")]
    PermissionDenied {
        /// The socket.
        path: PathBuf,
    },
    /// Any other failure to connect.
    #[error("cannot connect to the hypervisor at {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The hypervisor does not want this client.
    #[error("the hypervisor refused the connection: {0}")]
    Refused(Failure),
    /// The hypervisor ended, or ended this connection.
    #[error("the hypervisor at {path} has ended the connection; see its log")]
    Disconnected {
        /// The socket.
        path: PathBuf,
    },
    /// A message did not get through.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// This process could not map what it may map.
    #[error("cannot map granted pages of domain {dom}: {source}")]
    Map {
        /// The granting domain.
        dom: u16,
        /// What the system said.
        source: io::Error,
    },
    /// A buffer could not be mapped.
    #[error("cannot map a buffer: {0}")]
    Buffer(io::Error),
    /// The request reached the hypervisor and failed there.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The hypervisor succeeded with an answer to another question.
    #[error(
        "the hypervisor answered {request} with {reply}: its version and this program's differ"
    )]
    Unexpected {
        /// The request, in Rust notation.
        request: String,
        /// The reply, in Rust notation.
        reply: String,
    },
}

impl ClientError {
    /// The Xen error number, if the hypervisor gave one.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Failed(failure) | Self::Refused(failure) => Some(failure.errno()),
            _ => None,
        }
    }

    /// Whether the named domain does not exist (any more).
    #[must_use]
    pub fn is_no_such_domain(&self) -> bool {
        self.errno() == Some(Errno::ESRCH)
    }

    pub(super) fn connecting(path: &Path, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Self::NoHypervisor { path, source }
            }
            io::ErrorKind::PermissionDenied => Self::PermissionDenied { path },
            _ => Self::Connect { path, source },
        }
    }

    pub(super) fn unexpected(request: &Request, reply: &Reply) -> Self {
        let short = |text: String| text.chars().take(120).collect();
        Self::Unexpected {
            request: short(format!("{request:?}")),
            reply: short(format!("{reply:?}")),
        }
    }
}
