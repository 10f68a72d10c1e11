//! The daemon's side of a PV console ring (`public/io/console.h`).
//!
//! ```text
//! output  guest:  writes bytes, then out_prod     daemon: reads, then out_cons
//! input   daemon: writes bytes, then in_prod      guest:  reads, then in_cons
//! ```
//!
//! Law: the page is the guest's to scribble on. An index is loaded once,
//! compared, masked and thrown away; a pair of indices that is further apart
//! than the ring is long means "nothing to do here" until the guest mends it.
//! The daemon's own two indices live in the page as well, so that a new daemon
//! takes up where a killed one stopped.

use std::{
    fs::File,
    mem::offset_of,
    os::fd::OwnedFd,
    sync::atomic::{Ordering, fence},
};

use guest_abi::{
    addr::PAGE_SIZE,
    console::{XENCONS_IN_SIZE, XENCONS_OUT_SIZE, XenconsInterface},
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

const INPUT: usize = offset_of!(XenconsInterface, input);
const OUTPUT: usize = offset_of!(XenconsInterface, output);
const IN_CONS: usize = offset_of!(XenconsInterface, in_cons);
const IN_PROD: usize = offset_of!(XenconsInterface, in_prod);
const OUT_CONS: usize = offset_of!(XenconsInterface, out_cons);
const OUT_PROD: usize = offset_of!(XenconsInterface, out_prod);

#[allow(clippy::cast_possible_truncation)] // a page
const PAGE: usize = PAGE_SIZE as usize;

/// A console page, mapped.
#[derive(Debug)]
pub struct Ring {
    page: MmapRegion,
}

/// The console page could not be mapped.
#[derive(Debug, thiserror::Error)]
#[error("cannot map the console page at byte {offset:#x} of the domain's memory: {why}")]
pub struct MapError {
    offset: u64,
    why: String,
}

impl Ring {
    /// Maps the one page at `offset` of a domain's memory.
    ///
    /// # Errors
    /// [`MapError`], also when the page lies outside the file.
    pub fn map(memory: OwnedFd, offset: u64) -> Result<Self, MapError> {
        let failed = |why| MapError { offset, why };
        let file = File::from(memory);
        let size = file.metadata().map_err(|e| failed(e.to_string()))?.len();
        if offset.checked_add(PAGE_SIZE).is_none_or(|end| end > size) {
            return Err(failed(format!("it has {size:#x} bytes")));
        }
        let page = MmapRegion::from_file(FileOffset::new(file, offset), PAGE)
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { page })
    }

    /// Moves what the guest has written into `buf`; the number of bytes.
    pub fn take_output(&self, buf: &mut [u8]) -> usize {
        let cons = self.load(OUT_CONS);
        let waiting = distance(self.load(OUT_PROD), cons, XENCONS_OUT_SIZE);
        let count = waiting.min(buf.len());
        let start = masked(cons, XENCONS_OUT_SIZE);
        let (head, tail) = buf[..count].split_at_mut(count.min(XENCONS_OUT_SIZE - start));
        self.copy_out(OUTPUT + start, head);
        self.copy_out(OUTPUT, tail);
        self.store(OUT_CONS, advance(cons, count));
        count
    }

    /// How many bytes the guest has room for.
    #[must_use]
    pub fn input_room(&self) -> usize {
        let (prod, cons) = (self.load(IN_PROD), self.load(IN_CONS));
        let apart = usize::try_from(prod.wrapping_sub(cons)).unwrap_or(usize::MAX);
        XENCONS_IN_SIZE.saturating_sub(apart)
    }

    /// Hands as many of `bytes` to the guest as it has room for; their number.
    pub fn put_input(&self, bytes: &[u8]) -> usize {
        let count = self.input_room().min(bytes.len());
        let prod = self.load(IN_PROD);
        let start = masked(prod, XENCONS_IN_SIZE);
        let (head, tail) = bytes[..count].split_at(count.min(XENCONS_IN_SIZE - start));
        self.copy_in(INPUT + start, head);
        self.copy_in(INPUT, tail);
        self.store(IN_PROD, advance(prod, count));
        count
    }

    fn slice(&self) -> VolatileSlice<'_> {
        self.page.as_volatile_slice()
    }

    fn load(&self, offset: usize) -> u32 {
        self.slice()
            .load(offset, Ordering::Acquire)
            .expect("an index lies in the page")
    }

    fn store(&self, offset: usize, value: u32) {
        // The bytes before the index that announces them, and before the
        // notification that follows.
        fence(Ordering::SeqCst);
        self.slice()
            .store(value, offset, Ordering::Release)
            .expect("an index lies in the page");
        fence(Ordering::SeqCst);
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) {
        self.slice()
            .read_slice(to, offset)
            .expect("masked into the page");
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        self.slice()
            .write_slice(from, offset)
            .expect("masked into the page");
    }
}

/// `prod - cons`, or 0 where that is more than the ring holds.
fn distance(prod: u32, cons: u32, size: usize) -> usize {
    match usize::try_from(prod.wrapping_sub(cons)) {
        Ok(apart) if apart <= size => apart,
        _ => 0,
    }
}

