//! Foreign frames: pages of other domains, as grants let this one map them.
//!
//! They have numbers of their own, past all other memory of the domain, which
//! mean something only while a grant is mapped there. An L1 entry that names
//! one is made here, by a grant operation, and nowhere else: any other request
//! that names one is refused, as Xen refuses an entry for another domain's
//! frame. So such an entry allows writing only if the grant does.
//!
//! A guest may overwrite the entry by an ordinary request, or drop its whole
//! table. Then it has no more an entry to show when it unmaps the grant, which
//! stays mapped until the domain dies: its own loss, as on Xen.

use guest_abi::{
    addr::{GuestVirt, MachineAddr, Mfn},
    errno::Errno,
};

use super::{
    Paging, TableStore,
    frame::FrameTable,
    pte::{Level, Pte},
    refusal::Refusal,
    update::{Ad, entry_at},
    walk::Slot,
};

/// The foreign frames, and how many L1 entries name each.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    first: u64,
    mappings: Vec<u32>,
}

impl Foreign {
    fn index(&self, mfn: Mfn) -> Option<usize> {
        let index = usize::try_from(mfn.0.checked_sub(self.first)?).ok()?;
        (index < self.mappings.len()).then_some(index)
    }

    pub fn is_foreign(&self, mfn: Mfn) -> bool {
        self.index(mfn).is_some()
    }

    /// For the audit: all frames that are named.
    pub fn named(&self) -> impl Iterator<Item = (Mfn, u32)> {
        (self.first..)
            .map(Mfn)
            .zip(self.mappings.iter().copied())
            .filter(|(_, count)| *count > 0)
    }
}

impl FrameTable {
    fn map_foreign(&mut self, mfn: Mfn) -> Result<(), Refusal> {
        let index = self.foreign.index(mfn).ok_or(Refusal::NotRam { mfn })?;
        let count = &mut self.foreign.mappings[index];
        *count = count.checked_add(1).ok_or(Refusal::CountOverflow { mfn })?;
        Ok(())
    }

    /// An entry that named a foreign frame is gone; `false` if it is none.
    pub fn unmap_foreign(&mut self, mfn: Mfn) -> bool {
        let Some(index) = self.foreign.index(mfn) else {
            return false;
        };
        match self.foreign.mappings[index].checked_sub(1) {
            Some(n) => self.foreign.mappings[index] = n,
            None => tracing::error!(%mfn, "unmapped a foreign frame that was not mapped"),
        }
        true
    }
}

/// Where a grant operation finds its L1 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantSlot {
    /// At a machine address (`GNTMAP_contains_pte`).
    Entry(MachineAddr),
    /// Where this address is mapped under this root.
    Virtual(Mfn, GuestVirt),
}

impl Paging {
    /// Gives the numbers from `first` on to foreign frames. Once.
    ///
    /// # Errors
    /// `EINVAL` for numbers that mean something already.
    pub fn add_foreign_frames(&mut self, first: Mfn, count: usize) -> Result<(), Errno> {
        let free = self.frames.low_index(first).is_none()
            && self.frames.index(first).is_none()
            && self.frames.foreign.mappings.is_empty()
            && first.0.checked_add(count as u64).is_some();
        if !free {
            return Err(Refusal::NotRam { mfn: first }.traced("add_foreign_frames"));
        }
        self.frames.foreign = Foreign {
            first: first.0,
            mappings: vec![0; count],
        };
        Ok(())
    }

    /// Puts `entry`, which names a foreign frame, where `at` says, in place of
    /// whatever is there (`create_grant_host_mapping`).
    ///
    /// # Errors
    /// `EINVAL` if there is no L1 entry, or `entry` has a forbidden bit.
    pub fn map_grant<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        at: GrantSlot,
        entry: Pte,
    ) -> Result<(), Errno> {
        self.operate(store, "map_grant", None, |p| {
            p.try_map_grant(store, at, entry)
        })
    }

    fn try_map_grant<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        at: GrantSlot,
        entry: Pte,
    ) -> Result<(), Refusal> {
        let slot = self.grant_slot(store, at)?;
        entry.check(Level::L1)?;
        self.frames.map_foreign(entry.mfn())?;
        let replaced = self.replace(store, slot, entry.adjusted());
        if replaced.is_err() {
            self.frames.unmap_foreign(entry.mfn());
        }
        replaced
    }

    /// Takes the entry that maps the foreign frame `mfn`, writable or not,
    /// from where `at` says; the entry at `instead` moves there.
    ///
    /// # Errors
    /// `EINVAL` if there is no L1 entry, there or at `instead`, or another one
    /// than told (XSA-227, XSA-234): then nothing has changed.
    pub fn unmap_grant<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        at: GrantSlot,
        mfn: Mfn,
        writable: bool,
        instead: Option<GrantSlot>,
    ) -> Result<(), Errno> {
        self.operate(store, "unmap_grant", None, |p| {
            p.try_unmap_grant(store, at, mfn, writable, instead)
        })
    }

    fn try_unmap_grant<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        at: GrantSlot,
        mfn: Mfn,
        writable: bool,
        instead: Option<GrantSlot>,
    ) -> Result<(), Refusal> {
        let slot = self.grant_slot(store, at)?;
        let found = Pte(store.load(slot.table, slot.index));
        let as_told = found.is_present() && found.mfn() == mfn && found.is_writable() == writable;
        if !as_told {
            return Err(Refusal::NotThatGrant { found, mfn });
        }
        let Some(instead) = instead else {
            return self.replace(store, slot, Pte(0));
        };
        let from = self.grant_slot(store, instead)?;
        if from == slot {
            return Err(Refusal::NotThatGrant { found, mfn });
        }
        // What the entry holds moves with it.
        let moved = Pte(store.load(from.table, from.index));
        let moved = Self::take_out(store, from, moved, Pte(0))?;
        let done = self.replace(store, slot, moved);
        if done.is_err() && Self::take_out(store, from, Pte(0), moved).is_err() {
            self.let_entry_go(moved);
        }
        done
    }

    /// The L1 entry that a grant operation names, in a table in use.
    fn grant_slot<S: TableStore + ?Sized>(
        &self,
        store: &S,
        at: GrantSlot,
    ) -> Result<Slot, Refusal> {
        let slot = match at {
            GrantSlot::Entry(at) => {
                let (table, index) = entry_at(at)?;
                Slot { table, index }
            }
            GrantSlot::Virtual(root, va) => {
                self.l1_slot(store, root, va).ok_or(Refusal::NoL1 { va })?
            }
        };
        if self.is_live_l1(slot.table) {
            Ok(slot)
        } else {
            Err(Refusal::NoTable { mfn: slot.table })
        }
    }

    /// Replaces an L1 entry by one whose references are taken already, and
    /// returns those of the old one.
    fn replace<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        slot: Slot,
        new: Pte,
    ) -> Result<(), Refusal> {
        let old = Pte(store.load(slot.table, slot.index));
        let replaced = Self::take_out(store, slot, old, new)?;
        self.let_entry_go(replaced);
        Ok(())
    }

    fn let_entry_go(&mut self, entry: Pte) {
        if entry.is_present() {
            self.put_entry(Level::L1, entry);
        }
    }

    /// Exchanges entries; gives the one replaced.
    fn take_out<S: TableStore + ?Sized>(
        store: &S,
        Slot { table, index }: Slot,
        old: Pte,
        new: Pte,
    ) -> Result<Pte, Refusal> {
        let swapped = Self::swap(store, table, index, old, new, Ad::Replace);
        swapped.map_err(|found| Refusal::Contended {
            table,
            index,
            found,
        })
    }
}
