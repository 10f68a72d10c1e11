//! Taking a dying domain's memory apart, in bounded steps
//! (`domain_relinquish_resources`).
//!
//! While a domain lives, dropping a root takes the whole tree below it along.
//! Here nothing cascades: a type that loses its last use keeps its mark
//! *validated*, and one scan over all frames returns what each validated
//! table's entries hold, entry by entry. So a step can stop anywhere, the order
//! of the frames does not matter, and loops between tables could do no harm.

use guest_abi::addr::{Mfn, VcpuId};

use super::{
    ENTRIES, Paging, TableStore,
    pte::{Level, Pte},
    validate::is_guest_slot,
    work::Forgotten,
};

/// How far a domain has been taken apart. All phases but the first refuse
/// every operation that takes something; what others hold (grants) can be
/// returned at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relinquish {
    /// Not at all.
    Alive,
    /// Work that was under way is still to be forgotten.
    Work,
    /// vCPUs from `next` on still hold their roots and descriptor tables.
    Vcpus {
        /// The first one that does.
        next: u32,
    },
    /// Tables from `frame` on, there from `entry` on, still hold references.
    Tables {
        /// The frame's index.
        frame: usize,
        /// The entry's index.
        entry: usize,
    },
    /// Frames from `next` on are still part of the reservation.
    Frames {
        /// The first one's index.
        next: usize,
    },
    /// All is returned, but for what others hold.
    Done,
}

impl Paging {
    /// Starts or continues to take the domain apart, touching at most `budget`
    /// entries or frames (and one vCPU). No vCPU of the domain may run any
    /// more. Gives whether all is done; then
    /// [`owned_frames`](Self::owned_frames) tells how many frames others still
    /// refer to.
    pub fn relinquish_step<S: TableStore + ?Sized>(&mut self, store: &S, budget: usize) -> bool {
        for _ in 0..budget {
            self.relinquish = match self.relinquish {
                Relinquish::Alive => Relinquish::Work,
                Relinquish::Work => self.relinquish_work(),
                Relinquish::Vcpus { next } => self.relinquish_vcpu(next),
                Relinquish::Tables { frame, entry } => self.relinquish_table(store, frame, entry),
                Relinquish::Frames { next } => self.relinquish_frame(next),
                Relinquish::Done => return true,
            };
        }
        matches!(self.relinquish, Relinquish::Done)
    }

    /// How far the domain has been taken apart.
    #[must_use]
    pub fn relinquish_state(&self) -> Relinquish {
        self.relinquish
    }

    /// A doomed table goes back to the tables that the scan will find; a kept
    /// one is kept no more.
    fn relinquish_work(&mut self) -> Relinquish {
        let table = match self.work.forget() {
            None => return Relinquish::Vcpus { next: 0 },
            Some(Forgotten::Kept(table)) => table,
            Some(Forgotten::Doomed(table)) => {
                if let Some(index) = self.frames.index(table) {
                    let found_by_scan = self.frames.at(index).with_validated(true);
                    self.frames.set(index, found_by_scan);
                }
                table
            }
        };
        self.put_page_and_type(table);
        Relinquish::Work
    }

    fn relinquish_vcpu(&mut self, next: u32) -> Relinquish {
        let vcpu = VcpuId(next);
        if self.vcpu(vcpu).is_err() {
            return Relinquish::Tables { frame: 0, entry: 0 };
        }
        self.drop_vcpu(vcpu);
        Relinquish::Vcpus { next: next + 1 }
    }

    fn relinquish_table<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        index: usize,
        entry: usize,
    ) -> Relinquish {
        if index >= self.frames.fresh {
            return Relinquish::Frames { next: 0 };
        }
        let next_frame = Relinquish::Tables {
            frame: index + 1,
            entry: 0,
        };
        let mfn = self.frames.mfn(index);
        let frame = self.frames.at(index);
        if frame.pinned() {
            self.frames.set(index, frame.with_pinned(false));
            self.put_page_and_type(mfn);
        }
        let frame = self.frames.at(index);
        let level = frame.frame_type().level().filter(|_| frame.validated());
        let (Some(level), true) = (level, entry < ENTRIES) else {
            self.frames.set(index, frame.with_validated(false));
            return next_frame;
        };
        self.relinquish_entry(store, level, mfn, entry);
        Relinquish::Tables {
            frame: index,
            entry: entry + 1,
        }
    }

    fn relinquish_entry<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        level: Level,
        table: Mfn,
        entry: usize,
    ) {
        let pte = Pte(store.load(table, entry));
        if is_guest_slot(level, entry) && pte.is_present() {
            self.put_entry(level, pte);
        }
    }

    fn relinquish_frame(&mut self, index: usize) -> Relinquish {
        if index >= self.frames.fresh {
            return Relinquish::Done;
        }
        let frame = self.frames.at(index);
        if frame.allocated() {
            self.frames.set(index, frame.with_allocated(false));
            self.put_ref(self.frames.mfn(index));
        } else if frame.refs() == 0 {
            self.frames.set(index, frame.freed());
        }
        Relinquish::Frames { next: index + 1 }
    }
}
