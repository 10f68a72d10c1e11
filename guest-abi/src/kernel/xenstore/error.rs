//! What can go wrong with xenstore.

use core::fmt;

use crate::errno::Errno;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The domain builder gave no ring: the initial domain of a Xen, or a tool
    /// stack without a xenstore.
    Absent,
    /// The daemon's answer: `ENOENT` (no such node), `EACCES` (not ours),
    /// `EAGAIN` (a transaction that has to be done again), `EINVAL`, `ENOSPC`,
    /// `E2BIG` (quotas, or a directory of more than 4096 bytes), ...
    Refused(Errno),
    /// The request has more bytes than a message may have.
    TooLong,
    /// The daemon did not answer in time. The request may still be done.
    TimedOut,
    /// An index of the ring is where none can be. The connection is over.
    BrokenRing {
        /// Where the producer of the bytes is.
        produced: u32,
        /// Where their consumer is.
        consumed: u32,
    },
    /// An answer that the protocol does not know. The connection is over.
    Protocol,
    /// A value that is not what was to be there: not text, not a number, too long.
    Malformed,
    /// All watches are taken.
    NoWatch,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("this domain has no xenstore"),
            Self::Refused(errno) => write!(f, "xenstore: {errno}"),
            Self::TooLong => f.write_str("a xenstore message has at most 4096 bytes"),
            Self::TimedOut => f.write_str("xenstore does not answer"),
            Self::BrokenRing { produced, consumed } => write!(
                f,
                "the xenstore ring is broken: produced {produced}, consumed {consumed}"
            ),
            Self::Protocol => f.write_str("xenstore's answer makes no sense"),
            Self::Malformed => f.write_str("a xenstore node's value is not what it should be"),
            Self::NoWatch => f.write_str("all xenstore watches of this kernel are taken"),
        }
    }
}

impl core::error::Error for StoreError {}
