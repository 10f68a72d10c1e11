//! A vCPU's guest memory, for copying arguments in and results out.

use crate::{domain::Domain, guest_access::GuestAccess, space::Tables};
use guest_abi::{
    addr::{GuestVirt, MachineAddr, Mfn, PAGE_SIZE},
    errno::Errno,
};

/// The guest's virtual memory under one root.
///
/// Law: takes the domain's `mm` lock for each page, so a caller must not hold
/// it; a frame can't become a page table between the look-up and the copy.
pub struct VcpuAccess<'a> {
    domain: &'a Domain,
    root: Mfn,
}

impl<'a> VcpuAccess<'a> {
    /// Memory of `domain` as mapped by `root`.
    #[must_use]
    pub fn new(domain: &'a Domain, root: Mfn) -> Self {
        VcpuAccess { domain, root }
    }

    /// Calls `copy` with each piece that lies in one page: its machine
    /// address, and its range in the caller's buffer.
    fn pieces(
        &self,
        start: GuestVirt,
        len: usize,
        write: bool,
        mut copy: impl FnMut(MachineAddr, std::ops::Range<usize>) -> Option<()>,
    ) -> Result<(), Errno> {
        let mut done = 0;
        while done < len {
            let at = start.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let in_page = usize::try_from(PAGE_SIZE - at.page_offset()).unwrap_or(1);
            let step = in_page.min(len - done);
            let mm = self.domain.space.lock_mm();
            let found = mm
                .translate(&Tables::read_only(&self.domain.space), self.root, at)
                .ok_or(Errno::EFAULT)?;
            if !found.user
                || write && !(found.writable && self.domain.space.may_write(&mm, found.mfn))
            {
                return Err(Errno::EFAULT);
            }
            let base = found.mfn.addr().ok_or(Errno::EFAULT)?;
            let addr = base.checked_add(at.page_offset()).ok_or(Errno::EFAULT)?;
            copy(addr, done..done + step).ok_or(Errno::EFAULT)?;
            if write {
                self.domain.space.note_written(found.mfn);
            }
            done += step;
        }
        Ok(())
    }
}

impl GuestAccess for VcpuAccess<'_> {
    fn read_bytes(&self, from: GuestVirt, buf: &mut [u8]) -> Result<(), Errno> {
        self.pieces(from, buf.len(), false, |addr, range| {
            self.domain.space.memory.read(addr, &mut buf[range])
        })
    }

    fn write_bytes(&self, to: GuestVirt, bytes: &[u8]) -> Result<(), Errno> {
        self.pieces(to, bytes.len(), true, |addr, range| {
            self.domain.space.memory.write(addr, &bytes[range])
        })
    }
}
