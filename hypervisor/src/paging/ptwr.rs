//! Emulated writes to L1 tables (Xen's `ptwr_emulate`).
//!
//! A guest kernel maps its page tables read-only, yet some of its code stores
//! to L1 entries with ordinary instructions: Linux with `xchg` and `lock btr`.
//! The store faults; whoever handles the fault decodes the instruction and
//! asks here for its effect. The new value is checked like that of any
//! request.

use guest_abi::{
    addr::{GuestVirt, Mfn},
    errno::Errno,
};

use super::{
    Paging, TableStore,
    pte::{Level, Pte},
    refusal::Refusal,
    update::Ad,
};

/// How often an entry is merged anew because the processor has set a bit in it
/// meanwhile.
const RETRIES: usize = 32;

/// The store that a guest's instruction makes: 1, 2, 4 or 8 bytes, aligned.
/// Values are in the low bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PtWrite {
    /// A plain store.
    Write {
        /// What is stored.
        value: u64,
    },
    /// A store on condition: what every locked read-modify-write comes to.
    CompareExchange {
        /// What must be there.
        old: u64,
        /// What is stored then.
        new: u64,
    },
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PtWriteOutcome {
    /// Done.
    Written,
    /// Not done: this is there instead of `old`.
    Differs(u64),
    /// The address does not map an L1 table read-only: this fault is the
    /// guest's own affair.
    NotATable,
}

impl Paging {
    /// Does what a guest kernel's store of `bytes` bytes at `va` wants, if `va`
    /// maps an L1 table read-only.
    ///
    /// # Errors
    /// As [`mmu_update`](Self::mmu_update) for a refused entry, and `EINVAL`
    /// for a store that is not naturally aligned: the guest gets its fault.
    pub fn emulate_pt_write<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        root: Mfn,
        va: GuestVirt,
        bytes: usize,
        write: PtWrite,
    ) -> Result<PtWriteOutcome, Errno> {
        self.operate(store, "emulate_pt_write", None, |p| {
            p.try_emulate_pt_write(store, root, va, bytes, write)
        })
    }

    fn try_emulate_pt_write<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        root: Mfn,
        va: GuestVirt,
        bytes: usize,
        write: PtWrite,
    ) -> Result<PtWriteOutcome, Refusal> {
        let Some(target) = self.translate(store, root, va) else {
            return Ok(PtWriteOutcome::NotATable);
        };
        if target.pte.is_writable() || !self.is_live_l1(target.mfn) {
            return Ok(PtWriteOutcome::NotATable);
        }
        let part = Part::new(va, bytes)?;
        let index = usize::try_from(target.offset / 8).unwrap_or(0);
        let table = target.mfn;
        let mut current = Pte(store.load(table, index));
        for _ in 0..RETRIES {
            let (old, value) = match write {
                PtWrite::Write { value } => (current, value),
                PtWrite::CompareExchange { old, new } => (part.merged(current, old), new),
            };
            if old != current {
                return Ok(PtWriteOutcome::Differs(part.of(current)));
            }
            let value = part.merged(current, value);
            match self.exchange(store, Level::L1, table, index, old, value, Ad::Exact)? {
                Ok(()) => return Ok(PtWriteOutcome::Written),
                Err(found) if found.differs_by_processor(old) => current = found,
                Err(found) => {
                    current = found;
                    break;
                }
            }
        }
        Err(Refusal::Contended {
            table,
            index,
            found: current,
        })
    }
}

/// Some bytes of an entry.
#[derive(Clone, Copy)]
struct Part {
    shift: u32,
    mask: u64,
}

impl Part {
    fn new(va: GuestVirt, bytes: usize) -> Result<Self, Refusal> {
        let bad = Refusal::BadAccess { va, bytes };
        let mask = match bytes {
            1 => 0xff,
            2 => 0xffff,
            4 => 0xffff_ffff,
            8 => u64::MAX,
            _ => return Err(bad),
        };
        if !va.0.is_multiple_of(bytes as u64) {
            return Err(bad);
        }
        let shift = u32::try_from(va.0 % 8).map_err(|_| bad)? * 8;
        Ok(Self { shift, mask })
    }

    fn merged(self, pte: Pte, value: u64) -> Pte {
        let mask = self.mask << self.shift;
        Pte((pte.0 & !mask) | ((value << self.shift) & mask))
    }

    fn of(self, pte: Pte) -> u64 {
        (pte.0 >> self.shift) & self.mask
    }
}
