//! Making and ending a domain.
//!
//! ```text
//!   Images::open, Images::check        nothing exists yet
//!   create_domain                      paused, empty
//!   nodes::claim                       its name is its own
//!   ports, builder, record             its disks are its own
//!   nodes, introduce                   paused, complete
//!   wait_for_devices                   the back ends have taken its devices
//! ```
//!
//! Law: a failure at any step takes back all steps before it: no domain, no
//! node, no record is left.

use std::{io, time::SystemTime};

use domus_privcmd::{
    client::{Client, ClientError},
    protocol::CreateDomain,
};
use guest_abi::addr::{DomId, PAGE_SIZE, Port, VcpuId};
use uuid::Uuid;

use super::{
    boot,
    devices::{
        Kind, detach,
        images::{self, ImageError},
        patience, process,
        sharing::SharingError,
        wait::{self, WaitError},
    },
    host::Host,
    hotplug::{self, HotplugError},
    nodes,
    progress::Progress,
    record::{Record, Ring},
    signals::Held,
};
use crate::{
    bootloader::BootError,
    builder::{self, BuildError, BuildSpec, KernelError, KernelImage, Ramdisk, RamdiskError},
    config::{DomainConfig, domain::MAX_CMDLINE},
    services::ServiceError,
    xenstore::client::{Client as Store, Error as StoreError},
};

const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE;

