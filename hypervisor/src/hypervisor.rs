//! All domains, and what they share of the process.
//!
//! Law: [`Host`] is what a domain sees of its surroundings; it knows the other
//! domains only by their event channels, so no domain keeps another alive.

use crate::{
    console::Console,
    domain::{Domain, DomainError, DomainSpec},
    emulate::CpuidPolicy,
    engine::{
        Available, EngineChoice, EngineError, EngineKind, KvmHost, KvmMissing, install_kick_signal,
    },
    events::{DomainKey, EventChannels, EventDomains, Limits, NotifierSink},
    grants::{GrantDomains, GrantTable},
    populate::Populator,
    time::{PvClock, TscClock, WallTime},
    version,
};
use domus_privcmd::protocol::GrantLimits;
use guest_abi::{
    addr::DomId,
    xen::{VIRQ_CON_RING, VIRQ_DOM_EXC},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use uuid::Uuid;

/// The most ports of domid 0: many processes, each with a port a guest.
const MAX_DOM0_PORT: u32 = 65_535;

/// Why the hypervisor can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// KVM is wanted and can't be used.
    #[error("{0}")]
    Kvm(#[from] KvmMissing),
    /// The kick signal's handler could not be set.
    #[error("no handler for the kick signal: {0}")]
    Signal(nix::Error),
}

/// Whether vCPUs interpret the guest's next instructions after a trap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RunAheadChoice {
    /// Where a trial at the start shows that traps are slow.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// A domain as others reach it.
struct Peer {
    events: Weak<EventChannels>,
    grants: Weak<GrantTable>,
}

/// What all domains share.
pub struct Host {
    /// The console ring.
    pub console: Console,
    /// System time.
    pub clock: TscClock,
    engines: Available,
    dom0: Arc<EventChannels>,
    notifiers: Arc<NotifierSink>,
    /// What domains may know of each other.
    peers: Mutex<HashMap<DomId, Peer>>,
    wall: WallTime,
    run_ahead: bool,
    check_every: AtomicU64,
    /// Touches memory of new domains in advance.
    pub populator: Populator,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    fn new(engine: EngineChoice, run_ahead: RunAheadChoice) -> Result<Self, StartError> {
        let engines = Available::find(engine)?;
        let clock = TscClock::start(engines.tsc_khz);
        let notifiers = Arc::new(NotifierSink::new());
        let key = DomainKey {
            dom: DomId::DOM0,
            generation: 0,
        };
        let limits = Limits {
            vcpus: 1,
            max_port: MAX_DOM0_PORT,
            shared_virqs: true,
        };
        let dom0 = EventChannels::new(key, limits, Arc::clone(&notifiers) as _);
        let run_ahead = match run_ahead {
            RunAheadChoice::On => true,
            RunAheadChoice::Off => false,
            RunAheadChoice::Auto => engines.traps_are_slow(),
        };
        let populator = Populator::new(engines.traps_are_slow());
        Ok(Host {
            console: Console::default(),
            clock,
            engines,
            populator,
            run_ahead,
            check_every: AtomicU64::new(0),
            dom0,
            notifiers,
            peers: Mutex::default(),
            wall: WallTime::from_host(clock.now_ns()),
        })
    }

    /// Has new vCPUs compare the interpreter with KVM at every so many entries; 0
    /// is never.
    pub fn set_check_every(&self, entries: u64) {
        self.check_every.store(entries, Ordering::Relaxed);
    }

    /// See [`set_check_every`](Self::set_check_every).
    #[must_use]
    pub fn check_every(&self) -> Option<u64> {
        Some(self.check_every.load(Ordering::Relaxed)).filter(|every| *every != 0)
    }

    /// Whether vCPUs interpret on after a trap.
    #[must_use]
    pub fn run_ahead(&self) -> bool {
        self.run_ahead
    }

    /// The CPU engine of new domains, for people.
    #[must_use]
    pub fn engine(&self) -> String {
        let ahead = if self.run_ahead {
            " with run-ahead"
        } else {
            ""
        };
        match &self.engines.kvm {
            Ok(kvm) => format!("kvm{ahead}, {} us a trap", kvm.traits.trap.as_micros()),
            Err(missing) => format!("soft: {missing}"),
        }
    }

    /// The engine that new domains get.
    #[must_use]
    pub fn engine_kind(&self) -> EngineKind {
        self.engines.default_kind()
    }

    /// KVM, if domains run on it.
    #[must_use]
    pub fn kvm(&self) -> Option<&KvmHost> {
        self.engines.kvm.as_ref().ok()
    }

    /// KVM, or an error that says why there is none.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`].
    pub fn kvm_or_reason(&self) -> Result<&KvmHost, EngineError> {
        let kvm = self.engines.kvm.as_ref();
        kvm.map_err(|missing| EngineError::Unavailable(missing.to_string()))
    }

    /// The CPU that a new domain sees.
    #[must_use]
    pub fn cpuid(&self) -> CpuidPolicy {
        self.engines.cpuid()
    }

    /// The clock as guests are told it.
    #[must_use]
    pub fn pvclock(&self) -> PvClock {
        PvClock {
            clock: self.clock,
            tsc_offset: 0,
            stable: true,
        }
    }

    /// Wall time at system time 0.
    #[must_use]
    pub fn wall_time(&self) -> WallTime {
        self.wall
    }

    /// Domid 0's event channels.
    #[must_use]
    pub fn dom0_events(&self) -> &Arc<EventChannels> {
        &self.dom0
    }

    /// Who is told of events on domid 0's ports.
    #[must_use]
    pub fn notifiers(&self) -> &NotifierSink {
        &self.notifiers
    }

    /// A domain's state has changed: tells Dom0.
    pub fn domain_exception(&self) {
        self.dom0.send_global_virq(VIRQ_DOM_EXC);
    }

    /// The console has a line about a domain: tells Dom0.
    pub fn console_news(&self) {
        self.dom0.send_global_virq(VIRQ_CON_RING);
    }
}

impl EventDomains for Host {
    fn events(&self, dom: DomId) -> Option<Arc<EventChannels>> {
        if dom == DomId::DOM0 {
            return Some(Arc::clone(&self.dom0));
        }
        lock(&self.peers)
            .get(&dom)
            .and_then(|peer| peer.events.upgrade())
    }
}

impl GrantDomains for Host {
    fn grants(&self, dom: DomId) -> Option<Arc<GrantTable>> {
        lock(&self.peers)
            .get(&dom)
            .and_then(|peer| peer.grants.upgrade())
    }
}

#[derive(Default)]
struct Domains {
    by_id: BTreeMap<DomId, Arc<Domain>>,
    last: u16,
    generation: u64,
}

/// The hypervisor.
pub struct Hypervisor {
    /// What domains share.
    pub host: Arc<Host>,
    domains: Mutex<Domains>,
}

/// Why no domain was made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The number is taken.
    #[error("domain {0} exists already")]
    Exists(DomId),
    /// Not a number that a domain can have.
    #[error("{0} is not a domain number: 1 to 32751 are")]
    BadId(DomId),
    /// All numbers are taken.
    #[error("no domain number is free")]
    NoFreeId,
    /// Not a number of vCPUs that a domain can have.
    #[error("{0} vCPUs: a domain has 1 to 32")]
    BadVcpus(u32),
    /// Not limits that a domain can have.
    #[error(
        "a domain has 1 to {most} grant frames and up to {most} maptrack frames, not {frames} and {maps}",
        most = GrantLimits::MOST, frames = .0.frames, maps = .0.maptrack_frames
    )]
    BadGrantLimits(GrantLimits),
    /// See [`DomainError`].
    #[error(transparent)]
    Domain(#[from] DomainError),
}

