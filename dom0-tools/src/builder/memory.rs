//! A domain's memory while it is being built.
//!
//! Law: pseudo-physical frames are put to machine frames by [`PhysMap`] alone,
//! in whatever order the hypervisor handed them out. Fresh frames are zero.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use guest_abi::addr::{MachineAddr, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};
use thiserror::Error;

/// Why bytes did not reach a domain's memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The hypervisor's answer does not cover what was asked for.
    #[error("the hypervisor gave {given} frames where {asked} were asked for")]
    Populate {
        /// Frames that came.
        given: u64,
        /// Frames that were asked for.
        asked: u64,
    },
    /// Frame numbers that can't be.
    #[error("the hypervisor gave frames {first:?} to +{count}, which lie outside the memory")]
    Extent {
        /// The first.
        first: Mfn,
        /// How many.
        count: u64,
    },
    /// Not one of the domain's.
    #[error("pseudo-physical bytes {start:#x} to +{len:#x} are not all the domain's")]
    NotPopulated {
        /// The first byte.
        start: u64,
        /// How many.
        len: u64,
    },
    /// The memory file is not what it should be.
    #[error("can't use {pages} pages of the domain's memory: {source}")]
    File {
        /// Its size.
        pages: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A machine address outside the memory.
    #[error("{at:?} to +{len:#x} lies outside the domain's memory")]
    OutOfRange {
        /// The first byte.
        at: MachineAddr,
        /// How many.
        len: usize,
    },
    /// The host has no more memory, for example.
    #[error("can't copy {len} bytes at {at:?} of the domain's memory: {source}")]
    Copy {
        /// The first byte.
        at: MachineAddr,
        /// How many.
        len: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// Machine memory of a domain, as far as the builder needs it.
pub trait DomainMemory {
    /// Copies `bytes` to machine address `at` and on.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    fn write(&mut self, at: MachineAddr, bytes: &[u8]) -> Result<(), MemoryError>;

    /// Copies from machine address `at` and on into `buf`. What comes is the
    /// guest's, and may change at any time.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    fn read(&self, at: MachineAddr, buf: &mut [u8]) -> Result<(), MemoryError>;
}

/// Which machine frame each pseudo-physical frame has.
#[derive(Debug, Clone, PartialEq)]
pub struct PhysMap {
    /// First PFN, first MFN and number; by PFN, without gaps.
    extents: Vec<(u64, u64, u64)>,
    pages: u64,
}

impl PhysMap {
    /// The map of a domain's first `pages` frames, from the extents that
    /// `PopulatePhysmap` answered with.
    ///
    /// # Errors
    /// Too few frames, or numbers that can't be.
    pub fn new(
        extents: impl IntoIterator<Item = (Mfn, u64)>,
        pages: u64,
    ) -> Result<Self, MemoryError> {
        let mut map = Self {
            extents: Vec::new(),
            pages: 0,
        };
        for (first, count) in extents {
            map.push(first, count)?;
        }
        if map.pages != pages {
            return Err(MemoryError::Populate {
                given: map.pages,
                asked: pages,
            });
        }
        Ok(map)
    }

    fn push(&mut self, first: Mfn, count: u64) -> Result<(), MemoryError> {
        let bad = MemoryError::Extent { first, count };
        let last = first.checked_add(count.saturating_sub(1));
        if count == 0 || last.and_then(Mfn::addr).is_none() {
            return Err(bad);
        }
        let start = self.pages;
        self.pages = start.checked_add(count).ok_or(bad)?;
        match self.extents.last_mut() {
            Some((_, mfn, len)) if *mfn + *len == first.0 => *len += count,
            _ => self.extents.push((start, first.0, count)),
        }
        Ok(())
    }

    /// How many frames there are.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// A frame's machine frame; [`Mfn::INVALID`] past the end.
    #[must_use]
    pub fn mfn(&self, pfn: Pfn) -> Mfn {
        self.run(pfn).map_or(Mfn::INVALID, |(mfn, _)| mfn)
    }

    /// A frame's machine frame, and how many follow it in order.
    fn run(&self, pfn: Pfn) -> Option<(Mfn, u64)> {
        let after = self.extents.partition_point(|&(start, ..)| start <= pfn.0);
        let (start, mfn, count) = *self.extents.get(after.checked_sub(1)?)?;
        let offset = pfn.0 - start;
        (offset < count).then(|| (Mfn(mfn + offset), count - offset))
    }

    /// All machine frames, in the order of the PFNs.
    pub fn mfns(&self) -> impl Iterator<Item = u64> + '_ {
        self.extents
            .iter()
            .flat_map(|&(_, mfn, count)| mfn..mfn + count)
    }

    /// Copies `bytes` to pseudo-physical address `at` and on, in as few pieces
    /// as the frames' order allows.
    ///
    /// # Errors
    /// [`MemoryError::NotPopulated`], or what `memory` says.
    pub fn write(
        &self,
        memory: &mut (impl DomainMemory + ?Sized),
        at: u64,
        bytes: &[u8],
    ) -> Result<(), MemoryError> {
        let len = bytes.len() as u64;
        let outside = || MemoryError::NotPopulated { start: at, len };
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (mfn, frames) = self.run(Pfn(at >> PAGE_SHIFT)).ok_or_else(outside)?;
            let offset = at & (PAGE_SIZE - 1);
            let room = (frames << PAGE_SHIFT) - offset;
            let now = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let machine = mfn
                .addr()
                .and_then(|start| start.checked_add(offset))
                .ok_or_else(outside)?;
            memory.write(machine, &rest[..now])?;
            rest = &rest[now..];
            at += now as u64;
        }
        Ok(())
    }
}

