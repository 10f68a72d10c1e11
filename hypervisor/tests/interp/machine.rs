//! A domain's memory for tests: some frames, and page tables in them.

use guest_abi::addr::Mfn;
use hypervisor::interp::{Frame, FramePtr, FrameUse, GuestPhys};
use std::{
    ptr::NonNull,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// The first frame's number.
pub const FIRST: u64 = 0x1000;
/// Entry bits.
pub const PRESENT: u64 = 1;
pub const WRITE: u64 = 2;
pub const USER: u64 = 4;
pub const NO_EXECUTE: u64 = 1 << 63;
/// An ordinary mapping.
pub const ALL: u64 = PRESENT | WRITE | USER;

/// Frames `FIRST..`, handed out in order.
pub struct Machine {
    memory: NonNull<u8>,
    frames: u64,
    next: AtomicU64,
    pub epoch: AtomicU64,
    pub written: Mutex<Vec<Mfn>>,
    /// Frames that are not `FrameUse::Write`.
    pub limited: Mutex<Vec<(Mfn, FrameUse)>>,
    /// Frames that hold still.
    pub still: Mutex<Vec<Mfn>>,
    pub still_epoch: AtomicU64,
}

// SAFETY: the memory is only touched atomically or bytewise through raw pointers.
unsafe impl Send for Machine {}
// SAFETY: as above.
unsafe impl Sync for Machine {}

impl Machine {
    pub fn new(frames: u64) -> Self {
        let len = usize::try_from(frames * 4096).unwrap();
        // SAFETY: a new anonymous mapping, which lasts as long as the machine.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED);
        Machine {
            memory: NonNull::new(memory.cast()).unwrap(),
            frames,
            next: AtomicU64::new(FIRST),
            epoch: AtomicU64::new(0),
            written: Mutex::default(),
            limited: Mutex::default(),
            still: Mutex::default(),
            still_epoch: AtomicU64::new(0),
        }
    }

    /// A zeroed frame.
    pub fn alloc(&self) -> Mfn {
        let mfn = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(mfn < FIRST + self.frames, "the test machine is too small");
        Mfn(mfn)
    }

    pub fn byte(&self, mfn: Mfn, offset: u64) -> *mut u8 {
        assert!(mfn.0 >= FIRST && mfn.0 < FIRST + self.frames && offset < 4096);
        let at = usize::try_from((mfn.0 - FIRST) * 4096 + offset).unwrap();
        // SAFETY: inside the mapping.
        unsafe { self.memory.as_ptr().add(at) }
    }

    pub fn word(&self, mfn: Mfn, offset: u64) -> &AtomicU64 {
        assert_eq!(offset % 8, 0);
        // SAFETY: aligned and inside the mapping, which lasts.
        unsafe { AtomicU64::from_ptr(self.byte(mfn, offset).cast()) }
    }

    pub fn write(&self, mfn: Mfn, offset: u64, bytes: &[u8]) {
        for (i, byte) in (0u64..).zip(bytes) {
            // SAFETY: `byte` checked the range.
            unsafe { self.byte(mfn, offset + i).write_volatile(*byte) };
        }
    }

    pub fn read(&self, mfn: Mfn, offset: u64, len: u64) -> Vec<u8> {
        // SAFETY: `byte` checked the range.
        (0..len)
            .map(|i| unsafe { self.byte(mfn, offset + i).read_volatile() })
            .collect()
    }

    /// The level 1 entry for `address`, its tables made as needed.
    pub fn entry(&self, root: Mfn, address: u64) -> &AtomicU64 {
        let mut table = root;
        for level in (1..4).rev() {
            let index = (address >> (12 + 9 * level)) & 511;
            let word = self.word(table, index * 8);
            if word.load(Ordering::Relaxed) & PRESENT == 0 {
                word.store((self.alloc().0 << 12) | ALL, Ordering::Relaxed);
            }
            table = Mfn((word.load(Ordering::Relaxed) & 0x000f_ffff_ffff_f000) >> 12);
        }
        self.word(table, ((address >> 12) & 511) * 8)
    }

    /// Maps `mfn` at `address`.
    pub fn map(&self, root: Mfn, address: u64, mfn: Mfn, bits: u64) {
        self.entry(root, address)
            .store((mfn.0 << 12) | bits, Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Maps a new frame at `address`.
    pub fn map_new(&self, root: Mfn, address: u64, bits: u64) -> Mfn {
        let mfn = self.alloc();
        self.map(root, address, mfn, bits);
        mfn
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let len = usize::try_from(self.frames * 4096).unwrap();
        // SAFETY: made in `new`, with this length.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), len) };
    }
}

impl GuestPhys for Machine {
    fn frame(&self, mfn: Mfn) -> Option<Frame> {
        if mfn.0 < FIRST || mfn.0 >= FIRST + self.frames {
            return None;
        }
        let limited = self.limited.lock().unwrap();
        let found = limited.iter().find(|(frame, _)| *frame == mfn);
        // SAFETY: an interpreter holds on to its machine, and so to the mapping.
        let ptr = unsafe { FramePtr::new(NonNull::new(self.byte(mfn, 0)).unwrap()) };
        Some(Frame {
            ptr,
            usage: found.map_or(FrameUse::Write, |(_, usage)| *usage),
        })
    }
    fn wrote(&self, mfn: Mfn) {
        self.written.lock().unwrap().push(mfn);
    }
    fn translation_epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }
    fn hold_still(&self, mfn: Mfn) -> bool {
        self.still.lock().unwrap().contains(&mfn)
    }
    fn still_epoch(&self) -> u64 {
        self.still_epoch.load(Ordering::Relaxed)
    }
}
