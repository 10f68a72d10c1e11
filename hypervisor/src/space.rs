//! A domain's memory with the rules of who may use it how: what paging, grants
//! and hypercall arguments share.
//!
//! Law: `mm` guards the frame table and, with it, every change of a page
//! table. It is taken for one operation at a time. With it held other vCPUs may
//! be waited for to leave ring 3 ([`Space::shoot_down`]), which needs no lock,
//! and for nothing else.

use crate::{
    engine::{
        TableWrite, TableWrites,
        kvm::{HypervisorSlots, MFN_GRANTS, MFN_SHARED_INFO, MFN_TABLES},
    },
    grants::{FramePlace, FrameRefused, GrantMemory, Granted},
    interp::{Frame, FramePtr, FrameUse, GuestPhys},
    memory::{BASE_MFN, MachineMemory},
    paging::{FrameType, LowAccess, Paging, TableStore},
    shared_words::SharedWords,
    vcpu::{VcpuShared, request},
    window::{ForeignWindow, WINDOW_FRAMES},
};
use guest_abi::{
    addr::{DomId, MachineAddr, Mfn, VcpuId},
    errno::Errno,
};
use std::{
    cell::{Cell, RefCell},
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

/// The window starts at a multiple of this.
const LARGE_PAGE: u64 = 2 << 20;

/// What the process notes of each RAM frame: for a KVM that shadows tables, and for
/// interpreters.
#[derive(Debug)]
struct FrameNotes(Vec<AtomicU8>);

impl FrameNotes {
    /// The frame has been a page table.
    const WAS_TABLE: u8 = 1;
    /// The process has written it since.
    const WRITTEN: u8 = 2;
    /// An interpreter relies on its bytes; see [`GuestPhys::hold_still`].
    const STILL: u8 = 4;

    fn at(&self, mfn: Mfn) -> Option<&AtomicU8> {
        let index = mfn.checked_offset_from(BASE_MFN)?;
        self.0.get(usize::try_from(index).ok()?)
    }
}

/// The memory of a domain, and its rules.
pub struct Space {
    dom: DomId,
    /// The machine memory.
    pub memory: Arc<MachineMemory>,
    mm: Mutex<Paging>,
    vcpus: Vec<Arc<VcpuShared>>,
    slots: HypervisorSlots,
    notes: FrameNotes,
    /// Changes with each whole flush: what an interpreter has cached of an
    /// earlier number is stale.
    epoch: AtomicU64,
    /// Changes when a frame that was said to hold still may not do so any more.
    still_epoch: AtomicU64,
    /// Grant table frames handed out.
    grant_frames: AtomicU64,
    /// What others granted and this domain has mapped; made with the first.
    window: OnceLock<Arc<ForeignWindow>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Space {
    /// The memory of domain `dom`, none of it allocated.
    #[must_use]
    pub fn new(
        dom: DomId,
        memory: Arc<MachineMemory>,
        paging: Paging,
        vcpus: Vec<Arc<VcpuShared>>,
        slots: HypervisorSlots,
    ) -> Self {
        let mut notes = Vec::new();
        notes.resize_with(
            usize::try_from(memory.max_pages()).unwrap_or(0),
            AtomicU8::default,
        );
        Space {
            dom,
            memory,
            mm: Mutex::new(paging),
            vcpus,
            slots,
            notes: FrameNotes(notes),
            epoch: AtomicU64::new(0),
            still_epoch: AtomicU64::new(0),
            grant_frames: AtomicU64::new(0),
            window: OnceLock::new(),
        }
    }

    /// The paging rules and frame table.
    pub fn lock_mm(&self) -> MutexGuard<'_, Paging> {
        lock(&self.mm)
    }

    /// Whether the process may write `mfn` for the guest: not a page table,
    /// not a descriptor table.
    #[must_use]
    pub fn may_write(&self, mm: &Paging, mfn: Mfn) -> bool {
        match mm.frame_type(mfn) {
            Some((FrameType::None | FrameType::Writable, _)) => true,
            Some((_, uses)) => uses == 0,
            None => mfn == MFN_SHARED_INFO,
        }
    }

    /// Notes that the process has written a frame behind the VM's back.
    pub fn note_written(&self, mfn: Mfn) {
        if let Some(note) = self.notes.at(mfn)
            && note.load(Ordering::Relaxed) & FrameNotes::WAS_TABLE != 0
        {
            note.fetch_or(FrameNotes::WRITTEN, Ordering::Relaxed);
        }
        self.may_change(mfn);
    }

    /// Notes that a frame's bytes may change from now on, or have just changed.
    fn may_change(&self, mfn: Mfn) {
        if let Some(note) = self.notes.at(mfn)
            && note.load(Ordering::SeqCst) & FrameNotes::STILL != 0
        {
            note.fetch_and(!FrameNotes::STILL, Ordering::SeqCst);
            self.any_may_change();
        }
    }

    /// Notes that the bytes of any frame may have changed: Dom0 had the memory while the
    /// domain was paused.
    pub fn any_may_change(&self) {
        self.still_epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Makes all vCPUs but `but` drop their cached translations, and repeat
    /// `words` from inside the VM, before they run on; on return none of them
    /// runs with old ones.
    pub fn shoot_down(&self, but: Option<VcpuId>, words: &[TableWrite]) {
        let others = || {
            self.vcpus
                .iter()
                .filter(|vcpu| Some(vcpu.id) != but && vcpu.has_thread())
        };
        for vcpu in others() {
            vcpu.defer(words);
            vcpu.request(request::FLUSH);
        }
        others().for_each(|vcpu| vcpu.wait_for(request::FLUSH));
    }

    /// Like [`foreign_update`](Self::foreign_update), for an operation that may
    /// have to be repeated because it takes long.
    ///
    /// # Errors
    /// The operation's.
    pub fn foreign_try<R>(
        &self,
        mut op: impl FnMut(&mut Paging, &Tables<'_>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        loop {
            match self.foreign_update(&mut op) {
                Err(Errno::ERESTART) => std::thread::yield_now(),
                result => return result,
            }
        }
    }

    /// Runs a paging operation for Dom0, not on a vCPU of the domain.
    pub fn foreign_update<R>(&self, op: impl FnOnce(&mut Paging, &Tables<'_>) -> R) -> R {
        let (writes, flush) = (RefCell::default(), Cell::new(false));
        let tables = Tables {
            space: self,
            vcpu: None,
            writes: Some((&writes, &flush)),
        };
        let result = op(&mut self.lock_mm(), &tables);
        let writes = writes.into_inner();
        if !writes.is_empty() {
            self.shoot_down(None, writes.words());
        }
        result
    }

    /// The first machine frame that is free for a window.
    #[must_use]
    pub fn window_start(&self) -> Mfn {
        MachineAddr(self.memory.end().next_multiple_of(LARGE_PAGE)).frame()
    }

    /// The window, once there is one.
    #[must_use]
    pub fn window(&self) -> Option<&Arc<ForeignWindow>> {
        self.window.get()
    }

    /// Takes a window into use. The first one stays.
    ///
    /// # Errors
    /// `EINVAL` for one whose frames mean something already.
    pub fn set_window(&self, window: Arc<ForeignWindow>) -> Result<(), Errno> {
        self.lock_mm()
            .add_foreign_frames(window.first(), WINDOW_FRAMES)?;
        self.window.set(window).map_err(|_| Errno::EEXIST)
    }

    /// The grant mapped at a frame of the window; `None` for other frames.
    /// It is not to be dropped with a lock held.
    #[must_use]
    pub fn foreign(&self, mfn: Mfn) -> Option<Arc<Granted>> {
        self.window()?.granted(mfn)
    }

    /// A frame of the window, for an interpreter. What it caches of it goes
    /// with the next flush, and the use of the grant ends after that.
    fn foreign_frame(&self, mfn: Mfn) -> Option<Frame> {
        let framed = self.window()?.with_granted(mfn, |granted| {
            let usage = if granted.is_writable() {
                FrameUse::Write
            } else {
                FrameUse::Read
            };
            let place = granted.granter().memory().place(granted.frame())?;
            // SAFETY: the granting domain's memory is mapped as long as the
            // use of the grant lasts. It ends after all vCPUs have dropped
            // their translations (`Ended`); guest memory is only accessed by
            // volatile and atomic accesses.
            let ptr = unsafe { FramePtr::new(place.address) };
            Some(Frame { ptr, usage })
        });
        framed.flatten()
    }

    fn is_grant_frame(&self, mfn: Mfn) -> bool {
        let used = self.grant_frames.load(Ordering::Relaxed);
        mfn.checked_offset_from(MFN_GRANTS)
            .is_some_and(|index| index < used)
            && mfn < MFN_TABLES
    }

    /// Pages that it has.
    #[must_use]
    pub fn tot_pages(&self) -> u64 {
        self.lock_mm().owned_frames()
    }

    /// Gives the memory of a frame that was freed back to the host.
    pub fn discard(&self, mfn: Mfn) {
        if let Err(error) = self.memory.discard(mfn) {
            tracing::warn!(domain = self.dom.0, %mfn, %error, "a freed frame keeps its memory");
            let _ = self.memory.clear_frame(mfn);
        }
        self.note_written(mfn);
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }
}

impl SharedWords for MachineMemory {
    fn with_u8(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU8)) {
        self.atomic(at, op);
    }
    fn with_u16(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU16)) {
        self.atomic(at, op);
    }
    fn with_u32(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU32)) {
        self.atomic(at, op);
    }
    fn with_u64(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU64)) {
        self.atomic(at, op);
    }
}

