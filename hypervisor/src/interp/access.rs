//! Guest memory by virtual address: the TLB's fast paths and what happens
//! when they miss.
//!
//! Law: an access happens whole or not at all. An operand across two pages is
//! translated on both before a byte of it is written. An operand within a page
//! is one access of the host's.

use super::{
    flags::Flags,
    host::{HostPtr, Memory},
    op::Halt,
    state::{Cpu, Stop, canonical, vector},
    walk::{Access, Page, Refused, walk},
};

/// Bytes that a `lock`ed operand may not cross.
const CACHE_LINE: u64 = 64;

/// Whether `bytes` bytes at `address` lie in one page.
#[inline(always)]
fn within_page(address: u64, bytes: u64) -> bool {
    bytes == 1 || address & 0xfff <= 0x1000 - bytes
}

/// An operand across a page's end: the part before it and the part after.
struct Split {
    first: HostPtr,
    second: HostPtr,
    /// Bytes in the first part.
    count: u64,
}

impl Cpu {
    /// Reads a word.
    #[inline(always)]
    pub fn load<W: Memory>(&mut self, address: u64) -> Result<W, Halt> {
        if within_page(address, W::BYTES)
            && let Some(place) = self.tlb.readable(address)
        {
            return Ok(W::load(place));
        }
        self.load_slow(address)
    }

    /// Writes a word.
    #[inline(always)]
    pub fn store<W: Memory>(&mut self, address: u64, value: W) -> Result<(), Halt> {
        if within_page(address, W::BYTES)
            && let Some(place) = self.tlb.writable(address)
        {
            value.store(place);
            return Ok(());
        }
        self.store_slow(address, value)
    }

    /// Reads a word, computes, and writes it back, not atomically. The flags
    /// become what `f` makes of them.
    #[inline(always)]
    pub fn update<W: Memory>(
        &mut self,
        address: u64,
        f: impl FnOnce(W, Flags) -> (W, Flags),
    ) -> Result<(), Halt> {
        if within_page(address, W::BYTES)
            && let Some(place) = self.tlb.writable(address)
        {
            let (value, flags) = f(W::load(place), self.flags);
            value.store(place);
            self.flags = flags;
            return Ok(());
        }
        self.update_slow(address, f)
    }

    /// Where to execute a `lock`ed instruction on `bytes` bytes. An operand
    /// across cache lines is for the engine; without one it is brought in and
    /// written back by who executes the instruction.
    #[inline(always)]
    pub fn exclusive(&mut self, address: u64, bytes: u64) -> Result<HostPtr, Halt> {
        if address & (CACHE_LINE - 1) > CACHE_LINE - bytes {
            return self.exclusive_split(address, bytes);
        }
        match self.tlb.writable(address) {
            Some(place) => Ok(place),
            None => self.write_place(address, bytes),
        }
    }

    /// Where to read at `address`, up to the page's end.
    pub fn read_place(&mut self, address: u64) -> Result<HostPtr, Halt> {
        if let Some(place) = self.tlb.readable(address) {
            return Ok(place);
        }
        let page = self.translate(address, Access::Read)?;
        self.tlb.fill(address, &page, false);
        Ok(page.frame.ptr.at(address))
    }

    /// Where to write `bytes` bytes at `address`, within the page.
    pub fn write_place(&mut self, address: u64, bytes: u64) -> Result<HostPtr, Halt> {
        if let Some(place) = self.tlb.writable(address) {
            return Ok(place);
        }
        let page = self.translate(address, Access::Write)?;
        self.phys.wrote(page.mfn);
        if !self.lines.contains(page.mfn) {
            self.tlb.fill(address, &page, true);
        } else if self.lines.hit(page.mfn, address, bytes) {
            return self.halt(Stop::OverCode(page.mfn));
        }
        Ok(page.frame.ptr.at(address))
    }

    /// Makes a translation for compiled code; false if the interpreter has to do
    /// the access, because it leaves the page, faults or writes to code's frame.
    pub fn make_fast(&mut self, address: u64, bytes: u64, write: bool) -> bool {
        if !within_page(address, bytes) {
            return false;
        }
        let place = if write {
            self.write_place(address, bytes)
        } else {
            self.read_place(address)
        };
        let Ok(place) = place else {
            return false;
        };
        if write && self.tlb.writable(address).is_none() {
            return false;
        }
        self.tlb.fill_fast(address, place);
        true
    }

    /// The page to fetch code from.
    pub fn fetch(&mut self, address: u64) -> Result<Page, Halt> {
        if let Some(page) = self.tlb.code(address) {
            return Ok(page);
        }
        if !canonical(address) {
            return self.fault(vector::GP, 0);
        }
        let page = self.translate(address, Access::Fetch)?;
        self.tlb.fill_code(address, page);
        Ok(page)
    }

