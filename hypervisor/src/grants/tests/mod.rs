//! Grants without a VM: a domain is a few pages and a table of references.

mod copying;
mod mapping;
mod model;
mod races;
mod version_2;

use super::*;
use crate::{
    events::DomainKey,
    shared_words::{SharedWords, test_memory::Pages},
};
use guest_abi::{
    addr::{GrantRef, PAGE_SIZE},
    grant_table::*,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Frames below this are for grant tables, those from it on are RAM.
pub(crate) const RAM: u64 = 8;
const PAGES: u64 = 24;

/// A domain's memory: pages, references on them, and frames that are page
/// tables (not writable).
pub(crate) struct FakeMemory {
    pub(crate) pages: Pages,
    refs: Mutex<BTreeMap<u64, (u32, u32)>>,
    tables: Mutex<Vec<u64>>,
    next: AtomicU64,
    /// The flags of grant 1 whenever a reference went.
    flags_at_put: Mutex<Vec<u16>>,
}

impl FakeMemory {
    fn new() -> Self {
        FakeMemory {
            pages: Pages::new(usize::try_from(PAGES).unwrap()),
            refs: Mutex::default(),
            tables: Mutex::default(),
            next: AtomicU64::new(0),
            flags_at_put: Mutex::default(),
        }
    }

    /// References on a frame: all, and writable ones.
    pub(crate) fn refs(&self, frame: u64) -> (u32, u32) {
        self.refs
            .lock()
            .unwrap()
            .get(&frame)
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn make_table(&self, frame: u64) {
        self.tables.lock().unwrap().push(frame);
    }

    fn bytes(&self, at: MachineAddr, len: usize) -> impl Iterator<Item = MachineAddr> {
        (at.0..at.0 + len as u64).map(MachineAddr)
    }
}

impl GrantMemory for FakeMemory {
    fn get_frame(&self, frame: Mfn, write: bool) -> Result<(), FrameRefused> {
        if !(RAM..PAGES).contains(&frame.0) {
            return Err(FrameRefused::NotOwned);
        }
        if write && self.tables.lock().unwrap().contains(&frame.0) {
            return Err(FrameRefused::NotWritable);
        }
        let mut refs = self.refs.lock().unwrap();
        let entry = refs.entry(frame.0).or_default();
        *entry = (entry.0 + 1, entry.1 + u32::from(write));
        Ok(())
    }

    fn put_frame(&self, frame: Mfn, write: bool) {
        self.flags_at_put
            .lock()
            .unwrap()
            .push(self.pages.load_u16(MachineAddr(8)));
        let mut refs = self.refs.lock().unwrap();
        let entry = refs
            .get_mut(&frame.0)
            .expect("only what was taken is dropped");
        *entry = (entry.0 - 1, entry.1 - u32::from(write));
    }

    fn read(&self, from: MachineAddr, buf: &mut [u8]) -> bool {
        for (at, byte) in self.bytes(from, buf.len()).zip(buf) {
            *byte = self.pages.load_u8(at);
        }
        true
    }

    fn write(&self, to: MachineAddr, bytes: &[u8]) -> bool {
        for (at, byte) in self.bytes(to, bytes.len()).zip(bytes) {
            self.pages.store_u8(at, *byte);
        }
        true
    }

    fn place(&self, _: Mfn) -> Option<FramePlace<'_>> {
        None
    }

    fn new_table_frame(&self) -> Option<Mfn> {
        let frame = self.next.fetch_add(1, Ordering::SeqCst);
        (frame < RAM).then_some(Mfn(frame))
    }
}

/// The pages are shared as words through this.
struct Shared(Arc<FakeMemory>);

macro_rules! forward {
    ($($name:ident: $atomic:ty),*) => {
        impl SharedWords for Shared {
            $(fn $name(&self, at: MachineAddr, op: &mut dyn FnMut(&$atomic)) {
                self.0.pages.$name(at, op);
            })*
        }
    };
}
forward!(
    with_u8: std::sync::atomic::AtomicU8,
    with_u16: std::sync::atomic::AtomicU16,
    with_u32: std::sync::atomic::AtomicU32,
    with_u64: AtomicU64
);

/// A domain that grants.
pub(crate) struct Granter {
    pub(crate) table: Arc<GrantTable>,
    pub(crate) memory: Arc<FakeMemory>,
}

impl Granter {
    pub(crate) fn new(dom: u16) -> Self {
        let memory = Arc::new(FakeMemory::new());
        let key = DomainKey {
            dom: DomId(dom),
            generation: 1,
        };
        let words = Arc::new(Shared(memory.clone()));
        let table = GrantTable::new(key, 4, words, memory.clone()).unwrap();
        Granter { table, memory }
    }

    /// Writes an entry as the guest does. Table frame 0 is machine frame 0.
    pub(crate) fn grant(&self, gref: u32, flags: u16, dom: u16, frame: u64) {
        let word = frame << 32 | u64::from(dom) << 16 | u64::from(flags);
        self.memory
            .pages
            .store_u64(MachineAddr(u64::from(gref) * 8), word);
    }

    pub(crate) fn flags(&self, gref: u32) -> u16 {
        self.memory.pages.load_u16(MachineAddr(u64::from(gref) * 8))
    }

    /// The guest's way to take a grant back: `false` while it is in use.
    pub(crate) fn revoke(&self, gref: u32) -> bool {
        let at = MachineAddr(u64::from(gref) * 8);
        let flags = self.memory.pages.load_u16(at);
        flags & (GTF_READING | GTF_WRITING) == 0
            && self.memory.pages.compare_exchange_u16(at, flags, 0).is_ok()
    }
}

/// The domains that exist in a test.
pub(crate) struct World(pub(crate) HashMap<DomId, Arc<GrantTable>>);

impl World {
    pub(crate) fn of(granters: &[&Granter]) -> Self {
        World(
            granters
                .iter()
                .map(|it| (it.table.key().dom, it.table.clone()))
                .collect(),
        )
    }
}

impl GrantDomains for World {
    fn grants(&self, dom: DomId) -> Option<Arc<GrantTable>> {
        self.0.get(&dom).cloned()
    }
}

/// Mappings of Dom0.
pub(super) fn dom0() -> MapTrack {
    MapTrack::new(DomId(0), 64)
}

pub(super) fn host(gref: u32, extra: u32) -> MapRequest {
    MapRequest {
        flags: GNTMAP_HOST_MAP | extra,
        gref: GrantRef(gref),
        host_addr: 0x1000,
    }
}