/// A domain's memory file.
///
/// It is read and written as a file: a mapping would cost a fault for each page
/// that a build touches once.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    base: MachineAddr,
    bytes: u64,
}

impl MemoryFile {
    /// The memory file `fd`, whose byte 0 belongs to `base_mfn`.
    ///
    /// # Errors
    /// [`MemoryError::File`].
    pub fn new(fd: OwnedFd, base_mfn: Mfn, pages: u64) -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::File { pages, source };
        let bytes = pages.saturating_mul(PAGE_SIZE);
        let base = base_mfn.addr().ok_or(MemoryError::Extent {
            first: base_mfn,
            count: pages,
        })?;
        let file = File::from(fd);
        let len = file.metadata().map_err(failed)?.len();
        if len < bytes {
            let short = format!("the file has only {len} bytes");
            return Err(failed(io::Error::other(short)));
        }
        Ok(Self { file, base, bytes })
    }

    /// Where `len` bytes at `at` lie in the file.
    fn offset(&self, at: MachineAddr, len: usize) -> Result<u64, MemoryError> {
        at.checked_offset_from(self.base)
            .filter(|offset| {
                let end = offset.checked_add(len as u64);
                end.is_some_and(|end| end <= self.bytes)
            })
            .ok_or(MemoryError::OutOfRange { at, len })
    }
}

impl DomainMemory for MemoryFile {
    fn write(&mut self, at: MachineAddr, bytes: &[u8]) -> Result<(), MemoryError> {
        let len = bytes.len();
        let offset = self.offset(at, len)?;
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|source| MemoryError::Copy { at, len, source })
    }

    fn read(&self, at: MachineAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let offset = self.offset(at, len)?;
        let read = self.file.read_exact_at(buf, offset);
        read.map_err(|source| MemoryError::Copy { at, len, source })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Seek, SeekFrom},
        os::fd::AsFd,
    };

    use super::*;

    const BASE: Mfn = Mfn(0x1000);

    fn file(pages: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(pages * PAGE_SIZE).unwrap();
        file
    }

    fn memory_of(file: &File, pages: u64) -> Result<MemoryFile, MemoryError> {
        MemoryFile::new(file.as_fd().try_clone_to_owned().unwrap(), BASE, pages)
    }

    #[test]
    fn what_is_written_by_pfn_lands_at_its_machine_frame_of_the_file() {
        let mut file = file(4);
        let mut memory = memory_of(&file, 4).unwrap();
        let extents = [(Mfn(0x1002), 2), (Mfn(0x1001), 1), (Mfn(0x1000), 1)];
        let frames = PhysMap::new(extents, 4).unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * 4096).collect();
        frames.write(&mut memory, 100, &bytes).unwrap();
        let mut back = [0; 300];
        memory
            .read(MachineAddr(0x100_2000 + 100), &mut back)
            .unwrap();
        assert_eq!(back, bytes[..300]);
        assert!(
            memory
                .read(MachineAddr(0x100_4000 - 299), &mut back)
                .is_err()
        );
        drop(memory);
        let mut content = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut content).unwrap();
        let page = |at: usize| &content[at * 4096..(at + 1) * 4096];
        let seen = [page(2), page(3), page(1), page(0)].concat();
        assert!(seen[100..100 + bytes.len()] == bytes);
        assert!(
            seen[..100]
                .iter()
                .chain(&seen[100 + bytes.len()..])
                .all(|&b| b == 0)
        );
    }

    #[test]
    fn writes_outside_the_domain_or_the_file_are_refused() {
        let file = file(2);
        let mut memory = memory_of(&file, 2).unwrap();
        let frames = PhysMap::new([(Mfn(0x1000), 2)], 2).unwrap();
        assert!(frames.write(&mut memory, 2 * 4096 - 1, &[0; 2]).is_err());
        assert!(frames.write(&mut memory, u64::MAX - 1, &[0; 1]).is_err());
        let beyond = PhysMap::new([(Mfn(0x1001), 2)], 2).unwrap();
        assert!(beyond.write(&mut memory, 4096, &[0; 1]).is_err());
        let below = PhysMap::new([(Mfn(0xfff), 1)], 1).unwrap();
        assert!(below.write(&mut memory, 0, &[0; 1]).is_err());
    }

    #[test]
    fn a_file_shorter_than_it_claims_is_refused() {
        assert!(matches!(
            memory_of(&file(2), 3),
            Err(MemoryError::File { pages: 3, .. })
        ));
    }

    #[test]
    fn adjacent_extents_are_one() {
        let map = PhysMap::new([(Mfn(1), 2), (Mfn(3), 1), (Mfn(9), 1)], 4).unwrap();
        assert_eq!(map.extents.len(), 2);
        assert_eq!(map.mfns().collect::<Vec<_>>(), [1, 2, 3, 9]);
        assert_eq!(map.mfn(Pfn(3)), Mfn(9));
        assert_eq!(map.mfn(Pfn(4)), Mfn::INVALID);
    }
}
