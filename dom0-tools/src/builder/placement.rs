//! Where a kernel lies in the domain's address spaces, by its notes.
//!
//! Law: pseudo-physical address = physical address in the ELF file minus
//! PADDR_OFFSET; virtual address = VIRT_BASE plus that. Nothing else in the file
//! has a say in it.

use std::ops::Range;

use guest_abi::addr::{GuestVirt, PAGE_SIZE};
use thiserror::Error;

use super::{elf::ElfKernel, notes::XenNotes, virt};

/// Addresses in a kernel's notes that can't be.
#[derive(Debug, Error, PartialEq)]
pub enum PlacementError {
    /// Xen refuses that too.
    #[error("the note PADDR_OFFSET ({0:#x}) makes no sense without VIRT_BASE")]
    OffsetWithoutBase(u64),
    /// Not page-aligned.
    #[error("VIRT_BASE {0:#x} is not at a page boundary")]
    UnalignedBase(u64),
    /// Segments below the offset or past the end of the address space.
    #[error(
        "physical addresses {start:#x} to {end:#x} can't be placed with PADDR_OFFSET \
         {paddr_offset:#x} and VIRT_BASE {virt_base:#x}"
    )]
    OutOfRange {
        /// The lowest.
        start: u64,
        /// The end of the highest.
        end: u64,
        /// By the note or its default.
        paddr_offset: u64,
        /// By the note or its default.
        virt_base: u64,
    },
    /// Not canonical, or the hypervisor's.
    #[error(
        "virtual addresses {start:#x} to {end:#x} are not the guest's to use: the hypervisor has \
         0xffff800000000000 to 0xffff87ffffffffff"
    )]
    NotTheGuests {
        /// The lowest.
        start: u64,
        /// The end.
        end: u64,
    },
    /// A note's address points outside the kernel.
    #[error(
        "{what} {address:#x} lies outside the kernel ({start:#x} to {end:#x}): mend the note, or the linker script that placed it"
    )]
    Outside {
        /// The note.
        what: &'static str,
        /// Its value.
        address: u64,
        /// The kernel's first byte.
        start: u64,
        /// The kernel's end.
        end: u64,
    },
    /// Not page-aligned.
    #[error("HYPERCALL_PAGE {0:#x} is not at a page boundary: align it to 4096")]
    UnalignedHypercallPage(u64),
}

/// Where the kernel lies, with every address checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// Virtual address of PFN 0.
    pub virt_base: u64,
    /// What is subtracted from the ELF file's physical addresses.
    pub paddr_offset: u64,
    /// First instruction.
    pub entry: u64,
    /// Pseudo-physical bytes from the first segment to the end of the last.
    pub physical: Range<u64>,
    /// Pseudo-physical address of the hypercall page.
    pub hypercall_page: Option<u64>,
    /// Where the p2m list shall be, if the kernel asks and Xen would heed it.
    pub init_p2m: Option<u64>,
    /// The ramdisk may stay unmapped.
    pub mod_start_pfn: bool,
}

impl Placement {
    /// Places `elf` by its notes, and checks every address in them.
    ///
    /// # Errors
    /// See [`PlacementError`].
    pub fn find(notes: &XenNotes, elf: &ElfKernel) -> Result<Self, PlacementError> {
        if let (Some(offset), None) = (notes.paddr_offset, notes.virt_base) {
            return Err(PlacementError::OffsetWithoutBase(offset));
        }
        let virt_base = notes.virt_base.unwrap_or(0);
        if GuestVirt(virt_base).page_offset() != 0 {
            return Err(PlacementError::UnalignedBase(virt_base));
        }
        // Old kernels have virtual addresses for physical ones.
        let default = if notes.legacy { virt_base } else { 0 };
        let paddr_offset = notes.paddr_offset.unwrap_or(default);
        let (physical, kernel) = place(&elf.physical(), paddr_offset, virt_base)?;
        let entry = notes.entry.unwrap_or(elf.entry);
        inside("the entry point", entry, &kernel)?;
        Ok(Self {
            virt_base,
            paddr_offset,
            entry,
            physical,
            hypercall_page: hypercall_page(notes, &kernel, virt_base)?,
            init_p2m: notes
                .init_p2m
                .filter(|&base| base < virt_base && base % PAGE_SIZE == 0),
            mod_start_pfn: notes.mod_start_pfn,
        })
    }
}

/// The pseudo-physical and the virtual range of the segments.
fn place(
    file: &Range<u64>,
    paddr_offset: u64,
    virt_base: u64,
) -> Result<(Range<u64>, Range<u64>), PlacementError> {
    let place = |address: u64| {
        let physical = address.checked_sub(paddr_offset)?;
        Some((physical, virt_base.checked_add(physical)?))
    };
    let (Some((start, first)), Some((end, last))) = (place(file.start), place(file.end)) else {
        return Err(PlacementError::OutOfRange {
            start: file.start,
            end: file.end,
            paddr_offset,
            virt_base,
        });
    };
    if !virt::is_guests(&(virt_base..last)) {
        return Err(PlacementError::NotTheGuests {
            start: virt_base,
            end: last,
        });
    }
    Ok((start..end, first..last))
}

fn hypercall_page(
    notes: &XenNotes,
    kernel: &Range<u64>,
    virt_base: u64,
) -> Result<Option<u64>, PlacementError> {
    let Some(page) = notes.hypercall_page else {
        return Ok(None);
    };
    if GuestVirt(page).page_offset() != 0 {
        return Err(PlacementError::UnalignedHypercallPage(page));
    }
    inside("HYPERCALL_PAGE", page, kernel)?;
    Ok(Some(page - virt_base))
}

fn inside(what: &'static str, address: u64, kernel: &Range<u64>) -> Result<(), PlacementError> {
    if kernel.contains(&address) {
        return Ok(());
    }
    Err(PlacementError::Outside {
        what,
        address,
        start: kernel.start,
        end: kernel.end,
    })
}
