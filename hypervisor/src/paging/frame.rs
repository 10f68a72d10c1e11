//! The frame table: twelve bytes for each RAM frame of a domain.
//!
//! ```text
//! word 0   31 allocated | 30..0 reference count
//! word 1   30 validated | 29 pinned | 28..26 type | 25..0 type count
//! word 2   flush epoch in which the type count last became zero
//! ```
//!
//! The table is zeroed memory that the host provides when it is first touched:
//! a domain pays for the frames that it uses.
//!
//! # The flush epoch
//!
//! A frame that changes its type may still be reachable, in its old role,
//! through a translation that some vCPU has cached. A whole flush of all vCPUs
//! ends an epoch. A frame whose last use ended in an earlier epoch needs no
//! flush when it is used anew; one flush thus serves all tables of a process
//! that goes or comes.

use guest_abi::addr::Mfn;

use super::{MAX_FRAMES, foreign::Foreign, low::LowFrame, pte::Level, refusal::Refusal};

/// The most frames below RAM (4 GiB of the machine address space).
const MAX_BASE: u64 = 1 << 20;

/// What a frame is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameType {
    /// Nothing yet.
    None,
    /// Data that the guest, or somebody for it, may write.
    Writable,
    /// A page table whose entries map data.
    L1,
    /// A page table whose entries name L1 tables.
    L2,
    /// A page table whose entries name L2 tables.
    L3,
    /// A page-table root.
    L4,
    /// A page of a descriptor table.
    SegDesc,
}

impl FrameType {
    /// The level, of a page table.
    #[must_use]
    pub const fn level(self) -> Option<Level> {
        match self {
            Self::L1 => Some(Level::L1),
            Self::L2 => Some(Level::L2),
            Self::L3 => Some(Level::L3),
            Self::L4 => Some(Level::L4),
            Self::None | Self::Writable | Self::SegDesc => None,
        }
    }

    const fn bits(self) -> u32 {
        (match self {
            Self::None => 0,
            Self::Writable => 1,
            Self::L1 => 2,
            Self::L2 => 3,
            Self::L3 => 4,
            Self::L4 => 5,
            Self::SegDesc => 6,
        }) << Frame::TYPE_SHIFT
    }

    const fn from_bits(word: u32) -> Self {
        match (word >> Frame::TYPE_SHIFT) & 7 {
            1 => Self::Writable,
            2 => Self::L1,
            3 => Self::L2,
            4 => Self::L3,
            5 => Self::L4,
            6 => Self::SegDesc,
            _ => Self::None,
        }
    }
}

/// One entry of the frame table, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame([u32; 3]);

impl Frame {
    const ALLOCATED: u32 = 1 << 31;
    const TYPE_SHIFT: u32 = 26;
    const TYPE_COUNT: u32 = (1 << Self::TYPE_SHIFT) - 1;
    const PINNED: u32 = 1 << 29;
    const VALIDATED: u32 = 1 << 30;

    /// One below what fits: the last one is for a table that is let go.
    pub const MAX_REFS: u32 = Self::ALLOCATED - 2;
    pub const MAX_TYPE_COUNT: u32 = Self::TYPE_COUNT;

    pub const fn refs(self) -> u32 {
        self.0[0] & !Self::ALLOCATED
    }
    pub const fn allocated(self) -> bool {
        self.0[0] & Self::ALLOCATED != 0
    }
    pub const fn frame_type(self) -> FrameType {
        FrameType::from_bits(self.0[1])
    }
    pub const fn type_count(self) -> u32 {
        self.0[1] & Self::TYPE_COUNT
    }
    pub const fn pinned(self) -> bool {
        self.0[1] & Self::PINNED != 0
    }
    pub const fn validated(self) -> bool {
        self.0[1] & Self::VALIDATED != 0
    }
    pub const fn epoch(self) -> u32 {
        self.0[2]
    }

    /// The level, if the frame is a page table in use.
    pub const fn live_table(self) -> Option<Level> {
        if self.type_count() > 0 && self.validated() {
            self.frame_type().level()
        } else {
            None
        }
    }

