//! The initial page tables: which there are, and what stands in them.
//!
//! Law: a page-table frame is never mapped writable. Every entry is present,
//! user and accessed; the hypervisor's L4 slots stay zero (it fills them when
//! the table is pinned).

use std::ops::Range;

use guest_abi::addr::{Mfn, PAGE_SHIFT};

use super::virt;

/// Entries in a table of any level.
pub const ENTRIES: u64 = 512;
const LEVEL_BITS: u32 = 9;
const TOP: u8 = 4;

/// Bits of a page-table entry.
pub mod pte {
    #![allow(missing_docs)]
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
}

const READ_ONLY: u64 = pte::PRESENT | pte::USER | pte::ACCESSED;
const READ_WRITE: u64 = READ_ONLY | pte::WRITABLE | pte::DIRTY;
const TABLE: u64 = READ_WRITE;

/// A run of pages mapped to a run of pseudo-physical frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Virtual address of the first page.
    pub virt: u64,
    /// How many.
    pub pages: u64,
    /// PFN of the first page.
    pub first: u64,
}

impl Area {
    /// The indices of the tables of `level` that map it: a table of level 1
    /// maps 2 MiB, of level 2 1 GiB, and so on.
    fn indices(&self, level: u8) -> Range<u64> {
        let shift = span_shift(level);
        let start = self.virt & virt::MASK;
        let last = start + (self.pages << PAGE_SHIFT) - 1;
        start >> shift..(last >> shift) + 1
    }

    /// The frame that page number `page` (of the 48-bit space) is mapped to.
    fn frame(&self, page: u64) -> Option<u64> {
        let start = (self.virt & virt::MASK) >> PAGE_SHIFT;
        let offset = page.checked_sub(start)?;
        (offset < self.pages).then(|| self.first + offset)
    }
}

/// Tables of one level with consecutive indices in consecutive frames.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    level: u8,
    indices: Range<u64>,
    first: u64,
}

/// All page tables of a domain.
#[derive(Debug, Clone, PartialEq)]
pub struct TableSet {
    areas: Vec<Area>,
    runs: Vec<Run>,
}

impl TableSet {
    /// The tables of `area`, in frames from `first` on, the L4 first.
    #[must_use]
    pub fn first(area: Area, first: u64) -> Self {
        let mut set = Self {
            areas: Vec::new(),
            runs: vec![Run {
                level: TOP,
                indices: 0..1,
                first,
            }],
        };
        set.add(area, first + 1);
        set
    }

    /// Adds the tables of `area` that are not there yet, in frames from
    /// `first` on; returns how many.
    pub fn add(&mut self, area: Area, first: u64) -> u64 {
        let mut next = first;
        for level in (1..TOP).rev() {
            for index in area.indices(level) {
                if self.frame(level, index).is_none() {
                    self.push(level, index, next);
                    next += 1;
                }
            }
        }
        self.areas.push(area);
        next - first
    }

    fn push(&mut self, level: u8, index: u64, frame: u64) {
        if let Some(last) = self.runs.last_mut()
            && last.level == level
            && last.indices.end == index
            && last.first + (index - last.indices.start) == frame
        {
            last.indices.end += 1;
            return;
        }
        self.runs.push(Run {
            level,
            indices: index..index + 1,
            first: frame,
        });
    }

    /// How many tables there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.runs
            .iter()
            .map(|run| run.indices.end - run.indices.start)
            .sum()
    }

    /// The L4's PFN.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.runs[0].first
    }

    /// Whether a frame holds a table.
    #[must_use]
    pub fn contains(&self, pfn: u64) -> bool {
        self.runs.iter().any(|run| {
            pfn.checked_sub(run.first)
                .is_some_and(|offset| offset < run.indices.end - run.indices.start)
        })
    }

    fn frame(&self, level: u8, index: u64) -> Option<u64> {
        self.runs
            .iter()
            .find(|run| run.level == level && run.indices.contains(&index))
            .map(|run| run.first + (index - run.indices.start))
    }

    /// Calls `write` with each table's PFN and entries. `mfn` gives a PFN's
    /// machine frame.
    ///
    /// # Errors
    /// Those of `write`, at once.
    pub fn fill<E>(
        &self,
        mfn: impl Fn(u64) -> Mfn,
        mut write: impl FnMut(u64, &[u64; 512]) -> Result<(), E>,
    ) -> Result<(), E> {
        for run in &self.runs {
            for index in run.indices.clone() {
                let mut entries = [0; 512];
                for (slot, entry) in (index * ENTRIES..).zip(&mut entries) {
                    *entry = self.entry(run.level, slot, &mfn);
                }
                write(run.first + (index - run.indices.start), &entries)?;
            }
        }
        Ok(())
    }

    /// The entry of a table of `level` for its child `slot` (numbered over the
    /// whole space).
    fn entry(&self, level: u8, slot: u64, mfn: &impl Fn(u64) -> Mfn) -> u64 {
        let (child, flags) = if level > 1 {
            (self.frame(level - 1, slot), TABLE)
        } else {
            let page = self.areas.iter().find_map(|area| area.frame(slot));
            let is_table = page.is_some_and(|pfn| self.contains(pfn));
            (page, if is_table { READ_ONLY } else { READ_WRITE })
        };
        child.map_or(0, |pfn| mfn(pfn).0 << PAGE_SHIFT | flags)
    }
}

/// log2 of the bytes that a table of `level` maps.
fn span_shift(level: u8) -> u32 {
    PAGE_SHIFT + LEVEL_BITS * u32::from(level)
}
