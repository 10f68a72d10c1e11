//! Granting pages: this domain's grant table, version 1.
//!
//! A grant needs no hypercall. It is given and taken back by the protocol in
//! [`grant_table`](crate::grant_table); a grant that the other domain has
//! mapped stays until it lets go, and its page must not be used for anything
//! else as long.
//!
//! ```no_run
//! # fn f(mut grants: guest_abi::kernel::grant::Grants, page: guest_abi::kernel::page::Page) {
//! use guest_abi::{addr::DomId, kernel::grant::Access};
//! let gref = grants.give(DomId::DOM0, page.mfn(), Access::ReadWrite).expect("a free entry");
//! // ... tell the other domain the number `gref` ...
//! grants.take_back(gref).expect("the other domain has let go");
//! # }
//! ```

use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    boot, hypercall, mm,
    page::{PAGE_BYTES, Page},
};
use crate::{
    addr::{DomId, GrantRef, Mfn},
    errno::Errno,
    grant_table::{
        GNTST_OKAY, GNTTAB_NR_RESERVED_ENTRIES, GNTTABOP_SETUP_TABLE, GTF_PERMIT_ACCESS,
        GTF_READING, GTF_READONLY, GTF_WRITING, GnttabSetupTable, GrantEntryV1, gntst_text,
    },
};

/// Frames that a table can have here.
pub const MAX_FRAMES: usize = 8;
/// Entries of a frame.
pub const ENTRIES_PER_FRAME: usize = PAGE_BYTES / size_of::<GrantEntryV1>();
const WORDS: usize = MAX_FRAMES * ENTRIES_PER_FRAME / 64;

/// What the other domain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// Why a grant was not given or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantError {
    /// The hypervisor gives no table.
    Refused(Errno),
    /// The hypervisor gives no table of that size: a `GNTST_*`.
    Status(i16),
    /// No entry is free: give [`Grants::set_up`] more pages.
    Full,
    /// The frame's number does not fit into an entry of version 1.
    Frame(Mfn),
    /// There is no such grant.
    Unknown(GrantRef),
    /// The other domain has it mapped: try again later.
    InUse(GrantRef),
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno) => write!(f, "no grant table: {errno}"),
            Self::Status(status) => write!(f, "no grant table: {}", gntst_text(*status)),
            Self::Full => f.write_str("the grant table is full: set it up with more pages"),
            Self::Frame(mfn) => write!(f, "frame {:#x} can't be granted in version 1", mfn.0),
            Self::Unknown(gref) => write!(f, "there is no grant {gref}"),
            Self::InUse(gref) => write!(f, "grant {gref} is in use by the other domain"),
        }
    }
}

impl core::error::Error for GrantError {}

/// The domain's grant table. One value in a kernel.
pub struct Grants {
    frames: [Option<Page>; MAX_FRAMES],
    /// A bit for each entry that is not free.
    used: [AtomicU64; WORDS],
}

impl fmt::Debug for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grants({} of {} given)", self.given(), self.entries())
    }
}

impl Grants {
    /// Asks for a table of `N` frames (512 grants each, at most
    /// [`MAX_FRAMES`]) and maps it in the place of `pages`, whose own memory is
    /// lost by that.
    ///
    /// # Errors
    /// The hypervisor's refusal.
    pub fn set_up<const N: usize>(pages: [Page; N]) -> Result<Self, GrantError> {
        let mut frames = [0u64; MAX_FRAMES];
        let count = u32::try_from(N).unwrap_or(u32::MAX);
        if N == 0 || N > MAX_FRAMES {
            return Err(GrantError::Refused(Errno::EINVAL));
        }
        let mut argument = GnttabSetupTable {
            dom: boot::SELF,
            nr_frames: count,
            frame_list: frames.as_mut_ptr() as u64,
            ..Default::default()
        };
        let batch = core::slice::from_mut(&mut argument);
        // SAFETY: the command's type; the list has room for `count` frames.
        unsafe { hypercall::grant_table_op(GNTTABOP_SETUP_TABLE, batch) }
            .map_err(GrantError::Refused)?;
        if argument.status != GNTST_OKAY {
            return Err(GrantError::Status(argument.status));
        }
        for (page, &frame) in pages.iter().zip(&frames) {
            let entry = mm::entry(Mfn(frame), mm::PAGE_KERNEL);
            // SAFETY: the page is the caller's gift; nothing else is there.
            unsafe { mm::set_mapping(page.address(), entry) }.map_err(GrantError::Refused)?;
        }
        Ok(Self::over(pages))
    }

