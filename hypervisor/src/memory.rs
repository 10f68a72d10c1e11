//! The machine memory of one domain: the VM's physical address space.
//!
//! ```text
//! MFN 0                 low area: shared_info, grant frames, monitor pages
//! MFN BASE_MFN          RAM: the guest's own frames, one memfd
//! 2 MiB-aligned above   the machine-to-phys table, as the guest reads it
//! ```
//!
//! Law: all three areas are written by the guest or its tools at any time.
//! They are read by value, atomically, and no reference into them is formed.
//! Addresses outside them give `None`: nothing here panics on a number that
//! came from a guest.

use guest_abi::addr::{MachineAddr, Mfn, PAGE_SIZE};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::ftruncate,
};
use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};
use vm_memory::{AtomicInteger, Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// The first frame of RAM.
pub const BASE_MFN: Mfn = Mfn(0x1000);
/// Bytes of the low area.
const LOW_BYTES: u64 = BASE_MFN.0 * PAGE_SIZE;
/// The machine-to-phys table starts at a multiple of this.
const LARGE_PAGE: u64 = 2 << 20;
/// An entry of the machine-to-phys table that names no frame.
const NO_PFN: u64 = u64::MAX;

/// Why a domain's memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused a memory file.
    #[error("cannot create {bytes} bytes of guest memory: {source}")]
    Create {
        /// How much was asked for.
        bytes: u64,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not a size that fits the address space.
    #[error("{0} pages of memory are more than a domain can have")]
    TooLarge(u64),
}

/// One memory area: a sealed memfd, mapped.
#[derive(Debug)]
pub struct Area {
    start: u64,
    bytes: u64,
    file: File,
    map: MmapRegion<()>,
}

impl Area {
    /// A zeroed area that begins at `start`.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn new(name: &str, start: u64, bytes: u64) -> Result<Self, MemoryError> {
        let fail = |source: std::io::Error| MemoryError::Create { bytes, source };
        let size = usize::try_from(bytes).map_err(|_| MemoryError::TooLarge(bytes / PAGE_SIZE))?;
        let length = i64::try_from(bytes).map_err(|_| MemoryError::TooLarge(bytes / PAGE_SIZE))?;
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(|e| fail(e.into()))?;
        ftruncate(&fd, length).map_err(|e| fail(e.into()))?;
        // A Dom0 process that shares the file must not be able to shrink it
        // under us: that would be a SIGBUS in the hypervisor.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| fail(e.into()))?;
        let file = File::from(fd);
        let offset = FileOffset::new(file.try_clone().map_err(fail)?, 0);
        let map =
            MmapRegion::from_file(offset, size).map_err(|e| fail(std::io::Error::other(e)))?;
        Ok(Area {
            start,
            bytes,
            file,
            map,
        })
    }

    /// The first byte's machine address.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The area's length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the area lies in this process.
    #[must_use]
    pub fn host_address(&self) -> *mut u8 {
        self.map.as_ptr()
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Copies bytes out; `None` if they are not all in the area.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Option<()> {
        self.slice(addr, buf.len())?.copy_to(buf);
        Some(())
    }

    /// Copies bytes in; `None` if they are not all in the area.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Option<()> {
        self.slice(addr, bytes.len())?.copy_from(bytes);
        Some(())
    }

    fn slice(&self, addr: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(addr.checked_sub(self.start)?).ok()?;
        self.map.get_slice(offset, len).ok()
    }
}

/// The memory of one domain.
#[derive(Debug)]
pub struct MachineMemory {
    low: Area,
    ram: Area,
    m2p: Area,
    pages: u64,
}

