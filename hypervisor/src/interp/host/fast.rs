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
//! bits 12 to 19, canonical or not.

use super::HostPtr;
use std::{mem::offset_of, ptr::NonNull};

/// Entries of a set: as many as a byte tells apart.
pub const ENTRIES: usize = 256;
/// Roots whose sets live side by side.
pub const SETS: usize = 4;

/// The entries of one root.
#[repr(C)]
struct Set {
    read: [u64; ENTRIES],
    write: [u64; ENTRIES],
    addend: [u64; ENTRIES],
}

/// Where in a set the keys for reading begin.
pub const READ: usize = offset_of!(Set, read);
/// Where in a set the keys for writing begin.
pub const WRITE: usize = offset_of!(Set, write);
/// Where in a set the addends begin.
pub const ADDEND: usize = offset_of!(Set, addend);

/// The sets of a vCPU.
pub struct FastTlb(NonNull<[Set; SETS]>);

// SAFETY: the sets belong to this value alone.
unsafe impl Send for FastTlb {}

fn number(address: u64) -> usize {
    usize::from(address.to_le_bytes()[1] >> 4) | usize::from(address.to_le_bytes()[2] & 15) << 4
}

/// The key of an entry that is true of no address: it is that of a page 128
/// entries away, so that not even an access across a page's end comes near.
fn nowhere(entry: usize) -> u64 {
    (((entry ^ (ENTRIES / 2)) as u64) << 12).wrapping_neg()
}

impl FastTlb {
    /// Empty sets.
    pub fn new() -> Self {
        let set = || {
            let keys = std::array::from_fn(nowhere);
            Set {
                read: keys,
                write: keys,
                addend: [0; ENTRIES],
            }
        };
        let sets: Box<[Set; SETS]> = Box::new(std::array::from_fn(|_| set()));
        // SAFETY: from a box.
        FastTlb(unsafe { NonNull::new_unchecked(Box::into_raw(sets)) })
    }

    /// Where compiled code finds a set.
    pub fn address(&self, set: usize) -> u64 {
        let first = self.0.as_ptr().expose_provenance();
        (first + set % SETS * size_of::<Set>()) as u64
    }

    fn sets(&mut self) -> &mut [Set; SETS] {
        // SAFETY: compiled code, which reads them by address, runs only while
        // nobody has this reference.
        unsafe { self.0.as_mut() }
    }

    /// Empties a set.
    pub fn clear(&mut self, set: usize) {
        let set = &mut self.sets()[set % SETS];
        set.read = std::array::from_fn(nowhere);
        set.write = set.read;
    }

    /// Drops one page from all sets.
    pub fn flush_page(&mut self, address: u64) {
        let entry = number(address);
        for set in self.sets() {
            set.read[entry] = nowhere(entry);
            set.write[entry] = nowhere(entry);
        }
    }

    /// Takes all permissions to write away.
    pub fn protect(&mut self) {
        for set in self.sets() {
            set.write = std::array::from_fn(nowhere);
        }
    }

    /// Keeps that `address` is at `place`, and whether it may be written.
    pub fn fill(&mut self, set: usize, address: u64, place: HostPtr, write: bool) {
        let entry = number(address);
        let key = (address & !0xfff).wrapping_neg();
        let set = &mut self.sets()[set % SETS];
        set.addend[entry] = place.address().wrapping_sub(address);
        set.read[entry] = key;
        set.write[entry] = if write { key } else { nowhere(entry) };
    }
}

impl Drop for FastTlb {
    fn drop(&mut self) {
        // SAFETY: from a box, and no code outlives the interpreter.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What compiled code computes.
    fn hit(tlb: &mut FastTlb, address: u64, size: u64, write: bool) -> bool {
        let set = &tlb.sets()[0];
        let keys = if write { &set.write } else { &set.read };
        let sum = address
            .wrapping_add(keys[number(address)])
            .wrapping_add(size - 1);
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
    }
}
