//! A domain: its memory, its vCPUs, its ports, and how it lives and dies.
//!
//! Lock order, outermost first; nobody takes a lock to the left of one that it
//! holds:
//!
//! ```text
//! Hypervisor::domains -> life -> mm -> grants -> events -> VcpuShared's own
//! ```
//!
//! `life` decides whether vCPUs may run. It is written by Dom0 and by the
//! guest's own shutdown, and read by each vCPU thread when a `STATE` request
//! tells it to.

use crate::{
    counts::Counts,
    emulate::CpuidPolicy,
    engine::{
        EngineError, TableWrite, TableWrites,
        kvm::{KvmVm, MFN_SHARED_INFO},
    },
    events::{DomainKey, EventChannels, Limits, TwoLevel, VcpuWaker},
    hypervisor::Host,
    memory::{BASE_MFN, MachineMemory, MemoryError},
    paging::{FrameType, LowAccess, Paging, TableStore},
    shared_words::SharedWords,
    time::{publish_time, publish_wallclock},
    vcpu::{VcpuShared, request},
};
use guest_abi::{
    addr::{DomId, MachineAddr, Mfn, VcpuId},
    errno::Errno,
};
use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};
use uuid::Uuid;

/// A guest's highest event channel, as Xen's tools set it.
const MAX_GUEST_PORT: u32 = 1023;

/// Why a domain could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its VM.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its frame table.
    #[error("the frame table refused {pages} pages: {source}")]
    Paging {
        /// Pages asked for.
        pages: u64,
        /// The cause.
        source: Errno,
    },
}

/// Whether and how a domain lives.
#[derive(Debug, Default)]
pub struct Life {
    /// Control-domain pauses in force.
    pub pauses: u32,
    /// `SHUTDOWN_*`, once it has shut down.
    pub shutdown: Option<u32>,
    /// Being destroyed.
    pub dying: bool,
    /// What `SCHEDOP_shutdown_code` said: the reason of a shutdown by crash.
    pub shutdown_code: Option<u32>,
    threads: Vec<JoinHandle<()>>,
}

/// What the process notes of each RAM frame, for a KVM that shadows tables.
#[derive(Debug)]
struct FrameNotes(Vec<AtomicU8>);

impl FrameNotes {
    /// The frame has been a page table.
    const WAS_TABLE: u8 = 1;
    /// The process has written it since.
    const WRITTEN: u8 = 2;

    fn at(&self, mfn: Mfn) -> Option<&AtomicU8> {
        let index = mfn.checked_offset_from(BASE_MFN)?;
        self.0.get(usize::try_from(index).ok()?)
    }
}

/// One domain.
pub struct Domain {
    /// Its number.
    pub id: DomId,
    /// Tells this domain from another that had the number before.
    pub generation: u64,
    /// Its handle.
    pub uuid: Uuid,
    /// Its machine memory.
    pub memory: Arc<MachineMemory>,
    /// Its VM.
    pub vm: KvmVm,
    /// Its vCPUs, by number.
    pub vcpus: Vec<Arc<VcpuShared>>,
    /// Delivery of its events.
    pub delivery: Arc<TwoLevel>,
    /// Its event channels.
    pub events: Arc<EventChannels>,
    /// What the process shares.
    pub host: Arc<Host>,
    /// The CPU that it sees.
    pub cpuid: CpuidPolicy,
    /// `VMASST_TYPE_*` in force.
    pub vm_assist: AtomicU64,
    /// Pages that it may have.
    pub max_pages: AtomicU64,
    /// What its vCPUs did.
    pub counts: Counts,
    mm: Mutex<Paging>,
    life: Mutex<Life>,
    notes: FrameNotes,
    /// Page-table words that Dom0's operations left for a vCPU to repeat.
    deferred: Mutex<TableWrites>,
}

/// Tells vCPUs of events.
struct Waker(Vec<Arc<VcpuShared>>);

impl Waker {
    fn request(&self, vcpu: VcpuId, bits: u32) {
        if let Some(vcpu) = usize::try_from(vcpu.0).ok().and_then(|index| self.0.get(index)) {
            vcpu.request(bits);
        }
    }
}

impl VcpuWaker for Waker {
    fn kick(&self, vcpu: VcpuId) {
        self.request(vcpu, request::EVENT);
    }
    fn end_poll(&self, vcpu: VcpuId) {
        self.request(vcpu, request::POLL);
    }
}

