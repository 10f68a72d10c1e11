//! Instructions on the bits of a word.
//!
//! Law: as in [`super::arith`]. Those that not every processor has are decoded
//! only where this one has them.

use super::{Arith, Word};
use crate::interp::flags::Flags;
use std::arch::asm;

/// Bit instructions of 16, 32 and 64 bits.
pub trait BitWord: Arith {
    /// `bt`.
    fn bt(self, bit: Self, flags: Flags) -> (Self, Flags);
    /// `bts`.
    fn bts(self, bit: Self, flags: Flags) -> (Self, Flags);
    /// `btr`.
    fn btr(self, bit: Self, flags: Flags) -> (Self, Flags);
    /// `btc`.
    fn btc(self, bit: Self, flags: Flags) -> (Self, Flags);
    /// `bsf` into a register that holds `whole`: if there is no bit, how much of
    /// it stays is for the processor to say.
    fn bsf(self, whole: u64, flags: Flags) -> (u64, Flags);
    /// `bsr` into a register that holds `whole`: if there is no bit, how much of
    /// it stays is for the processor to say.
    fn bsr(self, whole: u64, flags: Flags) -> (u64, Flags);
    /// `tzcnt` into a register that holds `whole`.
    fn tzcnt(self, whole: u64, flags: Flags) -> (u64, Flags);
    /// `lzcnt` into a register that holds `whole`.
    fn lzcnt(self, whole: u64, flags: Flags) -> (u64, Flags);
    /// `popcnt` into a register that holds `whole`.
    fn popcnt(self, whole: u64, flags: Flags) -> (u64, Flags);
}

/// Bit instructions of 32 and 64 bits: BMI1, BMI2 and ADX.
pub trait VexWord: BitWord {
    /// `andn`: `!self & b`.
    fn andn(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `bextr`.
    fn bextr(self, control: Self, flags: Flags) -> (Self, Flags);
    /// `bzhi`.
    fn bzhi(self, index: Self, flags: Flags) -> (Self, Flags);
    /// `pdep`; no flags change.
    fn pdep(self, mask: Self, flags: Flags) -> (Self, Flags);
    /// `pext`; no flags change.
    fn pext(self, mask: Self, flags: Flags) -> (Self, Flags);
    /// `blsi`.
    fn blsi(self, flags: Flags) -> (Self, Flags);
    /// `blsr`.
    fn blsr(self, flags: Flags) -> (Self, Flags);
    /// `blsmsk`.
    fn blsmsk(self, flags: Flags) -> (Self, Flags);
    /// `adcx`.
    fn adcx(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `adox`.
    fn adox(self, b: Self, flags: Flags) -> (Self, Flags);
}

/// The result replaces the first operand.
macro_rules! replaces {
    ($m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self, flags: Flags) -> (Self, Flags) {
            let mut r = self;
            let mut ax = flags.0;
            // SAFETY: computes on registers.
            unsafe {
                asm!("add al, 0x7f", "sahf",
                    concat!(stringify!($name), " {r", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    r = inout(reg) r, b = in(reg) b, inout("ax") ax,
                    options(pure, nomem, nostack));
            }
            (r, Flags(ax))
        }
    )*};
}

macro_rules! three_operands {
    ($m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self, flags: Flags) -> (Self, Flags) {
            let r: Self;
            let mut ax = flags.0;
            // SAFETY: computes on registers.
            unsafe {
                asm!("add al, 0x7f", "sahf",
                    concat!(stringify!($name), " {r", $m, "}, {a", $m, "}, {b", $m, "}"),
                    "lahf", "seto al",
                    r = lateout(reg) r, a = in(reg) self, b = in(reg) b, inout("ax") ax,
                    options(pure, nomem, nostack));
            }
            (r, Flags(ax))
        }
    )*};
}

macro_rules! lowest_bit {
    ($m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, flags: Flags) -> (Self, Flags) {
            let r: Self;
            let mut ax = flags.0;
            // SAFETY: computes on registers.
            unsafe {
                asm!("add al, 0x7f", "sahf",
                    concat!(stringify!($name), " {r", $m, "}, {a", $m, "}"), "lahf", "seto al",
                    r = lateout(reg) r, a = in(reg) self, inout("ax") ax,
                    options(pure, nomem, nostack));
            }
            (r, Flags(ax))
        }
    )*};
}

/// The whole destination register goes in and out.
macro_rules! whole_register {
    ($m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, whole: u64, flags: Flags) -> (u64, Flags) {
            let mut r = whole;
            let mut ax = flags.0;
            // SAFETY: computes on registers.
            unsafe {
                asm!("add al, 0x7f", "sahf",
                    concat!(stringify!($name), " {r", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    r = inout(reg) r, b = in(reg) self, inout("ax") ax,
                    options(pure, nomem, nostack));
            }
            (r, Flags(ax))
        }
    )*};
}

macro_rules! bit_word {
    ($word:ty, $m:literal) => {
        impl BitWord for $word {
            replaces!($m, bt bts btr btc);
            whole_register!($m, bsf bsr tzcnt lzcnt popcnt);
        }
    };
}
bit_word!(u16, ":x");
bit_word!(u32, ":e");
bit_word!(u64, ":r");

macro_rules! vex_word {
    ($word:ty, $m:literal) => {
        impl VexWord for $word {
            three_operands!($m, andn bextr bzhi pdep pext);
            lowest_bit!($m, blsi blsr blsmsk);
            replaces!($m, adcx adox);
        }
    };
}
vex_word!(u32, ":e");
vex_word!(u64, ":r");

/// `crc32` over one operand of any width.
pub trait Checksum: Word {
    /// Adds `self` to the checksum.
    fn crc32(self, sum: u32) -> u32;
}

macro_rules! checksum {
    ($word:ty, $class:ident, $m:literal, $size:literal) => {
        impl Checksum for $word {
            #[inline]
            fn crc32(self, sum: u32) -> u32 {
                let mut sum = u64::from(sum);
                // SAFETY: computes on registers; `crc32` leaves the flags alone.
                unsafe {
                    asm!(concat!("crc32 {s", $size, "}, {v", $m, "}"),
                        s = inout(reg) sum, v = in($class) self,
                        options(pure, nomem, nostack, preserves_flags));
                }
                u32::low(sum)
            }
        }
    };
}
checksum!(u8, reg_byte, "", ":e");
checksum!(u16, reg, ":x", ":e");
checksum!(u32, reg, ":e", ":e");
checksum!(u64, reg, ":r", ":r");
