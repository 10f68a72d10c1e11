//! A page-table entry: its bits, which of them a guest may set, and which are
//! set for it.
//!
//! Cache attributes: a guest without devices has only RAM to map, and RAM is
//! mapped write-back by everybody (XSA-402). So PWT, PCD and PAT are refused
//! in every entry, as Xen does for a domain without I/O memory; stock Linux
//! boots with that, since an unprivileged PV guest never maps otherwise.
//!
//! The global bit is accepted in L1 entries and cleared. (Xen, which switches
//! it to its own advantage, sets it on user pages.) No translation may outlive
//! the switch between a guest's kernel and user mode.

use guest_abi::addr::Mfn;

use super::{frame::FrameType, refusal::Refusal};

/// The level of a page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The leaves: entries map data pages.
    L1,
    /// Entries name L1 tables.
    L2,
    /// Entries name L2 tables.
    L3,
    /// The roots.
    L4,
}

impl Level {
    /// From its number, 1 to 4.
    #[must_use]
    pub const fn from_number(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::L1),
            2 => Some(Self::L2),
            3 => Some(Self::L3),
            4 => Some(Self::L4),
            _ => None,
        }
    }

    /// The level that entries of this one name; `None` for L1, whose entries
    /// name data.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L1 => None,
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
        }
    }

    /// The type of a frame that is a table of this level.
    #[must_use]
    pub const fn frame_type(self) -> FrameType {
        match self {
            Self::L1 => FrameType::L1,
            Self::L2 => FrameType::L2,
            Self::L3 => FrameType::L3,
            Self::L4 => FrameType::L4,
        }
    }
}

/// A page-table entry of any level, as the processor reads it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Pte(pub u64);

impl core::fmt::Debug for Pte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl core::fmt::Display for Pte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(self, f)
    }
}

impl Pte {
    /// The entry is used.
    pub const PRESENT: u64 = 1 << 0;
    /// Writes are allowed.
    pub const RW: u64 = 1 << 1;
    /// Ring 3 may use it: forced, since all of a PV guest runs there.
    pub const USER: u64 = 1 << 2;
    /// Write-through.
    pub const PWT: u64 = 1 << 3;
    /// Cache disabled.
    pub const PCD: u64 = 1 << 4;
    /// Set by the processor at the first use.
    pub const ACCESSED: u64 = 1 << 5;
    /// Set by the processor at the first write.
    pub const DIRTY: u64 = 1 << 6;
    /// A large page, in L2 and L3; PAT in L1.
    pub const PSE_OR_PAT: u64 = 1 << 7;
    /// Survives a change of root.
    pub const GLOBAL: u64 = 1 << 8;
    /// Left to software: bits 9 to 11 and 52 to 62.
    pub const AVAILABLE: u64 = (0x7 << 9) | (0x7ff << 52);
    /// Not executable.
    pub const NX: u64 = 1 << 63;

    /// What the processor sets by itself, at any time.
    pub const ACCESSED_DIRTY: u64 = Self::ACCESSED | Self::DIRTY;

    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// What is left when all bits of the address are one: an invalid frame
    /// number that went through an entry.
    pub(super) const ALL_ONES_MFN: Mfn = Mfn(Self::ADDRESS >> 12);

    const ALLOWED: u64 = Self::PRESENT
        | Self::RW
        | Self::USER
        | Self::ACCESSED_DIRTY
        | Self::AVAILABLE
        | Self::NX
        | Self::ADDRESS;

    /// The bits that a guest may change in a present entry without its frame
    /// being looked at again. Everything else affects which frame is reached,
    /// with which rights, or how it is cached (XSA-148).
    const FREE_TO_CHANGE: u64 =
        Self::USER | Self::ACCESSED_DIRTY | Self::AVAILABLE | Self::GLOBAL | Self::NX;

    /// An entry for `mfn` with these flags.
    #[must_use]
    pub const fn new(mfn: Mfn, flags: u64) -> Self {
        Self(((mfn.0 << 12) & Self::ADDRESS) | flags)
    }

    /// Whether the processor would use it.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Whether it allows writes.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.0 & Self::RW != 0
    }

    /// Whether all of `flags` are set.
    #[must_use]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    /// The frame that it names.
    #[must_use]
    pub const fn mfn(self) -> Mfn {
        Mfn((self.0 & Self::ADDRESS) >> 12)
    }

    /// Refuses a present entry with a bit that no guest may set at `level`.
    pub(super) fn check(self, level: Level) -> Result<(), Refusal> {
        let allowed = match level {
            Level::L1 => Self::ALLOWED | Self::GLOBAL,
            _ => Self::ALLOWED,
        };
        match self.0 & !allowed {
            0 => Ok(()),
            bits => Err(Refusal::BadFlags {
                level,
                pte: self,
                bits,
            }),
        }
    }

    /// What is stored when a guest asks for this entry: unchanged if not
    /// present, else usable by ring 3 and not global.
    #[must_use]
    pub(super) const fn adjusted(self) -> Self {
        if self.is_present() {
            Self((self.0 | Self::USER) & !Self::GLOBAL)
        } else {
            self
        }
    }

    /// Whether `new` may replace this entry without its frame being looked at
    /// again: both present, and different only in harmless bits.
    #[must_use]
    pub(super) const fn differs_harmlessly(self, new: Self) -> bool {
        self.is_present() && new.is_present() && (self.0 ^ new.0) & !Self::FREE_TO_CHANGE == 0
    }

    /// Whether what differs is what the processor sets by itself.
    #[must_use]
    pub(super) const fn differs_by_processor(self, old: Self) -> bool {
        (self.0 ^ old.0) & !Self::ACCESSED_DIRTY == 0
    }
}
