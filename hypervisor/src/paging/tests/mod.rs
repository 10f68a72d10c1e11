//! Tests of the paging rules over memory of their own: no VM, no threads.

mod descriptors;
mod grants;
mod model;
mod operations;
mod rules;
mod stopping;
mod xsa;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

use guest_abi::addr::{GuestVirt, MachineAddr, Mfn, VcpuId};

use super::*;

pub(super) const BASE: u64 = 0x1000;
pub(super) const SHARED: Mfn = Mfn(0x10);
pub(super) const SHARED_RO: Mfn = Mfn(0x11);
pub(super) const V0: VcpuId = VcpuId(0);

pub(super) const P: u64 = Pte::PRESENT | Pte::USER;
pub(super) const RO: u64 = P;
pub(super) const RW: u64 = P | Pte::RW;

/// Memory, and a record of what the rules asked for.
///
/// It also plays the vCPUs' translation caches: `cached_writable` holds the
/// frames that a vCPU may still write through an old translation, and
/// `cached_tables` those that it may still walk through.
#[derive(Default)]
pub(super) struct Memory {
    words: RefCell<Vec<u64>>,
    pub flushes: Cell<usize>,
    /// Frames whose use has begun.
    pub used: RefCell<Vec<Mfn>>,
    pub loads: Cell<usize>,
    pub stores: Cell<usize>,
    pub slots_installed: RefCell<Vec<Mfn>>,
    pub cached_writable: RefCell<BTreeSet<u64>>,
    pub cached_tables: RefCell<BTreeSet<u64>>,
    /// The next compare-and-exchanges find accessed and dirty bits set.
    pub touch_before_exchange: Cell<usize>,
    /// The next compare-and-exchange finds the entry replaced by this.
    pub replace_before_exchange: Cell<Option<u64>>,
}

impl Memory {
    fn new(frames: u64) -> Self {
        let words = vec![0; usize::try_from(frames).unwrap() * ENTRIES];
        Self {
            words: RefCell::new(words),
            ..Self::default()
        }
    }

    fn at(table: Mfn, index: usize) -> usize {
        assert!(index < ENTRIES, "index {index}");
        usize::try_from(table.0 - BASE).unwrap() * ENTRIES + index
    }

    pub fn get(&self, table: Mfn, index: usize) -> Pte {
        Pte(self.words.borrow()[Self::at(table, index)])
    }

    /// A write that nobody checks: by the guest to its own data, or by an
    /// attacker to anything.
    pub fn poke(&self, table: Mfn, index: usize, value: u64) {
        self.words.borrow_mut()[Self::at(table, index)] = value;
    }
}

impl TableStore for Memory {
    fn load(&self, table: Mfn, index: usize) -> u64 {
        self.loads.set(self.loads.get() + 1);
        self.get(table, index).0
    }

    fn store(&self, table: Mfn, index: usize, value: u64) {
        self.stores.set(self.stores.get() + 1);
        self.poke(table, index, value);
    }

    fn compare_exchange(&self, table: Mfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let touches = self.touch_before_exchange.get();
        if touches > 0 {
            self.touch_before_exchange.set(touches - 1);
            let bit = if touches.is_multiple_of(2) {
                Pte::ACCESSED
            } else {
                Pte::DIRTY
            };
            self.poke(table, index, self.get(table, index).0 ^ bit);
        }
        if let Some(value) = self.replace_before_exchange.take() {
            self.poke(table, index, value);
        }
        let found = self.get(table, index).0;
        if found != old {
            return Err(found);
        }
        self.stores.set(self.stores.get() + 1);
        self.poke(table, index, new);
        Ok(())
    }

    fn flush_writable(&self, _frame: Mfn) {
        self.flushes.set(self.flushes.get() + 1);
        self.cached_writable.borrow_mut().clear();
        self.cached_tables.borrow_mut().clear();
    }

    fn use_begins(&self, frame: Mfn) {
        self.used.borrow_mut().push(frame);
    }

    fn table_promoted(&self, frame: Mfn) {
        let stale = self.cached_writable.borrow().contains(&frame.0);
        assert!(!stale, "{frame} is validated while a vCPU may write it");
    }

