//! `memory_op`: how much memory the domain has, and changing that.
//!
//! ```no_run
//! use guest_abi::kernel::reservation;
//!
//! let (have, most) = (reservation::current(), reservation::maximum());
//! assert!(have.expect("one's own") <= most.expect("one's own"));
//! ```

use super::{boot, hypercall};
use crate::{
    addr::{Mfn, Pfn},
    errno::Errno,
    memory::*,
};

fn count(command: u32) -> Result<u64, Errno> {
    let mut domain = MemoryDomain { domid: boot::SELF };
    // SAFETY: the commands' type.
    let answer = unsafe { hypercall::memory_op(command, &mut domain) }?;
    u64::try_from(answer).map_err(|_| Errno::EINVAL)
}

/// Frames that the domain has.
///
/// # Errors
/// None known.
pub fn current() -> Result<u64, Errno> {
    count(XENMEM_CURRENT_RESERVATION)
}

/// Frames that it may have.
///
/// # Errors
/// None known.
pub fn maximum() -> Result<u64, Errno> {
    count(XENMEM_MAXIMUM_RESERVATION)
}

/// The highest frame number of the machine.
///
/// # Errors
/// None known.
pub fn maximum_ram_page() -> Result<u64, Errno> {
    // SAFETY: the command takes no argument.
    let answer = unsafe { hypercall::memory_op(XENMEM_MAXIMUM_RAM_PAGE, &mut ()) }?;
    u64::try_from(answer).map_err(|_| Errno::EINVAL)
}

/// `XENMEM_populate_physmap`: gives frames to these pages, whose numbers are
/// replaced by the frames'. The p2m list is the caller's to change
/// ([`boot::set_pfn_mfn`]). Returns how many got one.
///
/// # Errors
/// `EFAULT`; what can't be had is missing from the count.
pub fn populate(pages: &mut [u64]) -> Result<usize, Errno> {
    let mut reservation = whole(pages.as_mut_ptr() as u64, pages.len());
    // SAFETY: the command's type; the list is writable.
    let done = unsafe { hypercall::memory_op(XENMEM_POPULATE_PHYSMAP, &mut reservation) }?;
    usize::try_from(done).map_err(|_| Errno::EINVAL)
}

/// `XENMEM_decrease_reservation`: gives frames back. Returns how many were.
///
/// # Safety
/// Nobody may use them any more; they must be mapped nowhere.
///
/// # Errors
/// `EFAULT`; what is not ours or in use as a table is missing from the count.
pub unsafe fn release(frames: &[Mfn]) -> Result<usize, Errno> {
    let mut reservation = whole(frames.as_ptr() as u64, frames.len());
    // SAFETY: the command's type; `Mfn` is a transparent `u64`.
    let done = unsafe { hypercall::memory_op(XENMEM_DECREASE_RESERVATION, &mut reservation) }?;
    usize::try_from(done).map_err(|_| Errno::EINVAL)
}

/// `XENMEM_memory_map`: the regions of pseudo-physical memory. Returns how
/// many were told.
///
/// # Errors
/// `EFAULT`; `ENOSYS` in a hypervisor that tells none.
pub fn map(regions: &mut [E820Entry]) -> Result<usize, Errno> {
    let mut map = MemoryMap {
        nr_entries: u32::try_from(regions.len()).map_err(|_| Errno::EINVAL)?,
        buffer: regions.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the command's type; the list has room for so many.
    unsafe { hypercall::memory_op(XENMEM_MEMORY_MAP, &mut map) }?;
    Ok(map.nr_entries as usize)
}

/// Gives one page's frame back and gets it, or another, again: what a
/// balloon driver does.
///
/// # Safety
/// As for [`release`].
///
/// # Errors
/// `EINVAL` for a page that the domain has not; `ENOMEM` if none came back.
pub unsafe fn renew(page: Pfn) -> Result<Mfn, Errno> {
    let old = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
    // SAFETY: the caller's duty.
    if unsafe { release(&[old]) }? != 1 {
        return Err(Errno::EINVAL);
    }
    let mut frame = [page.0];
    if populate(&mut frame)? != 1 {
        boot::set_pfn_mfn(page, Mfn::INVALID)?;
        return Err(Errno::ENOMEM);
    }
    boot::set_pfn_mfn(page, Mfn(frame[0]))?;
    Ok(Mfn(frame[0]))
}

/// Extents of one page each.
fn whole(list: u64, count: usize) -> MemoryReservation {
    MemoryReservation {
        extent_start: list,
        nr_extents: count as u64,
        domid: boot::SELF,
        ..Default::default()
    }
}