/// What a new domain is made of.
#[derive(Debug, Clone)]
pub struct DomainSpec {
    /// Its number.
    pub id: DomId,
    /// See [`Domain::generation`].
    pub generation: u64,
    /// Its handle.
    pub uuid: Uuid,
    /// vCPUs that it may bring up.
    pub vcpus: u32,
    /// Pages that it may have.
    pub max_pages: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Domain {
    /// Makes a domain: paused, without RAM.
    ///
    /// # Errors
    /// [`DomainError`]; nothing is left behind.
    pub fn new(host: Arc<Host>, spec: &DomainSpec) -> Result<Arc<Self>, DomainError> {
        let memory = Arc::new(MachineMemory::new(spec.max_pages)?);
        let vcpu_count = usize::try_from(spec.vcpus).unwrap_or(1);
        let paging_error = |source| DomainError::Paging { pages: spec.max_pages, source };
        let mut paging = Paging::new(BASE_MFN, spec.max_pages, vcpu_count).map_err(paging_error)?;
        paging.share_low_frame(MFN_SHARED_INFO, LowAccess::ReadWrite).map_err(paging_error)?;
        let cpuid = host.cpuid();
        let vm = KvmVm::new(host.kvm(), Arc::clone(&memory), spec.vcpus, cpuid.for_kvm())?;
        let vcpus: Vec<_> = (0..spec.vcpus).map(|id| Arc::new(VcpuShared::new(VcpuId(id)))).collect();
        let words: Arc<dyn SharedWords> = Arc::clone(&memory) as _;
        let delivery = Arc::new(TwoLevel::new(words, MFN_SHARED_INFO, spec.vcpus, Arc::new(Waker(vcpus.clone()))));
        publish_wallclock(&*memory, MFN_SHARED_INFO, host.wall_time());
        let key = DomainKey { dom: spec.id, generation: spec.generation };
        let limits = Limits { vcpus: spec.vcpus, max_port: MAX_GUEST_PORT, shared_virqs: false };
        let events = EventChannels::new(key, limits, Arc::clone(&delivery) as _);
        let mut notes = Vec::new();
        notes.resize_with(usize::try_from(spec.max_pages).unwrap_or(0), AtomicU8::default);
        Ok(Arc::new(Domain {
            id: spec.id,
            generation: spec.generation,
            uuid: spec.uuid,
            memory,
            vm,
            vcpus,
            delivery,
            events,
            host,
            cpuid,
            vm_assist: AtomicU64::new(0),
            max_pages: AtomicU64::new(spec.max_pages),
            counts: Counts::default(),
            mm: Mutex::new(paging),
            life: Mutex::new(Life { pauses: 1, ..Life::default() }),
            notes: FrameNotes(notes),
            deferred: Mutex::new(TableWrites::default()),
        }))
    }

    /// The paging rules and frame table.
    pub fn lock_mm(&self) -> MutexGuard<'_, Paging> {
        lock(&self.mm)
    }

