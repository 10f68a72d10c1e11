//! Page tables, by hypercall.
//!
//! ArceOS counts memory in *physical* addresses: ours are pseudo-physical,
//! page `n` being the domain's `n`th. Entries hold machine addresses. A page
//! that is a table is mapped read-only, and its entries are written by
//! `mmu_update`.
//!
//! Law: each page has one mapping by which ArceOS reaches it, at
//! [`VIRT_BASE`] plus its address; the tables of that mapping are the domain
//! builder's and the platform's, and all address spaces share them. So a page
//! that becomes a table has one mapping to turn read-only.
//!
//! A refusal is a bug of the kernel's, and the end: there is no way back to
//! report it on (`mov` to a page table can't fail either).

use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::{
    addr::{GuestVirt, MachineAddr, PAGE_SIZE, Pfn},
    errno::Errno,
    kernel::{VIRT_BASE, boot, mm, mmuext, smp},
    xen::XEN_LEGACY_MAX_VCPUS,
};

/// Each vCPU's root, a pseudo-physical address; 0 is the domain builder's.
static ROOTS: [AtomicU64; XEN_LEGACY_MAX_VCPUS] =
    [const { AtomicU64::new(0) }; XEN_LEGACY_MAX_VCPUS];

/// The machine address of the page at a pseudo-physical address; `None` if
/// the domain has no such page.
#[must_use]
pub fn to_machine(physical: u64) -> Option<u64> {
    let mfn = boot::pfn_to_mfn(Pfn(physical / PAGE_SIZE))?;
    Some(mfn.0 * PAGE_SIZE)
}

/// The pseudo-physical address of the page that an entry names; `None` for a
/// frame that is not the domain's.
#[must_use]
pub fn to_physical(entry: u64) -> Option<u64> {
    let pfn = boot::mfn_to_pfn(mm::frame(entry))?;
    Some(pfn.0 * PAGE_SIZE)
}

/// Writes an entry of a table.
///
/// # Safety
/// `at` must be an entry of a table; the mapping must not break what the
/// kernel relies on.
///
/// # Panics
/// If the hypervisor refuses.
pub unsafe fn store(at: *mut u64, value: u64) {
    let address = at as u64;
    let written = match boot::virt_to_mfn(GuestVirt(address)) {
        // SAFETY: the caller's duty.
        Some(mfn) => unsafe {
            let offset = address % PAGE_SIZE;
            mm::write_entry(MachineAddr(mfn.0 * PAGE_SIZE + offset), value)
        },
        None => Err(Errno::EINVAL),
    };
    if let Err(error) = written {
        panic!("page-table entry at {address:#x}: {value:#x} refused: {error}");
    }
}

/// Turns a zeroed page into a table, as far as its mapping goes.
///
/// # Panics
/// If the hypervisor refuses.
pub fn make_table(page: *mut u8) {
    let pfn = Pfn((page as u64).wrapping_sub(VIRT_BASE) / PAGE_SIZE);
    if let Err(error) = mm::make_table(pfn) {
        panic!("page {page:p} can't be a table: {error}");
    }
}

/// Turns a table that nothing names any more back into a page of data.
///
/// # Panics
/// If the hypervisor refuses: something does name it.
pub fn unmake_table(page: *mut u8) {
    let address = GuestVirt(page as u64);
    let made = match boot::virt_to_mfn(address) {
        // SAFETY: the page's own mapping, as it was.
        Some(mfn) => unsafe {
            mm::set_mapping(address, mm::entry(mfn, mm::PAGE_KERNEL | mm::PAGE_NX))
        },
        None => Err(Errno::EINVAL),
    };
    if let Err(error) = made {
        panic!("page {page:p} is still a table: {error}");
    }
}

/// That of the vCPU that asks.
fn current_root() -> &'static AtomicU64 {
    &ROOTS[smp::current() as usize % XEN_LEGACY_MAX_VCPUS]
}

/// The root's pseudo-physical address.
#[must_use]
pub fn root() -> u64 {
    match current_root().load(Ordering::Relaxed) {
        0 => boot::start_info().map_or(0, |info| info.pt_base.wrapping_sub(VIRT_BASE)),
        root => root,
    }
}

/// Changes the root.
///
/// # Safety
/// It must map this code, this stack and all else that the kernel uses.
///
/// # Panics
/// If the hypervisor refuses the tree.
pub unsafe fn set_root(physical: u64) {
    let loaded = match boot::pfn_to_mfn(Pfn(physical / PAGE_SIZE)) {
        // SAFETY: the caller's duty.
        Some(mfn) => unsafe { mmuext::load_root(mfn) },
        None => Err(Errno::EINVAL),
    };
    if let Err(error) = loaded {
        panic!("page table {physical:#x} refused: {error}");
    }
    current_root().store(physical, Ordering::Relaxed);
}

/// Drops one cached translation, or all.
pub fn flush(address: Option<u64>) {
    // Neither has a failure to report.
    let _ = match address {
        Some(address) => mmuext::flush_page(GuestVirt(address), true),
        None => mmuext::flush(true),
    };
}

/// The address of the last page fault.
#[must_use]
pub fn fault_address() -> u64 {
    // SAFETY: a field of this vCPU's info, which is mapped for good.
    unsafe { (&raw const (*smp::vcpu_info()).arch.cr2).read_volatile() }
}
