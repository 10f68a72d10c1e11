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
    /// before it took.
    fn validate_table<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        table: Mfn,
        level: Level,
    ) -> Result<(), Refusal> {
        for index in 0..ENTRIES {
            if let Err(refusal) = self.validate_entry(store, table, level, index) {
                self.put_entries(store, table, level, index);
                return Err(refusal);
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
                self.put_entry(store, level, pte);
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
        self.put_entries(store, table, level, ENTRIES);
    }

    fn put_entries<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        table: Mfn,
        level: Level,
        count: usize,
    ) {
        for index in (0..count).filter(|i| is_guest_slot(level, *i)) {
            let pte = Pte(store.load(table, index));
            if pte.is_present() {
                self.put_entry(store, level, pte);
            }
        }
    }
}
