//! A vCPU's guest memory, for copying arguments in and results out.

use crate::{domain::Domain, grants::GrantMemory, guest_access::GuestAccess, space::Tables};
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

    /// Calls `copy` with each piece that lies in one page: the memory that the
    /// page is in, its machine address there, and its range in the caller's
    /// buffer.
    fn pieces(
        &self,
        start: GuestVirt,
        len: usize,
        write: bool,
        mut copy: impl FnMut(&dyn GrantMemory, MachineAddr, std::ops::Range<usize>) -> bool,
    ) -> Result<(), Errno> {
        let space = &self.domain.space;
        let mut done = 0;
        while done < len {
            let at = start.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let in_page = usize::try_from(PAGE_SIZE - at.page_offset()).unwrap_or(1);
            let range = done..done + in_page.min(len - done);
            done = range.end;
            let mm = space.lock_mm();
            let found = mm
                .translate(&Tables::read_only(space), self.root, at)
                .filter(|found| found.user && (found.writable || !write))
                .ok_or(Errno::EFAULT)?;
            let copied = if let Some(foreign) = space.foreign(found.mfn) {
                // First the lock goes, then perhaps the use of the grant.
                drop(mm);
                let to = machine_address(foreign.frame(), at)?;
                (foreign.is_writable() || !write) && copy(foreign.granter().memory(), to, range)
            } else {
                let to = machine_address(found.mfn, at)?;
                (!write || space.may_write(&mm, found.mfn)) && copy(&**space, to, range)
            };
            if !copied {
                return Err(Errno::EFAULT);
            }
        }
        Ok(())
    }
}

/// The byte of `frame` that `at` is mapped to.
fn machine_address(frame: Mfn, at: GuestVirt) -> Result<MachineAddr, Errno> {
    let byte = frame
        .addr()
        .and_then(|base| base.checked_add(at.page_offset()));
    byte.ok_or(Errno::EFAULT)
}

impl GuestAccess for VcpuAccess<'_> {
    fn read_bytes(&self, from: GuestVirt, buf: &mut [u8]) -> Result<(), Errno> {
        self.pieces(from, buf.len(), false, |memory, addr, range| {
            memory.read(addr, &mut buf[range])
        })
    }

    fn write_bytes(&self, to: GuestVirt, bytes: &[u8]) -> Result<(), Errno> {
        self.pieces(to, bytes.len(), true, |memory, addr, range| {
            memory.write(addr, &bytes[range])
        })
    }
}
