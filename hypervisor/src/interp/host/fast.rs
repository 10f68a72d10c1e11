//! Translations in the form that compiled code looks at.
//!
//! Law: a set belongs to one root of page tables and says nothing that the
//! TLB would not: it is emptied when its root is flushed, and loses its write
//! permissions when a frame turns out to hold code. For each of its entries,
//!
//! ```text
//!   address + key + size - 1 < 4096     for an access of `size` bytes that is
//!                                       allowed and does not leave the page
//!   address + addend                    is then where the host has it
//! ```
//!
//! and this is true of no other address that has the entry's number in its
//! bits 12 to 21, canonical or not.

use super::HostPtr;
use std::{mem::offset_of, ptr::NonNull};

/// Bits of an address that number an entry, from bit 12.
pub const NUMBER_BITS: u32 = 10;
const ENTRIES: usize = 1 << NUMBER_BITS;
/// Roots whose sets live side by side.
pub const SETS: usize = 4;

/// One page: half a cache line.
#[repr(C, align(32))]
#[derive(Clone, Copy)]
struct Entry {
    read: u64,
    write: u64,
    addend: u64,
}

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = size_of::<Entry>();
/// Where in an entry the key for reading is.
pub const READ: usize = offset_of!(Entry, read);
/// Where in an entry the key for writing is.
pub const WRITE: usize = offset_of!(Entry, write);
/// Where in an entry the addend is.
pub const ADDEND: usize = offset_of!(Entry, addend);

/// The entries of one root.
type Set = [Entry; ENTRIES];

/// The sets of a vCPU.
pub struct FastTlb {
    sets: NonNull<[Set; SETS]>,
    /// Which entries of each set may hold something, a bit each.
    used: [[u64; ENTRIES / 64]; SETS],
}

// SAFETY: the sets belong to this value alone.
unsafe impl Send for FastTlb {}

fn number(address: u64) -> usize {
    usize::try_from(address >> 12).unwrap_or(0) % ENTRIES
}

/// The key of an entry that is true of no address: it is that of a page half of
/// all entries away, so that not even an access across a page's end comes near.
fn nowhere(entry: usize) -> u64 {
    (((entry ^ (ENTRIES / 2)) as u64) << 12).wrapping_neg()
}

fn empty(entry: usize) -> Entry {
    Entry {
        read: nowhere(entry),
        write: nowhere(entry),
        addend: 0,
    }
}

impl FastTlb {
    /// Empty sets.
    pub fn new() -> Self {
        let sets: Box<[Set; SETS]> = Box::new([std::array::from_fn(empty); SETS]);
        FastTlb {
            // SAFETY: from a box.
            sets: unsafe { NonNull::new_unchecked(Box::into_raw(sets)) },
            used: [[0; ENTRIES / 64]; SETS],
        }
    }

    /// Where compiled code finds a set.
    pub fn address(&self, set: usize) -> u64 {
        let first = self.sets.as_ptr().expose_provenance();
        (first + set % SETS * size_of::<Set>()) as u64
    }

    fn sets(&mut self) -> &mut [Set; SETS] {
        // SAFETY: compiled code, which reads them by address, runs only while
        // nobody has this reference.
        unsafe { self.sets.as_mut() }
    }

    /// Empties a set.
    pub fn clear(&mut self, set: usize) {
        let set = set % SETS;
        self.each_used(set, |number, entry| *entry = empty(number));
        self.used[set] = [0; ENTRIES / 64];
    }

    /// Drops one page from all sets.
    pub fn flush_page(&mut self, address: u64) {
        let entry = number(address);
        for set in self.sets() {
            set[entry] = empty(entry);
        }
    }

    /// Takes all permissions to write away.
    pub fn protect(&mut self) {
        for set in 0..SETS {
            self.each_used(set, |number, entry| entry.write = nowhere(number));
        }
    }

    fn each_used(&mut self, set: usize, change: impl Fn(usize, &mut Entry)) {
        let used = self.used[set];
        let set = &mut self.sets()[set];
        for (n, mut bits) in used.into_iter().enumerate() {
            while bits != 0 {
                let number = n * 64 + bits.trailing_zeros() as usize;
                change(number, &mut set[number]);
                bits &= bits - 1;
            }
        }
    }

    /// Keeps that `address` is at `place`, and whether it may be written.
    pub fn fill(&mut self, set: usize, address: u64, place: HostPtr, write: bool) {
        let entry = number(address);
        let key = (address & !0xfff).wrapping_neg();
        let set = set % SETS;
        self.used[set][entry / 64] |= 1 << (entry % 64);
        self.sets()[set][entry] = Entry {
            read: key,
            write: if write { key } else { nowhere(entry) },
            addend: place.address().wrapping_sub(address),
        };
    }
}

impl Drop for FastTlb {
    fn drop(&mut self) {
        // SAFETY: from a box, and no code outlives the interpreter.
        drop(unsafe { Box::from_raw(self.sets.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What compiled code computes.
    fn hit(tlb: &mut FastTlb, address: u64, size: u64, write: bool) -> bool {
        let set = &tlb.sets()[0];
        let entry = &set[number(address)];
        let key = if write { entry.write } else { entry.read };
        let sum = address.wrapping_add(key).wrapping_add(size - 1);
        sum >> 12 == 0
    }

    #[test]
    fn an_entry_is_true_of_its_page_alone() {
        let page = 0xffff_8880_0012_3000u64;
        let mut tlb = FastTlb::new();
        let buffer = &mut [0; 16];
        let place = HostPtr::from_buffer(buffer);
        let others = |page: u64| (0..64).map(move |bit| page ^ (1 << bit) & !0xfff);
        for address in others(page).chain([page, 0, 1 << 63]) {
            for offset in [0, 8, 0xff9, 0xfff] {
                assert!(!hit(&mut tlb, address + offset, 8, false), "{address:x}");
            }
        }
        tlb.fill(0, page, place, false);
        assert!(hit(&mut tlb, page, 8, false) && hit(&mut tlb, page + 0xff8, 8, false));
        assert!(hit(&mut tlb, page + 0xfff, 1, false) && !hit(&mut tlb, page, 1, true));
        assert!(!hit(&mut tlb, page + 0xff9, 8, false));
        for address in others(page).filter(|other| *other != page) {
            assert!(!hit(&mut tlb, address, 8, false), "{address:x}");
        }
        tlb.fill(0, page, place, true);
        assert!(hit(&mut tlb, page, 8, true));
        tlb.protect();
        assert!(!hit(&mut tlb, page, 8, true) && hit(&mut tlb, page, 8, false));
        tlb.flush_page(page + 5);
        assert!(!hit(&mut tlb, page, 8, false));
        for number in 0..3u64 {
            tlb.fill(0, page + (number << 12), place, true);
        }
        tlb.clear(1);
        assert!(hit(&mut tlb, page + 0x2000, 8, true));
        tlb.clear(0);
        for number in 0..3u64 {
            assert!(!hit(&mut tlb, page + (number << 12), 1, false));
        }
    }
}