impl GuestPhys for Space {
    fn frame(&self, mfn: Mfn) -> Option<Frame> {
        if self.window().is_some_and(|window| window.contains(mfn)) {
            return self.foreign_frame(mfn);
        }
        // First what the guest may use: shared_info lies behind the tables.
        let own = self.memory.is_ram(mfn) || mfn == MFN_SHARED_INFO || self.is_grant_frame(mfn);
        let usage = if own {
            FrameUse::Write
        } else if (MFN_TABLES.0..BASE_MFN.0).contains(&mfn.0) {
            FrameUse::Walk
        } else if mfn >= BASE_MFN {
            FrameUse::Read
        } else {
            return None;
        };
        let slice = self.memory.slice(mfn.addr()?, 4096)?;
        let ptr = NonNull::new(slice.ptr_guard_mut().as_ptr())?;
        // SAFETY: the frame lies in an area that is mapped for as long as
        // `self.memory` lives, which the interpreter keeps alive with `self`;
        // guest memory is only accessed by volatile and atomic accesses.
        let ptr = unsafe { FramePtr::new(ptr) };
        Some(Frame { ptr, usage })
    }

    fn wrote(&self, mfn: Mfn) {
        self.note_written(mfn);
    }

    fn translation_epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn hold_still(&self, mfn: Mfn) -> bool {
        // Whoever has the lock may be waiting for this vCPU.
        let Ok(mm) = self.mm.try_lock() else {
            return false;
        };
        let note = self.notes.at(mfn).filter(|_| mm.holds_still(mfn));
        note.is_some_and(|note| {
            note.fetch_or(FrameNotes::STILL, Ordering::SeqCst);
            true
        })
    }

