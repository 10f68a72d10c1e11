//! A domain: its memory, its vCPUs, its ports, and how it lives and dies.
//!
//! Lock order, outermost first; nobody takes a lock to the left of one that it
//! holds:
//!
//! ```text
//! Hypervisor::domains -> life -> mm -> grants -> events -> VcpuShared's own
//! ```
//!
//! (A grant table's lock against growing twice stands before `mm`. Nothing is
//! called with `life` held.)
//!
//! `life` decides whether vCPUs may run. It is written by Dom0 and by the
//! guest's own shutdown, and read by each vCPU thread when a `STATE` request
//! tells it to.

use crate::{
    counts::Counts,
    debug::Debugger,
    emulate::CpuidPolicy,
    engine::{
        Engine, EngineError, EngineKind, Engines,
        kvm::{MFN_SHARED_INFO, install_monitor},
    },
    events::{DomainKey, EventChannels, Limits, TwoLevel, VcpuWaker},
    grants::{GrantTable, MapTrack},
    hypervisor::Host,
    interp::GuestPhys,
    memory::{BASE_MFN, MachineMemory, MemoryError},
    mistakes::{Line, Mistakes},
    paging::{LowAccess, Paging},
    shared_words::SharedWords,
    space::Space,
    time::{publish_time, publish_wallclock},
    trace::Tracer,
    vcpu::{Stillness, VcpuShared, request},
    window::{ForeignWindow, WindowError},
};
use domus_privcmd::protocol::GrantLimits;
use guest_abi::{
    addr::{DomId, VcpuId},
    errno::Errno,
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};
use uuid::Uuid;

/// Tables that one paging operation may deal with while it holds the lock:
/// some tens of milliseconds.
const PAGING_BUDGET: u32 = 4096;

/// Grants that a guest can map for each frame of its map track, as on Xen.
const MAPPINGS_PER_FRAME: u32 = 256;

/// A guest's highest event channel, as Xen's tools set it.
const MAX_GUEST_PORT: u32 = 1023;

/// Why a domain could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its window.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The numbers of foreign frames.
    #[error("the frame table takes no foreign frames: {0}")]
    ForeignFrames(Errno),
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

/// One domain.
pub struct Domain {
    /// Its number.
    pub id: DomId,
    /// Tells this domain from another that had the number before.
    pub generation: u64,
    /// Its handle.
    pub uuid: Uuid,
    /// Its memory.
    pub space: Arc<Space>,
    /// What runs it.
    pub engines: Engines,
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
    /// Which of its mistakes it has been told of.
    pub mistakes: Mistakes,
    /// Its trace, while somebody listens.
    pub tracer: Arc<Tracer>,
    /// Its debugger, where there is one.
    pub debugger: Debugger,
    /// What it grants.
    pub grants: Arc<GrantTable>,
    /// What it has mapped of others' grants.
    pub maps: MapTrack,
    /// The console has been told of an instruction that the engine lacks.
    pub(crate) told_unknown: AtomicBool,
    /// Its vCPUs, while one of them is checked.
    pub(crate) stillness: Stillness,
    making_window: Mutex<()>,
    changing_engine: Mutex<()>,
    life: Mutex<Life>,
}

/// Tells vCPUs of events.
struct Waker(Vec<Arc<VcpuShared>>);

impl Waker {
    fn find(&self, vcpu: VcpuId) -> Option<&VcpuShared> {
        let index = usize::try_from(vcpu.0).ok()?;
        self.0.get(index).map(|vcpu| &**vcpu)
    }

    fn request(&self, vcpu: VcpuId, bits: u32) {
        if let Some(vcpu) = self.find(vcpu) {
            vcpu.request(bits);
        }
    }
}

impl VcpuWaker for Waker {
    fn kick(&self, vcpu: VcpuId) {
        self.request(vcpu, request::EVENT);
    }
    fn nudge(&self, vcpu: VcpuId) {
        if let Some(vcpu) = self.find(vcpu) {
            vcpu.nudge(request::EVENT);
        }
    }
    fn hurry(&self, vcpu: VcpuId) {
        if let Some(vcpu) = self.find(vcpu) {
            vcpu.hurry();
        }
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
    /// What it may grant and map.
    pub grants: GrantLimits,
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
        let paging_error = |source| DomainError::Paging {
            pages: spec.max_pages,
            source,
        };
        let mut paging = Paging::new(BASE_MFN, spec.max_pages, vcpu_count).map_err(paging_error)?;
        paging.set_budget(PAGING_BUDGET);
        paging
            .share_low_frame(MFN_SHARED_INFO, LowAccess::ReadWrite)
            .map_err(paging_error)?;
        let cpuid = host.cpuid();
        let slots = install_monitor(&memory, spec.vcpus)?;
        let engines = Engines::new(host.kvm(), Arc::clone(&memory), cpuid.clone())?;
        let now = host.clock.now_ns();
        let vcpus: Vec<_> = (0..spec.vcpus)
            .map(|id| Arc::new(VcpuShared::new(VcpuId(id), now)))
            .collect();
        let words: Arc<dyn SharedWords> = Arc::clone(&memory) as _;
        let delivery = Arc::new(TwoLevel::new(
            words,
            MFN_SHARED_INFO,
            spec.vcpus,
            Arc::new(Waker(vcpus.clone())),
        ));
        publish_wallclock(&*memory, MFN_SHARED_INFO, host.wall_time());
        let key = DomainKey {
            dom: spec.id,
            generation: spec.generation,
        };
        let limits = Limits {
            vcpus: spec.vcpus,
            max_port: MAX_GUEST_PORT,
            shared_virqs: false,
        };
        let events = EventChannels::new(key, limits, Arc::clone(&delivery) as _);
        let space = Arc::new(Space::new(
            spec.id,
            Arc::clone(&memory),
            paging,
            vcpus.clone(),
            slots,
        ));
        let grants = GrantTable::new(key, spec.grants.frames, memory, Arc::clone(&space) as _)
            .map_err(|_| paging_error(Errno::ENOMEM))?;
        Ok(Arc::new(Domain {
            id: spec.id,
            generation: spec.generation,
            uuid: spec.uuid,
            space,
            engines,
            vcpus,
            delivery,
            events,
            host,
            cpuid,
            vm_assist: AtomicU64::new(0),
            max_pages: AtomicU64::new(spec.max_pages),
            counts: Counts::default(),
            mistakes: Mistakes::default(),
            tracer: Arc::default(),
            debugger: Debugger::default(),
            grants,
            told_unknown: AtomicBool::new(false),
            stillness: Stillness::default(),
            maps: MapTrack::new(spec.id, spec.grants.maptrack_frames * MAPPINGS_PER_FRAME),
            making_window: Mutex::default(),
            changing_engine: Mutex::new(()),
            life: Mutex::new(Life {
                pauses: 1,
                ..Life::default()
            }),
        }))
    }

