//! Products and quotients.
//!
//! Law: as in [`super::arith`]: registers in, registers out. A division is
//! executed only after its quotient is known to fit.

use super::{Arith, Word};
use crate::interp::flags::Flags;
use std::arch::asm;

/// `mul`, `imul`, `div` and `idiv` with the implied registers.
pub trait MulDiv: Arith {
    /// `mul`: low half, high half.
    fn mul(self, b: Self, flags: Flags) -> (Self, Self, Flags);
    /// One-operand `imul`: low half, high half.
    fn imul_wide(self, b: Self, flags: Flags) -> (Self, Self, Flags);
    /// `div` of `high:self`: quotient and remainder; `None` is a divide error.
    fn div(self, high: Self, divisor: Self, flags: Flags) -> Option<(Self, Self, Flags)>;
    /// `idiv` of `high:self`.
    fn idiv(self, high: Self, divisor: Self, flags: Flags) -> Option<(Self, Self, Flags)>;
}

/// Whether `high:low / divisor`, signed, fits a word.
fn signed_quotient_fits<W: Word>(high: W, low: W, divisor: W) -> bool {
    if divisor.zext() == 0 {
        return false;
    }
    if high.sext() == low.sext().cast_signed().wrapping_shr(63).cast_unsigned() {
        // The usual dividend, a sign-extended word: only MIN / -1 overflows.
        return !(divisor.sext() == u64::MAX && low.zext() == 1 << (W::BITS - 1));
    }
    let dividend = (i128::from(high.sext().cast_signed()) << W::BITS) | i128::from(low.zext());
    let quotient = dividend.checked_div(i128::from(divisor.sext().cast_signed()));
    let limit = 1i128 << (W::BITS - 1);
    quotient.is_some_and(|q| q >= -limit && q < limit)
}

macro_rules! mul_div {
    ($word:ty, $m:literal) => {
        impl MulDiv for $word {
            mul_div!(@product $word, $m, mul "mul");
            mul_div!(@product $word, $m, imul_wide "imul");

            #[inline]
            fn div(self, high: Self, divisor: Self, flags: Flags) -> Option<(Self, Self, Flags)> {
                if high >= divisor {
                    return None;
                }
                mul_div!(@quotient $word, $m, "div", self, high, divisor, flags)
            }
            #[inline]
            fn idiv(self, high: Self, divisor: Self, flags: Flags) -> Option<(Self, Self, Flags)> {
                if !signed_quotient_fits(high, self, divisor) {
                    return None;
                }
                mul_div!(@quotient $word, $m, "idiv", self, high, divisor, flags)
            }
        }
    };
    (@product $word:ty, $m:literal, $name:ident $insn:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, flags: Flags) -> (Self, Self, Flags) {
            let (low, high): (u64, u64);
            let mut ax = u64::from(flags.0);
            // SAFETY: computes on registers.
            unsafe {
                asm!("add al, 0x7f", "sahf", "mov rax, {a}", concat!($insn, " {b", $m, "}"),
                    "mov {a}, rax", "lahf", "seto al",
                    a = inout(reg) self.zext() => low, b = in(reg) b,
                    inout("rax") ax, out("rdx") high,
                    options(pure, nomem, nostack));
            }
            (Word::low(low), Word::low(high), Flags(Word::low(ax)))
        }
    };
    (@quotient $word:ty, $m:literal, $insn:literal,
     $low:expr, $high:expr, $divisor:expr, $flags:expr) => {{
        let (quotient, remainder): (u64, u64);
        let mut ax = u64::from($flags.0);
        // SAFETY: computes on registers; the quotient fits, so there is no
        // divide error.
        unsafe {
            asm!("add al, 0x7f", "sahf", "mov rax, {a}", concat!($insn, " {b", $m, "}"),
                "mov {a}, rax", "lahf", "seto al",
                a = inout(reg) $low.zext() => quotient, b = in(reg) $divisor,
                inout("rax") ax, inout("rdx") $high.zext() => remainder,
                options(pure, nomem, nostack));
        }
        Some((Word::low(quotient), Word::low(remainder), Flags(Word::low(ax))))
    }};
}

mul_div!(u16, ":x");
mul_div!(u32, ":e");
mul_div!(u64, ":r");

/// The 8-bit forms work on AX alone.
macro_rules! byte_product {
    ($name:ident $insn:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, flags: Flags) -> (Self, Self, Flags) {
            let product: u64;
            let mut ax = u64::from(flags.0);
            // SAFETY: computes on registers.
            unsafe {
                asm!("add al, 0x7f", "sahf", "mov rax, {a}", concat!($insn, " {b}"),
                    "mov {a}, rax", "lahf", "seto al",
                    a = inout(reg) self.zext() => product, b = in(reg_byte) b, inout("rax") ax,
                    options(pure, nomem, nostack));
            }
            (Word::low(product), Word::low(product >> 8), Flags(Word::low(ax)))
        }
    };
}

macro_rules! byte_quotient {
    ($insn:literal, $low:expr, $high:expr, $divisor:expr, $flags:expr) => {{
        let result: u64;
        let mut ax = u64::from($flags.0);
        // SAFETY: computes on registers; the quotient fits, so there is no
        // divide error.
        unsafe {
            asm!("add al, 0x7f", "sahf", "mov rax, {a}", concat!($insn, " {b}"),
                "mov {a}, rax", "lahf", "seto al",
                a = inout(reg) $low.zext() | ($high.zext() << 8) => result,
                b = in(reg_byte) $divisor, inout("rax") ax,
                options(pure, nomem, nostack));
        }
        Some((Word::low(result), Word::low(result >> 8), Flags(Word::low(ax))))
    }};
}

impl MulDiv for u8 {
    byte_product!(mul "mul");
    byte_product!(imul_wide "imul");

    #[inline]
    fn div(self, high: Self, divisor: Self, flags: Flags) -> Option<(Self, Self, Flags)> {
        if high >= divisor {
            return None;
        }
        byte_quotient!("div", self, high, divisor, flags)
    }
    #[inline]
    fn idiv(self, high: Self, divisor: Self, flags: Flags) -> Option<(Self, Self, Flags)> {
        if !signed_quotient_fits(high, self, divisor) {
            return None;
        }
        byte_quotient!("idiv", self, high, divisor, flags)
    }
}