impl MachineMemory {
    /// Memory for a domain of at most `max_pages` RAM frames. Nothing is
    /// populated: pages cost memory when they are first written.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn new(max_pages: u64) -> Result<Self, MemoryError> {
        if max_pages == 0 || max_pages >> 34 != 0 {
            return Err(MemoryError::TooLarge(max_pages));
        }
        let ram_bytes = max_pages * PAGE_SIZE;
        let low = Area::new("domus-low", 0, LOW_BYTES)?;
        let ram = Area::new("domus-ram", LOW_BYTES, ram_bytes)?;
        let table_start = (LOW_BYTES + ram_bytes).next_multiple_of(LARGE_PAGE);
        let table_bytes = ((BASE_MFN.0 + max_pages) * 8).next_multiple_of(PAGE_SIZE);
        let m2p = Area::new("domus-m2p", table_start, table_bytes)?;
        let memory = MachineMemory {
            low,
            ram,
            m2p,
            pages: max_pages,
        };
        for mfn in 0..BASE_MFN.0 {
            memory.set_m2p_raw(mfn, NO_PFN);
        }
        Ok(memory)
    }

    /// The three areas, lowest first.
    #[must_use]
    pub fn areas(&self) -> [&Area; 3] {
        [&self.low, &self.ram, &self.m2p]
    }

    /// The area that holds the machine-to-phys table.
    #[must_use]
    pub fn m2p_area(&self) -> &Area {
        &self.m2p
    }

    /// The RAM area.
    #[must_use]
    pub fn ram_area(&self) -> &Area {
        &self.ram
    }

    /// The first address past all areas.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.m2p.start + self.m2p.bytes
    }

    /// How many RAM frames there can be.
    #[must_use]
    pub fn max_pages(&self) -> u64 {
        self.pages
    }

    /// Whether `mfn` is a RAM frame.
    #[must_use]
    pub fn is_ram(&self, mfn: Mfn) -> bool {
        mfn.checked_offset_from(BASE_MFN)
            .is_some_and(|index| index < self.pages)
    }

    /// The file behind RAM.
    #[must_use]
    pub fn ram_fd(&self) -> BorrowedFd<'_> {
        self.ram.file.as_fd()
    }

    /// The file behind RAM, opened anew for reading only: not even `mprotect`
    /// makes a mapping of it writable.
    ///
    /// # Errors
    /// The kernel's answer; it needs `/proc`.
    pub fn ram_fd_read_only(&self) -> std::io::Result<OwnedFd> {
        use std::os::fd::AsRawFd;
        let name = format!("/proc/self/fd/{}", self.ram.file.as_raw_fd());
        File::open(name).map(OwnedFd::from)
    }

    /// The memory at `addr..addr + len`, if one area holds it all.
    #[must_use]
    pub fn slice(&self, addr: MachineAddr, len: usize) -> Option<VolatileSlice<'_>> {
        let area = if addr.0 >= self.m2p.start {
            &self.m2p
        } else if addr.0 >= LOW_BYTES {
            &self.ram
        } else {
            &self.low
        };
        area.slice(addr.0, len)
    }

    /// Calls `f` with the word of type `A` at `addr`; `None` if there is no
    /// memory or `addr` is not aligned.
    pub fn atomic<A: AtomicInteger, R>(
        &self,
        addr: MachineAddr,
        f: impl FnOnce(&A) -> R,
    ) -> Option<R> {
        let slice = self.slice(addr, size_of::<A>())?;
        slice.get_atomic_ref::<A>(0).ok().map(f)
    }

    /// Reads one aligned word.
    #[must_use]
    pub fn load(&self, addr: MachineAddr) -> Option<u64> {
        self.atomic(addr, |word: &AtomicU64| word.load(Ordering::Acquire))
    }

    /// Writes one aligned word.
    pub fn store(&self, addr: MachineAddr, value: u64) -> Option<()> {
        self.atomic(addr, |word: &AtomicU64| {
            word.store(value, Ordering::Release)
        })
    }

    /// Copies out of memory; `None` if not all of it exists.
    pub fn read(&self, addr: MachineAddr, buf: &mut [u8]) -> Option<()> {
        self.slice(addr, buf.len())?.read_slice(buf, 0).ok()
    }

    /// Copies into memory; `None` if not all of it exists.
    pub fn write(&self, addr: MachineAddr, bytes: &[u8]) -> Option<()> {
        self.slice(addr, bytes.len())?.write_slice(bytes, 0).ok()
    }

    /// Fills a frame with zeros.
    pub fn clear_frame(&self, mfn: Mfn) -> Option<()> {
        self.write(mfn.addr()?, &[0; 4096])
    }

    /// Copies frame `from` to frame `to`.
    pub fn copy_frame(&self, from: Mfn, to: Mfn) -> Option<()> {
        let mut page = [0; 4096];
        self.read(from.addr()?, &mut page)?;
        self.write(to.addr()?, &page)
    }

    /// Sets the machine-to-phys entry of a RAM frame; `None` for others.
    pub fn set_m2p(&self, mfn: Mfn, pfn: Option<u64>) -> Option<()> {
        if !self.is_ram(mfn) {
            return None;
        }
        self.set_m2p_raw(mfn.0, pfn.unwrap_or(NO_PFN));
        Some(())
    }

    /// The machine-to-phys entry of a frame.
    #[must_use]
    pub fn m2p(&self, mfn: Mfn) -> Option<u64> {
        let offset = mfn.0.checked_mul(8)?;
        self.load(MachineAddr(self.m2p.start.checked_add(offset)?))
            .filter(|pfn| *pfn != NO_PFN)
    }

    fn set_m2p_raw(&self, mfn: u64, pfn: u64) {
        let _ = self.store(MachineAddr(self.m2p.start + mfn * 8), pfn);
    }

    /// Makes the host find memory for RAM frames, without changing what they hold.
    ///
    /// # Errors
    /// The kernel's answer: it has none, or does not know how.
    pub fn populate(&self, first: Mfn, pages: u64) -> std::io::Result<()> {
        use nix::sys::mman::{MmapAdvise, madvise};
        let range = first.addr().zip(usize::try_from(pages * PAGE_SIZE).ok());
        let range = range.and_then(|(start, len)| {
            let slice = self.ram.slice(start.0, len)?;
            Some((NonNull::new(slice.ptr_guard_mut().as_ptr())?, len))
        });
        let Some((start, len)) = range else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: the range lies in a mapping of ours; its bytes do not change.
        unsafe { madvise(start.cast(), len, MmapAdvise::MADV_POPULATE_WRITE) }?;
        Ok(())
    }

    /// RAM frames for which the host has found memory.
    #[cfg(test)]
    pub fn resident_pages(&self) -> std::io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.ram.file.metadata()?.blocks() * 512 / PAGE_SIZE)
    }

    /// Gives the memory of a RAM frame back to the host; it reads as zeros
    /// afterwards.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn discard(&self, mfn: Mfn) -> Result<(), MemoryError> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let Some(index) = mfn
            .checked_offset_from(BASE_MFN)
            .filter(|index| *index < self.pages)
        else {
            return Ok(());
        };
        let offset = i64::try_from(index * PAGE_SIZE).unwrap_or(i64::MAX);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.ram.file, flags, offset, 4096).map_err(|e| MemoryError::Create {
            bytes: PAGE_SIZE,
            source: e.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_do_not_overlap_and_gaps_are_not_memory() {
        let memory = MachineMemory::new(300).unwrap();
        let [low, ram, m2p] = memory.areas();
        assert_eq!(low.start() + low.bytes(), ram.start());
        assert!(ram.start() + ram.bytes() <= m2p.start());
        assert_eq!(memory.load(MachineAddr(ram.start() + ram.bytes())), None);
        assert_eq!(memory.load(MachineAddr(!7)), None);
        assert_eq!(memory.load(MachineAddr(memory.end() - 8)), Some(0));
        assert_eq!(memory.load(MachineAddr(memory.end())), None);
    }

    #[test]
    fn an_access_never_crosses_areas() {
        let memory = MachineMemory::new(1).unwrap();
        let end = LOW_BYTES + PAGE_SIZE;
        assert!(memory.write(MachineAddr(end - 4), &[1; 4]).is_some());
        assert!(memory.write(MachineAddr(end - 4), &[1; 5]).is_none());
        assert!(memory.write(MachineAddr(LOW_BYTES - 4), &[1; 8]).is_none());
    }

    #[test]
    fn m2p_names_no_hypervisor_frame() {
        let memory = MachineMemory::new(8).unwrap();
        assert_eq!(memory.m2p(Mfn(1)), None);
        assert_eq!(memory.set_m2p(Mfn(1), Some(5)), None);
        assert_eq!(memory.set_m2p(Mfn(BASE_MFN.0 + 7), Some(3)), Some(()));
        assert_eq!(memory.m2p(Mfn(BASE_MFN.0 + 7)), Some(3));
        assert_eq!(memory.m2p(Mfn(u64::MAX)), None);
    }

    #[test]
    fn the_memory_file_cannot_be_shrunk() {
        let memory = MachineMemory::new(8).unwrap();
        assert!(ftruncate(memory.ram_fd(), 0).is_err());
    }
}
