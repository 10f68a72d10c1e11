//! `mmuext_op`, one function for each command: pins, roots, flushes, the LDT.
//!
//! Errors of all: `EINVAL` for a frame that is not this domain's or not of the
//! type wanted, `EBUSY` where it is in use as something else, `EPERM` where a
//! foreign frame is named.
//!
//! ```no_run
//! use guest_abi::{errno::Errno, kernel::{mm, mmuext}};
//!
//! let table = mm::make_table(mm::allocate().expect("a page")).expect("read-only now");
//! // SAFETY: an empty table maps nothing.
//! unsafe { mmuext::pin(1, table) }.expect("it is empty");
//! mmuext::unpin(table).expect("it is pinned");
//! assert_eq!(mmuext::unpin(table), Err(Errno::EINVAL));
//! ```

use super::mm;
use crate::{
    addr::{GuestVirt, Mfn},
    errno::Errno,
    xen::*,
};

/// Validates the tree below a table of `level` (1 to 4) and keeps it so.
///
/// # Safety
/// What is mapped by it must not break what this kernel relies on.
///
/// # Errors
/// `EINVAL` for a level that is none, or for an entry below that is refused.
pub unsafe fn pin(level: u32, table: Mfn) -> Result<(), Errno> {
    let command = match level {
        1 => MMUEXT_PIN_L1_TABLE,
        2 => MMUEXT_PIN_L2_TABLE,
        3 => MMUEXT_PIN_L3_TABLE,
        4 => MMUEXT_PIN_L4_TABLE,
        _ => return Err(Errno::EINVAL),
    };
    // SAFETY: the caller's duty.
    unsafe { mm::extended(command, table.0, 0) }
}

/// Ends a pin: types that nobody else uses are dropped down to the leaves.
///
/// # Errors
/// `EINVAL` for a frame that is not pinned.
pub fn unpin(table: Mfn) -> Result<(), Errno> {
    // SAFETY: a root in use keeps its type by its use.
    unsafe { mm::extended(MMUEXT_UNPIN_TABLE, table.0, 0) }
}

/// Makes an L4 table the root of kernel mode.
///
/// # Safety
/// It must map this code, this stack and all else that the kernel uses.
///
/// # Errors
/// As for a pin of level 4.
pub unsafe fn load_root(table: Mfn) -> Result<(), Errno> {
    // SAFETY: the caller's duty.
    unsafe { mm::extended(MMUEXT_NEW_BASEPTR, table.0, 0) }
}

/// Makes an L4 table the root of user mode; MFN 0 is none.
///
/// # Safety
/// User mode sees what it maps.
///
/// # Errors
/// As for a pin of level 4.
pub unsafe fn load_user_root(table: Mfn) -> Result<(), Errno> {
    // SAFETY: the caller's duty.
    unsafe { mm::extended(MMUEXT_NEW_USER_BASEPTR, table.0, 0) }
}

/// Drops all cached translations: of this vCPU, or of all.
///
/// # Errors
/// None known.
pub fn flush(everywhere: bool) -> Result<(), Errno> {
    let command = match everywhere {
        true => MMUEXT_TLB_FLUSH_ALL,
        false => MMUEXT_TLB_FLUSH_LOCAL,
    };
    // SAFETY: translations are looked up again.
    unsafe { mm::extended(command, 0, 0) }
}

/// Drops the cached translation of one address: of this vCPU, or of all.
///
/// # Errors
/// None known.
pub fn flush_page(address: GuestVirt, everywhere: bool) -> Result<(), Errno> {
    let command = match everywhere {
        true => MMUEXT_INVLPG_ALL,
        false => MMUEXT_INVLPG_LOCAL,
    };
    // SAFETY: as in `flush`.
    unsafe { mm::extended(command, address.0, 0) }
}

/// Sets the LDT: `entries` (at most 8192) from a page's start on.
///
/// # Safety
/// Selectors in use must stay usable. The pages become descriptor pages.
///
/// # Errors
/// `EINVAL` for an address that is not page-aligned, or too many.
pub unsafe fn set_ldt(address: GuestVirt, entries: u32) -> Result<(), Errno> {
    // SAFETY: the caller's duty.
    unsafe { mm::extended(MMUEXT_SET_LDT, address.0, u64::from(entries)) }
}

/// Fills a frame of data with zeroes, mapped or not.
///
/// # Safety
/// Nobody may rely on what is in it.
///
/// # Errors
/// `EINVAL`, `EBUSY` for a page table.
pub unsafe fn clear_page(frame: Mfn) -> Result<(), Errno> {
    // SAFETY: the caller's duty.
    unsafe { mm::extended(MMUEXT_CLEAR_PAGE, frame.0, 0) }
}

/// Copies a frame to a frame of data.
///
/// # Safety
/// Nobody may rely on what is in `to`.
///
/// # Errors
/// `EINVAL`, `EBUSY` if `to` is a page table.
pub unsafe fn copy_page(to: Mfn, from: Mfn) -> Result<(), Errno> {
    // SAFETY: the caller's duty.
    unsafe { mm::extended(MMUEXT_COPY_PAGE, to.0, from.0) }
}