/// Where in a ring of `size` (a power of two) a free-running index points.
fn masked(index: u32, size: usize) -> usize {
    usize::try_from(index).unwrap_or(0) & (size - 1)
}

/// `index + count`; a count is at most a ring's length.
fn advance(index: u32, count: usize) -> u32 {
    index.wrapping_add(u32::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    /// The guest's side: the same page through its file.
    struct Guest(File);

    impl Guest {
        fn word(&self, offset: usize) -> u32 {
            let mut bytes = [0; 4];
            self.0
                .read_exact_at(&mut bytes, (PAGE + offset) as u64)
                .unwrap();
            u32::from_le_bytes(bytes)
        }
        fn set(&self, offset: usize, value: u32) {
            self.0
                .write_all_at(&value.to_le_bytes(), (PAGE + offset) as u64)
                .unwrap();
        }
        fn print(&self, text: &[u8]) {
            let prod = self.word(OUT_PROD);
            for (i, byte) in (0u32..).zip(text) {
                let at = masked(prod.wrapping_add(i), XENCONS_OUT_SIZE);
                let at = (PAGE + OUTPUT + at) as u64;
                self.0.write_all_at(&[*byte], at).unwrap();
            }
            self.set(OUT_PROD, advance(prod, text.len()));
        }
        fn typed(&self) -> Vec<u8> {
            let (prod, cons) = (self.word(IN_PROD), self.word(IN_CONS));
            let mut text = Vec::new();
            for i in 0..prod.wrapping_sub(cons) {
                let at = masked(cons.wrapping_add(i), XENCONS_IN_SIZE);
                let mut byte = [0];
                let at = (PAGE + INPUT + at) as u64;
                self.0.read_exact_at(&mut byte, at).unwrap();
                text.push(byte[0]);
            }
            self.set(IN_CONS, prod);
            text
        }
    }

    fn ring() -> (Ring, Guest) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * PAGE_SIZE).unwrap();
        let memory = OwnedFd::from(file.try_clone().unwrap());
        (Ring::map(memory, PAGE_SIZE).unwrap(), Guest(file))
    }

    fn drain(ring: &Ring) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buf = [0; 300];
        loop {
            match ring.take_output(&mut buf) {
                0 => return all,
                n => all.extend(&buf[..n]),
            }
        }
    }

    #[test]
    fn a_page_outside_the_memory_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE_SIZE).unwrap();
        assert!(Ring::map(file.into(), PAGE_SIZE).is_err());
    }

    #[test]
    fn bytes_pass_both_ways_across_every_wrap() {
        let (ring, guest) = ring();
        for index in [OUT_PROD, OUT_CONS, IN_PROD, IN_CONS] {
            guest.set(index, u32::MAX - 1000);
        }
        let text: Vec<u8> = (0..=255).cycle().take(701).collect();
        for _ in 0..12 {
            guest.print(&text);
            assert_eq!(drain(&ring), text);
            assert_eq!(ring.put_input(&text), text.len());
            assert_eq!(guest.typed(), text);
        }
    }

    #[test]
    fn a_full_input_ring_takes_no_more() {
        let (ring, guest) = ring();
        assert_eq!(ring.put_input(&[b'a'; 2000]), XENCONS_IN_SIZE);
        assert_eq!((ring.input_room(), ring.put_input(b"x")), (0, 0));
        assert_eq!(guest.typed(), [b'a'; XENCONS_IN_SIZE]);
        assert_eq!(ring.put_input(b"x"), 1);
    }

    #[test]
    fn a_new_daemon_takes_up_where_the_old_one_stopped() {
        let (ring, guest) = ring();
        guest.print(b"one two");
        assert_eq!(ring.take_output(&mut [0; 4]), 4);
        let memory = OwnedFd::from(guest.0.try_clone().unwrap());
        drop(ring);
        let ring = Ring::map(memory, PAGE_SIZE).unwrap();
        assert_eq!(drain(&ring), b"two");
    }

    proptest! {
        /// Whatever the indices, no more than a ring of bytes is moved, the
        /// daemon stays in the page, and impossible pairs move nothing.
        #[test]
        fn hostile_indices_are_harmless(words in any::<[u32; 4]>()) {
            let (ring, guest) = ring();
            for (offset, value) in [IN_CONS, IN_PROD, OUT_CONS, OUT_PROD].into_iter().zip(words) {
                guest.set(offset, value);
            }
            let mut buf = [0; 2 * XENCONS_OUT_SIZE];
            let apart = words[3].wrapping_sub(words[2]) as usize;
            let taken = ring.take_output(&mut buf);
            prop_assert_eq!(taken, if apart <= XENCONS_OUT_SIZE { apart } else { 0 });
            let apart = words[1].wrapping_sub(words[0]) as usize;
            let put = ring.put_input(&[1; 2 * XENCONS_IN_SIZE]);
            prop_assert_eq!(put, XENCONS_IN_SIZE.saturating_sub(apart));
        }
    }
}