    fn still_epoch(&self) -> u64 {
        self.still_epoch.load(Ordering::SeqCst)
    }
}

impl GrantMemory for Space {
    fn get_frame(&self, frame: Mfn, write: bool) -> Result<(), FrameRefused> {
        self.foreign_update(|mm, tables| {
            mm.get_frame_ref(frame)
                .map_err(|_| FrameRefused::NotOwned)?;
            if !write {
                return Ok(());
            }
            let writable = mm.get_writable(tables, frame);
            // Dom0 writes behind the VM's back for as long as it has the frame.
            self.note_written(frame);
            mm.put_frame_ref(frame);
            writable.map_err(|_| FrameRefused::NotWritable)
        })
    }

    fn put_frame(&self, frame: Mfn, write: bool) {
        self.foreign_update(|mm, tables| {
            if write {
                self.note_written(frame);
                mm.put_writable(tables, frame);
            } else {
                mm.put_frame_ref(frame);
            }
        });
    }

    fn read(&self, from: MachineAddr, buf: &mut [u8]) -> bool {
        self.memory.read(from, buf).is_some()
    }

    fn write(&self, to: MachineAddr, bytes: &[u8]) -> bool {
        self.note_written(to.frame());
        self.memory.write(to, bytes).is_some()
    }

    fn place(&self, frame: Mfn) -> Option<FramePlace<'_>> {
        let memory = &self.memory;
        if !memory.is_ram(frame) {
            return None;
        }
        let slice = memory.slice(frame.addr()?, 4096)?;
        Some(FramePlace {
            file: memory.ram_fd(),
            offset: frame.addr()?.0.checked_sub(BASE_MFN.addr()?.0)?,
            address: NonNull::new(slice.ptr_guard_mut().as_ptr())?,
        })
    }

    fn new_table_frame(&self) -> Option<Mfn> {
        let index = self.grant_frames.fetch_add(1, Ordering::Relaxed);
        let mfn = Mfn(MFN_GRANTS.0 + index);
        if mfn >= MFN_TABLES {
            return None;
        }
        self.lock_mm()
            .share_low_frame(mfn, LowAccess::ReadWrite)
            .ok()?;
        Some(mfn)
    }
}

