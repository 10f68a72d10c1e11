//! Memory for code that is made at run time.
//!
//! Law: the code is mapped twice, once writable and once executable, never
//! both. What is written here was encoded by us; no byte of a guest's is ever
//! executed. Behind the executable mapping lie words of data, which code
//! reaches relative to its own address, and which are never executable.

use crate::interp::state::Cpu;
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};
use std::{arch::asm, ffi::c_void, io, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull};

/// A piece of such memory, filled from its start.
pub struct CodeMemory {
    write: NonNull<c_void>,
    execute: NonNull<c_void>,
    capacity: usize,
    /// Bytes of data behind the code.
    data: usize,
    used: usize,
}

// SAFETY: the mappings belong to this value alone.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Maps `capacity` bytes for code and `words` words of data, all zero; whole
    /// pages. Only what is used takes memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(capacity: usize, words: usize) -> io::Result<Self> {
        let data = words * 8;
        let size = |bytes| NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput);
        let file = memfd_create(c"domus-code", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&file, capacity.try_into().unwrap_or(0))?;
        let read_write = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let (shared, fd) = (MapFlags::MAP_SHARED, file.as_fd());
        // SAFETY: a new mapping where the kernel likes it.
        let write = unsafe { mmap(None, size(capacity)?, read_write, shared, fd, 0) }?;
        let mut memory = CodeMemory {
            write,
            execute: write,
            capacity,
            data: 0,
            used: 0,
        };
        let whole = size(capacity + data)?;
        // SAFETY: a new mapping where the kernel likes it.
        let both = unsafe { mmap_anonymous(None, whole, read_write, MapFlags::MAP_PRIVATE) }?;
        (memory.execute, memory.data) = (both, data);
        let at = NonZeroUsize::new(both.as_ptr().addr());
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
        let fixed = shared | MapFlags::MAP_FIXED;
        // SAFETY: over the first part of the mapping just made.
        unsafe { mmap(at, size(capacity)?, protection, fixed, fd, 0) }?;
        Ok(memory)
    }

    /// Where the next piece of code will be executed.
    pub fn next(&self) -> usize {
        self.execute.as_ptr().addr() + self.used
    }

    /// Adds code: where it is executed; `None` when there is no room left.
    pub fn add(&mut self, code: &[u8]) -> Option<usize> {
        let end = self.used.checked_add(code.len())?;
        if end > self.capacity {
            return None;
        }
        // SAFETY: `used..end` is inside the mapping, which nobody else writes.
        unsafe {
            let to = self.write.as_ptr().cast::<u8>().add(self.used);
            to.copy_from_nonoverlapping(code.as_ptr(), code.len());
        }
        serialise();
        let place = self.next();
        // A line of its own, so that nothing of it was fetched before.
        self.used = end.next_multiple_of(64);
        Some(place)
    }

    /// Forgets all code; the addresses handed out are used again.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// The address of word `index` of the data.
    pub fn word_address(&self, index: usize) -> u64 {
        (self.execute.as_ptr().addr() + self.capacity + index * 8) as u64
    }

    /// Writes word `index` of the data.
    pub fn set_word(&mut self, index: usize, value: u64) {
        assert!(index < self.data / 8, "word {index} of code memory's data");
        // SAFETY: inside the mapping's data, aligned; code that reads it does
        // not run now, since it would have borrowed this value's owner.
        unsafe {
            let data = self.execute.as_ptr().cast::<u8>().add(self.capacity);
            data.cast::<u64>().add(index).write_volatile(value);
        }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; no code outlives the interpreter.
        let _ = unsafe { munmap(self.write, self.capacity) };
        if self.execute != self.write {
            // SAFETY: as above.
            let _ = unsafe { munmap(self.execute, self.capacity + self.data) };
        }
    }
}

/// Code written through another mapping is executed only after an instruction
/// that makes the processor fetch anew; `iretq` to the next line is one.
fn serialise() {
    // SAFETY: goes on at its own next instruction with the same stack, flags
    // and segments.
    unsafe {
        asm!(
            "mov {a}, rsp",
            "mov {b:e}, ss",
            "push {b}",
            "push {a}",
            "pushfq",
            "mov {b:e}, cs",
            "push {b}",
            "lea {b}, [rip + 2f]",
            "push {b}",
            "iretq",
            "2:",
            a = out(reg) _,
            b = out(reg) _,
        );
    }
}

/// Enters compiled code by `gate`, an address made by us; `bias` is how far
/// behind the vCPU it looks for it. What it says when it is left.
pub fn enter(cpu: &mut Cpu, bias: usize, gate: u64, entry: u64) -> u64 {
    type Gate = unsafe extern "sysv64" fn(*mut u8, u64) -> u64;
    let frame = std::ptr::from_mut(cpu).cast::<u8>().wrapping_add(bias);
    let gate = std::ptr::with_exposed_provenance::<()>(usize::try_from(gate).unwrap_or(0));
    // SAFETY: the address is that of complete code for this signature.
    let gate: Gate = unsafe { std::mem::transmute(gate) };
    // SAFETY: the code keeps what a C function keeps, and touches the vCPU, to
    // which we have the only reference, its code's data, and guest memory as its
    // TLB allows.
    unsafe { gate(frame, entry) }
}