    /// A table that is mapped already, in the place of these pages: for a
    /// kernel that maps memory by means of its own.
    #[must_use]
    pub fn over<const N: usize>(pages: [Page; N]) -> Self {
        let mut pages = pages.into_iter();
        let grants = Self {
            frames: core::array::from_fn(|_| pages.next()),
            used: [const { AtomicU64::new(0) }; WORDS],
        };
        // The first entries are the tool stack's.
        grants.used[0].store((1 << GNTTAB_NR_RESERVED_ENTRIES) - 1, Ordering::Relaxed);
        grants
    }

    /// Entries of the table.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.frames.iter().flatten().count() * ENTRIES_PER_FRAME
    }

    /// Entries in use, the reserved ones among them.
    #[must_use]
    pub fn given(&self) -> u32 {
        let ones = |word: &AtomicU64| word.load(Ordering::Relaxed).count_ones();
        self.used.iter().map(ones).sum()
    }

    /// Lets `domain` use a frame.
    ///
    /// # Errors
    /// [`GrantError::Full`], [`GrantError::Frame`].
    pub fn give(&self, domain: DomId, mfn: Mfn, access: Access) -> Result<GrantRef, GrantError> {
        let frame = u32::try_from(mfn.0).map_err(|_| GrantError::Frame(mfn))?;
        let gref = self.reserve()?;
        let (page, at) = self.entry(gref)?;
        let flags = match access {
            Access::ReadOnly => GTF_PERMIT_ACCESS | GTF_READONLY,
            Access::ReadWrite => GTF_PERMIT_ACCESS,
        };
        let words = (
            page.half_word(at + 2),
            page.word(at + 4),
            page.half_word(at),
        );
        let (Some(domid), Some(place), Some(permit)) = words else {
            return Err(GrantError::Unknown(gref));
        };
        domid.store(domain.0, Ordering::Relaxed);
        place.store(frame, Ordering::Relaxed);
        // Release: who sees the flags sees the rest.
        permit.store(flags, Ordering::Release);
        Ok(gref)
    }

    /// Whether the other domain has the page mapped now.
    #[must_use]
    pub fn in_use(&self, gref: GrantRef) -> bool {
        self.flags(gref)
            .is_ok_and(|flags| flags & (GTF_READING | GTF_WRITING) != 0)
    }

    /// Takes a grant back; its number is free again.
    ///
    /// # Errors
    /// [`GrantError::InUse`]: nothing has changed. [`GrantError::Unknown`].
    pub fn take_back(&self, gref: GrantRef) -> Result<(), GrantError> {
        let (page, at) = self.entry(gref)?;
        let word = page.half_word(at).ok_or(GrantError::Unknown(gref))?;
        let free_of_use = |flags| (flags & (GTF_READING | GTF_WRITING) == 0).then_some(0);
        word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free_of_use)
            .map_err(|_| GrantError::InUse(gref))?;
        let (word, bit) = place(gref);
        self.used[word].fetch_and(!bit, Ordering::Release);
        Ok(())
    }

    /// An entry's flags.
    fn flags(&self, gref: GrantRef) -> Result<u16, GrantError> {
        let (page, at) = self.entry(gref)?;
        let word = page.half_word(at).ok_or(GrantError::Unknown(gref))?;
        Ok(word.load(Ordering::SeqCst))
    }

    /// Finds a free entry and marks it.
    fn reserve(&self) -> Result<GrantRef, GrantError> {
        let words = self.entries() / 64;
        for (index, word) in self.used[..words].iter().enumerate() {
            let lowest = |used: u64| (used != u64::MAX).then(|| used | (used + 1));
            if let Ok(old) = word.fetch_update(Ordering::Acquire, Ordering::Relaxed, lowest) {
                let number = index * 64 + old.trailing_ones() as usize;
                return u32::try_from(number)
                    .map(GrantRef)
                    .map_err(|_| GrantError::Full);
            }
        }
        Err(GrantError::Full)
    }

    /// The page and the offset of an entry that is in use and not reserved.
    fn entry(&self, gref: GrantRef) -> Result<(&Page, usize), GrantError> {
        let index = gref.0 as usize;
        let (word, bit) = place(gref);
        let given = gref.0 >= GNTTAB_NR_RESERVED_ENTRIES
            && index < self.entries()
            && self.used[word].load(Ordering::Acquire) & bit != 0;
        let page = self.frames.get(index / ENTRIES_PER_FRAME);
        match page {
            Some(Some(page)) if given => Ok((page, index % ENTRIES_PER_FRAME * 8)),
            _ => Err(GrantError::Unknown(gref)),
        }
    }
}

