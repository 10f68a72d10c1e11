//! Taking and returning the two counts. See the top of the module for what
//! they mean.

use guest_abi::{addr::Mfn, errno::Errno};

use super::{
    Paging, TableStore,
    frame::{Frame, FrameType},
    pte::{Level, Pte},
    refusal::{Refusal, Traced},
    relinquish::Relinquish,
};

impl Paging {
    /// Takes a reference to a RAM frame that somebody owns (`get_page`).
    pub(super) fn get_ref(&mut self, mfn: Mfn) -> Result<(), Refusal> {
        let index = self.frames.ram(mfn)?;
        let frame = self.frames.at(index);
        match frame.refs() {
            0 => Err(Refusal::NotOwned { mfn }),
            Frame::MAX_REFS.. => Err(Refusal::CountOverflow { mfn }),
            refs => {
                self.frames.set(index, frame.with_refs(refs + 1));
                Ok(())
            }
        }
    }

    /// Returns a reference (`put_page`); with the last one the frame is free.
    pub(super) fn put_ref(&mut self, mfn: Mfn) {
        let Some(index) = self.frames.index(mfn) else {
            return impossible(mfn, "reference to no RAM returned");
        };
        let frame = self.frames.at(index);
        match frame.refs() {
            0 => impossible(mfn, "reference returned that nobody held"),
            1 => self.free_frame(index),
            refs => self.frames.set(index, frame.with_refs(refs - 1)),
        }
    }

    /// Takes a type reference (`get_page_type`); the caller holds a reference.
    /// The first use of another type validates the frame.
    pub(super) fn get_type<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        mfn: Mfn,
        want: FrameType,
    ) -> Result<(), Refusal> {
        let index = self.frames.ram(mfn)?;
        let frame = self.frames.at(index);
        match frame.type_count() {
            0 => self.first_use(store, index, want),
            Frame::MAX_TYPE_COUNT => Err(Refusal::CountOverflow { mfn }),
            count if frame.frame_type() == want && frame.validated() => {
                self.frames.set(index, frame.with_type_count(count + 1));
                Ok(())
            }
            count => Err(Refusal::TypeInUse {
                mfn,
                has: frame.frame_type(),
                want,
                count,
            }),
        }
    }

    /// The type is taken, then stale translations are flushed, then the
    /// content is validated: in this order, or a write through a stale
    /// translation could follow the check (XSA-401, XSA-408).
    fn first_use<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        index: usize,
        want: FrameType,
    ) -> Result<(), Refusal> {
        let mfn = self.frames.mfn(index);
        let before = self.frames.at(index);
        self.frames.set(index, before.first_use_as(want));
        store.use_begins(mfn);
        if before.frame_type() != want && self.frames.is_stale(before) {
            store.flush_writable(mfn);
            self.frames.advance_epoch();
        }
        let outcome = self.validate(store, mfn, want);
        let now = self.frames.at(index);
        match outcome {
            Ok(()) => self.frames.set(index, now.with_validated(true)),
            Err(_) => self.frames.set(index, now.with_type_of(before)),
        }
        outcome?;
        if want == FrameType::L4 {
            store.install_hypervisor_slots(mfn);
        }
        Ok(())
    }

    /// Returns a type reference (`put_page_type`). With the last one a page
    /// table is doomed to return all that its entries hold.
    ///
    /// In a dying domain it is not: there the scan of all frames returns them.
    pub(super) fn put_type(&mut self, mfn: Mfn) {
        let Some(index) = self.frames.index(mfn) else {
            return impossible(mfn, "type of no RAM returned");
        };
        let frame = self.frames.at(index);
        let alive = matches!(self.relinquish, Relinquish::Alive);
        match frame.type_count() {
            0 => impossible(mfn, "type returned that nobody held"),
            1 if alive && frame.live_table().is_some() => self.doom(index),
            1 => self.end_type(mfn),
            count => self.frames.set(index, frame.with_type_count(count - 1)),
        }
    }

    /// The last use of a table ends. Its type reference, and one reference
    /// more, pass to the work list; not validated, it is of no use to anybody.
    fn doom(&mut self, index: usize) {
        let frame = self.frames.at(index);
        let doomed = frame
            .with_validated(false)
            .with_refs(frame.refs().saturating_add(1));
        self.frames.set(index, doomed);
        self.work.doom(self.frames.mfn(index));
    }

    /// The last type reference is gone.
    pub(super) fn end_type(&mut self, mfn: Mfn) {
        let Some(index) = self.frames.index(mfn) else {
            return;
        };
        let frame = self.frames.at(index);
        let unscanned = frame.validated() && !matches!(self.relinquish, Relinquish::Alive);
        let ended = frame
            .with_type_count(0)
            .with_validated(unscanned)
            .with_epoch(self.frames.epoch());
        self.frames.set(index, ended);
    }

    /// Both references at once (`get_page_and_type`).
    pub(super) fn get_page_and_type<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        mfn: Mfn,
        want: FrameType,
    ) -> Result<(), Refusal> {
        self.get_ref(mfn)?;
        self.get_type(store, mfn, want)
            .inspect_err(|_| self.put_ref(mfn))
    }

    /// Both references at once (`put_page_and_type`).
    pub(super) fn put_page_and_type(&mut self, mfn: Mfn) {
        self.put_type(mfn);
        self.put_ref(mfn);
    }

    /// Takes what a present entry of a table of `level` holds
    /// (`get_page_from_lNe`).
    pub(super) fn get_entry<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        level: Level,
        pte: Pte,
    ) -> Result<(), Refusal> {
        pte.check(level)?;
        match level.below() {
            Some(below) => self.get_page_and_type(store, pte.mfn(), below.frame_type()),
            None => self.get_data(store, pte),
        }
    }

    /// Returns what a present entry holds (`put_page_from_lNe`).
    pub(super) fn put_entry(&mut self, level: Level, pte: Pte) {
        let mfn = pte.mfn();
        if level == Level::L1 && self.frames.unmap_foreign(mfn) {
            return;
        }
        match (level, self.frames.low_index(mfn)) {
            (Level::L1, Some(low)) => self.frames.unmap_low(low),
            (Level::L1, None) if !pte.is_writable() => self.put_ref(mfn),
            _ => self.put_page_and_type(mfn),
        }
    }

    fn get_data<S: TableStore + ?Sized>(&mut self, store: &S, pte: Pte) -> Result<(), Refusal> {
        let mfn = pte.mfn();
        if let Some(low) = self.frames.low_index(mfn) {
            return self.frames.map_low(low, pte);
        }
        if self.frames.foreign.is_foreign(mfn) {
            return Err(Refusal::MapNotOwned { pte, mfn });
        }
        let wanted = if pte.is_writable() {
            self.get_page_and_type(store, mfn, FrameType::Writable)
        } else {
            self.get_ref(mfn)
        };
        wanted.map_err(|refusal| match refusal {
            Refusal::NotRam { .. } => Refusal::MapOutside { pte, mfn },
            Refusal::NotOwned { .. } => Refusal::MapNotOwned { pte, mfn },
            Refusal::TypeInUse { has, count, .. } => Refusal::MapNotWritable {
                pte,
                mfn,
                has,
                count,
            },
            other => other,
        })
    }
}

