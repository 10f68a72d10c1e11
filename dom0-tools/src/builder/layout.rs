//! Where everything of a new domain lies, before anything is written.
//!
//! Pseudo-physical memory is filled from PFN 0 upwards; PFN `n` is mapped at
//! `virt_base + n * 4096`, as far as the initial mapping reaches:
//!
//! ```text
//!   virt_base            what                                  flags
//!   ---------------------------------------------------------- -----
//!   + 0                  nothing, up to the kernel              RW
//!   + kernel's address   kernel segments                        RW
//!                        ramdisk                           (a)  RW
//!                        p2m list                          (b)  RW
//!                        start_info, xenstore ring, console ring RW
//!                        page tables: L4, L3s, L2s, L1s         RO
//!                        boot stack                             RW
//!                        at least 512 KiB of nothing            RW
//!   ---- the next multiple of 4 MiB: the initial mapping ends ------
//!                        ramdisk                           (a)  not mapped
//!                        p2m list, at INIT_P2M             (b)  RW
//!                        page tables of that mapping            not mapped
//!   ---- the rest is free ------------------------------------------
//! ```
//!
//! (a) behind the mapping if the kernel has MOD_START_PFN, (b) if it has
//! INIT_P2M.
//!
//! Law: the plan is pure and total. All sums are bounded before they are made:
//! the kernel, the ramdisk and the p2m list each by the domain's size.

use std::ops::Range;

use guest_abi::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use thiserror::Error;

use super::{
    placement::Placement,
    tables::{Area, TableSet},
    virt,
};

/// Mapped and free, at the least, behind what the builder has put there.
const SLACK_PAGES: u64 = (512 << 10) / PAGE_SIZE;
/// The initial mapping ends at a multiple of this.
const MAPPING_ALIGN: u64 = 4 << 20;
/// More pages than any domain has: 64 TiB.
const MAX_PAGES: u64 = 1 << 34;
const P2M_ENTRIES_PER_PAGE: u64 = PAGE_SIZE / 8;

/// Why a domain can't be laid out.
#[derive(Debug, Error, PartialEq)]
pub enum LayoutError {
    /// Memory of 0, or absurdly much.
    #[error("a domain of {0} pages can't be built: 1 to {MAX_PAGES} are possible")]
    Pages(u64),
    /// The kernel alone does not fit.
    #[error(
        "the kernel reaches up to {needed} of pseudo-physical memory, the domain has {given}: \
         give it more (memory = {mib})"
    )]
    KernelTooLarge {
        /// The kernel's end.
        needed: Size,
        /// The domain's memory.
        given: Size,
        /// What to write into the configuration.
        mib: u64,
    },
    /// The ramdisk alone does not fit.
    #[error(
        "the ramdisk has {ramdisk}, the domain's memory {given}: give it more (memory = {mib})"
    )]
    RamdiskTooLarge {
        /// The ramdisk's size.
        ramdisk: Size,
        /// The domain's memory.
        given: Size,
        /// What to write into the configuration.
        mib: u64,
    },
    /// Together they don't.
    #[error(
        "kernel (up to {kernel}), ramdisk ({ramdisk}) and what belongs to them need {needed}, \
         the domain has {given}: give it more (memory = {mib})"
    )]
    TooLarge {
        /// The kernel's end.
        kernel: Size,
        /// The ramdisk's size.
        ramdisk: Size,
        /// All together.
        needed: Size,
        /// The domain's memory.
        given: Size,
        /// What to write into the configuration.
        mib: u64,
    },
    /// The initial mapping does not fit between VIRT_BASE and what follows.
    #[error(
        "the initial mapping of {size} from VIRT_BASE {virt_base:#x} on runs into addresses that \
         are not the guest's: use a smaller ramdisk"
    )]
    MappingTooLong {
        /// Of the mapping.
        size: Size,
        /// Where it starts.
        virt_base: u64,
    },
    /// INIT_P2M is too near to VIRT_BASE, or in the hypervisor's range.
    #[error(
        "the p2m list of {size} does not fit at INIT_P2M {init_p2m:#x} (VIRT_BASE is \
         {virt_base:#x})"
    )]
    P2mMisplaced {
        /// Of the list.
        size: Size,
        /// The note.
        init_p2m: u64,
        /// The note.
        virt_base: u64,
    },
}

