//! Which virtual address shows which page.

use super::{PAGE, Source};
use crate::builder::tables::{ENTRIES, pte};
use guest_abi::{
    addr::{Mfn, PAGE_SHIFT},
    arch_x86_64::{ROOT_PAGETABLE_FIRST_XEN_SLOT, ROOT_PAGETABLE_LAST_XEN_SLOT},
};
use std::{collections::HashMap, io};

/// Entries that are looked at: tables that refer to each other can have many
/// more than there is memory.
const MOST_ENTRIES: u64 = 1 << 25;
/// Runs that are kept: 15 MiB of headers.
const MOST_RUNS: usize = 1 << 18;
/// Address bits of an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const NO_EXECUTE: u64 = 1 << 63;
const TOP: u32 = 4;
const LEVEL_BITS: u32 = 9;

/// Pages that follow each other both in virtual memory and in the dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) virt: u64,
    /// The first page's index in the dump.
    pub(super) first: u64,
    pub(super) pages: u64,
    pub(super) writable: bool,
    pub(super) executable: bool,
}

impl Run {
    /// Takes another one up, if it goes on where this one ends.
    fn join(&mut self, next: &Run) -> bool {
        let goes_on = self.virt + (self.pages << PAGE_SHIFT) == next.virt
            && self.first + self.pages == next.first
            && (self.writable, self.executable) == (next.writable, next.executable);
        if goes_on {
            self.pages += next.pages;
        }
        goes_on
    }
}

pub(super) struct Walked {
    pub(super) runs: Vec<Run>,
    pub(super) cut_off: bool,
}

struct Walk<'a> {
    source: &'a dyn Source,
    index_of: HashMap<Mfn, u64>,
    left: u64,
    runs: Vec<Run>,
}

/// What all entries on the way allow.
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    executable: bool,
}

/// Follows the page tables at `root`.
pub(super) fn runs(source: &dyn Source, root: Option<Mfn>) -> io::Result<Walked> {
    let indices = (0u64..).zip(source.frames());
    let mut walk = Walk {
        source,
        index_of: indices.map(|(index, (mfn, _))| (*mfn, index)).collect(),
        left: MOST_ENTRIES,
        runs: Vec::new(),
    };
    if let Some(root) = root {
        let rights = Rights {
            writable: true,
            executable: true,
        };
        walk.table(root, TOP, 0, rights)?;
    }
    Ok(Walked {
        cut_off: walk.left == 0,
        runs: walk.runs,
    })
}

impl Walk<'_> {
    fn table(&mut self, table: Mfn, level: u32, base: u64, rights: Rights) -> io::Result<()> {
        if !self.index_of.contains_key(&table) {
            return Ok(());
        }
        let mut page = [0; PAGE];
        self.source.read(table, &mut page)?;
        let entries = page.chunks_exact(8).map(|bytes| {
            bytes
                .iter()
                .rev()
                .fold(0u64, |word, byte| word << 8 | u64::from(*byte))
        });
        let mut entries: Vec<_> = (0..ENTRIES).zip(entries).collect();
        if level == TOP {
            // The kernel's image first: before it Linux has a range that maps a few
            // pages so often (espfix) that nothing would be left for it.
            entries.rotate_right(1);
        }
        for (index, entry) in entries {
            if entry & pte::PRESENT == 0 || (level == TOP && is_hypervisors(index)) {
                continue;
            }
            let Some(left) = self.left.checked_sub(1) else {
                return Ok(());
            };
            self.left = left;
            let shift = PAGE_SHIFT + LEVEL_BITS * (level - 1);
            let virt = canonical(base | index << shift);
            let rights = Rights {
                writable: rights.writable && entry & pte::WRITABLE != 0,
                executable: rights.executable && entry & NO_EXECUTE == 0,
            };
            let frame = Mfn((entry & FRAME) >> PAGE_SHIFT);
            if level == 1 {
                self.page(frame, virt, rights);
            } else {
                self.table(frame, level - 1, virt, rights)?;
            }
        }
        Ok(())
    }

    fn page(&mut self, frame: Mfn, virt: u64, rights: Rights) {
        let Some(first) = self.index_of.get(&frame).copied() else {
            return;
        };
        let run = Run {
            virt,
            first,
            pages: 1,
            writable: rights.writable,
            executable: rights.executable,
        };
        if self.runs.last_mut().is_some_and(|last| last.join(&run)) {
            return;
        }
        if self.runs.len() < MOST_RUNS {
            self.runs.push(run);
        } else {
            self.left = 0;
        }
    }
}

fn is_hypervisors(slot: u64) -> bool {
    usize::try_from(slot).is_ok_and(|slot| {
        (ROOT_PAGETABLE_FIRST_XEN_SLOT..=ROOT_PAGETABLE_LAST_XEN_SLOT).contains(&slot)
    })
}

/// Bit 47 goes on to the top.
const fn canonical(virt: u64) -> u64 {
    if virt >> 47 & 1 != 0 {
        virt | !((1 << 48) - 1)
    } else {
        virt
    }
}
