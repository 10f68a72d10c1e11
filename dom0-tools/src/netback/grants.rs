//! Parts of granted pages, read and written in batches.
//!
//! Law: what is read is a private copy, so nothing that the guest does later
//! changes it. A piece that can't be copied (no such grant, revoked) fails
//! alone.

use std::sync::Arc;

use domus_privcmd::client::ClientError;
use guest_abi::addr::DomId;

/// A part of a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The grant.
    pub gref: u32,
    /// The first byte.
    pub offset: u16,
    /// How many.
    pub len: u16,
}

/// Access to a guest's granted pages.
pub trait Grants: Send {
    /// Copies pieces, one behind the other, into `into`. `done` gets for each
    /// whether it was copied; what was not is zeroes.
    ///
    /// # Errors
    /// When the hypervisor can't be reached.
    fn read(
        &mut self,
        pieces: &[Piece],
        into: &mut [u8],
        done: &mut Vec<bool>,
    ) -> Result<(), ClientError>;

    /// Copies bytes, one piece behind the other, out of `from`.
    ///
    /// # Errors
    /// When the hypervisor can't be reached.
    fn write(
        &mut self,
        pieces: &[Piece],
        from: &[u8],
        done: &mut Vec<bool>,
    ) -> Result<(), ClientError>;
}