/// A number of pages, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kib = self.0.saturating_mul(PAGE_SIZE >> 10);
        if kib >= 1024 && kib.is_multiple_of(1024) {
            write!(f, "{} MiB", kib >> 10)
        } else if kib >= 10240 {
            write!(f, "{}.{} MiB", kib >> 10, ((kib & 1023) * 10) >> 10)
        } else {
            write!(f, "{kib} KiB")
        }
    }
}

/// A run of pseudo-physical frames, in the order of their numbers.
pub type Frames = Range<u64>;

/// The plan of a domain's memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The domain's memory, in pages.
    pub pages: u64,
    /// Virtual address of PFN 0.
    pub virt_base: u64,
    /// First instruction.
    pub entry: u64,
    /// From the first to the last frame of the kernel.
    pub kernel: Frames,
    /// The ramdisk's frames, and its length in bytes.
    pub ramdisk: Option<(Frames, u64)>,
    /// The ramdisk lies outside the mapping: the guest gets its PFN.
    pub ramdisk_unmapped: bool,
    /// The p2m list, without page tables.
    pub p2m: Frames,
    /// The p2m list's virtual address.
    pub p2m_virt: u64,
    /// The p2m list with its own page tables, if INIT_P2M was heeded.
    pub p2m_own: Option<Frames>,
    /// The `start_info` page.
    pub start_info: Pfn,
    /// The xenstore ring.
    pub xenstore: Pfn,
    /// The console ring.
    pub console: Pfn,
    /// The page tables of the kernel's mapping; the first is the L4.
    pub tables: Frames,
    /// The boot stack.
    pub boot_stack: Pfn,
    /// End of the initial mapping.
    pub mapped: Frames,
    /// The first frame that nothing was put into.
    pub free: u64,
    /// All page tables.
    pub table_set: TableSet,
}

impl Layout {
    /// Lays out a domain of `pages` pages.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn plan(
        placement: &Placement,
        pages: u64,
        ramdisk_len: Option<u64>,
    ) -> Result<Self, LayoutError> {
        if pages == 0 || pages > MAX_PAGES {
            return Err(LayoutError::Pages(pages));
        }
        Planner {
            placement,
            pages,
            ramdisk_len,
            next: 0,
        }
        .plan()
    }

    /// The virtual address of a frame in the initial mapping.
    #[must_use]
    pub fn virt(&self, pfn: Pfn) -> u64 {
        self.virt_base + (pfn.0 << PAGE_SHIFT)
    }
}

struct Planner<'a> {
    placement: &'a Placement,
    pages: u64,
    ramdisk_len: Option<u64>,
    /// The next free PFN.
    next: u64,
}