    fn install_hypervisor_slots(&self, l4: Mfn) {
        self.slots_installed.borrow_mut().push(l4);
        for index in FIRST_HYPERVISOR_SLOT..=LAST_HYPERVISOR_SLOT {
            self.poke(l4, index, Pte::new(Mfn(1), Pte::PRESENT | Pte::RW).0);
        }
    }
}

/// A domain of a few frames, all allocated.
pub(super) struct Domain {
    pub memory: Memory,
    pub paging: Paging,
    pub held: Vec<HeldRef>,
}

impl Domain {
    pub fn new(frames: u64) -> Self {
        let mut paging = Paging::new(Mfn(BASE), frames, 2).unwrap();
        paging
            .share_low_frame(SHARED, LowAccess::ReadWrite)
            .unwrap();
        paging
            .share_low_frame(SHARED_RO, LowAccess::ReadOnly)
            .unwrap();
        for _ in 0..frames {
            paging.allocate(0).unwrap();
        }
        Self {
            memory: Memory::new(frames),
            paging,
            held: Vec::new(),
        }
    }

    /// Frames 0 to 3 are a pinned tree L4, L3, L2, L1, each linked at slot 0;
    /// the L1 maps frame 4 writable at 0 and itself read-only at 1.
    pub fn with_tree(frames: u64) -> Self {
        let mut d = Self::new(frames);
        for table in 0..3 {
            d.poke(table, 0, Pte::new(mfn(table + 1), RW));
        }
        d.poke(3, 0, Pte::new(mfn(4), RW));
        d.poke(3, 1, Pte::new(mfn(3), RO));
        d.pin(Level::L4, 0).unwrap();
        d
    }

    pub fn poke(&self, frame: u64, index: usize, pte: Pte) {
        self.memory.poke(mfn(frame), index, pte.0);
    }

    pub fn pin(&mut self, level: Level, frame: u64) -> Result<(), Errno> {
        self.paging.pin_table(&self.memory, level, mfn(frame))
    }

    pub fn unpin(&mut self, frame: u64) -> Result<(), Errno> {
        self.paging.unpin_table(&self.memory, mfn(frame))
    }

    pub fn update(&mut self, frame: u64, index: usize, pte: Pte) -> Result<(), Errno> {
        let at = entry(frame, index);
        self.paging
            .mmu_update(&self.memory, at, pte, UpdateMode::Normal)
    }

    pub fn pte(&self, frame: u64, index: usize) -> Pte {
        self.memory.get(mfn(frame), index)
    }

    pub fn frame_type(&self, frame: u64) -> (FrameType, u32) {
        self.paging.frame_type(mfn(frame)).unwrap()
    }

    #[track_caller]
    pub fn audit(&self) {
        if let Err(error) = self.paging.audit(&self.memory, &self.held) {
            panic!("{error}");
        }
    }

    /// An operation that must be refused and change nothing.
    #[track_caller]
    pub fn refuses<T: std::fmt::Debug>(
        &mut self,
        errno: Errno,
        operation: impl FnOnce(&mut Self) -> Result<T, Errno>,
    ) {
        let before = self.snapshot();
        match operation(self) {
            Err(found) => assert_eq!(found, errno),
            Ok(value) => panic!("not refused: {value:?}"),
        }
        assert_eq!(self.snapshot(), before, "a refused operation left traces");
        self.audit();
    }

    /// All counts, and the types that are in use.
    fn snapshot(&self) -> Vec<(u32, bool, bool, FrameType, u32)> {
        let frames = &self.paging.frames;
        (0..frames.len())
            .map(|i| {
                let f = frames.at(i);
                let t = match f.type_count() {
                    0 => FrameType::None,
                    _ => f.frame_type(),
                };
                (f.refs(), f.allocated(), f.pinned(), t, f.type_count())
            })
            .collect()
    }
}

pub(super) fn mfn(frame: u64) -> Mfn {
    Mfn(BASE + frame)
}

pub(super) fn entry(frame: u64, index: usize) -> MachineAddr {
    MachineAddr(((BASE + frame) << 12) + index as u64 * 8)
}

pub(super) fn maps(frame: u64, flags: u64) -> Pte {
    Pte::new(mfn(frame), flags)
}

/// The address that the tree of [`Domain::with_tree`] maps by L1 slot `index`.
pub(super) fn va(index: usize) -> GuestVirt {
    GuestVirt(index as u64 * 4096)
}
