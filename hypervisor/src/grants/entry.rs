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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_words::test_memory::Pages;
    use guest_abi::grant_table::GTF_PWT;
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

    const AT: MachineAddr = MachineAddr(8);
    const WRITE: Access = Access {
        how: Use::Host,
        write: true,
    };

    /// A guest that changes its entry right before each access, for a while.
    struct Fickle {
        pages: Pages,
        left: AtomicU32,
    }

    impl SharedWords for Fickle {
        fn with_u8(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU8)) {
            self.pages.with_u8(at, op);
        }
        fn with_u16(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU16)) {
            self.pages.with_u16(at, op);
        }
        fn with_u32(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU32)) {
            self.pages.with_u32(at, op);
        }
        fn with_u64(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU64)) {
            let change = |left: u32| left.checked_sub(1);
            if self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, change)
                .is_ok()
            {
                let now = self.pages.load_u64(at);
                self.pages.store_u64(at, now ^ u64::from(GTF_PWT));
            }
            self.pages.with_u64(at, op);
        }
    }

    /// Marks an entry that changes before each of the first `changes` attempts.
    fn attempt(changes: u32) -> (Result<Mfn, GrantError>, u16) {
        let words = Fickle {
            pages: Pages::new(1),
            left: AtomicU32::new(0),
        };
        words
            .pages
            .store_u64(AT, Captured::permit(DomId(7), 55).word());
        // The first access only looks.
        words.left.store(changes + 1, Ordering::SeqCst);
        let outcome = mark(&words, AT, GrantRef(1), Some(DomId(7)), WRITE);
        (outcome.map(Captured::frame), words.pages.load_u16(AT))
    }

    #[test]
    fn xsa_295_five_attempts_and_no_more() {
        for changes in 0..5 {
            let (outcome, flags) = attempt(changes);
            assert_eq!(outcome, Ok(Mfn(55)), "{changes} changes");
            assert_eq!(
                flags & !GTF_PWT,
                GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING
            );
        }
        for changes in [5, 1000] {
            let (outcome, flags) = attempt(changes);
            assert_eq!(outcome, Err(GrantError::Unstable(GrantRef(1))));
            assert_eq!(flags & (GTF_READING | GTF_WRITING), 0);
        }
    }

    #[test]
    fn what_is_checked_is_what_was_captured() {
        let words = Pages::new(1);
        words.store_u64(AT, Captured::permit(DomId(7), u32::MAX).word());
        let captured = mark(&words, AT, GrantRef(1), Some(DomId(7)), WRITE).unwrap();
        assert_eq!(captured.frame(), Mfn(u64::from(u32::MAX)));
        assert_eq!(
            (captured.dom(), captured.flags()),
            (DomId(7), GTF_PERMIT_ACCESS)
        );
        unmark(&words, AT, GTF_WRITING);
        assert_eq!(words.load_u16(AT), GTF_PERMIT_ACCESS | GTF_READING);
        assert_eq!(words.load_u32(MachineAddr(AT.0 + 4)), u32::MAX);
    }
}