impl Planner<'_> {
    fn plan(mut self) -> Result<Layout, LayoutError> {
        self.check_parts()?;
        let kernel_start = self.placement.physical.start >> PAGE_SHIFT;
        self.next = page_count(self.placement.physical.end);
        let kernel = kernel_start..self.next;
        let mut ramdisk = None;
        let ramdisk_unmapped = self.placement.mod_start_pfn && self.ramdisk_len.is_some();
        if !ramdisk_unmapped {
            ramdisk = self.take_ramdisk();
        }
        let p2m_pages = self.pages.div_ceil(P2M_ENTRIES_PER_PAGE);
        let mut p2m = 0..0;
        if self.placement.init_p2m.is_none() {
            p2m = self.take(p2m_pages);
        }
        let start_info = self.take_page();
        let xenstore = self.take_page();
        let console = self.take_page();
        let (mapped, mut table_set) = self.initial_mapping()?;
        let tables = self.take(table_set.count());
        let boot_stack = self.take_page();
        self.next = mapped.end;
        if ramdisk_unmapped {
            ramdisk = self.take_ramdisk();
        }
        let mut p2m_own = None;
        let mut p2m_virt = self.placement.virt_base + (p2m.start << PAGE_SHIFT);
        if let Some(base) = self.placement.init_p2m {
            p2m = self.take(p2m_pages);
            p2m_virt = base;
            p2m_own = Some(self.map_p2m(base, &p2m, &mut table_set)?);
        }
        if self.next > self.pages {
            return Err(self.too_large());
        }
        Ok(Layout {
            pages: self.pages,
            virt_base: self.placement.virt_base,
            entry: self.placement.entry,
            kernel,
            ramdisk,
            ramdisk_unmapped,
            p2m,
            p2m_virt,
            p2m_own,
            start_info,
            xenstore,
            console,
            tables,
            boot_stack,
            mapped,
            free: self.next,
            table_set,
        })
    }

    /// After this no sum of the parts can overflow.
    fn check_parts(&self) -> Result<(), LayoutError> {
        let given = Size(self.pages);
        let kernel = page_count(self.placement.physical.end);
        if kernel > self.pages {
            let needed = Size(kernel);
            let mib = mib(kernel);
            return Err(LayoutError::KernelTooLarge { needed, given, mib });
        }
        let ramdisk = page_count(self.ramdisk_len.unwrap_or(0));
        if ramdisk > self.pages {
            return Err(LayoutError::RamdiskTooLarge {
                ramdisk: Size(ramdisk),
                given,
                mib: mib(kernel.saturating_add(ramdisk)),
            });
        }
        Ok(())
    }

    fn take(&mut self, pages: u64) -> Frames {
        let start = self.next;
        self.next += pages;
        start..self.next
    }

    fn take_page(&mut self) -> Pfn {
        Pfn(self.take(1).start)
    }

    fn take_ramdisk(&mut self) -> Option<(Frames, u64)> {
        let len = self.ramdisk_len?;
        Some((self.take(page_count(len)), len))
    }

    /// The mapping has to hold its own page tables, whose number depends on
    /// the mapping's length: the length grows until it does.
    fn initial_mapping(&self) -> Result<(Frames, TableSet), LayoutError> {
        let boot_stack = 1;
        let mut tables = 0;
        loop {
            let need = self.next + tables + boot_stack + SLACK_PAGES;
            let area = self.mapping_of(need)?;
            let pages = area.pages;
            let set = TableSet::first(area, self.next);
            if self.next + set.count() + boot_stack + SLACK_PAGES <= pages {
                return Ok((0..pages, set));
            }
            tables = set.count();
        }
    }

    /// From VIRT_BASE over at least `pages` pages, to the alignment (and past
    /// it, if it is met exactly: as Xen rounds).
    fn mapping_of(&self, pages: u64) -> Result<Area, LayoutError> {
        let base = self.placement.virt_base;
        let end = base
            .checked_add(pages << PAGE_SHIFT)
            .and_then(|end| (end | (MAPPING_ALIGN - 1)).checked_add(1))
            .filter(|&end| virt::is_guests(&(base..end)))
            .ok_or(LayoutError::MappingTooLong {
                size: Size(pages),
                virt_base: base,
            })?;
        Ok(Area {
            virt: base,
            pages: (end - base) >> PAGE_SHIFT,
            first: 0,
        })
    }

    /// Maps the p2m list at `base`; its page tables follow it.
    fn map_p2m(
        &mut self,
        base: u64,
        p2m: &Frames,
        set: &mut TableSet,
    ) -> Result<Frames, LayoutError> {
        let pages = p2m.end - p2m.start;
        let fits = base
            .checked_add(pages << PAGE_SHIFT)
            .is_some_and(|end| end <= self.placement.virt_base && virt::is_guests(&(base..end)));
        if !fits {
            return Err(LayoutError::P2mMisplaced {
                size: Size(pages),
                init_p2m: base,
                virt_base: self.placement.virt_base,
            });
        }
        let area = Area {
            virt: base,
            pages,
            first: p2m.start,
        };
        let tables = set.add(area, self.next);
        self.take(tables);
        Ok(p2m.start..self.next)
    }

    fn too_large(&self) -> LayoutError {
        LayoutError::TooLarge {
            kernel: Size(page_count(self.placement.physical.end)),
            ramdisk: Size(page_count(self.ramdisk_len.unwrap_or(0))),
            needed: Size(self.next),
            given: Size(self.pages),
            // A larger domain's p2m list is larger too.
            mib: mib(self.next + self.next.div_ceil(P2M_ENTRIES_PER_PAGE)),
        }
    }
}

fn page_count(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_SIZE)
}

fn mib(pages: u64) -> u64 {
    pages.div_ceil((1 << 20) / PAGE_SIZE)
}
