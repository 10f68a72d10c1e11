//! The slow model: all counts again, from the tables themselves.
//!
//! For tests and for debugging. It reads every entry of every table in use and
//! every vCPU's roots, adds up what each frame's counts should be, and compares.

use std::{collections::BTreeMap, fmt::Write as _};

use guest_abi::addr::Mfn;

use super::{
    ENTRIES, Paging, TableStore,
    frame::FrameType,
    pte::{Level, Pte},
    validate::is_guest_slot,
};

/// A reference held outside this module: a mapped grant, a hypercall buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldRef {
    /// By [`Paging::get_frame_ref`].
    Frame(Mfn),
    /// By [`Paging::get_writable`].
    Writable(Mfn),
}

/// What the model found wrong, one finding a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the frame table disagrees with the tables:\n{0}")]
pub struct AuditError(String);

#[derive(Default)]
struct Expected {
    refs: u64,
    types: Vec<FrameType>,
}

struct Model<'a, S: ?Sized> {
    paging: &'a Paging,
    store: &'a S,
    frames: BTreeMap<usize, Expected>,
    low: BTreeMap<usize, u64>,
    foreign: BTreeMap<u64, u32>,
    findings: String,
}

impl Paging {
    /// Recounts everything. `held` is what others hold at the moment. Not for
    /// a dying domain, whose tables are being forgotten.
    ///
    /// # Errors
    /// What differs.
    pub fn audit<S: TableStore + ?Sized>(
        &self,
        store: &S,
        held: &[HeldRef],
    ) -> Result<(), AuditError> {
        let mut model = Model {
            paging: self,
            store,
            frames: BTreeMap::new(),
            low: BTreeMap::new(),
            foreign: BTreeMap::new(),
            findings: String::new(),
        };
        model.count_holders(held);
        model.count_tables();
        model.compare();
        match model.findings.is_empty() {
            true => Ok(()),
            false => Err(AuditError(model.findings)),
        }
    }
}

