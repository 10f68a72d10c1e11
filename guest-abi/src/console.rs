//! `public/io/console.h`: the ring of the PV console.
//!
//! Two byte rings in one page; indices run freely and are masked on use. The
//! guest writes `in_cons` and `out_prod`, the console daemon `in_prod` and
//! `out_cons`; each tells the other of a change by the console's event channel.
//!
//! ```
//! use guest_abi::console::{XENCONS_OUT_SIZE, XenconsInterface};
//!
//! // Indices run freely: the place in the ring is what is left by its size.
//! let out_prod = u32::MAX;
//! assert_eq!(out_prod as usize % XENCONS_OUT_SIZE, 2047);
//! assert_eq!(core::mem::offset_of!(XenconsInterface, output), 1024);
//! ```

use crate::layout::layout;

/// Bytes of [`XenconsInterface::input`].
pub const XENCONS_IN_SIZE: usize = 1024;
/// Bytes of [`XenconsInterface::output`].
pub const XENCONS_OUT_SIZE: usize = 2048;

layout! {
    /// The shared page (`xencons_interface`).
    struct XenconsInterface [3088] {
        /// From the person to the guest.
        0 => input: [u8; 1024],
        /// From the guest to the person.
        1024 => output: [u8; 2048],
        /// Written by the guest.
        3072 => in_cons: u32,
        /// Written by the daemon.
        3076 => in_prod: u32,
        /// Written by the daemon.
        3080 => out_cons: u32,
        /// Written by the guest.
        3084 => out_prod: u32,
    }
}
