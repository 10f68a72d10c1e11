//! Page tables of one's own, by hypercall.
//!
//! A PV kernel reads its page tables freely: they are mapped read-only. It
//! writes entries by `mmu_update` (any entry, by machine address) or
//! `update_va_mapping` (the L1 entry of an address). Entries hold MFNs. A page
//! becomes a table when an entry of a table above (or a pin) names it; from
//! then on no writable mapping of it may exist, so [`make_table`] first turns
//! its mapping read-only.
//!
//! ```no_run
//! use guest_abi::{addr::GuestVirt, errno::Errno, kernel::{boot, mm}};
//!
//! /// A fresh page at `address`.
//! fn map_page(address: GuestVirt) -> Result<(), Errno> {
//!     let root = mm::root().ok_or(Errno::EINVAL)?;
//!     let page = mm::allocate().ok_or(Errno::ENOMEM)?;
//!     let frame = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
//!     // SAFETY: nothing is mapped there, and the page is nobody's.
//!     unsafe { mm::map(root, address, mm::entry(frame, mm::PAGE_KERNEL)) }
//! }
//! ```

use core::sync::atomic::{AtomicU64, Ordering};

use super::{boot, hypercall};
use crate::{
    addr::{GuestVirt, MachineAddr, Mfn, PAGE_SIZE, Pfn},
    errno::Errno,
    xen::{MmuUpdate, MmuextOp, UVMF_ALL, UVMF_INVLPG},
};

/// Entry: maps something.
pub const PAGE_PRESENT: u64 = 1 << 0;
/// Entry: writable.
pub const PAGE_RW: u64 = 1 << 1;
/// Entry: for ring 3; the hypervisor sets it on everything.
pub const PAGE_USER: u64 = 1 << 2;
/// Entry: was used.
pub const PAGE_ACCESSED: u64 = 1 << 5;
/// Entry: was written through.
pub const PAGE_DIRTY: u64 = 1 << 6;
/// Entry: a large page (refused to PV guests).
pub const PAGE_PSE: u64 = 1 << 7;
/// Entry: not executable.
pub const PAGE_NX: u64 = 1 << 63;
/// A writable page.
pub const PAGE_KERNEL: u64 = PAGE_PRESENT | PAGE_RW | PAGE_USER | PAGE_ACCESSED | PAGE_DIRTY;
/// A read-only page.
pub const PAGE_READONLY: u64 = PAGE_KERNEL & !PAGE_RW;
/// An entry for a table below.
pub const PAGE_TABLE: u64 = PAGE_KERNEL;
/// The frame's bits in an entry.
pub const PAGE_FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The frame that an entry names.
#[must_use]
pub const fn frame(entry: u64) -> Mfn {
    Mfn((entry & PAGE_FRAME) >> 12)
}

/// An entry for a frame.
#[must_use]
pub const fn entry(mfn: Mfn, flags: u64) -> u64 {
    (mfn.0 << 12) | flags
}

/// The index of an address in its table of `level` (1 to 4).
#[must_use]
pub const fn index(address: GuestVirt, level: u32) -> usize {
    ((address.0 >> (12 + 9 * (level - 1))) & 511) as usize
}

/// The current root, an L4 table.
#[must_use]
pub fn root() -> Option<Mfn> {
    boot::virt_to_mfn(GuestVirt(boot::start_info()?.pt_base))
}

/// The machine address of entry `index` of a table.
#[must_use]
pub fn entry_address(table: Mfn, index: usize) -> MachineAddr {
    MachineAddr((table.0 << 12) + (index as u64 & 511) * 8)
}

/// Reads entry `index` of a table that lies in the initial mapping.
#[must_use]
pub fn read_entry(table: Mfn, index: usize) -> Option<u64> {
    let page = boot::pfn_to_virt(boot::mfn_to_pfn(table)?);
    super::guard::read(GuestVirt(page.0 + (index as u64 & 511) * 8)).ok()
}

/// The table of `level` (1 to 4) that translates `address`, as far as there is one.
#[must_use]
pub fn table(address: GuestVirt, level: u32) -> Option<Mfn> {
    let mut table = root()?;
    for upper in (level + 1..=4).rev() {
        let entry = read_entry(table, index(address, upper))?;
        if entry & PAGE_PRESENT == 0 {
            return None;
        }
        table = frame(entry);
    }
    Some(table)
}

