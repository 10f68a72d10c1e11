//! Reading the guest's tables as the processor would.
//!
//! A walk is four loads. It trusts none of them: a frame number is range
//! checked before it is followed, so that the worst table gives a wrong
//! answer about its own domain.

use guest_abi::addr::{GuestVirt, Mfn};

use super::{
    Paging, TableStore,
    low::LowAccess,
    pte::{Level, Pte},
    validate::is_guest_slot,
};

/// One entry of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The table's frame.
    pub table: Mfn,
    /// The entry's number.
    pub index: usize,
}

/// What a guest address means under a root.
///
/// It is true while the `mm` lock is held. To use the frame after that, take a
/// reference first ([`Paging::get_writable`], [`Paging::get_frame_ref`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The frame: RAM, a hypervisor frame that the guest may map, or another
    /// domain's that was granted.
    pub mfn: Mfn,
    /// The byte's offset in it.
    pub offset: u64,
    /// The L1 entry.
    pub pte: Pte,
    /// Writes are allowed at all levels.
    pub writable: bool,
    /// Ring 3 is allowed at all levels.
    pub user: bool,
    /// Some level forbids execution.
    pub nx: bool,
    /// Where the L1 entry is.
    pub slot: Slot,
}

/// What the levels above L1 allow.
#[derive(Clone, Copy)]
struct Rights {
    all: u64,
    any: u64,
}

impl Rights {
    const FULL: Self = Self { all: !0, any: 0 };

    const fn through(self, pte: Pte) -> Self {
        Self {
            all: self.all & pte.0,
            any: self.any | pte.0,
        }
    }
}

impl Paging {
    /// Translates `va` under `root`. `None` if it is not canonical, lies in
    /// the hypervisor's range, or is not mapped.
    #[must_use]
    pub fn translate<S: TableStore + ?Sized>(
        &self,
        store: &S,
        root: Mfn,
        va: GuestVirt,
    ) -> Option<Translation> {
        let (slot, rights) = self.walk_to_l1(store, root, va)?;
        let pte = Pte(store.load(slot.table, slot.index));
        if !pte.is_present() || !self.is_guest_memory(pte.mfn()) {
            return None;
        }
        let rights = rights.through(pte);
        Some(Translation {
            mfn: pte.mfn(),
            offset: va.page_offset(),
            pte,
            writable: rights.all & Pte::RW != 0,
            user: rights.all & Pte::USER != 0,
            nx: rights.any & Pte::NX != 0,
            slot,
        })
    }

    /// Where the L1 entry for `va` is, whatever it holds.
    #[must_use]
    pub fn l1_slot<S: TableStore + ?Sized>(
        &self,
        store: &S,
        root: Mfn,
        va: GuestVirt,
    ) -> Option<Slot> {
        self.walk_to_l1(store, root, va).map(|(slot, _)| slot)
    }

    fn walk_to_l1<S: TableStore + ?Sized>(
        &self,
        store: &S,
        root: Mfn,
        va: GuestVirt,
    ) -> Option<(Slot, Rights)> {
        if !va.is_canonical() || !is_guest_slot(Level::L4, index_of(va, Level::L4)) {
            return None;
        }
        let mut table = root;
        let mut rights = Rights::FULL;
        for level in [Level::L4, Level::L3, Level::L2] {
            self.frames.index(table)?;
            let pte = Pte(store.load(table, index_of(va, level)));
            if !pte.is_present() || pte.has(Pte::PSE_OR_PAT) {
                return None;
            }
            rights = rights.through(pte);
            table = pte.mfn();
        }
        self.frames.index(table)?;
        let index = index_of(va, Level::L1);
        Some((Slot { table, index }, rights))
    }

    fn is_guest_memory(&self, mfn: Mfn) -> bool {
        match self.frames.low_index(mfn) {
            Some(low) => self.frames.low[low].access() != LowAccess::Private,
            None => self.frames.index(mfn).is_some() || self.frames.foreign.is_foreign(mfn),
        }
    }
}

/// Which entry of a table of `level` is used for `va`.
#[allow(clippy::cast_possible_truncation)] // nine bits
pub(super) fn index_of(va: GuestVirt, level: Level) -> usize {
    let shift = match level {
        Level::L1 => 12,
        Level::L2 => 21,
        Level::L3 => 30,
        Level::L4 => 39,
    };
    ((va.0 >> shift) & 0x1ff) as usize
}
