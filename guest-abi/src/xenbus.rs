//! `public/io/xenbus.h`: the states by which the two halves of a split
//! driver find together, in the `state` node of each.
//!
//! ```
//! use guest_abi::xenbus::XenbusState;
//!
//! assert_eq!(XenbusState::from_number(4), Some(XenbusState::Connected));
//! assert_eq!(XenbusState::from_number(77), None);
//! ```

/// A half's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum XenbusState {
    /// No node, or nothing in it.
    Unknown = 0,
    /// Being set up.
    Initialising = 1,
    /// Set up, waiting for the other half.
    InitWait = 2,
    /// Told the other half what it needs; waiting for it to connect.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// The device is going, or an error ended its use.
    Closing = 5,
    /// Gone.
    Closed = 6,
    /// Being changed while in use.
    Reconfiguring = 7,
    /// Changed.
    Reconfigured = 8,
}

impl XenbusState {
    /// The state of a number; `None` if there is none.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Unknown,
            1 => Self::Initialising,
            2 => Self::InitWait,
            3 => Self::Initialised,
            4 => Self::Connected,
            5 => Self::Closing,
            6 => Self::Closed,
            7 => Self::Reconfiguring,
            8 => Self::Reconfigured,
            _ => return None,
        })
    }

    /// The state's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }
}
