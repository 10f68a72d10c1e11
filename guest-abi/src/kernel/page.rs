//! Pages that another domain may read and write while we look.
//!
//! Law: no reference and no slice to such a page exists. Bytes are copied in
//! and out by string instructions that the compiler can't see through, single
//! words are atomics. What was copied is checked, and only the copy is used.
//!
//! ```no_run
//! use core::sync::atomic::Ordering;
//! use guest_abi::kernel::page::PagePool;
//!
//! static PAGES: PagePool<4> = PagePool::new();
//!
//! let page = PAGES.take().expect("one of four");
//! page.write(64, b"for the other domain").expect("inside the page");
//! page.word(0).expect("aligned").store(1, Ordering::Release);
//! let mut copy = [0; 20];
//! page.read(64, &mut copy).expect("inside the page");
//! // Whatever it is by now: only `copy` is looked at.
//! ```
//!
//! The user of the crate gives the pages, from a static [`PagePool`] or from
//! an allocator of his own ([`Page::from_raw`]); nothing here allocates.

use core::{
    cell::UnsafeCell,
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering},
};

use super::{boot, mem};
use crate::addr::{GuestVirt, Mfn};

/// Bytes of a page, as an index.
pub const PAGE_BYTES: usize = 4096;

/// One page of memory, ours alone on this side of the boundary.
#[derive(Debug)]
pub struct Page {
    at: NonNull<u8>,
    mfn: Mfn,
}

// SAFETY: the page has one owner, who may be anywhere.
unsafe impl Send for Page {}

impl Page {
    /// A page that the caller found by means of his own. `None` for an address
    /// that is null or not page-aligned.
    ///
    /// # Safety
    /// The page must be mapped writable there for as long as the value lives,
    /// `mfn` must be its frame, and nobody else in this kernel may use it.
    #[must_use]
    pub unsafe fn from_raw(at: *mut u8, mfn: Mfn) -> Option<Self> {
        let at = NonNull::new(at)?;
        (at.as_ptr() as usize)
            .is_multiple_of(PAGE_BYTES)
            .then_some(Self { at, mfn })
    }

    /// Its frame, as the hypervisor knows it.
    #[must_use]
    pub fn mfn(&self) -> Mfn {
        self.mfn
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> GuestVirt {
        GuestVirt(self.at.as_ptr() as u64)
    }

    /// Fills it with zeroes.
    pub fn clear(&self) {
        // SAFETY: the whole page, which is ours.
        unsafe { mem::fill(self.at.as_ptr(), 0, PAGE_BYTES) };
    }

    /// Copies out of the page, from byte `offset` on; `None` (and nothing
    /// copied) where that passes its end.
    #[must_use]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        let from = self.part(offset, to.len())?;
        // SAFETY: `part` checked the range; `to` is not in a shared page, of
        // which no slice exists.
        unsafe { mem::copy(to.as_mut_ptr(), from, to.len()) };
        Some(())
    }

    /// Copies into the page; `None` (and nothing copied) past its end.
    #[must_use]
    pub fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        let to = self.part(offset, from.len())?;
        // SAFETY: as in `read`.
        unsafe { mem::copy(to, from.as_ptr(), from.len()) };
        Some(())
    }

    /// A word of the page. Inlined bounds: `None` past the end or unaligned.
    #[must_use]
    pub fn word(&self, offset: usize) -> Option<&AtomicU32> {
        let at = self.part(offset, 4)?.cast::<u32>();
        // SAFETY: inside the page, aligned, only accessed atomically.
        at.is_aligned().then(|| unsafe { AtomicU32::from_ptr(at) })
    }

    /// A half word of the page; `None` past the end or unaligned.
    #[must_use]
    pub fn half_word(&self, offset: usize) -> Option<&AtomicU16> {
        let at = self.part(offset, 2)?.cast::<u16>();
        // SAFETY: inside the page, aligned, only accessed atomically.
        at.is_aligned().then(|| unsafe { AtomicU16::from_ptr(at) })
    }

    fn part(&self, offset: usize, length: usize) -> Option<*mut u8> {
        let end = offset.checked_add(length)?;
        // SAFETY: up to one past the page's end.
        (end <= PAGE_BYTES).then(|| unsafe { self.at.as_ptr().add(offset) })
    }
}