impl Hypervisor {
    /// Starts up.
    ///
    /// # Errors
    /// [`StartError`], which says what to do about it.
    pub fn new(engine: EngineChoice, run_ahead: RunAheadChoice) -> Result<Self, StartError> {
        install_kick_signal().map_err(StartError::Signal)?;
        let host = Arc::new(Host::new(engine, run_ahead)?);
        if host.engine_kind() == EngineKind::Soft {
            tracing::warn!("software engine: {}", host.engine());
        }
        host.console.print(&format!(
            "Domus {}: Xen {}.{} PV interface, TSC {} kHz, engine {}",
            env!("CARGO_PKG_VERSION"),
            version::XEN_VERSION.0,
            version::XEN_VERSION.1,
            host.clock.khz(),
            host.engine()
        ));
        // A daemon that outlives this process must not take a new domain for
        // an old one of the same number.
        let since_epoch = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default();
        let domains = Domains {
            generation: since_epoch.as_secs() << 20,
            ..Domains::default()
        };
        Ok(Hypervisor {
            host,
            domains: Mutex::new(domains),
        })
    }

    /// A domain by number.
    #[must_use]
    pub fn domain(&self, id: DomId) -> Option<Arc<Domain>> {
        lock(&self.domains).by_id.get(&id).cloned()
    }