/// The word and the bit of an entry.
fn place(gref: GrantRef) -> (usize, u64) {
    let index = gref.0 as usize % (WORDS * 64);
    (index / 64, 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use super::{
        super::page::tests::{alias, host_page},
        *,
    };

    fn table() -> (Grants, Page) {
        let page = host_page();
        let other = alias(&page);
        (Grants::over([page]), other)
    }

    fn flags(page: &Page, gref: GrantRef) -> &core::sync::atomic::AtomicU16 {
        page.half_word(gref.0 as usize * 8).expect("in the page")
    }

    #[test]
    fn a_grant_is_written_as_the_protocol_says() {
        let (grants, other) = table();
        let gref = grants.give(DomId(3), Mfn(0x1234), Access::ReadOnly);
        let gref = gref.expect("room");
        assert_eq!(gref, GrantRef(8), "the first after the reserved ones");
        let mut entry = [0; 8];
        other.read(64, &mut entry).expect("in the page");
        assert_eq!(entry, [5, 0, 3, 0, 0x34, 0x12, 0, 0]);
        grants.take_back(gref).expect("nobody uses it");
        assert_eq!(flags(&other, gref).load(Ordering::SeqCst), 0);
        assert_eq!(grants.take_back(gref), Err(GrantError::Unknown(gref)));
    }

    #[test]
    fn a_grant_in_use_stays() {
        let (grants, other) = table();
        let gref = grants.give(DomId(0), Mfn(1), Access::ReadWrite);
        let gref = gref.expect("room");
        for mark in [GTF_READING, GTF_WRITING] {
            flags(&other, gref).fetch_or(mark, Ordering::SeqCst);
            assert!(grants.in_use(gref));
            assert_eq!(grants.take_back(gref), Err(GrantError::InUse(gref)));
            flags(&other, gref).fetch_and(!mark, Ordering::SeqCst);
        }
        grants.take_back(gref).expect("nobody uses it");
    }

    #[test]
    fn all_entries_but_the_reserved_can_be_given() {
        let (grants, _) = table();
        for n in 8..512 {
            let given = grants.give(DomId(0), Mfn(1), Access::ReadWrite);
            assert_eq!(given, Ok(GrantRef(n)));
        }
        let given = grants.give(DomId(0), Mfn(1), Access::ReadWrite);
        assert_eq!(given, Err(GrantError::Full));
        for gref in [0, 7, 512, u32::MAX].map(GrantRef) {
            assert_eq!(grants.take_back(gref), Err(GrantError::Unknown(gref)));
        }
        grants.take_back(GrantRef(100)).expect("given");
        let again = grants.give(DomId(0), Mfn(1), Access::ReadWrite);
        assert_eq!(again, Ok(GrantRef(100)));
    }

    #[test]
    fn a_frame_too_far_is_refused_and_costs_nothing() {
        let (grants, _) = table();
        let before = grants.given();
        let far = Mfn(1 << 32);
        let given = grants.give(DomId(0), far, Access::ReadOnly);
        assert_eq!(given, Err(GrantError::Frame(far)));
        assert_eq!(grants.given(), before);
    }
}
