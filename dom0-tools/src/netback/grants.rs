//! Parts of granted pages, read and written in batches.
//!
//! Law: what is read is a private copy, so nothing that the guest does later
//! changes it. A piece that can't be copied (no such grant, revoked) fails
//! alone.

use std::sync::Arc;

use domus_privcmd::client::{AccessError, Client, ClientError, CopyData, GrantCopy, GrantMapping};
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
    /// A piece is not within a page.
    #[error(transparent)]
    Access(#[from] AccessError),
}

/// Access to a guest's granted pages.
pub trait Grants: Send {
    /// Copies pieces, one behind the other, into `into`. `done` gets for each
    /// whether it was copied; what was not keeps what was there.
    ///
    /// # Errors
    /// When the hypervisor can't be reached.
    fn read(
        &mut self,
        pieces: &[Piece],
        into: &mut [u8],
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError>;

    /// Copies bytes, one piece behind the other, out of `from`.
    ///
    /// # Errors
    /// When the hypervisor can't be reached.
    fn write(
        &mut self,
        pieces: &[Piece],
        from: &[u8],
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError>;
}

/// Pages of a domain, through the hypervisor.
///
/// A batch is mapped, copied and unmapped: two short messages and the pages'
/// mapping, whatever its size. Where one grant of a batch is bad, nothing is
/// mapped, and the hypervisor copies each piece that it can.
#[derive(Debug)]
pub struct GuestPages {
    client: Arc<Client>,
    dom: DomId,
    refs: Vec<u32>,
}

impl GuestPages {
    /// Of this domain.
    #[must_use]
    pub const fn new(client: Arc<Client>, dom: DomId) -> Self {
        let refs = Vec::new();
        Self { client, dom, refs }
    }

    /// Maps the pages of all pieces that are not empty, or none.
    fn map(&mut self, pieces: &[Piece], write: bool) -> Result<Option<GrantMapping>, ClientError> {
        self.refs.clear();
        let used = pieces.iter().filter(|piece| piece.len > 0);
        self.refs.extend(used.map(|piece| piece.gref));
        if self.refs.is_empty() {
            return Ok(None);
        }
        match self.client.map_grants(self.dom.0, &self.refs, write) {
            Ok(mapping) => Ok(Some(mapping)),
            Err(ClientError::Failed(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Each piece that is not empty, with its number among those and its bytes'
/// place.
fn places(pieces: &[Piece]) -> impl Iterator<Item = (usize, &Piece, usize)> {
    let mut at = 0;
    let used = pieces.iter().filter(|piece| piece.len > 0);
    used.enumerate().map(move |(n, piece)| {
        let start = at;
        at += usize::from(piece.len);
        (n, piece, start)
    })
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
    fn read(
        &mut self,
        pieces: &[Piece],
        into: &mut [u8],
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError> {
        if let Some(mapping) = self.map(pieces, false)? {
            done.clear();
            done.resize(pieces.len(), true);
            for (n, piece, at) in places(pieces) {
                let bytes = &mut into[at..at + usize::from(piece.len)];
                mapping.read(n * 4096 + usize::from(piece.offset), bytes)?;
            }
            return Ok(());
        }
        let mut rest = into;
        let mut copies = Vec::with_capacity(pieces.len());
        for (_, piece, _) in places(pieces) {
            let (bytes, later) = rest.split_at_mut(usize::from(piece.len));
            rest = later;
            copies.push(GrantCopy {
                gref: piece.gref,
                offset: piece.offset,
                data: CopyData::Read(bytes),
            });
        }
        let statuses = self.client.copy_grants(self.dom.0, &mut copies)?;
        spread(pieces, &statuses, done);
        Ok(())
    }

    fn write(
        &mut self,
        pieces: &[Piece],
        from: &[u8],
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError> {
        if let Some(mapping) = self.map(pieces, true)? {
            done.clear();
            done.resize(pieces.len(), true);
            for (n, piece, at) in places(pieces) {
                let bytes = &from[at..at + usize::from(piece.len)];
                mapping.write(n * 4096 + usize::from(piece.offset), bytes)?;
            }
            return Ok(());
        }
        let copies = places(pieces).map(|(_, piece, at)| GrantCopy {
            gref: piece.gref,
            offset: piece.offset,
            data: CopyData::Write(&from[at..at + usize::from(piece.len)]),
        });
        let mut copies: Vec<_> = copies.collect();
        let statuses = self.client.copy_grants(self.dom.0, &mut copies)?;
        spread(pieces, &statuses, done);
        Ok(())
    }
}