/// The domain's memory as the paging rules see it, on behalf of one vCPU.
pub struct Tables<'a> {
    /// Whose memory.
    pub space: &'a Space,
    /// The vCPU that runs the operation, which is not in the guest.
    pub vcpu: Option<VcpuId>,
    /// Where to queue words to be written again, and whether to flush.
    pub writes: Option<(&'a RefCell<TableWrites>, &'a Cell<bool>)>,
}

impl<'a> Tables<'a> {
    /// For looking only.
    #[must_use]
    pub fn read_only(space: &'a Space) -> Self {
        Tables {
            space,
            vcpu: None,
            writes: None,
        }
    }

    fn slot(table: Mfn, index: usize) -> MachineAddr {
        MachineAddr((table.0 << 12).wrapping_add(index as u64 * 8))
    }

    /// A KVM that shadows page tables must see each change of an entry that
    /// was present; one that was not it reads anew by itself.
    fn changed(&self, table: Mfn, index: usize, old: u64) {
        if old & 1 != 0
            && let Some((writes, _)) = self.writes
        {
            writes.borrow_mut().push(TableWrite {
                addr: Self::slot(table, index),
                forget_frame: false,
            });
        }
    }
}

impl TableStore for Tables<'_> {
    fn load(&self, table: Mfn, index: usize) -> u64 {
        self.space
            .memory
            .load(Self::slot(table, index))
            .unwrap_or(0)
    }

    fn store(&self, table: Mfn, index: usize, value: u64) {
        let swap = |word: &AtomicU64| word.swap(value, Ordering::SeqCst);
        if let Some(old) = self.space.memory.atomic(Self::slot(table, index), swap) {
            self.changed(table, index, old);
        }
    }

    fn compare_exchange(&self, table: Mfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let swap = |word: &AtomicU64| {
            word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                .map(|_| ())
        };
        let result = self
            .space
            .memory
            .atomic(Self::slot(table, index), swap)
            .unwrap_or(Err(0));
        if result.is_ok() {
            self.changed(table, index, old);
        }
        result
    }

    fn flush_writable(&self, _frame: Mfn) {
        self.space.epoch.fetch_add(1, Ordering::SeqCst);
        let Some((writes, flush)) = self.writes else {
            return self.space.shoot_down(self.vcpu, &[]);
        };
        flush.set(true);
        // A shadow of an old entry on another vCPU must go too, not only what
        // its TLB holds.
        self.space.shoot_down(self.vcpu, writes.borrow().words());
    }

    fn use_begins(&self, frame: Mfn) {
        self.space.may_change(frame);
    }

    fn table_promoted(&self, frame: Mfn) {
        let Some(note) = self.space.notes.at(frame) else {
            return;
        };
        let before = note.swap(FrameNotes::WAS_TABLE, Ordering::Relaxed);
        if before & FrameNotes::WRITTEN != 0
            && let Some((writes, _)) = self.writes
        {
            writes.borrow_mut().push(TableWrite {
                addr: Self::slot(frame, 0),
                forget_frame: true,
            });
        }
    }

    fn install_hypervisor_slots(&self, l4: Mfn) {
        for (slot, value) in (256..).zip(&self.space.slots) {
            self.store(l4, slot, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kvm::M2P;

    #[test]
    fn the_interpreter_uses_a_frame_as_the_guest_may() {
        let memory = Arc::new(MachineMemory::new(4).unwrap());
        let table = Mfn(memory.m2p_area().start() >> 12);
        let paging = Paging::new(BASE_MFN, 4, 1).unwrap();
        let space = Space::new(DomId(1), memory, paging, Vec::new(), [0; 16]);
        let usage = |mfn: u64| space.frame(Mfn(mfn)).map(|frame| frame.usage);
        assert_eq!(usage(BASE_MFN.0), Some(FrameUse::Write));
        assert_eq!(usage(MFN_SHARED_INFO.0), Some(FrameUse::Write));
        assert_eq!(usage(MFN_TABLES.0), Some(FrameUse::Walk));
        assert_eq!(usage(table.0), Some(FrameUse::Read));
        assert_eq!(usage(MFN_GRANTS.0), None, "not handed out yet");
        space.new_table_frame().unwrap();
        assert_eq!(usage(MFN_GRANTS.0), Some(FrameUse::Write));
        for monitor in [0, 2, 3, 4, 5] {
            assert_eq!(usage(monitor), None, "frame {monitor}");
        }
        assert_eq!(usage(M2P >> 12), None);
    }
}
