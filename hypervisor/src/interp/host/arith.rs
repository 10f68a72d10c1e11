//! Arithmetic by the host's own instructions, flags included.
//!
//! Law: every block is `pure`: registers in, registers out. Where an
//! instruction leaves some flags alone, the guest's are loaded first
//! (`add al, 0x7f` makes OF, `sahf` the rest); where it reads only the carry,
//! `bt` puts it there.

use super::Word;
use crate::interp::flags::Flags;
use std::arch::asm;

/// Integer operations of every width. Each gives the result and the flags.
pub trait Arith: Word {
    /// `add`.
    fn add(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `or`.
    fn or(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `adc`.
    fn adc(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `sbb`.
    fn sbb(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `and`.
    fn and(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `sub`, and `cmp`.
    fn sub(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `xor`.
    fn xor(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `inc`.
    fn inc(self, flags: Flags) -> (Self, Flags);
    /// `dec`.
    fn dec(self, flags: Flags) -> (Self, Flags);
    /// `neg`.
    fn neg(self, flags: Flags) -> (Self, Flags);
    /// `shl`.
    fn shl(self, count: u8, flags: Flags) -> (Self, Flags);
    /// `shr`.
    fn shr(self, count: u8, flags: Flags) -> (Self, Flags);
    /// `sar`.
    fn sar(self, count: u8, flags: Flags) -> (Self, Flags);
    /// `rol`.
    fn rol(self, count: u8, flags: Flags) -> (Self, Flags);
    /// `ror`.
    fn ror(self, count: u8, flags: Flags) -> (Self, Flags);
    /// `rcl`.
    fn rcl(self, count: u8, flags: Flags) -> (Self, Flags);
    /// `rcr`.
    fn rcr(self, count: u8, flags: Flags) -> (Self, Flags);
    /// `cmpxchg` of `self` into the register that holds `whole`, with this RAX:
    /// RAX, the register and the flags after it. How much of the two registers
    /// is written is for the processor to say.
    fn cmpxchg(self, rax: u64, whole: u64) -> (u64, u64, Flags);
}

/// Operations that exist for 16, 32 and 64 bits only.
pub trait WideArith: Arith {
    /// Two-operand `imul`.
    fn imul(self, b: Self, flags: Flags) -> (Self, Flags);
    /// `shld`.
    fn shld(self, filler: Self, count: u8, flags: Flags) -> (Self, Flags);
    /// `shrd`.
    fn shrd(self, filler: Self, count: u8, flags: Flags) -> (Self, Flags);
}

macro_rules! two_operands {
    ($word:ty, $class:ident, $m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self, _: Flags) -> (Self, Flags) {
            let mut r = self;
            let ax: u16;
            // SAFETY: computes on registers.
            unsafe {
                asm!(concat!(stringify!($name), " {r", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    r = inout($class) r, b = in($class) b, out("ax") ax,
                    options(pure, nomem, nostack));
            }
            (r, Flags(ax))
        }
    )*};
}

macro_rules! two_operands_and_carry {
    ($word:ty, $class:ident, $m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self, flags: Flags) -> (Self, Flags) {
            let mut r = self;
            let mut ax = flags.0;
            // SAFETY: computes on registers.
            unsafe {
                asm!("bt eax, 8", concat!(stringify!($name), " {r", $m, "}, {b", $m, "}"),
                    "lahf", "seto al",
                    r = inout($class) r, b = in($class) b, inout("ax") ax,
                    options(pure, nomem, nostack));
            }
            (r, Flags(ax))
        }
    )*};
}

macro_rules! one_operand_keeps_carry {
    ($word:ty, $class:ident, $m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, flags: Flags) -> (Self, Flags) {
            let mut r = self;
            let mut ax = flags.0;
            // SAFETY: computes on registers.
            unsafe {
                asm!("bt eax, 8", concat!(stringify!($name), " {r", $m, "}"), "lahf", "seto al",
                    r = inout($class) r, inout("ax") ax,
                    options(pure, nomem, nostack));
            }
            (r, Flags(ax))
        }
    )*};
}

macro_rules! by_count {
    ($word:ty, $class:ident, $m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, count: u8, flags: Flags) -> (Self, Flags) {
            let mut r = self;
            let mut ax = flags.0;
            // SAFETY: computes on registers.
            unsafe {
                asm!("add al, 0x7f", "sahf", concat!(stringify!($name), " {r", $m, "}, cl"),
                    "lahf", "seto al",
                    r = inout($class) r, in("cl") count, inout("ax") ax,
                    options(pure, nomem, nostack));
            }
            (r, Flags(ax))
        }
    )*};
}

macro_rules! arith {
    ($word:ty, $class:ident, $m:literal, $r:literal) => {
        impl Arith for $word {
            two_operands!($word, $class, $m, add or and sub xor);
            two_operands_and_carry!($word, $class, $m, adc sbb);
            one_operand_keeps_carry!($word, $class, $m, inc dec neg);
            by_count!($word, $class, $m, shl shr sar rol ror rcl rcr);

            #[inline(always)]
            fn cmpxchg(self, rax: u64, whole: u64) -> (u64, u64, Flags) {
                let mut r = whole;
                let (after, ax): (u64, u64);
                // SAFETY: computes on registers.
                unsafe {
                    asm!(concat!("cmpxchg {r", $r, "}, {n", $m, "}"),
                        "mov {after}, rax", "lahf", "seto al",
                        r = inout(reg) r, n = in($class) self, after = out(reg) after,
                        inout("rax") rax => ax,
                        options(pure, nomem, nostack));
                }
                (after, r, Flags(Word::low(ax)))
            }
        }
    };
}

arith!(u8, reg_byte, "", ":l");
arith!(u16, reg, ":x", ":x");
arith!(u32, reg, ":e", ":e");
arith!(u64, reg, ":r", ":r");

macro_rules! double_shift {
    ($class:ident, $m:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, filler: Self, count: u8, flags: Flags) -> (Self, Flags) {
            let mut r = self;
            let mut ax = flags.0;
            // SAFETY: computes on registers.
            unsafe {
                asm!("add al, 0x7f", "sahf",
                    concat!(stringify!($name), " {r", $m, "}, {b", $m, "}, cl"),
                    "lahf", "seto al",
                    r = inout($class) r, b = in($class) filler, in("cl") count, inout("ax") ax,
                    options(pure, nomem, nostack));
            }
            (r, Flags(ax))
        }
    )*};
}

macro_rules! wide_arith {
    ($word:ty, $m:literal) => {
        impl WideArith for $word {
            double_shift!(reg, $m, shld shrd);

            #[inline(always)]
            fn imul(self, b: Self, flags: Flags) -> (Self, Flags) {
                let mut r = self;
                let mut ax = flags.0;
                // SAFETY: computes on registers.
                unsafe {
                    asm!("add al, 0x7f", "sahf", concat!("imul {r", $m, "}, {b", $m, "}"),
                        "lahf", "seto al",
                        r = inout(reg) r, b = in(reg) b, inout("ax") ax,
                        options(pure, nomem, nostack));
                }
                (r, Flags(ax))
            }
        }
    };
}

wide_arith!(u16, ":x");
wide_arith!(u32, ":e");
wide_arith!(u64, ":r");