    fn translate(&mut self, address: u64, access: Access) -> Result<Page, Halt> {
        if !canonical(address) {
            return self.halt(Stop::NotCanonical);
        }
        match walk(&*self.phys, self.tlb.root(), address, access) {
            Ok(page) => Ok(page),
            // The tables name no memory that a guest may use so. On a processor
            // nothing would answer.
            Err(Refused::Unknown) if self.model.alone => self.fault(vector::GP, 0),
            Err(Refused::Unknown) => self.halt(Stop::Unknown),
            Err(Refused::Fault(error)) => self.halt(Stop::Fault {
                vector: vector::PF,
                error,
                cr2: address,
            }),
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slow<W: Memory>(&mut self, address: u64) -> Result<W, Halt> {
        if within_page(address, W::BYTES) {
            return Ok(W::load(self.read_place(address)?));
        }
        let split = Split {
            first: self.read_place(address)?,
            second: self.read_place(next_page(address))?,
            count: 0x1000 - (address & 0xfff),
        };
        Ok(split.load())
    }

    #[cold]
    #[inline(never)]
    fn store_slow<W: Memory>(&mut self, address: u64, value: W) -> Result<(), Halt> {
        if within_page(address, W::BYTES) {
            value.store(self.write_place(address, W::BYTES)?);
        } else {
            self.split_for_write(address, W::BYTES)?.store(value);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn update_slow<W: Memory>(
        &mut self,
        address: u64,
        f: impl FnOnce(W, Flags) -> (W, Flags),
    ) -> Result<(), Halt> {
        if within_page(address, W::BYTES) {
            let place = self.write_place(address, W::BYTES)?;
            let (value, flags) = f(W::load(place), self.flags);
            value.store(place);
            self.flags = flags;
        } else {
            let split = self.split_for_write(address, W::BYTES)?;
            let (value, flags) = f(split.load(), self.flags);
            split.store(value);
            self.flags = flags;
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn exclusive_split(&mut self, address: u64, bytes: u64) -> Result<HostPtr, Halt> {
        if !self.model.alone {
            return self.halt(Stop::Unknown);
        }
        if self.split.is_none() {
            return self.halt(Stop::SplitLock);
        }
        let first = (0x1000 - (address & 0xfff)).min(bytes);
        let mut places = vec![(self.write_place(address, first)?, first)];
        if first < bytes {
            places.push((
                self.write_place(next_page(address), bytes - first)?,
                bytes - first,
            ));
        }
        Ok(self.split.get_or_insert_default().bring_in(places))
    }

    fn split_for_write(&mut self, address: u64, bytes: u64) -> Result<Split, Halt> {
        let count = 0x1000 - (address & 0xfff);
        Ok(Split {
            first: self.write_place(address, count)?,
            second: self.write_place(next_page(address), bytes - count)?,
            count,
        })
    }
}

/// An operand of many bytes, in one page or two.
pub struct Pieces {
    split: Split,
    bytes: u64,
}

impl Pieces {
    /// Where it is, if it is in one page.
    #[inline(always)]
    pub fn whole(&self) -> Option<HostPtr> {
        (self.bytes <= self.split.count).then_some(self.split.first)
    }

    /// Reads it.
    pub fn read(&self, to: &mut [u8]) {
        for (i, byte) in (0..self.bytes).zip(to) {
            *byte = u8::load(self.split.place(i));
        }
    }

    /// Writes it, which is allowed if it was asked for with `write`.
    pub fn write(&self, from: &[u8]) {
        for (i, byte) in (0..self.bytes).zip(from) {
            byte.store(self.split.place(i));
        }
    }
}

impl Cpu {
    /// Where `bytes` bytes at `address` are, at most a page of them.
    #[inline(always)]
    pub fn pieces(&mut self, address: u64, bytes: u64, write: bool) -> Result<Pieces, Halt> {
        let count = 0x1000 - (address & 0xfff);
        let first_bytes = bytes.min(count);
        let first = if write {
            self.write_place(address, first_bytes)?
        } else {
            self.read_place(address)?
        };
        let second = if bytes <= count {
            first
        } else if write {
            self.write_place(next_page(address), bytes - count)?
        } else {
            self.read_place(next_page(address))?
        };
        let split = Split {
            first,
            second,
            count,
        };
        Ok(Pieces { split, bytes })
    }
}

impl Split {
    fn place(&self, byte: u64) -> HostPtr {
        match byte.checked_sub(self.count) {
            None => self.first.plus(byte),
            Some(rest) => self.second.plus(rest),
        }
    }

    fn load<W: Memory>(&self) -> W {
        let byte = |i| u64::from(u8::load(self.place(i))) << (8 * i);
        W::low((0..W::BYTES).map(byte).sum())
    }

    fn store<W: Memory>(&self, value: W) {
        for (i, byte) in (0..W::BYTES).zip(value.zext().to_le_bytes()) {
            byte.store(self.place(i));
        }
    }
}

/// The first address of the page after `address`.
fn next_page(address: u64) -> u64 {
    (address | 0xfff).wrapping_add(1)
}
