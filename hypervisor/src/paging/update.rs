//! Changing one entry.

use guest_abi::{
    addr::{GuestVirt, MachineAddr, Mfn},
    errno::Errno,
};

use super::{
    Paging, TableStore,
    frame::FrameType,
    pte::{Level, Pte},
    refusal::{Refusal, Traced},
    validate::is_guest_slot,
};

/// How often the processor may set a bit in an entry between our look at it
/// and our change of it. It has two to set.
const RETRIES: usize = 32;

/// Which request an `mmu_update` makes of a page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateMode {
    /// `MMU_NORMAL_PT_UPDATE`: the entry becomes the value.
    Normal,
    /// `MMU_PT_UPDATE_PRESERVE_AD`: the accessed and dirty bits of the old
    /// entry are kept.
    PreserveAd,
}

/// What [`Paging::swap`] does about accessed and dirty bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ad {
    /// The old entry must be the expected one in every bit.
    Exact,
    /// They may have changed, and are overwritten.
    Replace,
    /// They may have changed, and are kept.
    Preserve,
}

impl Paging {
    /// One `MMU_NORMAL_PT_UPDATE` or `MMU_PT_UPDATE_PRESERVE_AD`: writes `value`
    /// at `at`, which lies in a page table of any level, or in a page that the
    /// guest may write anyway.
    ///
    /// # Errors
    /// - `EINVAL`: `at` is not an aligned address in RAM of the domain, is in a
    ///   hypervisor slot, or lies in a descriptor table; the value has a
    ///   forbidden bit; the frame that it names can't be a table of the level
    ///   below.
    /// - `EBUSY`: an L1 entry maps a table writable, or a frame that is not the
    ///   guest's.
    /// - `EPERM`: an L1 entry maps something that is no memory.
    pub fn mmu_update<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        at: MachineAddr,
        value: Pte,
        mode: UpdateMode,
    ) -> Result<(), Errno> {
        let top = value.is_present().then(|| value.mfn());
        self.operate(store, "mmu_update", top, |p| {
            p.try_mmu_update(store, at, value, mode)
        })
    }

    fn try_mmu_update<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        at: MachineAddr,
        value: Pte,
        mode: UpdateMode,
    ) -> Result<(), Refusal> {
        let (table, index) = entry_at(at)?;
        self.get_ref(table)?;
        let outcome = match self.frames.at(self.frames.ram(table)?).live_table() {
            Some(level) => self.mod_entry(store, level, table, index, value, mode),
            None => self.raw_write(store, table, index, value),
        };
        self.put_ref(table);
        outcome
    }

    fn raw_write<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        frame: Mfn,
        index: usize,
        value: Pte,
    ) -> Result<(), Refusal> {
        self.get_type(store, frame, FrameType::Writable)?;
        store.store(frame, index, value.0);
        self.put_type(frame);
        Ok(())
    }

    /// `update_va_mapping`: writes the L1 entry that maps `va` under `root`.
    ///
    /// # Errors
    /// `EINVAL` if `va` has no L1 table; else as
    /// [`mmu_update`](Self::mmu_update).
    pub fn update_va_mapping<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        root: Mfn,
        va: GuestVirt,
        value: Pte,
    ) -> Result<(), Errno> {
        self.operate(store, "update_va_mapping", None, |p| {
            p.try_update_va_mapping(store, root, va, value)
        })
    }

    fn try_update_va_mapping<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        root: Mfn,
        va: GuestVirt,
        value: Pte,
    ) -> Result<(), Refusal> {
        let slot = self
            .l1_slot(store, root, va)
            .filter(|slot| self.is_live_l1(slot.table))
            .ok_or(Refusal::NoL1 { va })?;
        let (table, index) = (slot.table, slot.index);
        self.mod_entry(store, Level::L1, table, index, value, UpdateMode::Normal)
    }

    /// Whether a machine-to-phys entry of `mfn` is the guest's to set
    /// (`MMU_MACHPHYS_UPDATE`).
    ///
    /// # Errors
    /// `EINVAL` if `mfn` is not RAM allocated to the domain.
    pub fn check_machphys(&self, mfn: Mfn) -> Result<(), Errno> {
        self.alive()
            .and_then(|()| match self.owns(mfn) {
                true => Ok(()),
                false => Err(Refusal::NotOwned { mfn }),
            })
            .traced("check_machphys")
    }

    /// Whether `table` is an L1 table in use.
    pub(super) fn is_live_l1(&self, table: Mfn) -> bool {
        self.frames
            .index(table)
            .is_some_and(|i| self.frames.at(i).live_table() == Some(Level::L1))
    }

    /// Changes one entry of a validated table (`mod_lN_entry`).
    pub(super) fn mod_entry<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        level: Level,
        table: Mfn,
        index: usize,
        value: Pte,
        mode: UpdateMode,
    ) -> Result<(), Refusal> {
        let old = Pte(store.load(table, index));
        let ad = match mode {
            UpdateMode::Normal => Ad::Replace,
            UpdateMode::PreserveAd => Ad::Preserve,
        };
        self.exchange(store, level, table, index, old, value, ad)?
            .map_err(|found| Refusal::Contended {
                table,
                index,
                found,
            })
    }

    /// Replaces `old`, which has just been read, by what `value` becomes when a
    /// guest asks for it: takes
    /// the references of the new entry first and returns those of the old one
    /// last. The inner error is the entry found instead of `old`; then, too,
    /// nothing has changed.
    #[allow(clippy::too_many_arguments)] // one entry's place, both values, and how
    pub(super) fn exchange<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        level: Level,
        table: Mfn,
        index: usize,
        old: Pte,
        value: Pte,
        ad: Ad,
    ) -> Result<Result<(), Pte>, Refusal> {
        if !is_guest_slot(level, index) {
            return Err(Refusal::HypervisorSlot { index });
        }
        let new = value.adjusted();
        if new.is_present() {
            value.check(level)?;
        }
        if old == new {
            return Ok(Ok(()));
        }
        if old.differs_harmlessly(new) {
            return Ok(Self::swap(store, table, index, old, new, ad).map(|_| ()));
        }
        if new.is_present() {
            self.get_entry(store, level, new)?;
        }
        let swapped = Self::swap(store, table, index, old, new, ad);
        let dropped = match swapped {
            Ok(replaced) => replaced,
            Err(_) => new,
        };
        if dropped.is_present() {
            self.put_entry(level, dropped);
        }
        Ok(swapped.map(|_| ()))
    }

    /// Replaces `old` by `new` in memory, following the processor's changes of
    /// accessed and dirty bits as `ad` says. Gives the entry replaced.
    pub(super) fn swap<S: TableStore + ?Sized>(
        store: &S,
        table: Mfn,
        index: usize,
        mut old: Pte,
        new: Pte,
        ad: Ad,
    ) -> Result<Pte, Pte> {
        for _ in 0..RETRIES {
            let kept = match ad {
                Ad::Preserve => old.0 & Pte::ACCESSED_DIRTY,
                Ad::Exact | Ad::Replace => 0,
            };
            match store.compare_exchange(table, index, old.0, new.0 | kept) {
                Ok(()) => return Ok(old),
                Err(found) if ad != Ad::Exact && Pte(found).differs_by_processor(old) => {
                    old = Pte(found);
                }
                Err(found) => return Err(Pte(found)),
            }
        }
        Err(old)
    }
}

/// The frame and index of the 8-byte entry at a machine address.
pub(super) fn entry_at(at: MachineAddr) -> Result<(Mfn, usize), Refusal> {
    if !at.0.is_multiple_of(8) {
        return Err(Refusal::Misaligned {
            addr: at.0,
            align: 8,
        });
    }
    #[allow(clippy::cast_possible_truncation)] // below 512
    let index = (at.page_offset() / 8) as usize;
    Ok((at.frame(), index))
}