/// The entry that translates `address` at `level`.
#[must_use]
pub fn lookup(address: GuestVirt, level: u32) -> Option<u64> {
    read_entry(table(address, level)?, index(address, level))
}

/// Writes one entry, by `mmu_update`.
///
/// # Safety
/// The new mapping must not break what this kernel relies on.
///
/// # Errors
/// The hypervisor's refusal.
pub unsafe fn write_entry(at: MachineAddr, value: u64) -> Result<(), Errno> {
    let update = MmuUpdate {
        ptr: at.0,
        val: value,
    };
    // SAFETY: the caller's duty.
    unsafe { hypercall::mmu_update(&[update]) }?;
    Ok(())
}

/// Writes the L1 entry of an address, by `update_va_mapping`, and flushes it
/// everywhere.
///
/// # Safety
/// As for [`write_entry`].
///
/// # Errors
/// The hypervisor's refusal.
pub unsafe fn set_mapping(address: GuestVirt, value: u64) -> Result<(), Errno> {
    // SAFETY: the caller's duty.
    unsafe { hypercall::update_va_mapping(address, value, UVMF_INVLPG | UVMF_ALL) }?;
    Ok(())
}

/// One `mmuext_op`.
///
/// # Safety
/// As for [`write_entry`].
///
/// # Errors
/// The hypervisor's refusal.
pub unsafe fn extended(cmd: u32, arg1: u64, arg2: u64) -> Result<(), Errno> {
    let op = MmuextOp {
        cmd,
        arg1,
        arg2,
        ..Default::default()
    };
    // SAFETY: the caller's duty.
    unsafe { hypercall::mmuext_op(&[op]) }?;
    Ok(())
}

/// Pages behind the builder's boot stack that Xen promises in the initial
/// mapping: at least 512 KiB.
const SPARE_PAGES: u64 = 512 * 1024 / PAGE_SIZE;

/// Pages handed out already.
static HANDED_OUT: AtomicU64 = AtomicU64::new(0);

/// A free, zeroed page of the initial mapping; `None` when the spare pages
/// behind the builder's structures are used up. Pages do not come back.
#[must_use]
pub fn allocate() -> Option<Pfn> {
    let info = boot::start_info()?;
    let tables = (info.pt_base - super::VIRT_BASE) / PAGE_SIZE;
    // Behind the tables lies the builder's boot stack, one page.
    let first = tables + info.nr_pt_frames + 1;
    let index = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
    let pfn = Pfn(first + index);
    if index >= SPARE_PAGES || pfn.0 >= info.nr_pages {
        return None;
    }
    let page = boot::pfn_to_virt(pfn).0 as *mut u8;
    // SAFETY: mapped writable by the builder and handed out once.
    unsafe { super::mem::fill(page, 0, 4096) };
    Some(pfn)
}

/// Turns a page's mapping read-only, so that it can become a table (or a
/// descriptor page). Returns its MFN.
///
/// # Errors
/// `EINVAL` for a page outside the domain, else the hypervisor's refusal.
pub fn make_table(page: Pfn) -> Result<Mfn, Errno> {
    let mfn = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
    // SAFETY: the page is the caller's, and stays readable.
    unsafe { set_mapping(boot::pfn_to_virt(page), entry(mfn, PAGE_READONLY)) }?;
    Ok(mfn)
}

/// Maps `value` at `address` under `root`, adding the tables that are missing.
///
/// # Safety
/// As for [`write_entry`].
///
/// # Errors
/// `ENOMEM` when there is no page for a table, else the hypervisor's refusal.
pub unsafe fn map(root: Mfn, address: GuestVirt, value: u64) -> Result<(), Errno> {
    let mut table = root;
    for level in [4, 3, 2] {
        let at = index(address, level);
        let mut below = read_entry(table, at).ok_or(Errno::EINVAL)?;
        if below & PAGE_PRESENT == 0 {
            let page = allocate().ok_or(Errno::ENOMEM)?;
            below = entry(make_table(page)?, PAGE_TABLE);
            // SAFETY: adds an empty table where nothing was mapped.
            unsafe { write_entry(entry_address(table, at), below) }?;
        }
        table = frame(below);
    }
    // SAFETY: the caller's duty.
    unsafe { write_entry(entry_address(table, index(address, 1)), value) }
}