/// Why a domain could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The ramdisk.
    #[error(transparent)]
    Ramdisk(#[from] RamdiskError),
    /// The boot loader.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The boot entry's options and the configuration's.
    #[error("the kernel's command line has {length} bytes; there is room for {MAX_CMDLINE}")]
    CommandLine {
        /// Its length.
        length: usize,
    },
    /// The builder.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A disk's image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A disk is somebody else's.
    #[error(transparent)]
    Sharing(#[from] SharingError),
    /// A back end's program.
    #[error(transparent)]
    Services(#[from] ServiceError),
    /// A device did not come.
    #[error(transparent)]
    Device(#[from] WaitError),
    /// A device of a running domain.
    #[error(transparent)]
    Hotplug(#[from] HotplugError),
    /// Not enough memory.
    #[error(
        "not enough memory: the domain wants {wanted} MiB, and of the host's {total} MiB {free} are free. Lower \
         'memory', or destroy a domain"
    )]
    Memory {
        /// What it wants.
        wanted: u64,
        /// What is free.
        free: u64,
        /// What there is.
        total: u64,
    },
    /// The name.
    #[error(transparent)]
    Name(#[from] nodes::NameError),
    /// The UUID.
    #[error("domain {dom} has the UUID {uuid} already; change 'uuid', or leave it out")]
    Uuid {
        /// The UUID.
        uuid: Uuid,
        /// Whose it is.
        dom: DomId,
    },
    /// The hypervisor.
    #[error("can't {what}: {source}")]
    Hypervisor {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: ClientError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record.
    #[error("can't write the domain's record: {0}")]
    Record(io::Error),
    /// Ctrl+C.
    #[error("interrupted; what was there of the domain has been removed")]
    Interrupted,
}

fn asking(what: &'static str) -> impl FnOnce(ClientError) -> LifeError {
    move |source| LifeError::Hypervisor { what, source }
}

/// A domain's kernel and ramdisk, read and checked.
#[derive(Debug)]
pub struct Images {
    /// The kernel.
    pub kernel: KernelImage,
    /// The ramdisk.
    pub ramdisk: Option<Ramdisk>,
    /// The kernel's command line.
    pub cmdline: String,
    /// What should be said about the disks' images.
    pub warnings: Vec<String>,
}

impl Images {
    /// Reads them, and checks all that can be checked without a hypervisor.
    ///
    /// # Errors
    /// What would keep the domain from being made.
    pub fn open(config: &DomainConfig, progress: &Progress) -> Result<Self, LifeError> {
        let warnings = check_devices(config)?;
        let boot::Loaded {
            kernel,
            ramdisk,
            cmdline,
        } = boot::load(config, progress)?;
        let images = Self {
            kernel,
            ramdisk,
            cmdline,
            warnings,
        };
        builder::plan(&images.kernel, &images.spec(config, Port(0), Port(0)))?;
        Ok(images)
    }

    fn spec(&self, config: &DomainConfig, store_port: Port, console_port: Port) -> BuildSpec {
        BuildSpec {
            memory_pages: config.memory_mib * PAGES_PER_MIB,
            ramdisk: self.ramdisk.clone(),
            cmdline: self.cmdline.clone(),
            flags: 0,
            store_port,
            console_port,
        }
    }
}

fn check_devices(config: &DomainConfig) -> Result<Vec<String>, LifeError> {
    let wanted = [
        (Kind::Vbd, config.disks.is_empty()),
        (Kind::Vif, config.vifs.is_empty()),
    ];
    let kinds = wanted
        .iter()
        .filter(|(_, none)| !none)
        .map(|(kind, _)| *kind);
    let warnings = images::check_all(config)?;
    process::find_programs(&kinds.collect::<Vec<_>>())?;
    Ok(warnings)
}

/// What goes along with making a domain.
#[derive(Debug)]
pub struct Making<'a> {
    /// What it keeps of the one before it.
    pub origin: Origin,
    /// Tells people of it.
    pub progress: &'a Progress,
    /// Ctrl+C waits meanwhile.
    pub held: &'a Held,
}

/// What a restarted domain keeps of the one before it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin {
    /// The UUID, where the configuration gives none.
    pub uuid: Option<Uuid>,
    /// How often it was restarted.
    pub restarts: u32,
    /// When last.
    pub last_restart: Option<f64>,
}

/// Makes a domain. It is complete and paused; its record is written.
///
/// # Errors
/// See [`LifeError`]; nothing is left then.
pub fn create(
    host: &mut Host,
    config: &DomainConfig,
    images: &Images,
    making: &Making<'_>,
) -> Result<Record, LifeError> {
    check_memory(&host.hypervisor, config)?;
    let uuid = config
        .uuid
        .or(making.origin.uuid)
        .unwrap_or_else(Uuid::new_v4);
    hotplug::look(host, config.name.as_str(), &config.disks)?;
    let guests = host.guests().map_err(asking("list the domains"))?;
    if let Some(twin) = guests.iter().find(|info| info.uuid == uuid) {
        let dom = DomId(twin.dom);
        return Err(LifeError::Uuid { uuid, dom });
    }
    making.progress.step("Creating the domain");
    let wish = CreateDomain {
        dom: None,
        uuid,
        max_vcpus: config.max_vcpus,
        max_pages: config.maxmem_mib * PAGES_PER_MIB,
        grants: config.grants,
    };
    let dom = host
        .hypervisor
        .create_domain(wish)
        .map_err(asking("create the domain"))?;
    let mut new = NewDomain {
        host,
        config,
        images,
        making,
        dom,
        uuid,
    };
    let made = new.make();
    if made.is_err() {
        undo(host, dom, uuid);
    }
    made
}

struct NewDomain<'a> {
    host: &'a mut Host,
    config: &'a DomainConfig,
    images: &'a Images,
    making: &'a Making<'a>,
    dom: DomId,
    uuid: Uuid,
}

impl NewDomain<'_> {
    fn make(&mut self) -> Result<Record, LifeError> {
        let (dom, config) = (self.dom, self.config);
        self.go_on()?;
        let Host { hypervisor, store } = &mut *self.host;
        let name = config.name.as_str();
        nodes::claim(store, dom, self.uuid, name, |other| {
            lives(hypervisor, other)
        })?;
        self.place_vcpus()?;
        let (store_port, console_port) = (self.new_port()?, self.new_port()?);
        self.go_on()?;
        self.making.progress.step("Building the domain");
        let spec = self.images.spec(config, store_port, console_port);
        let built = builder::build(&self.host.hypervisor, dom, &self.images.kernel, &spec)?;
        self.go_on()?;
        self.making.progress.step("Introducing the domain");
        let record = Record {
            dom: dom.0,
            uuid: self.uuid,
            start_time: now(),
            restarts: self.making.origin.restarts,
            last_restart: self.making.origin.last_restart,
            kept: false,
            store: Ring::new(built.store_mfn, store_port),
            console: Ring::new(built.console_mfn, console_port),
            config: config.clone(),
        };
        hotplug::claim(self.host, &record)?;
        nodes::fill(&mut self.host.store, &record)?;
        nodes::introduce(&mut self.host.store, &record)?;
        self.go_on()?;
        Ok(record)
    }

    fn go_on(&self) -> Result<(), LifeError> {
        if self.making.held.arrived() {
            return Err(LifeError::Interrupted);
        }
        Ok(())
    }

    fn new_port(&self) -> Result<Port, LifeError> {
        self.host
            .hypervisor
            .evtchn_alloc_unbound(self.dom, DomId::DOM0)
            .map_err(asking("make an event channel"))
    }

    fn place_vcpus(&self) -> Result<(), LifeError> {
        for vcpu in 0..self.config.max_vcpus {
            let index = usize::try_from(vcpu).unwrap_or(usize::MAX);
            let cpus = self.config.cpus.get(index).or(self.config.cpus.last());
            let Some(cpus) = cpus.filter(|cpus| !cpus.is_empty()) else {
                continue;
            };
            self.host
                .hypervisor
                .set_vcpu_affinity(self.dom, VcpuId(vcpu), cpus.clone())
                .map_err(asking("tie a vCPU to the host CPUs that 'cpus' names"))?;
        }
        Ok(())
    }
}