    /// All domains, by number.
    #[must_use]
    pub fn domains(&self) -> Vec<Arc<Domain>> {
        lock(&self.domains).by_id.values().cloned().collect()
    }

    /// Makes a domain: paused, without memory.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is left behind.
    pub fn create(
        &self,
        id: Option<DomId>,
        uuid: Uuid,
        vcpus: u32,
        max_pages: u64,
        grants: GrantLimits,
    ) -> Result<Arc<Domain>, CreateError> {
        let frames = 1..=GrantLimits::MOST;
        if !frames.contains(&grants.frames) || grants.maptrack_frames > GrantLimits::MOST {
            return Err(CreateError::BadGrantLimits(grants));
        }
        if vcpus == 0 || vcpus > crate::engine::kvm::MAX_VCPUS {
            return Err(CreateError::BadVcpus(vcpus));
        }
        let mut domains = lock(&self.domains);
        let id = domains.choose(id)?;
        domains.generation += 1;
        let spec = DomainSpec {
            id,
            generation: domains.generation,
            uuid,
            vcpus,
            max_pages,
            grants,
        };
        let domain = Domain::new(Arc::clone(&self.host), &spec)?;
        let peer = Peer {
            events: Arc::downgrade(&domain.events),
            grants: Arc::downgrade(&domain.grants),
        };
        lock(&self.host.peers).insert(id, peer);
        domains.by_id.insert(id, Arc::clone(&domain));
        tracing::info!(domain = id.0, %uuid, vcpus, max_pages, "created");
        Ok(domain)
    }

    /// Ends a domain and gives back all that it had. `false` if there is none.
    pub fn destroy(&self, id: DomId) -> bool {
        let Some(domain) = self.domain(id) else {
            return false;
        };
        domain.destroy();
        let removed = lock(&self.domains).by_id.remove(&id).is_some();
        lock(&self.host.peers).remove(&id);
        self.host.console.domain_gone(id);
        if removed {
            tracing::info!(domain = id.0, counts = %domain.counts, "destroyed");
        }
        drop(domain);
        self.host.domain_exception();
        true
    }
}

impl Domains {
    /// The wished number if it is free, or the next free one.
    fn choose(&mut self, wished: Option<DomId>) -> Result<DomId, CreateError> {
        if let Some(id) = wished {
            if id == DomId::DOM0 || id >= DomId::FIRST_RESERVED {
                return Err(CreateError::BadId(id));
            }
            return if self.by_id.contains_key(&id) {
                Err(CreateError::Exists(id))
            } else {
                Ok(id)
            };
        }
        let limit = DomId::FIRST_RESERVED.0;
        for _ in 0..limit {
            self.last = if self.last + 1 >= limit {
                1
            } else {
                self.last + 1
            };
            if !self.by_id.contains_key(&DomId(self.last)) {
                return Ok(DomId(self.last));
            }
        }
        Err(CreateError::NoFreeId)
    }
}
