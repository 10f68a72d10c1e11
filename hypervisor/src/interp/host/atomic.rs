//! Atomic read-modify-writes of guest memory: the host's `lock` instructions.
//!
//! Law: the caller has a writable [`HostPtr`] and has checked that the operand
//! does not cross a cache line: a split lock would cost every processor of the
//! host, and some hosts answer it with a signal.

use super::{HostPtr, Word};
use crate::interp::flags::Flags;
use std::arch::asm;

/// Locked operations of every width. Each gives the flags after it.
pub trait Atomic: Word {
    /// `lock add`.
    fn lock_add(self, to: HostPtr, flags: Flags) -> Flags;
    /// `lock or`.
    fn lock_or(self, to: HostPtr, flags: Flags) -> Flags;
    /// `lock adc`.
    fn lock_adc(self, to: HostPtr, flags: Flags) -> Flags;
    /// `lock sbb`.
    fn lock_sbb(self, to: HostPtr, flags: Flags) -> Flags;
    /// `lock and`.
    fn lock_and(self, to: HostPtr, flags: Flags) -> Flags;
    /// `lock sub`.
    fn lock_sub(self, to: HostPtr, flags: Flags) -> Flags;
    /// `lock xor`.
    fn lock_xor(self, to: HostPtr, flags: Flags) -> Flags;
    /// `lock inc`.
    fn lock_inc(to: HostPtr, flags: Flags) -> Flags;
    /// `lock dec`.
    fn lock_dec(to: HostPtr, flags: Flags) -> Flags;
    /// `lock neg`.
    fn lock_neg(to: HostPtr, flags: Flags) -> Flags;
    /// `lock not`; the flags stay.
    fn lock_not(to: HostPtr, flags: Flags) -> Flags;
    /// `xchg`: what was there.
    fn swap(self, to: HostPtr) -> Self;
    /// `lock xadd`: what was there, and the flags.
    fn lock_xadd(self, to: HostPtr) -> (Self, Flags);
    /// `lock cmpxchg` with this RAX: RAX and the flags after it.
    fn lock_cmpxchg(self, to: HostPtr, rax: u64) -> (u64, Flags);
}

/// Locked bit operations of 16, 32 and 64 bits; `bit` is below the width.
pub trait WideAtomic: Atomic {
    /// `lock bts`.
    fn lock_bts(self, to: HostPtr, flags: Flags) -> Flags;
    /// `lock btr`.
    fn lock_btr(self, to: HostPtr, flags: Flags) -> Flags;
    /// `lock btc`.
    fn lock_btc(self, to: HostPtr, flags: Flags) -> Flags;
}

/// `sahf` and OF first, so that what an instruction leaves alone stays.
macro_rules! locked_value {
    ($class:ident, $m:literal, $size:literal, $($name:ident $insn:literal)*) => {$(
        #[inline(always)]
        fn $name(self, to: HostPtr, flags: Flags) -> Flags {
            let mut ax = flags.0;
            // SAFETY: by the law of `HostPtr` the bytes are writable.
            unsafe {
                asm!("add al, 0x7f", "sahf",
                    concat!("lock ", $insn, " ", $size, " ptr [{p}], {v", $m, "}"),
                    "lahf", "seto al",
                    v = in($class) self, p = in(reg) to.address(), inout("ax") ax,
                    options(nostack));
            }
            Flags(ax)
        }
    )*};
}

macro_rules! locked_alone {
    ($size:literal, $($name:ident $insn:literal)*) => {$(
        #[inline(always)]
        fn $name(to: HostPtr, flags: Flags) -> Flags {
            let mut ax = flags.0;
            // SAFETY: by the law of `HostPtr` the bytes are writable.
            unsafe {
                asm!("add al, 0x7f", "sahf",
                    concat!("lock ", $insn, " ", $size, " ptr [{p}]"), "lahf", "seto al",
                    p = in(reg) to.address(), inout("ax") ax, options(nostack));
            }
            Flags(ax)
        }
    )*};
}

macro_rules! atomic {
    ($word:ty, $class:ident, $m:literal, $size:literal) => {
        impl Atomic for $word {
            locked_value!($class, $m, $size, lock_add "add" lock_or "or" lock_adc "adc"
                lock_sbb "sbb" lock_and "and" lock_sub "sub" lock_xor "xor");
            locked_alone!($size, lock_inc "inc" lock_dec "dec" lock_neg "neg" lock_not "not");

            #[inline(always)]
            fn swap(self, to: HostPtr) -> Self {
                let mut value = self;
                // SAFETY: by the law of `HostPtr` the bytes are writable.
                unsafe {
                    asm!(concat!("xchg ", $size, " ptr [{p}], {v", $m, "}"),
                        v = inout($class) value, p = in(reg) to.address(),
                        options(nostack, preserves_flags));
                }
                value
            }
            #[inline(always)]
            fn lock_xadd(self, to: HostPtr) -> (Self, Flags) {
                let mut value = self;
                let ax: u16;
                // SAFETY: by the law of `HostPtr` the bytes are writable.
                unsafe {
                    asm!(concat!("lock xadd ", $size, " ptr [{p}], {v", $m, "}"),
                        "lahf", "seto al",
                        v = inout($class) value, p = in(reg) to.address(), out("ax") ax,
                        options(nostack));
                }
                (value, Flags(ax))
            }
            #[inline(always)]
            fn lock_cmpxchg(self, to: HostPtr, rax: u64) -> (u64, Flags) {
                let (old, ax): (u64, u64);
                // SAFETY: by the law of `HostPtr` the bytes are writable.
                unsafe {
                    asm!(concat!("lock cmpxchg ", $size, " ptr [{p}], {n", $m, "}"),
                        "mov {old}, rax", "lahf", "seto al",
                        n = in($class) self, p = in(reg) to.address(), old = out(reg) old,
                        inout("rax") rax => ax,
                        options(nostack));
                }
                (old, Flags(Word::low(ax)))
            }
        }
    };
}
atomic!(u8, reg_byte, "", "byte");
atomic!(u16, reg, ":x", "word");
atomic!(u32, reg, ":e", "dword");
atomic!(u64, reg, ":r", "qword");

macro_rules! wide_atomic {
    ($word:ty, $m:literal, $size:literal) => {
        impl WideAtomic for $word {
            locked_value!(reg, $m, $size, lock_bts "bts" lock_btr "btr" lock_btc "btc");
        }
    };
}
wide_atomic!(u16, ":x", "word");
wide_atomic!(u32, ":e", "dword");
wide_atomic!(u64, ":r", "qword");

/// `lock cmpxchg16b` on 16 aligned bytes: the pair found there (low, high),
/// equal to `expected` if `new` was written.
pub fn cmpxchg16b(to: HostPtr, expected: (u64, u64), new: (u64, u64)) -> (u64, u64) {
    let (mut low, mut high) = expected;
    // SAFETY: by the law of `HostPtr` the 16 bytes are writable, and the caller
    // has checked their alignment. RBX is put back.
    unsafe {
        asm!("xchg rbx, rsi", "lock cmpxchg16b [rdi]", "mov rbx, rsi",
            inout("rsi") new.0 => _, in("rdi") to.address(),
            inout("rax") low, inout("rdx") high, in("rcx") new.1, options(nostack));
    }
    (low, high)
}
