//! Turning a frame into a page table and back.

use guest_abi::addr::Mfn;

use super::{
    ENTRIES, FIRST_HYPERVISOR_SLOT, LAST_HYPERVISOR_SLOT, Paging, TableStore,
    frame::FrameType,
    pte::{Level, Pte},
    refusal::Refusal,
    update::Ad,
};

/// Whether slot `index` of a table of `level` is the guest's to fill.
pub(super) const fn is_guest_slot(level: Level, index: usize) -> bool {
    !(matches!(level, Level::L4) && index >= FIRST_HYPERVISOR_SLOT && index <= LAST_HYPERVISOR_SLOT)
}

impl Paging {
    /// Checks the content of a frame that has just got type `t` and cannot be
    /// written by the guest any more.
    pub(super) fn validate<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        mfn: Mfn,
        t: FrameType,
    ) -> Result<(), Refusal> {
        match (t, t.level()) {
            (FrameType::SegDesc, _) => Self::validate_descriptors(store, mfn),
            (_, Some(level)) => {
                store.table_promoted(mfn);
                self.validate_table(store, mfn, level)
            }
            (_, None) => Ok(()),
        }
    }

    /// Takes what each entry holds. If one is refused, returns what the ones
    /// before it took; if it is interrupted, keeps that for the next attempt.
    fn validate_table<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        table: Mfn,
        level: Level,
    ) -> Result<(), Refusal> {
        self.work.spend()?;
        for index in 0..ENTRIES {
            let outcome = self.validate_entry(store, table, level, index);
            match outcome {
                Ok(()) => {}
                Err(Refusal::Restart) => {
                    Self::each_entry(store, table, level, index, |pte| self.work.keep(pte.mfn()));
                    return outcome;
                }
                Err(_) => {
                    Self::each_entry(store, table, level, index, |pte| self.put_entry(level, pte));
                    return outcome;
                }
            }
        }
        Ok(())
    }

    fn validate_entry<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        table: Mfn,
        level: Level,
        index: usize,
    ) -> Result<(), Refusal> {
        if !is_guest_slot(level, index) {
            return Ok(());
        }
        let pte = Pte(store.load(table, index));
        if !pte.is_present() {
            return Ok(());
        }
        self.get_entry(store, level, pte)?;
        if pte == pte.adjusted() {
            return Ok(());
        }
        Self::swap(store, table, index, pte, pte.adjusted(), Ad::Preserve)
            .map(|_| ())
            .map_err(|found| {
                self.put_entry(level, pte);
                Refusal::Contended {
                    table,
                    index,
                    found,
                }
            })
    }

    /// Returns what the entries of a table hold.
    pub(super) fn devalidate<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        table: Mfn,
        level: Level,
    ) {
        Self::each_entry(store, table, level, ENTRIES, |pte| {
            self.put_entry(level, pte);
        });
    }

    /// Calls `what` with the present entries among the first `count`.
    fn each_entry<S: TableStore + ?Sized>(
        store: &S,
        table: Mfn,
        level: Level,
        count: usize,
        mut what: impl FnMut(Pte),
    ) {
        for index in (0..count).filter(|i| is_guest_slot(level, *i)) {
            let pte = Pte(store.load(table, index));
            if pte.is_present() {
                what(pte);
            }
        }
    }
}