impl<S: TableStore + ?Sized> Model<'_, S> {
    fn find(&mut self, what: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.findings, "  {what}");
    }

    fn expect(&mut self, mfn: Mfn, t: Option<FrameType>) {
        let Some(index) = self.paging.frames.index(mfn) else {
            return self.find(format_args!("{mfn:?} is referred to and no RAM"));
        };
        let expected = self.frames.entry(index).or_default();
        expected.refs += 1;
        expected.types.extend(t);
    }

    /// One use of a frame as what it is.
    fn expect_typed(&mut self, mfn: Mfn) {
        let frames = &self.paging.frames;
        let t = frames.index(mfn).map(|i| frames.at(i).frame_type());
        self.expect(mfn, t);
    }

    fn is_doomed(&self, mfn: Mfn) -> bool {
        self.paging.work.doomed().contains(&mfn)
    }

    fn count_holders(&mut self, held: &[HeldRef]) {
        for vcpu in &self.paging.vcpus {
            for root in [vcpu.roots.kernel, vcpu.roots.user].into_iter().flatten() {
                self.expect(root, Some(FrameType::L4));
            }
            for page in vcpu.gdt.frames() {
                self.expect(*page, Some(FrameType::SegDesc));
            }
            for page in vcpu.ldt.mapped() {
                self.expect(page, Some(FrameType::SegDesc));
            }
        }
        for table in self.paging.work.kept() {
            self.expect_typed(table);
        }
        for table in self.paging.work.doomed() {
            self.expect_typed(*table);
        }
        for held in held {
            match held {
                HeldRef::Frame(mfn) => self.expect(*mfn, None),
                HeldRef::Writable(mfn) => self.expect(*mfn, Some(FrameType::Writable)),
            }
        }
    }

    fn count_tables(&mut self) {
        for index in 0..self.paging.frames.fresh {
            let frame = self.paging.frames.at(index);
            let mfn = self.paging.frames.mfn(index);
            if frame.allocated() {
                self.expect(mfn, None);
            }
            if frame.pinned() {
                self.expect_typed(mfn);
            }
            let table = match self.is_doomed(mfn) {
                true => frame.frame_type().level(),
                false => frame.live_table(),
            };
            if let Some(level) = table {
                self.count_entries(mfn, level);
            }
        }
    }

    fn count_entries(&mut self, table: Mfn, level: Level) {
        for index in (0..ENTRIES).filter(|i| is_guest_slot(level, *i)) {
            let pte = Pte(self.store.load(table, index));
            if !pte.is_present() {
                continue;
            }
            if pte.check(level).is_err() || pte != pte.adjusted() {
                self.find(format_args!(
                    "{level:?} table {table:?} holds {pte} at {index}"
                ));
            }
            if level == Level::L1 && self.paging.frames.foreign.is_foreign(pte.mfn()) {
                *self.foreign.entry(pte.mfn().0).or_default() += 1;
                continue;
            }
            match (level.below(), self.paging.frames.low_index(pte.mfn())) {
                (None, Some(low)) => *self.low.entry(low).or_default() += 1,
                (None, None) if pte.is_writable() => {
                    self.expect(pte.mfn(), Some(FrameType::Writable));
                }
                (None, None) => self.expect(pte.mfn(), None),
                (Some(below), _) => self.expect(pte.mfn(), Some(below.frame_type())),
            }
        }
    }

    fn compare(&mut self) {
        let mut owned = 0;
        for index in 0..self.paging.frames.len() {
            let expected = self.frames.remove(&index).unwrap_or_default();
            owned += u64::from(expected.refs > 0);
            self.compare_frame(index, &expected);
        }
        if owned != self.paging.owned_frames() {
            let counted = self.paging.owned_frames();
            self.find(format_args!("{owned} frames are owned, counted {counted}"));
        }
        let named = self.paging.frames.foreign.named();
        let named: BTreeMap<u64, u32> = named.map(|(mfn, count)| (mfn.0, count)).collect();
        if named != self.foreign {
            let counted = std::mem::take(&mut self.foreign);
            self.find(format_args!(
                "foreign frames are named by {counted:?}, counted {named:?}"
            ));
        }
        for index in 0..self.paging.frames.low.len() {
            let expected = self.low.get(&index).copied().unwrap_or(0);
            let counted = u64::from(self.paging.frames.low[index].mappings());
            if expected != counted {
                self.find(format_args!(
                    "shared frame {index:#x} has {expected} mappings, counted {counted}"
                ));
            }
        }
    }

    fn compare_frame(&mut self, index: usize, expected: &Expected) {
        let mfn = self.paging.frames.mfn(index);
        let frame = self.paging.frames.at(index);
        if u64::from(frame.refs()) != expected.refs {
            let (refs, counted) = (expected.refs, frame.refs());
            self.find(format_args!(
                "{mfn:?} has {refs} references, counted {counted}"
            ));
        }
        let has = frame.frame_type();
        if let Some(other) = expected.types.iter().find(|t| **t != has) {
            self.find(format_args!("{mfn:?} is used as {other:?}, typed {has:?}"));
        }
        if frame.type_count() as usize != expected.types.len() {
            let (uses, counted) = (expected.types.len(), frame.type_count());
            self.find(format_args!(
                "{mfn:?} has {uses} uses as {has:?}, counted {counted}"
            ));
        }
        let usable = frame.type_count() > 0 && !self.is_doomed(mfn);
        if frame.validated() != usable {
            self.find(format_args!(
                "{mfn:?} is validated without a use, or the reverse"
            ));
        }
        let free = self.paging.frames.free.iter().any(|i| *i as usize == index);
        if free != (frame.refs() == 0 && index < self.paging.frames.fresh) {
            self.find(format_args!("{mfn:?} is free and referred to, or neither"));
        }
    }
}
