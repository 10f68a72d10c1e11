//! Cached translations.
//!
//! Law: an entry says what a walk said since the last flush of its address.
//! It is tagged with the generation of its root, so that the two roots of a
//! guest that alternates between kernel and user mode live side by side, and
//! a flush of everything is a new generation. Write permission is cached only
//! after a walk for writing, which set the dirty bit, and never for a frame
//! with decoded code. Compiled code looks at a smaller copy ([`FastTlb`]), which
//! says nothing that is not said here.

use super::{
    host::{FastTlb, HostPtr},
    walk::Page,
};
use guest_abi::addr::Mfn;

const ENTRIES: usize = 1024;
const CODE_ENTRIES: usize = 128;
const ROOTS: usize = super::host::FAST_SETS;
/// Generations fit the page offset's bits of a tag; 0 is never valid.
const LAST_GENERATION: u64 = 0xfff;
const PAGE_MASK: u64 = !0xfff;

#[derive(Clone, Copy, Default)]
struct Entry {
    /// Page address and generation if reading is allowed; else 0.
    read: u64,
    /// The same for writing.
    write: u64,
    /// Host address of the frame minus the page's guest address.
    addend: u64,
    mfn: u64,
}

#[derive(Clone, Copy, Default)]
struct CodeEntry {
    tag: u64,
    page: Option<Page>,
}

/// The translations of one vCPU.
pub struct Tlb {
    entries: Box<[Entry; ENTRIES]>,
    code: Box<[CodeEntry; CODE_ENTRIES]>,
    roots: [Option<(Mfn, u64)>; ROOTS],
    next_root: usize,
    root: Mfn,
    generation: u64,
    last_generation: u64,
    fast: Option<FastTlb>,
    /// The current root's number among the roots.
    set: usize,
    /// Where compiled code finds the current root's translations.
    pub fast_set: u64,
}

fn slot(address: u64, entries: usize) -> usize {
    usize::try_from(address >> 12).unwrap_or(0) & (entries - 1)
}

impl Tlb {
    /// An empty one.
    pub fn new() -> Self {
        Tlb {
            entries: Box::new([Entry::default(); ENTRIES]),
            code: Box::new([CodeEntry::default(); CODE_ENTRIES]),
            roots: [None; ROOTS],
            next_root: 0,
            root: Mfn(0),
            generation: 0,
            last_generation: 0,
            fast: None,
            set: 0,
            fast_set: 0,
        }
    }

    /// Keeps translations for compiled code, too. Then all is flushed.
    pub fn enable_fast(&mut self) {
        self.fast = Some(FastTlb::new());
        self.flush_all();
    }

    /// The root in use.
    pub fn root(&self) -> Mfn {
        self.root
    }

    /// A number for the current root that no other root has, until all
    /// generations have been used up; see [`Tlb::select`].
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes `root` the one in use. True if generations start anew, so that
    /// whoever remembers one has to forget it.
    pub fn select(&mut self, root: Mfn) -> bool {
        self.root = root;
        let mut known = (0..).zip(self.roots);
        if let Some((set, Some((_, generation)))) =
            known.find(|(_, known)| known.is_some_and(|(mfn, _)| mfn == root))
        {
            self.generation = generation;
            self.use_set(set);
            return false;
        }
        let wrapped = self.last_generation == LAST_GENERATION;
        if wrapped {
            self.entries.fill(Entry::default());
            self.code.fill(CodeEntry::default());
            self.roots = [None; ROOTS];
            self.last_generation = 0;
        }
        self.last_generation += 1;
        self.generation = self.last_generation;
        self.roots[self.next_root] = Some((root, self.generation));
        if let Some(fast) = &mut self.fast {
            fast.clear(self.next_root);
        }
        self.use_set(self.next_root);
        self.next_root = (self.next_root + 1) % ROOTS;
        wrapped
    }

    fn use_set(&mut self, set: usize) {
        self.set = set;
        self.fast_set = self.fast.as_ref().map_or(0, |fast| fast.address(set));
    }

    /// Keeps a translation of the current root for compiled code.
    pub fn fill_fast(&mut self, address: u64, place: HostPtr) {
        let write = self.writable(address).is_some();
        if let Some(fast) = &mut self.fast {
            fast.fill(self.set, address, place, write);
        }
    }

    /// Drops all translations; [`Tlb::select`] comes next.
    pub fn flush_all(&mut self) {
        self.roots = [None; ROOTS];
        self.generation = 0;
    }

    /// Drops the translations of one page, under every root.
    pub fn flush_page(&mut self, address: u64) {
        let page = address & PAGE_MASK;
        let entry = &mut self.entries[slot(address, ENTRIES)];
        if entry.read & PAGE_MASK == page || entry.write & PAGE_MASK == page {
            *entry = Entry::default();
        }
        self.code[slot(address, CODE_ENTRIES)] = CodeEntry::default();
        if let Some(fast) = &mut self.fast {
            fast.flush_page(address);
        }
    }

    /// Takes write permission for a frame away.
    pub fn protect(&mut self, mfn: Mfn) {
        for entry in self.entries.iter_mut().filter(|e| e.mfn == mfn.0) {
            entry.write = 0;
        }
        if let Some(fast) = &mut self.fast {
            fast.protect();
        }
    }

    /// Where `address` is, if reading there is known to be allowed.
    #[inline(always)]
    pub fn readable(&self, address: u64) -> Option<HostPtr> {
        let entry = &self.entries[slot(address, ENTRIES)];
        let hit = entry.read == (address & PAGE_MASK) | self.generation;
        hit.then(|| HostPtr::from_translation(address.wrapping_add(entry.addend)))
    }

    /// Where `address` is, if writing there is known to be allowed.
    #[inline(always)]
    pub fn writable(&self, address: u64) -> Option<HostPtr> {
        let entry = &self.entries[slot(address, ENTRIES)];
        let hit = entry.write == (address & PAGE_MASK) | self.generation;
        hit.then(|| HostPtr::from_translation(address.wrapping_add(entry.addend)))
    }

    /// Where to fetch code at `address`, if known.
    pub fn code(&self, address: u64) -> Option<Page> {
        let entry = &self.code[slot(address, CODE_ENTRIES)];
        if entry.tag == (address & PAGE_MASK) | self.generation {
            entry.page
        } else {
            None
        }
    }

    /// Keeps a data translation.
    pub fn fill(&mut self, address: u64, page: &Page, write: bool) {
        let base = address & PAGE_MASK;
        let tag = base | self.generation;
        self.entries[slot(address, ENTRIES)] = Entry {
            read: tag,
            write: if write { tag } else { 0 },
            addend: page.frame.ptr.address().wrapping_sub(base),
            mfn: page.mfn.0,
        };
    }

    /// Keeps a code translation.
    pub fn fill_code(&mut self, address: u64, page: Page) {
        let tag = (address & PAGE_MASK) | self.generation;
        self.code[slot(address, CODE_ENTRIES)] = CodeEntry {
            tag,
            page: Some(page),
        };
    }
}