    pub const fn with_refs(mut self, refs: u32) -> Self {
        self.0[0] = (self.0[0] & Self::ALLOCATED) | (refs & !Self::ALLOCATED);
        self
    }
    pub const fn with_allocated(mut self, allocated: bool) -> Self {
        self.0[0] = self.refs() | if allocated { Self::ALLOCATED } else { 0 };
        self
    }
    pub const fn with_type_count(mut self, count: u32) -> Self {
        self.0[1] = (self.0[1] & !Self::TYPE_COUNT) | (count & Self::TYPE_COUNT);
        self
    }
    pub const fn with_pinned(mut self, pinned: bool) -> Self {
        self.0[1] = (self.0[1] & !Self::PINNED) | if pinned { Self::PINNED } else { 0 };
        self
    }
    pub const fn with_validated(mut self, validated: bool) -> Self {
        self.0[1] = (self.0[1] & !Self::VALIDATED) | if validated { Self::VALIDATED } else { 0 };
        self
    }
    pub const fn with_epoch(mut self, epoch: u32) -> Self {
        self.0[2] = epoch;
        self
    }
    /// One use as `t`, not validated yet.
    pub const fn first_use_as(mut self, t: FrameType) -> Self {
        self.0[1] = t.bits() | 1;
        self
    }
    /// With type, flags and type count of `other`.
    pub const fn with_type_of(mut self, other: Self) -> Self {
        self.0[1] = other.0[1];
        self
    }
    /// Nothing but the epoch is left of its former life.
    pub const fn freed(self) -> Self {
        Self([0, 0, self.0[2]])
    }
}

/// All frames that a domain's page tables may name.
pub(super) struct FrameTable {
    base: u64,
    frames: Vec<[u32; 3]>,
    /// Hypervisor-owned frames, below `base`.
    pub low: Vec<LowFrame>,
    /// Other domains' frames, above all RAM.
    pub foreign: Foreign,
    epoch: u32,
    /// Frames from here on have never been allocated.
    pub fresh: usize,
    /// Frames below `fresh` that are free.
    pub free: Vec<u32>,
    /// Frames with references.
    pub owned: u64,
}

impl FrameTable {
    pub fn new(base: Mfn, frames: u64) -> Result<Self, Refusal> {
        let refusal = Refusal::Size { base, frames };
        if frames == 0 || frames > MAX_FRAMES || base.0 > MAX_BASE {
            return Err(refusal);
        }
        let len = usize::try_from(frames).map_err(|_| refusal)?;
        let low = usize::try_from(base.0).map_err(|_| refusal)?;
        Ok(Self {
            base: base.0,
            frames: vec![[0; 3]; len],
            low: vec![[0; 2]; low].into_iter().map(LowFrame).collect(),
            foreign: Foreign::default(),
            epoch: 1,
            fresh: 0,
            free: Vec::new(),
            owned: 0,
        })
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// The index of a RAM frame.
    pub fn index(&self, mfn: Mfn) -> Option<usize> {
        let offset = usize::try_from(mfn.0.checked_sub(self.base)?).ok()?;
        (offset < self.frames.len()).then_some(offset)
    }

    pub fn ram(&self, mfn: Mfn) -> Result<usize, Refusal> {
        self.index(mfn).ok_or(Refusal::NotRam { mfn })
    }

    /// The RAM frame at an index below `len()`.
    pub fn mfn(&self, index: usize) -> Mfn {
        Mfn(self.base + index as u64)
    }

    pub fn at(&self, index: usize) -> Frame {
        Frame(self.frames[index])
    }

    pub fn set(&mut self, index: usize, frame: Frame) {
        self.frames[index] = frame.0;
    }

    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether a translation from the frame's last use may still be cached.
    pub fn is_stale(&self, frame: Frame) -> bool {
        frame.epoch() >= self.epoch
    }

    /// All vCPUs have been flushed. When the epochs run out, the flush that
    /// has just happened makes them all equally old.
    pub fn advance_epoch(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            for frame in &mut self.frames[..self.fresh] {
                frame[2] = 0;
            }
            self.epoch = 1;
        }
    }
}
