//! Giving frames to the domain and taking them back
//! (`XENMEM_populate_physmap`, `XENMEM_decrease_reservation`).

use guest_abi::{addr::Mfn, errno::Errno};

use super::{
    Paging,
    refusal::{Refusal, Traced},
    relinquish::Relinquish,
};

/// The largest extent, as on Xen for an ordinary domain: 2 MiB.
pub const MAX_ORDER: u32 = 9;

/// What became of a frame that the domain gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// It is free: nobody refers to it any more.
    Freed,
    /// It becomes free when the last reference to it goes.
    Deferred,
}

impl Paging {
    /// Adds `2^order` consecutive frames, aligned to their size, to the
    /// domain's reservation, and gives the first. Frames that were used before
    /// come as they were left: it is the same domain's data.
    ///
    /// # Errors
    /// `ENOMEM` if there are none (an extent larger than one frame needs
    /// frames never used before), or `order` is above 9.
    pub fn allocate(&mut self, order: u32) -> Result<Mfn, Errno> {
        self.try_allocate(order).traced("allocate")
    }

    fn try_allocate(&mut self, order: u32) -> Result<Mfn, Refusal> {
        self.alive()?;
        let first = match order {
            0 => self.frames.free.pop().map(|i| i as usize),
            _ => None,
        };
        let first = first
            .or_else(|| self.take_fresh(order))
            .ok_or(Refusal::NoMemory {
                order,
                free: self.free_frames(),
            })?;
        for index in first..first + (1 << order) {
            let frame = self.frames.at(index);
            self.frames
                .set(index, frame.with_refs(1).with_allocated(true));
        }
        self.frames.owned += 1 << order;
        Ok(self.frames.mfn(first))
    }

    /// Frames that have never been used. Those skipped for alignment are free.
    fn take_fresh(&mut self, order: u32) -> Option<usize> {
        if order > MAX_ORDER {
            return None;
        }
        let skipped = self.frames.fresh;
        let mfn = self
            .frames
            .mfn(skipped)
            .0
            .checked_next_multiple_of(1 << order)?;
        let first = self.frames.index(Mfn(mfn))?;
        let end = first.checked_add(1 << order)?;
        if end > self.frames.len() {
            return None;
        }
        let skipped = (skipped..first).filter_map(|i| u32::try_from(i).ok());
        self.frames.free.extend(skipped);
        self.frames.fresh = end;
        Some(first)
    }

    /// Removes a frame from the domain's reservation: its *allocated*
    /// reference goes. A frame that is mapped, pinned or granted stays what it
    /// is until the last of these is gone; nothing is unpinned or unmapped
    /// here (XSA-252).
    ///
    /// # Errors
    /// `EINVAL` if the frame is not the domain's or was given back before.
    pub fn release(&mut self, mfn: Mfn) -> Result<Released, Errno> {
        self.try_release(mfn).traced("release")
    }

    fn try_release(&mut self, mfn: Mfn) -> Result<Released, Refusal> {
        self.alive()?;
        let index = self.frames.ram(mfn)?;
        let frame = self.frames.at(index);
        if !frame.allocated() {
            return Err(Refusal::NotAllocated { mfn });
        }
        self.frames.set(index, frame.with_allocated(false));
        self.put_ref(mfn);
        Ok(match self.frames.at(index).refs() {
            0 => Released::Freed,
            _ => Released::Deferred,
        })
    }

    /// Like [`release`](Self::release), for a frame that nobody uses: one that
    /// is mapped, pinned or granted is refused (`steal_page`).
    ///
    /// # Errors
    /// `EINVAL` if the frame is not the domain's, `EBUSY` if it is in use.
    pub fn release_unused(&mut self, mfn: Mfn) -> Result<(), Errno> {
        self.check_unused(mfn)
            .and_then(|()| self.try_release(mfn).map(|_| ()))
            .traced("release_unused")
    }

    fn check_unused(&self, mfn: Mfn) -> Result<(), Refusal> {
        let frame = self.frames.at(self.frames.ram(mfn)?);
        match (frame.allocated(), frame.refs()) {
            (false, _) => Err(Refusal::NotAllocated { mfn }),
            (true, 1) => Ok(()),
            (true, refs) => Err(Refusal::StillMapped {
                mfn,
                refs: refs.saturating_sub(1),
            }),
        }
    }

    /// The number of frames that the domain has (`tot_pages`), including those
    /// given back that somebody still refers to.
    #[must_use]
    pub fn owned_frames(&self) -> u64 {
        self.frames.owned
    }

    /// The number of frames that could be allocated one by one.
    #[must_use]
    pub fn free_frames(&self) -> u64 {
        (self.frames.len() as u64).saturating_sub(self.frames.owned)
    }

    /// The last reference to a frame is gone.
    ///
    /// A dying domain's table keeps its type until the scan has returned what
    /// its entries hold.
    pub(super) fn free_frame(&mut self, index: usize) {
        let frame = self.frames.at(index);
        self.frames.owned = self.frames.owned.saturating_sub(1);
        match self.relinquish {
            Relinquish::Alive => {
                self.frames.set(index, frame.freed());
                if let Ok(index) = u32::try_from(index) {
                    self.frames.free.push(index);
                }
            }
            Relinquish::Work | Relinquish::Vcpus { .. } | Relinquish::Tables { .. } => {
                self.frames.set(index, frame.with_refs(0));
            }
            Relinquish::Frames { .. } | Relinquish::Done => {
                self.frames.set(index, frame.freed());
            }
        }
    }
}
