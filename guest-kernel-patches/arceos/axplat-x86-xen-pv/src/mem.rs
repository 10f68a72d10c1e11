//! The domain's memory, all of it mapped at [`VIRT_BASE`].
//!
//! ```text
//!   pseudo-physical
//!   0          +------------------------------------+
//!              | the kernel's image                 |  known by the linker's names
//!              +------------------------------------+
//!              | p2m list, start_info, rings,       |  the domain builder's; no
//!              | page tables, boot stack            |  memory to ArceOS
//!              +------------------------------------+
//!              | tables that map what the builder   |  ours; no memory to ArceOS
//!              | did not                            |
//!   first_free +------------------------------------+
//!              | free                               |  ArceOS' allocator's
//!   nr_pages   +------------------------------------+
//! ```

use axplat::mem::{MemIf, PhysAddr, RawRange, VirtAddr, pa, va};
use guest_abi::{
    addr::{GuestVirt, Mfn, PAGE_SIZE, Pfn},
    errno::Errno,
    kernel::{Boot, VIRT_BASE, boot, mm},
};
use lazyinit::LazyInit;

/// Pages that there is room for between [`VIRT_BASE`] and the end of the
/// address space; more are left alone.
const MAX_PAGES: u64 = (0x8000_0000 - 0x40_0000) / PAGE_SIZE;
/// Entries of a table.
const ENTRIES: u64 = 512;

/// Where ArceOS' own mappings go: see `axconfig.toml`.
const KERNEL_ASPACE: (usize, usize) = (0xffff_8800_0000_0000, 0x0000_77ff_8000_0000);

static RAM: LazyInit<[RawRange; 2]> = LazyInit::new();

/// Maps all memory, and finds out what of it is free.
pub fn init(boot: &Boot) {
    let info = boot.start_info();
    let pages = info.nr_pages.min(MAX_PAGES);
    let tables = (info.pt_base - VIRT_BASE) / PAGE_SIZE;
    // Behind the tables lies the builder's boot stack, one page.
    let mut free = tables + info.nr_pt_frames + 1;
    map_all(pages, &mut free).expect("all memory can be mapped");
    let image = &raw const _ekernel as usize - VIRT_BASE as usize;
    RAM.init_once([(0, image), range(free, pages)]);
}

fn range(first: u64, end: u64) -> RawRange {
    let bytes = |pages: u64| (pages * PAGE_SIZE) as usize;
    (bytes(first), bytes(end - first))
}

/// Maps the pages that the domain builder left out, writable.
fn map_all(pages: u64, free: &mut u64) -> Result<(), Errno> {
    let mut first = 0;
    while first < pages {
        let address = boot::pfn_to_virt(Pfn(first));
        let above = upper_table(address, free)?;
        let index = mm::index(address, 2);
        let entry = mm::read_entry(above, index).ok_or(Errno::EINVAL)?;
        if entry & mm::PAGE_PRESENT == 0 {
            let table = new_table(free, |index| leaf(first + index, pages))?;
            link(above, index, table)?;
        }
        first += ENTRIES;
    }
    Ok(())
}

/// The L2 table of an address; a new one if need be.
fn upper_table(address: GuestVirt, free: &mut u64) -> Result<Mfn, Errno> {
    if let Some(table) = mm::table(address, 2) {
        return Ok(table);
    }
    let above = mm::table(address, 3).ok_or(Errno::EINVAL)?;
    let table = new_table(free, |_| 0)?;
    link(above, mm::index(address, 3), table)?;
    Ok(table)
}

/// The entry of a page; 0 behind the last.
fn leaf(page: u64, pages: u64) -> u64 {
    let mfn = boot::pfn_to_mfn(Pfn(page)).filter(|_| page < pages);
    mfn.map_or(0, |mfn| mm::entry(mfn, mm::PAGE_KERNEL | mm::PAGE_NX))
}

/// Makes a table of the next free page, which is mapped: tables are filled
/// before they are linked, by ordinary writes.
fn new_table(free: &mut u64, entry: impl Fn(u64) -> u64) -> Result<Mfn, Errno> {
    let page = Pfn(*free);
    let at = boot::pfn_to_virt(page);
    let mapped = mm::lookup(at, 1).is_some_and(|entry| entry & mm::PAGE_RW != 0);
    if !mapped {
        return Err(Errno::ENOMEM);
    }
    *free += 1;
    for index in 0..ENTRIES {
        let slot = (at.0 + index * 8) as *mut u64;
        // SAFETY: a page that nobody uses, mapped writable.
        unsafe { slot.write_volatile(entry(index)) };
    }
    mm::make_table(page)
}

fn link(above: Mfn, index: usize, table: Mfn) -> Result<(), Errno> {
    let at = mm::entry_address(above, index);
    // SAFETY: adds mappings where there were none.
    unsafe { mm::write_entry(at, mm::entry(table, mm::PAGE_TABLE)) }
}

unsafe extern "C" {
    /// The image's end; the linker's.
    static _ekernel: u8;
}

struct Mem;

#[impl_plat_interface]
impl MemIf for Mem {
    fn phys_ram_ranges() -> &'static [RawRange] {
        RAM.as_slice()
    }

    /// What the domain builder made is no memory at all to ArceOS.
    fn reserved_phys_ram_ranges() -> &'static [RawRange] {
        &[]
    }

    /// A PV domain has none.
    fn mmio_ranges() -> &'static [RawRange] {
        &[]
    }

    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        va!(paddr.as_usize() + VIRT_BASE as usize)
    }

    fn virt_to_phys(vaddr: VirtAddr) -> PhysAddr {
        pa!(vaddr.as_usize() - VIRT_BASE as usize)
    }

    fn kernel_aspace() -> (VirtAddr, usize) {
        (va!(KERNEL_ASPACE.0), KERNEL_ASPACE.1)
    }
}
