//! Hypervisor-owned frames, below the domain's RAM.
//!
//! A few of them are shared with the guest (shared info, grant table): its L1
//! entries may map those, with the rights that were shared and never as a
//! table. All others may not be named in any entry.

use guest_abi::{addr::Mfn, errno::Errno};

use super::{
    Paging,
    frame::FrameTable,
    pte::Pte,
    refusal::{Refusal, Traced},
};

/// How a guest may map a hypervisor-owned frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LowAccess {
    /// Not at all.
    Private,
    /// Read-only.
    ReadOnly,
    /// Writable or read-only.
    ReadWrite,
}

/// Word 0: access; word 1: the number of L1 entries that map it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LowFrame(pub [u32; 2]);

impl LowFrame {
    pub const fn access(self) -> LowAccess {
        match self.0[0] {
            1 => LowAccess::ReadOnly,
            2 => LowAccess::ReadWrite,
            _ => LowAccess::Private,
        }
    }
    pub const fn mappings(self) -> u32 {
        self.0[1]
    }
    const fn with_access(self, access: LowAccess) -> Self {
        let bits = match access {
            LowAccess::Private => 0,
            LowAccess::ReadOnly => 1,
            LowAccess::ReadWrite => 2,
        };
        Self([bits, self.0[1]])
    }
}

impl FrameTable {
    /// The index of a frame below RAM.
    pub fn low_index(&self, mfn: Mfn) -> Option<usize> {
        usize::try_from(mfn.0).ok().filter(|i| *i < self.low.len())
    }

    /// Counts a new mapping of a hypervisor-owned frame.
    pub fn map_low(&mut self, index: usize, pte: Pte) -> Result<(), Refusal> {
        let mfn = pte.mfn();
        let frame = &mut self.low[index];
        match frame.access() {
            LowAccess::Private => return Err(Refusal::MapNotOwned { pte, mfn }),
            LowAccess::ReadOnly if pte.is_writable() => {
                return Err(Refusal::MapReadOnlyShare { pte, mfn });
            }
            LowAccess::ReadOnly | LowAccess::ReadWrite => {}
        }
        frame.0[1] = frame.0[1]
            .checked_add(1)
            .ok_or(Refusal::CountOverflow { mfn })?;
        Ok(())
    }

    /// A mapping of a hypervisor-owned frame is gone.
    pub fn unmap_low(&mut self, index: usize) {
        match self.low[index].0[1].checked_sub(1) {
            Some(n) => self.low[index].0[1] = n,
            None => tracing::error!(index, "unmapped a shared frame that was not mapped"),
        }
    }
}

impl Paging {
    /// Lets the guest map `mfn`, a frame below its RAM, or takes that back
    /// (Xen's `share_xen_page_with_guest`).
    ///
    /// # Errors
    /// `EINVAL` if `mfn` is not below RAM; `EBUSY` if it is mapped and would
    /// lose a right.
    pub fn share_low_frame(&mut self, mfn: Mfn, access: LowAccess) -> Result<(), Errno> {
        self.try_share_low_frame(mfn, access)
            .traced("share_low_frame")
    }

    fn try_share_low_frame(&mut self, mfn: Mfn, access: LowAccess) -> Result<(), Refusal> {
        let index = self
            .frames
            .low_index(mfn)
            .ok_or(Refusal::NotOwned { mfn })?;
        let frame = self.frames.low[index];
        let keeps = access == LowAccess::ReadWrite || access == frame.access();
        if !keeps && frame.mappings() > 0 {
            return Err(Refusal::StillMapped {
                mfn,
                refs: frame.mappings(),
            });
        }
        self.frames.low[index] = frame.with_access(access);
        Ok(())
    }
}
