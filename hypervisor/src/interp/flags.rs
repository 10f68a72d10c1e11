//! The six arithmetic flags, in the form in which the host hands them over.
//!
//! Law: the word is what `lahf; seto al` leaves in AX, so taking flags from a
//! host instruction costs two instructions and every undefined flag is what
//! this very processor makes of it:
//!
//! ```text
//! bit   15  14  13  12  11  10   9   8  7..1  0
//!       SF  ZF   0  AF   0  PF   1  CF     0  OF
//! ```

/// `rflags` bits that [`Flags`] holds: OF, SF, ZF, AF, PF, CF.
pub const ARITHMETIC: u64 = 0x8d5;
/// Trap: single step.
pub const TF: u64 = 1 << 8;
/// Direction of string instructions.
pub const DF: u64 = 1 << 10;
/// Resume: no debug fault on the next instruction.
pub const RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment check.
pub const AC: u64 = 1 << 18;

/// The arithmetic flags, packed; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u16);

impl Flags {
    const CARRY: u16 = 1 << 8;
    const PARITY: u16 = 1 << 10;
    const ZERO: u16 = 1 << 14;
    const SIGN: u16 = 1 << 15;
    const OVERFLOW: u16 = 1;

    /// Takes them out of `rflags`.
    #[must_use]
    pub const fn from_rflags(rflags: u64) -> Self {
        let low = (rflags & 0xd5) | 2;
        let overflow = (rflags >> 11) & 1;
        let [a, b, ..] = ((low << 8) | overflow).to_le_bytes();
        Flags(u16::from_le_bytes([a, b]))
    }

    /// Their bits in `rflags`.
    #[must_use]
    pub const fn to_rflags(self) -> u64 {
        let ax = self.0 as u64;
        ((ax >> 8) & 0xd5) | ((ax & 1) << 11)
    }

    /// CF.
    #[must_use]
    pub const fn carry(self) -> bool {
        self.0 & Self::CARRY != 0
    }

    /// ZF.
    #[must_use]
    pub const fn zero(self) -> bool {
        self.0 & Self::ZERO != 0
    }

    /// The same flags with CF as given.
    #[must_use]
    pub const fn with_carry(self, carry: bool) -> Self {
        if carry {
            Flags(self.0 | Self::CARRY)
        } else {
            Flags(self.0 & !Self::CARRY)
        }
    }

    /// The same flags with ZF as given.
    #[must_use]
    pub const fn with_zero(self, zero: bool) -> Self {
        if zero {
            Flags(self.0 | Self::ZERO)
        } else {
            Flags(self.0 & !Self::ZERO)
        }
    }

    /// Whether condition `C` holds, in the numbering of the instruction
    /// encoding (`jo` is 0, `jg` is 15).
    #[must_use]
    #[inline(always)]
    pub const fn holds<const C: u8>(self) -> bool {
        let ax = self.0;
        let less = (ax >> 15) ^ (ax & Self::OVERFLOW) != 0;
        let yes = match C >> 1 {
            0 => ax & Self::OVERFLOW != 0,
            1 => ax & Self::CARRY != 0,
            2 => ax & Self::ZERO != 0,
            3 => ax & (Self::CARRY | Self::ZERO) != 0,
            4 => ax & Self::SIGN != 0,
            5 => ax & Self::PARITY != 0,
            6 => less,
            _ => less || ax & Self::ZERO != 0,
        };
        yes ^ (C & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rflags_survive_the_packing() {
        for bits in 0..0x1000u64 {
            let rflags = bits & ARITHMETIC;
            assert_eq!(Flags::from_rflags(bits).to_rflags(), rflags);
        }
    }

    #[test]
    fn signed_conditions_compare_sign_and_overflow() {
        let flags = |sf: u64, of: u64| Flags::from_rflags((sf << 7) | (of << 11));
        for (sf, of) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            assert_eq!(flags(sf, of).holds::<12>(), sf != of);
            assert_eq!(flags(sf, of).holds::<13>(), sf == of);
            assert_eq!(flags(sf, of).holds::<15>(), sf == of);
        }
        let zero = Flags::from_rflags(1 << 6);
        assert!(zero.holds::<14>() && zero.holds::<4>() && zero.holds::<6>());
        assert!(!zero.holds::<12>() && !zero.holds::<15>() && !zero.holds::<5>());
    }
}