    /// Whether it runs, and why not.
    pub fn lock_life(&self) -> MutexGuard<'_, Life> {
        lock(&self.life)
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
    }

    /// Makes all vCPUs but `but` drop their cached translations before they
    /// run on; on return none of them runs with old ones.
    pub fn shoot_down(&self, but: Option<VcpuId>) {
        let others = || self.vcpus.iter().filter(|vcpu| Some(vcpu.id) != but && vcpu.has_thread());
        others().for_each(|vcpu| vcpu.request(request::FLUSH));
        others().for_each(|vcpu| vcpu.wait_for(request::FLUSH));
    }

    /// Runs a paging operation for Dom0, not on a vCPU of the domain.
    pub fn foreign_update<R>(&self, op: impl FnOnce(&mut Paging, &Tables<'_>) -> R) -> R {
        let (writes, flush) = (RefCell::default(), Cell::new(false));
        let tables = Tables { domain: self, vcpu: None, writes: Some((&writes, &flush)) };
        let result = op(&mut self.lock_mm(), &tables);
        let mut deferred = lock(&self.deferred);
        writes.into_inner().words().iter().for_each(|word| deferred.push(*word));
        drop(deferred);
        self.shoot_down(None);
        result
    }

    /// Takes what [`foreign_update`](Self::foreign_update) left.
    pub fn take_deferred(&self, into: &RefCell<TableWrites>) {
        let mut deferred = lock(&self.deferred);
        deferred.words().iter().for_each(|word| into.borrow_mut().push(*word));
        deferred.clear();
    }

    /// Writes the clock into a vCPU's `vcpu_info`.
    pub fn publish_clock(&self, vcpu: VcpuId) {
        let info = self.host.pvclock().info();
        if let Some(area) = self.delivery.area(vcpu) {
            area.with_time(|at| publish_time(self.delivery.words(), at, &info));
        }
    }

    /// Pages that it has.
    #[must_use]
    pub fn tot_pages(&self) -> u64 {
        self.lock_mm().owned_frames()
    }

    /// Gives the memory of a frame that was freed back to the host.
    pub fn discard(&self, mfn: Mfn) {
        if let Err(error) = self.memory.discard(mfn) {
            tracing::warn!(domain = self.id.0, %mfn, %error, "a freed frame keeps its memory");
            let _ = self.memory.clear_frame(mfn);
        }
        self.note_written(mfn);
    }

    /// Whether a `VMASST_TYPE_*` is in force.
    #[must_use]
    pub fn has_assist(&self, kind: u32) -> bool {
        self.vm_assist.load(Ordering::Relaxed) >> kind & 1 != 0
    }

    /// Whether vCPUs may run now.
    #[must_use]
    pub fn may_run(&self) -> bool {
        let life = self.lock_life();
        life.pauses == 0 && life.shutdown.is_none() && !life.dying
    }

    /// Whether it is being destroyed.
    #[must_use]
    pub fn is_dying(&self) -> bool {
        self.lock_life().dying
    }

    /// Makes each vCPU look at [`Life`] again.
    pub fn state_changed(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.request(request::STATE));
    }

    /// `domain_shutdown`: stops all vCPUs and tells Dom0. The first reason
    /// stands.
    pub fn shut_down(&self, reason: u32) {
        let mut life = self.lock_life();
        if life.shutdown.is_some() || life.dying {
            return;
        }
        life.shutdown = Some(reason);
        drop(life);
        tracing::info!(domain = self.id.0, reason, "shut down");
        self.state_changed();
        self.host.domain_exception();
    }

    /// Counts a pause and waits until no vCPU runs.
    pub fn pause(&self) {
        self.lock_life().pauses += 1;
        self.state_changed();
        self.vcpus.iter().for_each(|vcpu| vcpu.wait_for(request::STATE));
    }

    /// Takes back one pause.
    ///
    /// # Errors
    /// `EINVAL` if there is none.
    pub fn unpause(&self) -> Result<(), Errno> {
        let mut life = self.lock_life();
        life.pauses = life.pauses.checked_sub(1).ok_or(Errno::EINVAL)?;
        drop(life);
        self.state_changed();
        Ok(())
    }

    /// Keeps a vCPU's thread, to be joined at the end.
    pub fn add_thread(&self, thread: JoinHandle<()>) {
        self.lock_life().threads.push(thread);
    }

    /// Ends the domain: no vCPU runs any more, all ports are closed. Its
    /// memory goes with the last reference to it. Not to be called by one of
    /// its vCPUs.
    pub fn destroy(&self) {
        let mut life = self.lock_life();
        life.dying = true;
        let threads = std::mem::take(&mut life.threads);
        drop(life);
        self.state_changed();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!(domain = self.id.0, "a vCPU thread panicked");
            }
        }
        self.events.destroy();
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

/// The domain's memory as the paging rules see it, on behalf of one vCPU.
pub struct Tables<'a> {
    /// Whose memory.
    pub domain: &'a Domain,
    /// The vCPU that runs the operation, which is not in the guest.
    pub vcpu: Option<VcpuId>,
    /// Where to queue words to be written again, and whether to flush.
    pub writes: Option<(&'a RefCell<TableWrites>, &'a Cell<bool>)>,
}

impl<'a> Tables<'a> {
    /// For looking only.
    #[must_use]
    pub fn read_only(domain: &'a Domain) -> Self {
        Tables { domain, vcpu: None, writes: None }
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
            writes.borrow_mut().push(TableWrite { addr: Self::slot(table, index), forget_frame: false });
        }
    }
}

impl TableStore for Tables<'_> {
    fn load(&self, table: Mfn, index: usize) -> u64 {
        self.domain.memory.load(Self::slot(table, index)).unwrap_or(0)
    }

    fn store(&self, table: Mfn, index: usize, value: u64) {
        let swap = |word: &AtomicU64| word.swap(value, Ordering::SeqCst);
        if let Some(old) = self.domain.memory.atomic(Self::slot(table, index), swap) {
            self.changed(table, index, old);
        }
    }

    fn compare_exchange(&self, table: Mfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let swap =
            |word: &AtomicU64| word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ());
        let result = self.domain.memory.atomic(Self::slot(table, index), swap).unwrap_or(Err(0));
        if result.is_ok() {
            self.changed(table, index, old);
        }
        result
    }

    fn flush_writable(&self, _frame: Mfn) {
        if let Some((_, flush)) = self.writes {
            flush.set(true);
        }
        self.domain.shoot_down(self.vcpu);
    }

    fn table_promoted(&self, frame: Mfn) {
        let Some(note) = self.domain.notes.at(frame) else { return };
        let before = note.swap(FrameNotes::WAS_TABLE, Ordering::Relaxed);
        if before & FrameNotes::WRITTEN != 0
            && let Some((writes, _)) = self.writes
        {
            writes.borrow_mut().push(TableWrite { addr: Self::slot(frame, 0), forget_frame: true });
        }
    }

    fn install_hypervisor_slots(&self, l4: Mfn) {
        for (slot, value) in (256..).zip(self.domain.vm.hypervisor_slots()) {
            self.store(l4, slot, *value);
        }
    }
}
