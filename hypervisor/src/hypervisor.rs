//! All domains, and what they share of the process.
//!
//! Law: [`Host`] is what a domain sees of its surroundings; it knows the other
//! domains only by their event channels, so no domain keeps another alive.

use crate::{
    console::Console,
    domain::{Domain, DomainError, DomainSpec},
    emulate::CpuidPolicy,
    engine::{
        EngineError,
        kvm::{KvmVm, Traits, install_kick_signal, probe},
    },
    events::{DomainKey, EventChannels, EventDomains, Limits, NotifierSink},
    grants::{GrantDomains, GrantTable},
    time::{PvClock, TscClock, WallTime, measure_tsc_khz},
    version,
};
use domus_privcmd::protocol::GrantLimits;
use guest_abi::{addr::DomId, xen::VIRQ_DOM_EXC};
use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use uuid::Uuid;

/// The most ports of domid 0: many processes, each with a port a guest.
const MAX_DOM0_PORT: u32 = 65_535;

/// Why the hypervisor can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no `/dev/kvm`.
    #[error(
        "/dev/kvm does not exist: this host's kernel offers no KVM. Load the kvm module (and kvm_intel or kvm_amd), \
         or give this machine a CPU with virtualisation"
    )]
    NoKvm,
    /// It may not be opened.
    #[error(
        "/dev/kvm may not be opened by this user (permission denied). Add the user to the group that owns it \
         (often kvm), or run as root"
    )]
    KvmPermission,
    /// It could not be opened for another reason.
    #[error("/dev/kvm can't be opened: {0}")]
    Kvm(kvm_ioctls::Error),
    /// It is too old.
    #[error("this host's KVM lacks {0}: a Linux kernel of version 5.10 or later has it")]
    Capability(&'static str),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
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
    kvm: Kvm,
    host_cpuid: CpuId,
    dom0: Arc<EventChannels>,
    notifiers: Arc<NotifierSink>,
    /// What domains may know of each other.
    peers: Mutex<HashMap<DomId, Peer>>,
    wall: WallTime,
    traits: Traits,
    run_ahead: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    fn new(run_ahead: RunAheadChoice) -> Result<Self, StartError> {
        let kvm = open_kvm()?;
        let khz = tsc_khz(&kvm).unwrap_or_else(measure_tsc_khz);
        let clock = TscClock::start(khz);
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
        let host_cpuid = KvmVm::supported_cpuid(&kvm)?;
        let traits = probe(
            &kvm,
            &CpuidPolicy::new(&host_cpuid, version::XEN_VERSION, khz),
        )?;
        let run_ahead = match run_ahead {
            RunAheadChoice::On => true,
            RunAheadChoice::Off => false,
            RunAheadChoice::Auto => traits.traps_are_slow(),
        };
        Ok(Host {
            console: Console::default(),
            clock,
            host_cpuid,
            traits,
            run_ahead,
            kvm,
            dom0,
            notifiers,
            peers: Mutex::default(),
            wall: WallTime::from_host(clock.now_ns()),
        })
    }

    /// Whether vCPUs interpret on after a trap.
    #[must_use]
    pub fn run_ahead(&self) -> bool {
        self.run_ahead
    }

    /// The CPU engine, for people.
    #[must_use]
    pub fn engine(&self) -> String {
        let ahead = if self.run_ahead {
            " with run-ahead"
        } else {
            ""
        };
        format!("kvm{ahead}, {} us a trap", self.traits.trap.as_micros())
    }

    /// The KVM device.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The CPU that a new domain sees.
    #[must_use]
    pub fn cpuid(&self) -> CpuidPolicy {
        CpuidPolicy::new(&self.host_cpuid, version::XEN_VERSION, self.clock.khz())
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

fn open_kvm() -> Result<Kvm, StartError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => StartError::NoKvm,
        libc::EACCES | libc::EPERM => StartError::KvmPermission,
        _ => StartError::Kvm(error),
    })?;
    let needed = [
        (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    ];
    match needed.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(StartError::Capability(name)),
        None => Ok(kvm),
    }
}

/// The rate of the TSC that a vCPU reads.
fn tsc_khz(kvm: &Kvm) -> Option<u32> {
    let vm = kvm.create_vm().ok()?;
    let vcpu = vm.create_vcpu(0).ok()?;
    vcpu.get_tsc_khz().ok().filter(|khz| *khz > 100_000)
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
    pub fn new(run_ahead: RunAheadChoice) -> Result<Self, StartError> {
        install_kick_signal().map_err(StartError::Signal)?;
        let host = Arc::new(Host::new(run_ahead)?);
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
