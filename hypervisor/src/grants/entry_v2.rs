//! One entry of a grant table, version 2, and its status word.
//!
//! ```text
//! entry, 16 bytes                        status, 16 bits, in frames of its own
//! bits   0..16   flags   GTF_*           reading, writing: in use,
//! bits  16..32   domid   who may use it  written by the hypervisor
//! bits  32..48   first byte              of a part of a page (GTF_SUB_PAGE)
//! bits  48..64   its length
//! bits 64..128   frame
//! ```
//!
//! Law: the mark is set, and only then is the entry looked at again; the guest clears the
//! flags, and only then looks at the status. So whoever comes second sees the other: a grant is
//! taken back or used, never both. The frame and the part are read once, after that second look.

use super::{Access, GrantError, pins::Part};
use crate::shared_words::SharedWords;
use guest_abi::{
    addr::{DomId, GrantRef, MachineAddr, Mfn},
    grant_table::{GTF_READING, GTF_SUB_PAGE, GTF_WRITING},
};

/// The first word: flags and user.
#[derive(Debug, Clone, Copy)]
struct Header(u32);

impl Header {
    #[allow(clippy::cast_possible_truncation)] // the field's width
    fn flags(self) -> u16 {
        self.0 as u16
    }

    #[allow(clippy::cast_possible_truncation)] // the field's width
    fn dom(self) -> DomId {
        DomId((self.0 >> 16) as u16)
    }

    fn read(words: &dyn SharedWords, entry: MachineAddr) -> Self {
        Header(words.load_u32(entry))
    }

    /// Whether it allows this use.
    fn check(self, gref: GrantRef, user: Option<DomId>, access: Access) -> Result<(), GrantError> {
        access.check(gref, user, (self.flags(), self.dom()))
    }
}

/// Marks the grant as in use: see [`Place::mark`](super::entry::Place::mark).
pub(super) fn mark(
    words: &dyn SharedWords,
    (entry, status): (MachineAddr, MachineAddr),
    gref: GrantRef,
    user: Option<DomId>,
    access: Access,
) -> Result<(Mfn, Part), GrantError> {
    Header::read(words, entry).check(gref, user, access)?;
    let written = if access.write { GTF_WRITING } else { 0 };
    words.fetch_or_u16(status, GTF_READING | written);
    let header = Header::read(words, entry);
    if let Err(error) = header.check(gref, user, access) {
        // A first use leaves no mark; a later one is the first that writes.
        let read = if user.is_some() { GTF_READING } else { 0 };
        words.fetch_and_u16(status, !(read | GTF_WRITING));
        return Err(error);
    }
    let part = if header.flags() & GTF_SUB_PAGE == 0 {
        Part::WHOLE
    } else {
        let bounds = words.load_u32(MachineAddr(entry.0 + 4));
        #[allow(clippy::cast_possible_truncation)] // the fields' widths
        Part::new(bounds as u16, (bounds >> 16) as u16)
    };
    Ok((Mfn(words.load_u64(MachineAddr(entry.0 + 8))), part))
}

/// Writes a grant of a whole page.
pub(super) fn write(
    words: &dyn SharedWords,
    entry: MachineAddr,
    flags: u16,
    dom: DomId,
    frame: Mfn,
) {
    words.store_u64(MachineAddr(entry.0 + 8), frame.0);
    words.store_u64(entry, u64::from(dom.0) << 16 | u64::from(flags));
}

/// Flags, user and frame.
pub(super) fn read(words: &dyn SharedWords, entry: MachineAddr) -> (u16, DomId, Mfn) {
    let header = Header::read(words, entry);
    let frame = Mfn(words.load_u64(MachineAddr(entry.0 + 8)));
    (header.flags(), header.dom(), frame)
}
