//! A range of this process's addresses with pages of a domain's in it.
//!
//! Law: the pages change under us at any time, and nobody forms a reference to
//! them: what is read is a copy, made with volatile or atomic accesses. A range
//! that is read-only refuses to be written here, before the processor does.

use std::{io, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull, sync::atomic::Ordering};

use guest_abi::addr::PAGE_SIZE;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use vm_memory::{AtomicAccess, Bytes, VolatileSlice};

#[allow(clippy::cast_possible_truncation)] // 4096
const PAGE: usize = PAGE_SIZE as usize;

/// Why mapped memory could not be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Not in the mapping.
    #[error("{len} bytes at offset {offset} are not within a mapping of {size} bytes")]
    OutOfRange {
        /// The first byte asked for.
        offset: usize,
        /// How many.
        len: usize,
        /// The mapping's length.
        size: usize,
    },
    /// An atomic access to an address that is not a multiple of its size.
    #[error("an atomic access of {len} bytes at offset {offset} is not aligned")]
    Misaligned {
        /// The offset.
        offset: usize,
        /// The access's size.
        len: usize,
    },
    /// The mapping is for reading only.
    #[error("the grants are mapped read-only")]
    ReadOnly,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: the range belongs to this object until it is dropped, and all
// accesses to it are volatile or atomic.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps the pages of `file` at `offsets` one after the other.
    pub fn map(file: &impl AsFd, offsets: &[u64], writable: bool) -> io::Result<Self> {
        let len = offsets.len().checked_mul(PAGE).and_then(NonZeroUsize::new);
        let len = len.ok_or(io::ErrorKind::InvalidInput)?;
        let hidden = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new range, wherever the kernel finds room; nothing of ours
        // lies there.
        let start = unsafe { mmap_anonymous(None, len, ProtFlags::PROT_NONE, hidden) }?;
        let region = Region {
            start: start.cast(),
            len: len.get(),
            writable,
        };
        let mut done = 0;
        while let Some(run) = first_run(&offsets[done..]) {
            region.map_run(file, offsets[done], done * PAGE, run * PAGE)?;
            done += run;
        }
        Ok(region)
    }

    /// Maps `len` bytes of `file` from `from` on to `at` in the region.
    fn map_run(&self, file: &impl AsFd, from: u64, at: usize, len: usize) -> io::Result<()> {
        let from = i64::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
        let address = NonZeroUsize::new(self.start.as_ptr() as usize + at);
        let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let rights = if self.writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        let how = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | MapFlags::MAP_POPULATE;
        // SAFETY: the range lies in the region, which is ours and of which
        // nobody has a pointer yet.
        unsafe { mmap(address, length, rights, how, file, from) }?;
        Ok(())
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The address of a part of the region.
    pub fn part(&self, offset: usize, len: usize) -> Result<NonNull<u8>, AccessError> {
        match offset.checked_add(len) {
            // SAFETY: at most one past the end of the region.
            Some(end) if end <= self.len => Ok(unsafe { self.start.add(offset) }),
            _ => Err(AccessError::OutOfRange {
                offset,
                len,
                size: self.len,
            }),
        }
    }

    fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, AccessError> {
        let start = self.part(offset, len)?;
        // SAFETY: these bytes lie in the region, which is mapped for as long
        // as `self` lives; they are accessed through this slice only.
        Ok(unsafe { VolatileSlice::new(start.as_ptr(), len) })
    }

    fn slice_mut(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, AccessError> {
        if self.writable {
            self.slice(offset, len)
        } else {
            Err(AccessError::ReadOnly)
        }
    }

    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), AccessError> {
        self.slice(offset, buf.len())?.copy_to(buf);
        Ok(())
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        self.slice_mut(offset, bytes.len())?.copy_from(bytes);
        Ok(())
    }

    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<(), AccessError> {
        let part = self.slice_mut(offset, len)?;
        // SAFETY: `part` is `len` writable bytes that are ours while it lives.
        unsafe { std::ptr::write_bytes(part.ptr_guard_mut().as_ptr(), byte, len) };
        Ok(())
    }

    pub fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> Result<T, AccessError> {
        let len = size_of::<T>();
        let loaded = self.slice(offset, len)?.load(0, order);
        loaded.map_err(|_| AccessError::Misaligned { offset, len })
    }

    pub fn store<T: AtomicAccess>(
        &self,
        offset: usize,
        value: T,
        order: Ordering,
    ) -> Result<(), AccessError> {
        let len = size_of::<T>();
        let stored = self.slice_mut(offset, len)?.store(value, 0, order);
        stored.map_err(|_| AccessError::Misaligned { offset, len })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by us and nobody else refers to it: all
        // pointers given out are valid for the region's life only.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.len) } {
            // Only a wrong range can fail, and this one is not.
            unreachable!("munmap of a mapped range: {error}");
        }
    }
}