/// Static pages of the kernel's image, handed out once.
///
/// ```
/// use guest_abi::kernel::page::PagePool;
/// static PAGES: PagePool<16> = PagePool::new();
/// # // Without a domain builder's record there are no frames to tell.
/// assert!(PAGES.take().is_none());
/// ```
#[repr(C, align(4096))]
pub struct PagePool<const N: usize> {
    pages: UnsafeCell<[[u8; PAGE_BYTES]; N]>,
    taken: AtomicUsize,
}

// SAFETY: each page is handed out once, by the counter.
unsafe impl<const N: usize> Sync for PagePool<N> {}

impl<const N: usize> PagePool<N> {
    /// Pages of zeroes, in `.bss`.
    #[must_use]
    #[allow(clippy::new_without_default)] // Only ever a static.
    pub const fn new() -> Self {
        Self {
            pages: UnsafeCell::new([[0; PAGE_BYTES]; N]),
            taken: AtomicUsize::new(0),
        }
    }

    /// The next page; `None` when all are taken, and before the kernel knows
    /// its frames ([`Boot`](super::Boot)).
    #[must_use]
    pub fn take(&'static self) -> Option<Page> {
        let [page] = self.take_many()?;
        Some(page)
    }

    /// The next `M` pages, or none at all.
    #[must_use]
    pub fn take_many<const M: usize>(&'static self) -> Option<[Page; M]> {
        boot::start_info()?;
        let first = self.claim(M)?;
        Some(core::array::from_fn(|index| self.page(first + index)))
    }

    /// [`take_many`](Self::take_many) for a driver with `D` requests of `S` pages.
    #[must_use]
    pub fn take_grid<const D: usize, const S: usize>(&'static self) -> Option<[[Page; S]; D]> {
        boot::start_info()?;
        let first = self.claim(D.checked_mul(S)?)?;
        Some(core::array::from_fn(|row| {
            core::array::from_fn(|column| self.page(first + row * S + column))
        }))
    }

    fn claim(&self, count: usize) -> Option<usize> {
        let enough = |taken: usize| taken.checked_add(count).filter(|&end| end <= N);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough)
            .ok()
    }

    /// A page that was claimed.
    fn page(&'static self, index: usize) -> Page {
        // SAFETY: `claim` gave an index below N.
        let at = unsafe { self.pages.get().cast::<u8>().add(index * PAGE_BYTES) };
        // A frame that is not ours is refused by the hypervisor, not used.
        let mfn = boot::virt_to_mfn(GuestVirt(at as u64)).unwrap_or(Mfn::INVALID);
        let at = NonNull::new(at).unwrap_or(NonNull::dangling());
        Page { at, mfn }
    }
}

impl<const N: usize> core::fmt::Debug for PagePool<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let taken = self.taken.load(Ordering::Relaxed);
        write!(f, "PagePool({taken} of {N} taken)")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::*;

    #[repr(C, align(4096))]
    struct Aligned([u8; PAGE_BYTES]);

    /// A page of the host's memory. Leaked: a test is short.
    pub(crate) fn host_page() -> Page {
        let memory = std::boxed::Box::leak(std::boxed::Box::new(Aligned([0; PAGE_BYTES])));
        let at = memory.0.as_mut_ptr();
        // SAFETY: leaked, so ours for good.
        unsafe { Page::from_raw(at, Mfn(at as u64 >> 12)) }.expect("aligned")
    }

    /// A second handle, for the other half of a test.
    pub(crate) fn alias(page: &Page) -> Page {
        Page { ..*page }
    }

    #[test]
    fn nothing_passes_the_end() {
        let page = host_page();
        assert!(page.write(4090, &[1; 6]).is_some());
        assert!(page.write(4091, &[1; 6]).is_none());
        assert!(page.read(usize::MAX, &mut [0; 2]).is_none());
        assert!(page.word(4092).is_some());
        assert!(page.word(4094).is_none() && page.word(2).is_none());
        let mut copy = [0; 6];
        assert!(page.read(4090, &mut copy).is_some());
        assert_eq!(copy, [1; 6]);
    }

    #[test]
    fn a_page_is_aligned() {
        // SAFETY: refused, so never used.
        assert!(unsafe { Page::from_raw(8 as *mut u8, Mfn(1)) }.is_none());
    }
}
