//! One entry of a grant table, version 1, as the word that it is.
//!
//! ```text
//! bits  0..16  flags   GTF_*; reading and writing are set by the hypervisor
//! bits 16..32  domid   who may use the grant
//! bits 32..64  frame
//! ```

use super::{Access, GrantError, Use};
use crate::shared_words::SharedWords;
use guest_abi::{
    addr::{DomId, GrantRef, MachineAddr, Mfn},
    grant_table::{
        GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_SUB_PAGE, GTF_TYPE_MASK, GTF_WRITING,
    },
};

/// How often an entry that changes under us is tried.
const ATTEMPTS: usize = 5;

/// A copy of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Captured(u64);

impl Captured {
    /// An entry that permits `dom` to use `frame`.
    pub(super) fn permit(dom: DomId, frame: u32) -> Self {
        let flags = u64::from(GTF_PERMIT_ACCESS);
        Captured(u64::from(frame) << 32 | u64::from(dom.0) << 16 | flags)
    }

    pub(super) fn word(self) -> u64 {
        self.0
    }

    #[allow(clippy::cast_possible_truncation)] // the field's width
    fn flags(self) -> u16 {
        self.0 as u16
    }

    #[allow(clippy::cast_possible_truncation)] // the field's width
    fn dom(self) -> DomId {
        DomId((self.0 >> 16) as u16)
    }

    pub(super) fn frame(self) -> Mfn {
        Mfn(self.0 >> 32)
    }

    /// The entry with the marks of this use, if it allows it. `user` is given
    /// at the first use only: later ones rest on what was checked then.
    fn marked(
        self,
        gref: GrantRef,
        user: Option<DomId>,
        access: Access,
    ) -> Result<Self, GrantError> {
        let flags = self.flags();
        if let Some(caller) = user {
            let sub_page = if access.how == Use::Copy {
                0
            } else {
                GTF_SUB_PAGE
            };
            if flags & (GTF_TYPE_MASK | sub_page) != GTF_PERMIT_ACCESS || self.dom() != caller {
                return Err(GrantError::NotGranted {
                    gref,
                    flags,
                    granted: self.dom(),
                    caller,
                });
            }
        }
        if !access.write {
            return Ok(Captured(self.0 | u64::from(GTF_READING)));
        }
        if flags & GTF_READONLY != 0 {
            return Err(GrantError::ReadOnly(gref));
        }
        Ok(Captured(self.0 | u64::from(GTF_READING | GTF_WRITING)))
    }
}

/// Marks the entry at `at` as in use and gives the copy that was checked.
pub(super) fn mark(
    words: &dyn SharedWords,
    at: MachineAddr,
    gref: GrantRef,
    user: Option<DomId>,
    access: Access,
) -> Result<Captured, GrantError> {
    let mut seen = Captured(words.load_u64(at));
    for _ in 0..ATTEMPTS {
        let marked = seen.marked(gref, user, access)?;
        match words.compare_exchange_u64(at, seen.0, marked.0) {
            Ok(()) => return Ok(seen),
            Err(now) => seen = Captured(now),
        }
    }
    Err(GrantError::Unstable(gref))
}

/// Takes the marks `flags` off the entry at `at`.
pub(super) fn unmark(words: &dyn SharedWords, at: MachineAddr, flags: u16) {
    if flags != 0 {
        words.fetch_and_u16(at, !flags);
    }
}