fn check_memory(hypervisor: &Client, config: &DomainConfig) -> Result<(), LifeError> {
    let host = hypervisor
        .host_info()
        .map_err(asking("ask for the host's memory"))?;
    if config.memory_mib.saturating_mul(PAGES_PER_MIB) > host.free_pages {
        return Err(LifeError::Memory {
            wanted: config.memory_mib,
            free: host.free_pages / PAGES_PER_MIB,
            total: host.total_pages / PAGES_PER_MIB,
        });
    }
    Ok(())
}

/// Takes back a domain that could not be completed. The failure that led here
/// is the one to tell of; one of these would hide it.
fn undo(host: &mut Host, dom: DomId, uuid: Uuid) {
    if let Err(error) = host.hypervisor.destroy_domain(dom)
        && !error.is_no_such_domain()
    {
        eprintln!("Warning: domain {dom} could not be destroyed: {error}");
    }
    let removed = release_devices(&mut host.store, dom, uuid)
        .and_then(|()| nodes::remove(&mut host.store, dom, uuid));
    if let Err(error) = removed {
        eprintln!("Warning: the nodes of domain {dom} could not be removed: {error}");
    }
    forget_record(dom, uuid);
}

/// Ends a domain and removes all that tells of it.
///
/// # Errors
/// The hypervisor's or the store's. A domain that is gone already is no error.
pub fn destroy(host: &mut Host, dom: DomId, uuid: Uuid) -> Result<(), LifeError> {
    match host.hypervisor.destroy_domain(dom) {
        Err(error) if !error.is_no_such_domain() => Err(asking("destroy the domain")(error)),
        _ => clean_up(host, dom, uuid),
    }
}

/// Removes what tells of a domain that is gone.
///
/// # Errors
/// The store's.
pub fn clean_up(host: &mut Host, dom: DomId, uuid: Uuid) -> Result<(), LifeError> {
    release_devices(&mut host.store, dom, uuid)?;
    nodes::remove(&mut host.store, dom, uuid)?;
    forget_record(dom, uuid);
    Ok(())
}

/// Takes the devices of a domain that runs no more, if the store still knows
/// the domain by this UUID.
///
/// # Errors
/// The store's.
pub fn release_devices(store: &mut Store, dom: DomId, uuid: Uuid) -> Result<(), StoreError> {
    if nodes::is_home_of(store, dom, uuid)? {
        detach::release(store, dom)?;
    }
    Ok(())
}

/// Waits until the back ends have taken all devices of a new domain. `go_on`
/// is asked meanwhile.
///
/// # Errors
/// A device did not come.
pub fn wait_for_devices(
    store: &mut Store,
    record: &Record,
    go_on: impl FnMut(&mut Store) -> Result<bool, StoreError>,
) -> Result<(), LifeError> {
    let all = hotplug::awaited(record);
    let name = record.config.name.as_str();
    match wait::until_ready(store, name, &all, patience(), go_on) {
        Err(WaitError::Interrupted) => Err(LifeError::Interrupted),
        other => Ok(other?),
    }
}

fn forget_record(dom: DomId, uuid: Uuid) {
    if let Some(record) = Record::load(dom).filter(|r| r.uuid == uuid) {
        record.remove();
    }
}

/// Whether a domain exists; in doubt it does.
#[must_use]
pub fn lives(hypervisor: &Client, dom: DomId) -> bool {
    !matches!(hypervisor.domain_info(dom), Err(error) if error.is_no_such_domain())
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> f64 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0.0, |since| since.as_secs_f64())
}
