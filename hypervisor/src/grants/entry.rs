//! One entry of a grant table, version 1, as the word that it is. Those of version
//! 2 are in `entry_v2.rs`; [`Place`] is either.
//!
//! ```text
//! bits  0..16  flags   GTF_*; reading and writing are set by the hypervisor
//! bits 16..32  domid   who may use the grant
//! bits 32..64  frame
//! ```

use super::{Access, GrantError, entry_v2, pins::Part};
use crate::shared_words::SharedWords;
use guest_abi::{
    addr::{DomId, GrantRef, MachineAddr, Mfn},
    grant_table::{GTF_PERMIT_ACCESS, GTF_READING, GTF_SUB_PAGE, GTF_TYPE_MASK, GTF_WRITING},
};

/// How often an entry that changes under us is tried.
const ATTEMPTS: usize = 5;

/// Where the words of a grant are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// An entry of version 1.
    V1(MachineAddr),
    /// An entry of version 2 and its status word.
    V2 {
        entry: MachineAddr,
        status: MachineAddr,
    },
}

impl Place {
    /// Marks the grant as in use; the frame and the part of it that were granted. `user` is given at the
    /// first use only: later ones rest on what was checked then.
    pub(super) fn mark(
        self,
        words: &dyn SharedWords,
        gref: GrantRef,
        user: Option<DomId>,
        access: Access,
    ) -> Result<(Mfn, Part), GrantError> {
        match self {
            Self::V1(at) => {
                mark(words, at, gref, user, access).map(|seen| (seen.frame(), Part::WHOLE))
            }
            Self::V2 { entry, status } => {
                entry_v2::mark(words, (entry, status), gref, user, access)
            }
        }
    }

    /// Takes the marks `flags` off.
    pub(super) fn unmark(self, words: &dyn SharedWords, flags: u16) {
        match self {
            Self::V1(at) | Self::V2 { status: at, .. } => unmark(words, at, flags),
        }
    }

    /// Permits `dom` to use `frame`; `false` for a frame that the version cannot name.
    pub(super) fn permit(self, words: &dyn SharedWords, dom: DomId, frame: Mfn) -> bool {
        self.restore(words, (GTF_PERMIT_ACCESS, dom, frame))
    }

    /// What a plain grant of a whole page says, if this is one: flags without marks, user, frame.
    pub(super) fn whole_page(self, words: &dyn SharedWords) -> Option<(u16, DomId, Mfn)> {
        let (flags, dom, frame) = match self {
            Self::V1(at) => {
                let seen = Captured(words.load_u64(at));
                (seen.flags(), seen.dom(), seen.frame())
            }
            Self::V2 { entry, .. } => entry_v2::read(words, entry),
        };
        let plain = flags & (GTF_TYPE_MASK | GTF_SUB_PAGE) == GTF_PERMIT_ACCESS;
        plain.then_some((flags & !(GTF_READING | GTF_WRITING), dom, frame))
    }

    /// Writes what [`whole_page`](Self::whole_page) gave; `false` for a frame that the version cannot name.
    pub(super) fn restore(
        self,
        words: &dyn SharedWords,
        (flags, dom, frame): (u16, DomId, Mfn),
    ) -> bool {
        match self {
            Self::V1(at) => {
                let Ok(short) = u32::try_from(frame.0) else {
                    return false;
                };
                let entry = Captured::permit(dom, short).word() | u64::from(flags);
                words.store_u64(at, entry);
            }
            Self::V2 { entry, .. } => entry_v2::write(words, entry, flags, dom, frame),
        }
        true
    }

    /// Swaps two entries that nobody uses.
    pub(super) fn swap(self, other: Self, words: &dyn SharedWords) {
        let exchange = |a: MachineAddr, b: MachineAddr| {
            let word = words.swap_u64(b, words.load_u64(a));
            words.store_u64(a, word);
        };
        match (self, other) {
            (Self::V1(a), Self::V1(b)) => exchange(a, b),
            (Self::V2 { entry: a, .. }, Self::V2 { entry: b, .. }) => {
                for offset in [0, 8] {
                    exchange(MachineAddr(a.0 + offset), MachineAddr(b.0 + offset));
                }
            }
            // Both are of one table.
            _ => {}
        }
    }
}

/// A copy of an entry.
#[derive(Debug, Clone, Copy)]
struct Captured(u64);

impl Captured {
    /// An entry that permits `dom` to use `frame`.
    fn permit(dom: DomId, frame: u32) -> Self {
        let flags = u64::from(GTF_PERMIT_ACCESS);
        Captured(u64::from(frame) << 32 | u64::from(dom.0) << 16 | flags)
    }

    fn word(self) -> u64 {
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

    fn frame(self) -> Mfn {
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
        access.check(gref, user, (self.flags(), self.dom()))?;
        if !access.write {
            return Ok(Captured(self.0 | u64::from(GTF_READING)));
        }
        Ok(Captured(self.0 | u64::from(GTF_READING | GTF_WRITING)))
    }
}

/// Marks the entry at `at` as in use and gives the copy that was checked.
fn mark(
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
fn unmark(words: &dyn SharedWords, at: MachineAddr, flags: u16) {
    if flags != 0 {
        words.fetch_and_u16(at, !flags);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Use, *};
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