/// How many of the first offsets follow each other in the file.
fn first_run(offsets: &[u64]) -> Option<usize> {
    let follows = |pair: &&[u64]| pair[0].checked_add(PAGE_SIZE) == Some(pair[1]);
    let more = offsets.windows(2).take_while(follows).count();
    (!offsets.is_empty()).then_some(more + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, io::Write};

    /// A file of four pages, each filled with its number from 1 on.
    fn file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        for page in 1..=4 {
            file.write_all(&[page; PAGE]).unwrap();
        }
        file
    }

    #[test]
    fn pages_come_in_the_order_asked() {
        let offsets = [3, 0, 1, 1].map(|page| page * PAGE_SIZE);
        let region = Region::map(&file(), &offsets, true).unwrap();
        let seen = [0, 1, 2, 3].map(|page| region.load::<u8>(page * PAGE, Ordering::Relaxed));
        assert_eq!(seen, [Ok(4), Ok(1), Ok(2), Ok(2)]);
        region.write(2 * PAGE + 7, b"twice").unwrap();
        let mut buf = [0; 5];
        region.read(3 * PAGE + 7, &mut buf).unwrap();
        assert_eq!(&buf, b"twice", "one page of the file at two addresses");
    }

    #[test]
    fn accesses_end_with_the_region() {
        let region = Region::map(&file(), &[0, PAGE_SIZE], true).unwrap();
        let end = 2 * PAGE;
        assert_eq!(region.write(end - 2, &[1; 2]), Ok(()));
        for (offset, len) in [(end - 1, 2), (end, 1), (usize::MAX, 2), (0, end + 1)] {
            let size = end;
            let refused = AccessError::OutOfRange { offset, len, size };
            assert_eq!(region.read(offset, &mut vec![0; len]), Err(refused));
            assert_eq!(region.fill(offset, len, 0), Err(refused));
            assert_eq!(region.part(offset, len).err(), Some(refused));
        }
        let offset = 2;
        let misaligned = AccessError::Misaligned { offset, len: 4 };
        assert_eq!(region.load::<u32>(2, Ordering::Relaxed), Err(misaligned));
        assert_eq!(region.store(2, 1u32, Ordering::Relaxed), Err(misaligned));
    }

    #[test]
    fn a_read_only_region_is_not_written() {
        let region = Region::map(&file(), &[PAGE_SIZE], false).unwrap();
        assert_eq!(region.write(0, &[1]), Err(AccessError::ReadOnly));
        assert_eq!(region.fill(0, 1, 1), Err(AccessError::ReadOnly));
        let stored = region.store(0, 1u64, Ordering::Relaxed);
        assert_eq!(stored, Err(AccessError::ReadOnly));
        assert_eq!(region.load::<u8>(0, Ordering::Relaxed), Ok(2));
    }

    #[test]
    fn no_pages_are_no_region() {
        assert!(Region::map(&file(), &[], true).is_err());
    }
}
