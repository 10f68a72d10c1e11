//! Grants: how one domain lets another use a page of its own.
//!
//! A grant is a capability. The granting domain writes it into its grant
//! table, memory that it shares with the hypervisor; another domain quotes its
//! number to map the page or to have it copied. While a grant is in use the
//! hypervisor keeps `GTF_reading` and `GTF_writing` set in the entry, and the
//! granting domain may not take it back.
//!
//! ```text
//! GrantTable (one per domain)     the granting side
//!   frames                          the shared entries (guest's memory)
//!   Mutex<State>.active             what is in use: by whom, how often
//! Granted                         one use of one grant: a pin in `active`,
//!                                   and a reference on the frame
//! MapTrack (one per domain)       the using side: handles of mappings, each
//!                                   of them holding its Granteds
//! ```
//!
//! Laws:
//! - An entry is read once, as one 8-byte word; that copy is checked, and the
//!   frame is the one in it. (Version 2, whose entries are longer than a word: see
//!   `entry_v2.rs`.) While a grant is pinned its frame and user are
//!   those recorded at the first pin, whatever the entry says by now.
//! - References are a multiset: each [`Granted`] gives back exactly what it
//!   took, once, when it is dropped. No path counts by hand.
//! - A reference on a frame is taken and dropped with no lock of this module
//!   held (the domain's memory lock comes before the grant lock). So neither
//!   may a [`Granted`] be dropped with the memory lock held.
//! - Entries are changed by single instructions or by at most five attempts:
//!   a guest that scribbles on its table delays nobody (XSA-295).

mod copy;
mod entry;
mod entry_v2;
mod error;
mod maptrack;
mod pins;
mod table;

#[cfg(test)]
pub(crate) mod tests;

pub use copy::{copy, read_grant, write_grant};
pub use error::GrantError;
pub use maptrack::{
    Ended, Installed, MapReply, MapRequest, MapTarget, MapTrack, ProcessTarget, UnmapRequest,
};
pub use pins::{Access, Use};
pub use table::{GrantTable, Granted};

use guest_abi::addr::{DomId, MachineAddr, Mfn};
use std::{os::fd::BorrowedFd, ptr::NonNull, sync::Arc};

/// What grants need of the granting domain's memory.
pub trait GrantMemory: Send + Sync {
    /// Takes a reference on `frame`, and a writable-type reference as well if
    /// `write`. May take the domain's memory lock.
    ///
    /// # Errors
    /// Why it cannot be had; then nothing is taken.
    fn get_frame(&self, frame: Mfn, write: bool) -> Result<(), FrameRefused>;

    /// Drops what [`get_frame`](Self::get_frame) took with the same arguments.
    fn put_frame(&self, frame: Mfn, write: bool);

    /// Copies out of memory; `false` where there is none.
    fn read(&self, from: MachineAddr, buf: &mut [u8]) -> bool;

    /// Copies into memory; `false` where there is none.
    fn write(&self, to: MachineAddr, bytes: &[u8]) -> bool;

    /// Where a RAM frame lies, for mapping it into another VM; `None` if it
    /// cannot be.
    fn place(&self, frame: Mfn) -> Option<FramePlace<'_>>;

    /// A zeroed frame of the hypervisor's that the domain may map writable and
    /// that lives as long as the domain: for its grant table. `None` if there
    /// is no more.
    fn new_table_frame(&self) -> Option<Mfn>;
}

/// Where a frame lies.
#[derive(Debug)]
pub struct FramePlace<'a> {
    /// In which file.
    pub file: BorrowedFd<'a>,
    /// Where in the file.
    pub offset: u64,
    /// Where in this process, writable, for as long as the memory lives.
    pub address: NonNull<u8>,
}

/// Why a frame cannot be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameRefused {
    /// It is not a RAM frame of the domain.
    NotOwned,
    /// It is a page table or the like, and cannot be written.
    NotWritable,
}

/// The domains that there are, by number.
pub trait GrantDomains {
    /// The grant table of `dom`, which is a real number (not
    /// [`DomId::SELF`]); `None` if there is no such domain, or it has none
    /// (Dom0).
    fn grants(&self, dom: DomId) -> Option<Arc<GrantTable>>;
}
