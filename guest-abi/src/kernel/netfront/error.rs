//! What can go wrong with a network interface.

use core::fmt;

use crate::kernel::{front_ring::BrokenRing, xenbus::BusError, xenstore::StoreError};

/// Why a frame or the interface failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// The way to the back end.
    Bus(BusError),
    /// The back end moved an index where none can be. The interface is given up.
    Ring(BrokenRing),
    /// The back end answered what was not asked. The interface is given up.
    Response {
        /// The number in its answer.
        id: u16,
    },
    /// No room for a frame now: [`poll`](super::Netfront::poll) first.
    Busy,
    /// The back end is not connected (any more, or yet).
    NotConnected,
    /// The interface was removed.
    Gone,
    /// A frame to send that is empty, too long, or in need of what the back
    /// end does not do.
    Length(usize),
    /// The back end can't copy into our pages, or the MAC address is none.
    Unsupported,
}

impl From<BusError> for NetError {
    fn from(error: BusError) -> Self {
        Self::Bus(error)
    }
}

impl From<StoreError> for NetError {
    fn from(error: StoreError) -> Self {
        Self::Bus(error.into())
    }
}

impl From<BrokenRing> for NetError {
    fn from(error: BrokenRing) -> Self {
        Self::Ring(error)
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bus(error) => error.fmt(f),
            Self::Ring(error) => error.fmt(f),
            Self::Response { id } => write!(f, "the back end answers {id:#x}, which nobody asked"),
            Self::Busy => f.write_str("no room for a frame: poll first"),
            Self::NotConnected => f.write_str("the interface's back end is not connected"),
            Self::Gone => f.write_str("the interface was removed"),
            Self::Length(length) => write!(f, "the back end takes no frame of {length} bytes"),
            Self::Unsupported => {
                f.write_str("the back end does not copy into our pages, or tells no MAC address")
            }
        }
    }
}

impl core::error::Error for NetError {}
