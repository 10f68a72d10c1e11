//! Operand widths and the registers' parts.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "taking the low part of a register is what these functions are for"
)]

use super::Registers;
use std::fmt::Debug;

/// An operand of 8, 16, 32 or 64 bits.
pub trait Word: Copy + Eq + Debug + 'static {
    /// Bytes in it.
    const BYTES: u64;
    /// Bits in it.
    const BITS: u32;

    /// The low part of `value`.
    fn low(value: u64) -> Self;
    /// Zero-extended.
    fn zext(self) -> u64;
    /// Sign-extended.
    fn sext(self) -> u64;
    /// Reads a register operand.
    fn get(registers: &Registers, operand: u8) -> Self;
    /// Writes a register operand: 32 bits clear the upper half, 8 and 16
    /// leave the rest alone.
    fn set(registers: &mut Registers, operand: u8, value: Self);
    /// Whether the top bit is set.
    fn negative(self) -> bool {
        (self.zext() >> (Self::BITS - 1)) & 1 != 0
    }
}

fn slot(operand: u8) -> usize {
    usize::from(operand & 31)
}

/// An 8-bit operand with bit 5 set is the second byte (AH, CH, DH, BH).
fn byte_shift(operand: u8) -> u32 {
    u32::from(operand >> 5) << 3
}

impl Word for u8 {
    const BYTES: u64 = 1;
    const BITS: u32 = 8;

    #[inline(always)]
    fn low(value: u64) -> Self {
        value as u8
    }
    #[inline(always)]
    fn zext(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn sext(self) -> u64 {
        i64::from(self as i8) as u64
    }
    #[inline(always)]
    fn get(registers: &Registers, operand: u8) -> Self {
        (registers[slot(operand)] >> byte_shift(operand)) as u8
    }
    #[inline(always)]
    fn set(registers: &mut Registers, operand: u8, value: Self) {
        let shift = byte_shift(operand);
        let register = &mut registers[slot(operand)];
        *register = (*register & !(0xff << shift)) | (u64::from(value) << shift);
    }
}

impl Word for u16 {
    const BYTES: u64 = 2;
    const BITS: u32 = 16;

    #[inline(always)]
    fn low(value: u64) -> Self {
        value as u16
    }
    #[inline(always)]
    fn zext(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn sext(self) -> u64 {
        i64::from(self as i16) as u64
    }
    #[inline(always)]
    fn get(registers: &Registers, operand: u8) -> Self {
        registers[slot(operand)] as u16
    }
    #[inline(always)]
    fn set(registers: &mut Registers, operand: u8, value: Self) {
        let register = &mut registers[slot(operand)];
        *register = (*register & !0xffff) | u64::from(value);
    }
}

impl Word for u32 {
    const BYTES: u64 = 4;
    const BITS: u32 = 32;

    #[inline(always)]
    fn low(value: u64) -> Self {
        value as u32
    }
    #[inline(always)]
    fn zext(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn sext(self) -> u64 {
        i64::from(self as i32) as u64
    }
    #[inline(always)]
    fn get(registers: &Registers, operand: u8) -> Self {
        registers[slot(operand)] as u32
    }
    #[inline(always)]
    fn set(registers: &mut Registers, operand: u8, value: Self) {
        registers[slot(operand)] = u64::from(value);
    }
}

impl Word for u64 {
    const BYTES: u64 = 8;
    const BITS: u32 = 64;

    #[inline(always)]
    fn low(value: u64) -> Self {
        value
    }
    #[inline(always)]
    fn zext(self) -> u64 {
        self
    }
    #[inline(always)]
    fn sext(self) -> u64 {
        self
    }
    #[inline(always)]
    fn get(registers: &Registers, operand: u8) -> Self {
        registers[slot(operand)]
    }
    #[inline(always)]
    fn set(registers: &mut Registers, operand: u8, value: Self) {
        registers[slot(operand)] = value;
    }
}
