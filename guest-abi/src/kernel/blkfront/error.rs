//! What can go wrong with a disk.

use core::fmt;

use crate::kernel::{front_ring::BrokenRing, xenbus::BusError, xenstore::StoreError};

/// Why a request or the disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkError {
    /// The way to the back end.
    Bus(BusError),
    /// The back end moved an index where none can be. The disk is given up.
    Ring(BrokenRing),
    /// The back end answered what was not asked. The disk is given up.
    Response {
        /// The number in its answer.
        id: u64,
    },
    /// All requests are under way: [`poll`](super::Blkfront::poll) first.
    Busy,
    /// The back end is not connected (any more, or yet).
    NotConnected,
    /// The disk was removed.
    Gone,
    /// Sectors past the disk's end.
    OutOfRange {
        /// First sector asked for.
        sector: u64,
        /// How many.
        count: u64,
        /// Sectors of the disk.
        sectors: u64,
    },
    /// Not a whole number of the disk's sectors, or more than one request takes.
    Length(usize),
    /// The disk is read-only.
    ReadOnly,
    /// The back end does not do that.
    Unsupported,
    /// The back end reports an I/O error.
    Failed,
    /// This ticket names no request that is finished or under way.
    Ticket,
    /// No answer in time.
    TimedOut,
}

impl From<BusError> for BlkError {
    fn from(error: BusError) -> Self {
        Self::Bus(error)
    }
}

impl From<StoreError> for BlkError {
    fn from(error: StoreError) -> Self {
        Self::Bus(error.into())
    }
}

impl From<BrokenRing> for BlkError {
    fn from(error: BrokenRing) -> Self {
        Self::Ring(error)
    }
}

impl fmt::Display for BlkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bus(error) => error.fmt(f),
            Self::Ring(error) => error.fmt(f),
            Self::Response { id } => write!(f, "the back end answers {id:#x}, which nobody asked"),
            Self::Busy => f.write_str("all requests are under way: poll first"),
            Self::NotConnected => f.write_str("the disk's back end is not connected"),
            Self::Gone => f.write_str("the disk was removed"),
            Self::OutOfRange {
                sector,
                count,
                sectors,
            } => write!(
                f,
                "{count} sectors at {sector} pass the disk's end at {sectors}"
            ),
            Self::Length(length) => write!(
                f,
                "{length} bytes are no whole number of sectors, or too many for a request"
            ),
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::Unsupported => f.write_str("the disk's back end does not do that"),
            Self::Failed => f.write_str("the disk's back end reports an I/O error"),
            Self::Ticket => f.write_str("there is no such request"),
            Self::TimedOut => f.write_str("the disk's back end does not answer"),
        }
    }
}

impl core::error::Error for BlkError {}