/// For grants and hypercall buffers: users of a frame other than page tables.
impl Paging {
    /// Takes a reference to a RAM frame: it stays the domain's, with whatever
    /// type (`get_page`).
    ///
    /// # Errors
    /// `EINVAL` if `mfn` is not RAM allocated to the domain.
    pub fn get_frame_ref(&mut self, mfn: Mfn) -> Result<(), Errno> {
        self.alive()
            .and_then(|()| self.get_ref(mfn))
            .traced("get_frame_ref")
    }

    /// Returns what [`get_frame_ref`](Self::get_frame_ref) took.
    pub fn put_frame_ref(&mut self, mfn: Mfn) {
        self.put_ref(mfn);
    }

    /// Takes a RAM frame for writing: it stays writable, so that it can't
    /// become a page table (`get_page_and_type`).
    ///
    /// # Errors
    /// `EINVAL` if `mfn` is not RAM allocated to the domain, or in use as a
    /// page or descriptor table.
    pub fn get_writable<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        mfn: Mfn,
    ) -> Result<(), Errno> {
        self.operate(store, "get_writable", None, |p| {
            p.get_page_and_type(store, mfn, FrameType::Writable)
        })
    }

    /// Returns what [`get_writable`](Self::get_writable) took.
    pub fn put_writable<S: TableStore + ?Sized>(&mut self, _store: &S, mfn: Mfn) {
        self.put_page_and_type(mfn);
    }
}

/// A count that would become negative. The cause is memory changed behind our
/// back, or a bug; the count of one domain is wrong, and the VM's own walls
/// still stand.
fn impossible(mfn: Mfn, what: &'static str) {
    tracing::error!(?mfn, "{what}");
}
