//! Plain accesses to guest memory.
//!
//! Law: a [`HostPtr`] names bytes inside one frame that `GuestPhys` promised
//! to keep mapped. Whoever makes one has checked that the access stays in the
//! frame and that the frame may be used that way; so using it is safe. Other
//! processors write the same bytes at any time: each access is one instruction.

use super::Word;
use std::{arch::asm, ptr::NonNull};

/// The first byte of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePtr(NonNull<u8>);

// SAFETY: the pointer is an address; all accesses through it are atomic or
// single instructions on memory that is shared with the guest anyway.
unsafe impl Send for FramePtr {}
// SAFETY: as above.
unsafe impl Sync for FramePtr {}

impl FramePtr {
    /// A frame at `ptr`.
    ///
    /// # Safety
    /// `ptr` must be a multiple of 4096, since aligned operands of the guest's are
    /// accessed in place by instructions that fault on others. `ptr..ptr + 4096` must
    /// stay mapped, readable (and writable where the frame is given out as writable),
    /// for as long as the pointer is used, and no reference to these bytes may exist
    /// meanwhile.
    #[must_use]
    pub const unsafe fn new(ptr: NonNull<u8>) -> Self {
        FramePtr(ptr)
    }

    /// The frame's host address.
    #[must_use]
    pub fn address(self) -> u64 {
        self.0.as_ptr().addr() as u64
    }

    /// The byte at `offset`; only the offset's low 12 bits count. The caller
    /// sees to it that an access there does not leave the frame.
    #[must_use]
    #[inline(always)]
    pub(in crate::interp) fn at(self, offset: u64) -> HostPtr {
        HostPtr(self.0.as_ptr().addr() as u64 + (offset & 0xfff))
    }
}

/// A place in guest memory; see the module's law.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPtr(u64);

impl HostPtr {
    /// From the sum of a guest address and a translation's addend.
    #[inline(always)]
    pub(in crate::interp) const fn from_translation(address: u64) -> Self {
        HostPtr(address)
    }

    /// A buffer of ours, for as long as it stays where it is.
    #[inline(always)]
    pub(in crate::interp) fn from_buffer(buffer: &mut [u8; 16]) -> Self {
        HostPtr(buffer.as_mut_ptr().expose_provenance() as u64)
    }

    /// The place `bytes` further on; the caller has checked that it is in the
    /// same frame.
    #[inline(always)]
    pub(in crate::interp) const fn plus(self, bytes: u64) -> Self {
        HostPtr(self.0 + bytes)
    }

    /// The host's address of it.
    #[inline(always)]
    pub(in crate::interp) const fn address(self) -> u64 {
        self.0
    }
}

/// Loads and stores of one word.
pub trait Memory: Word {
    /// Reads.
    fn load(from: HostPtr) -> Self;
    /// Writes.
    fn store(self, to: HostPtr);
    /// `rep movs`, forwards, of `count` words.
    fn copy(to: HostPtr, from: HostPtr, count: u64);
    /// `rep stos`, forwards, of `count` words.
    fn fill(self, to: HostPtr, count: u64);
}

macro_rules! memory {
    ($word:ty, $class:ident, $m:literal, $size:literal, $letter:literal, $acc:literal) => {
        impl Memory for $word {
            #[inline(always)]
            fn load(from: HostPtr) -> Self {
                let value: Self;
                // SAFETY: by the law of `HostPtr` the bytes are readable.
                unsafe {
                    asm!(concat!("mov {v", $m, "}, ", $size, " ptr [{p}]"),
                        v = out($class) value, p = in(reg) from.0,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }
            #[inline(always)]
            fn store(self, to: HostPtr) {
                // SAFETY: by the law of `HostPtr` the bytes are writable.
                unsafe {
                    asm!(concat!("mov ", $size, " ptr [{p}], {v", $m, "}"),
                        v = in($class) self, p = in(reg) to.0,
                        options(nostack, preserves_flags));
                }
            }
            #[inline]
            fn copy(to: HostPtr, from: HostPtr, count: u64) {
                // SAFETY: by the law of `HostPtr` both ranges are accessible;
                // the direction flag is clear in Rust code.
                unsafe {
                    asm!(concat!("rep movs", $letter),
                        inout("rdi") to.0 => _, inout("rsi") from.0 => _, inout("rcx") count => _,
                        options(nostack, preserves_flags));
                }
            }
            #[inline]
            fn fill(self, to: HostPtr, count: u64) {
                // SAFETY: as in `copy`.
                unsafe {
                    asm!(concat!("rep stos", $letter),
                        inout("rdi") to.0 => _, inout("rcx") count => _, in("rax") self.zext(),
                        options(nostack, preserves_flags));
                }
            }
        }
    };
}
memory!(u8, reg_byte, "", "byte", "b", "al");
memory!(u16, reg, ":x", "word", "w", "ax");
memory!(u32, reg, ":e", "dword", "d", "eax");
memory!(u64, reg, ":r", "qword", "q", "rax");

/// Copies guest bytes into a buffer of ours.
pub fn copy_out(from: HostPtr, to: &mut [u8]) {
    for (offset, byte) in (0u64..).zip(to) {
        *byte = u8::load(HostPtr(from.0 + offset));
    }
}

/// Whether guest memory at `at` holds `bytes`.
#[must_use]
pub fn same_bytes(at: HostPtr, bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut p = at.0;
    for word in words {
        if u64::load(HostPtr(p)) != u64::from_le_bytes(*word) {
            return false;
        }
        p += 8;
    }
    (p..)
        .zip(rest)
        .all(|(p, byte)| u8::load(HostPtr(p)) == *byte)
}

/// The host's time-stamp counter.
#[must_use]
pub fn time_stamp() -> u64 {
    // SAFETY: `rdtsc` reads a counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// A number of the host's random generator, which has one.
#[must_use]
pub fn random_number() -> Option<u64> {
    let (number, got): (u64, u8);
    // SAFETY: `rdrand` writes a register and flags; the caller has seen that
    // the processor has it.
    unsafe {
        asm!("rdrand {n}", "setc {c}", n = out(reg) number, c = out(reg_byte) got,
            options(nomem, nostack));
    }
    (got != 0).then_some(number)
}

/// The same by `rdseed`.
#[must_use]
pub fn random_seed() -> Option<u64> {
    let (number, got): (u64, u8);
    // SAFETY: as in `random_number`.
    unsafe {
        asm!("rdseed {n}", "setc {c}", n = out(reg) number, c = out(reg_byte) got,
            options(nomem, nostack));
    }
    (got != 0).then_some(number)
}