    /// Where its VM finds what others granted it; made at the first call.
    ///
    /// # Errors
    /// [`WindowError`] or [`EngineError`].
    pub fn window(&self) -> Result<&Arc<ForeignWindow>, DomainError> {
        let _making = lock(&self.making_window);
        if let Some(window) = self.space.window() {
            return Ok(window);
        }
        let start = self.space.window_start();
        let window = Arc::new(ForeignWindow::new(start)?);
        self.engines.add_window(&window)?;
        let in_use = self.space.set_window(window);
        in_use.map_err(DomainError::ForeignFrames)?;
        tracing::debug!(domain = self.id.0, %start, "window for grants");
        self.space
            .window()
            .ok_or(DomainError::ForeignFrames(Errno::EINVAL))
    }

    /// Tells the domain's people of a mistake: on the hypervisor's console, and
    /// from there on its own.
    pub fn tell(&self, line: &Line<'_>) {
        let text = line.to_string();
        tracing::info!("{text}");
        self.host.console.print(&text);
        self.host.console_news();
    }

    /// Whether it runs, and why not.
    pub fn lock_life(&self) -> MutexGuard<'_, Life> {
        lock(&self.life)
    }

    /// Writes the clock into a vCPU's `vcpu_info`.
    pub fn publish_clock(&self, vcpu: VcpuId) {
        let info = self.host.pvclock().info();
        if let Some(area) = self.delivery.area(vcpu) {
            area.with_time(|at| publish_time(self.delivery.words(), at, &info));
        }
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
        self.vcpus
            .iter()
            .for_each(|vcpu| vcpu.request(request::STATE));
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
        self.debugger.shut_down(reason);
        self.host.domain_exception();
    }

    /// Counts a pause and waits until no vCPU runs.
    pub fn pause(&self) {
        self.lock_life().pauses += 1;
        self.state_changed();
        self.vcpus
            .iter()
            .for_each(|vcpu| vcpu.wait_for(request::STATE));
    }

    /// Takes back one pause.
    ///
    /// # Errors
    /// `EINVAL` if there is none.
    pub fn unpause(&self) -> Result<(), Errno> {
        let mut life = self.lock_life();
        life.pauses = life.pauses.checked_sub(1).ok_or(Errno::EINVAL)?;
        drop(life);
        self.space.any_may_change();
        self.state_changed();
        Ok(())
    }

    /// Goes over to another engine, which the guest does not notice: its state
    /// is its vCPUs' registers and its memory. Returns when no vCPU will enter
    /// the old one again.
    ///
    /// # Errors
    /// This process has no such engine, or KVM refused; nothing has changed.
    pub fn change_engine(&self, kind: EngineKind) -> Result<(), EngineError> {
        let _one_at_a_time = lock(&self.changing_engine);
        if self.engines.kind() == kind {
            return Ok(());
        }
        let kvm = match kind {
            EngineKind::Kvm => Some(self.host.kvm_or_reason()?),
            EngineKind::Soft => None,
        };
        let phys: Arc<dyn GuestPhys> = Arc::clone(&self.space) as _;
        let running = self.vcpus.iter().filter(|vcpu| vcpu.has_thread());
        let running = running.map(|vcpu| (vcpu.id.0, vcpu.interrupt_flag()));
        let prepared = self.engines.prepare(kvm, running, &phys)?;
        self.pause();
        self.engines.change(prepared);
        tracing::info!(domain = self.id.0, engine = %kind, "engine changed");
        // Its pause was just counted, so this can't fail.
        let _ = self.unpause();
        Ok(())
    }

    /// An engine for a vCPU, and the change of engines that it came with.
    ///
    /// # Errors
    /// KVM refused.
    pub fn create_engine(&self, vcpu: &VcpuShared) -> Result<(Engine, u64), EngineError> {
        let phys: Arc<dyn GuestPhys> = Arc::clone(&self.space) as _;
        self.engines
            .create_vcpu(vcpu.id.0, &phys, &vcpu.interrupt_flag())
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
        self.tracer.end();
        self.events.destroy();
        self.maps.release_all();
        self.grants.destroy();
    }
}
