//! Parts of granted pages, read and written in batches.
//!
//! Law: what is read is a private copy, so nothing that the guest does later
//! changes it. A piece that can't be copied (no such grant, revoked) fails
//! alone.

use std::{ops::DerefMut, sync::Arc};

use domus_privcmd::client::{Client, ClientError, CopyBuffer, GrantPart};
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

/// Why a batch failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum GrantsError {
    /// The hypervisor can't be reached.
    #[error(transparent)]
    Hypervisor(#[from] ClientError),
}

/// Access to a guest's granted pages.
pub trait Grants: Send {
    /// Memory for packets, that the pages' bytes are copied to and from.
    type Buffer: DerefMut<Target = [u8]> + Send;

    /// A buffer of so many bytes at least.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn buffer(&mut self, bytes: usize) -> Result<Self::Buffer, GrantsError>;

    /// Copies pieces, one behind the other, to the start of `into`. `done` gets
    /// for each whether it was copied; what was not keeps what was there.
    ///
    /// # Errors
    /// When the hypervisor can't be reached.
    fn read(
        &mut self,
        pieces: &[Piece],
        into: &mut Self::Buffer,
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError>;

    /// Copies bytes, one piece behind the other, from the start of `from`.
    ///
    /// # Errors
    /// When the hypervisor can't be reached.
    fn write(
        &mut self,
        pieces: &[Piece],
        from: &mut Self::Buffer,
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError>;
}

/// Pages of a domain, through the hypervisor.
///
/// The hypervisor copies a batch between the pages and the buffer, which it has
/// mapped as well: one short message, whatever the batch's size, and no page of
/// the guest's is ever mapped here.
#[derive(Debug)]
pub struct GuestPages {
    client: Arc<Client>,
    dom: DomId,
    parts: Vec<GrantPart>,
}

impl GuestPages {
    /// Of this domain.
    #[must_use]
    pub const fn new(client: Arc<Client>, dom: DomId) -> Self {
        let parts = Vec::new();
        Self { client, dom, parts }
    }

    /// The pieces that are not empty.
    fn select(&mut self, pieces: &[Piece]) {
        let used = pieces.iter().filter(|piece| piece.len > 0);
        self.parts.clear();
        self.parts.extend(used.map(|piece| GrantPart {
            gref: piece.gref,
            offset: piece.offset,
            len: piece.len,
        }));
    }
}

/// Puts the results of the pieces that are not empty among those that are.
fn spread(pieces: &[Piece], statuses: &[i16], done: &mut Vec<bool>) {
    let mut results = statuses.iter().map(|status| *status == 0);
    done.clear();
    done.extend(
        pieces
            .iter()
            .map(|piece| piece.len == 0 || results.next() == Some(true)),
    );
}

impl Grants for GuestPages {
    type Buffer = CopyBuffer;

    fn buffer(&mut self, bytes: usize) -> Result<CopyBuffer, GrantsError> {
        Ok(self.client.copy_buffer(bytes)?)
    }

    fn read(
        &mut self,
        pieces: &[Piece],
        into: &mut CopyBuffer,
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError> {
        self.select(pieces);
        let copied = self.client.copy_from_grants(self.dom.0, &self.parts, into);
        spread(pieces, &copied?, done);
        Ok(())
    }

    fn write(
        &mut self,
        pieces: &[Piece],
        from: &mut CopyBuffer,
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError> {
        self.select(pieces);
        let copied = self.client.copy_to_grants(self.dom.0, &self.parts, from);
        spread(pieces, &copied?, done);
        Ok(())
    }
}
