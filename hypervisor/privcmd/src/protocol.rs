//! What can be asked over the privcmd socket, and what comes back.
//!
//! Each variant of [`Request`] is the typed form of one Xen operation that
//! only domid 0 may do; its doc names it. Every failure is an [`Errno`], the
//! one that Xen's operation gives for the same cause, with a sentence that
//! says what was wrong ([`Failure`]).
//!
//! Law: all that a connection acquires (ports, event fds) is returned when the
//! connection ends, however it ends. Domains are not owned by a connection.
//!
//! Law: [`Request::Hello`] stays the first variant with its one `u32`, and
//! `Result<Reply, Failure>` keeps its shape, so that two versions that don't
//! understand each other can still say so.

use guest_abi::errno::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The protocol's number. A hypervisor refuses a client of another number, so
/// that a half-upgraded installation says so instead of misreading messages.
pub const PROTOCOL_VERSION: u32 = 3;

/// The largest encoded message, in bytes, either way.
pub const MAX_MESSAGE: usize = 1 << 20;

/// The most grants that one request maps, unmaps or copies.
pub const MAX_GRANT_BATCH: usize = 4096;

/// The most grants that one connection has mapped at a time.
pub const MAX_CONNECTION_GRANTS: u32 = 65_536;

/// The most bytes that one [`Request::GrantCopy`] copies, all its elements
/// together.
pub const MAX_COPY_BYTES: usize = 512 << 10;

/// The most pages of a [`Request::CopyBuffer`].
pub const MAX_COPY_BUFFER_PAGES: u32 = 1024;

/// The most buffers that one connection has at a time.
pub const MAX_COPY_BUFFERS: u32 = 64;

/// What a Dom0 process asks of the hypervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Must be the first message: the client's [`PROTOCOL_VERSION`].
    Hello {
        /// The client's [`PROTOCOL_VERSION`].
        version: u32,
    },

    // sysctl
    /// `XEN_SYSCTL_physinfo` and `xen_version`. Reply: [`Reply::HostInfo`].
    HostInfo,
    /// `XEN_SYSCTL_readconsole`: the console ring from byte `from` on (bytes
    /// are numbered since the start). Reply: [`Reply::Console`].
    ReadConsole {
        /// The number of the first byte wanted.
        from: u64,
        /// Empty the ring afterwards.
        clear: bool,
    },

    // domctl
    /// `XEN_DOMCTL_createdomain`, with `max_vcpus` and `max_mem`. The domain
    /// starts paused, without memory. Reply: [`Reply::Domain`].
    CreateDomain(CreateDomain),
    /// `XEN_DOMCTL_destroydomain`. Returns when all its resources are free.
    DestroyDomain {
        /// The domain.
        dom: u16,
    },
    /// `XEN_DOMCTL_pausedomain` (counted, as in Xen).
    PauseDomain {
        /// The domain.
        dom: u16,
    },
    /// `XEN_DOMCTL_unpausedomain`.
    UnpauseDomain {
        /// The domain.
        dom: u16,
    },
    /// `SCHEDOP_remote_shutdown`; `reason` is a `SHUTDOWN_*`.
    ShutdownDomain {
        /// The domain.
        dom: u16,
        /// A `SHUTDOWN_*`.
        reason: u32,
    },
    /// `XEN_DOMCTL_getdomaininfo`. Reply: [`Reply::DomainInfo`].
    GetDomainInfo {
        /// The domain.
        dom: u16,
    },
    /// `XEN_SYSCTL_getdomaininfolist`. Reply: [`Reply::DomainList`], by domid,
    /// at most `max` from `first` on.
    ListDomains {
        /// The lowest domid wanted.
        first: u16,
        /// The most entries wanted.
        max: u32,
    },
    /// `XEN_DOMCTL_max_mem`, in pages.
    SetMaxMem {
        /// The domain.
        dom: u16,
        /// The new limit.
        pages: u64,
    },
    /// `XEN_DOMCTL_getvcpuinfo`. Reply: [`Reply::VcpuInfo`].
    GetVcpuInfo {
        /// The domain.
        dom: u16,
        /// The vCPU's number.
        vcpu: u32,
    },
    /// `XEN_DOMCTL_setvcpuaffinity`: host CPUs by number, empty = any.
    SetVcpuAffinity {
        /// The domain.
        dom: u16,
        /// The vCPU's number.
        vcpu: u32,
        /// Host CPUs.
        cpus: Vec<u32>,
    },
    /// `XEN_DOMCTL_setvcpucontext`: the bytes of a `vcpu_guest_context`.
    SetVcpuContext {
        /// The domain.
        dom: u16,
        /// The vCPU's number.
        vcpu: u32,
        /// A `vcpu_guest_context`.
        context: Vec<u8>,
    },
    /// `XEN_DOMCTL_getvcpucontext`. Reply: [`Reply::VcpuContext`].
    GetVcpuContext {
        /// The domain.
        dom: u16,
        /// The vCPU's number.
        vcpu: u32,
    },

    /// What executes the domain's code; with `change`, from now on. The domain
    /// does not notice. Reply: [`Reply::Engine`].
    Engine {
        /// The domain.
        dom: u16,
        /// The engine that it shall have.
        change: Option<Engine>,
    },

    // memory
    /// `XENMEM_populate_physmap` on a foreign domain, for the range of
    /// pseudo-physical frames `first_pfn..first_pfn + count`: allocates the
    /// frames and sets their machine-to-phys entries. Reply:
    /// [`Reply::Frames`].
    PopulatePhysmap {
        /// The domain.
        dom: u16,
        /// The first frame of the range.
        first_pfn: u64,
        /// Its length in frames.
        count: u64,
    },
    /// A file descriptor of the domain's memory (`xc_map_foreign_range`).
    /// Reply: [`Reply::Memory`] with one fd. Byte 0 of the file is the first
    /// byte of frame `base_mfn`.
    MapMemory {
        /// The domain.
        dom: u16,
    },
    /// The machine-to-phys entries of `count` frames of the domain's memory
    /// (`XENMEM_machphys_mfn_list` is how Xen's tools get at them), at most
    /// 65536; `u64::MAX` for a frame that the domain does not have. Reply:
    /// [`Reply::Words`].
    GetPfns {
        /// The domain.
        dom: u16,
        /// The first frame.
        first_mfn: u64,
        /// How many.
        count: u32,
    },
    /// A copy of the domain's shared info page. Reply: [`Reply::Bytes`].
    GetSharedInfo {
        /// The domain.
        dom: u16,
    },
    /// `MMUEXT_PIN_L1_TABLE..PIN_L4_TABLE` on a foreign domain; `level` 1..=4.
    PinTable {
        /// The domain.
        dom: u16,
        /// 1 to 4.
        level: u8,
        /// The table's frame.
        mfn: u64,
    },

    // event channels of domid 0
    /// `EVTCHNOP_alloc_unbound` on behalf of `dom`, for `remote` to bind.
    /// Reply: [`Reply::Port`], a port of `dom`.
    EvtchnAllocUnbound {
        /// The domain that gets the port.
        dom: u16,
        /// The domain that may bind to it.
        remote: u16,
    },
    /// `EVTCHNOP_bind_interdomain` for domid 0. Reply: [`Reply::Port`] with
    /// one fd, an eventfd that becomes readable when the port is notified.
    EvtchnBindInterdomain {
        /// The domain whose unbound port is wanted.
        remote_dom: u16,
        /// That port.
        remote_port: u32,
    },
    /// `EVTCHNOP_bind_virq` for domid 0 (`VIRQ_DOM_EXC` and the like). Reply:
    /// as for `EvtchnBindInterdomain`.
    EvtchnBindVirq {
        /// A `VIRQ_*`.
        virq: u32,
    },
    /// `EVTCHNOP_send` on a port of this connection.
    EvtchnNotify {
        /// A port of domid 0.
        port: u32,
    },
    /// `EVTCHNOP_send` on a port of this connection, without a reply: for those
    /// who notify often. With `soon` a guest that runs is not interrupted: it
    /// finds the event at its next trap, and until then the sender looks out
    /// for it, and sends without `soon` when that takes too long.
    EvtchnSignal {
        /// A port of domid 0.
        port: u32,
        /// See above.
        soon: bool,
    },
    /// `EVTCHNOP_close` of a port of this connection.
    EvtchnClose {
        /// A port of domid 0.
        port: u32,
    },
    /// A debugger's call. Reply: [`Reply::Done`] or [`Reply::Debug`].
    Debug(crate::debug::Call),
    /// Records what the domain's vCPUs do, for this connection alone, until it
    /// ends. One trace a connection, one connection a domain.
    TraceStart {
        /// The domain.
        dom: u16,
        /// Bits of [`trace::kind`](crate::trace::kind).
        kinds: u32,
    },
    /// Takes what has been recorded, and waits for it up to so long. Works
    /// until the connection ends, also when the domain has gone. Reply:
    /// [`Reply::Trace`].
    TraceRead {
        /// In ms, at most 1000.
        patience_ms: u32,
    },
    /// `EVTCHNOP_status` of a port of any domain. Reply:
    /// [`Reply::EvtchnStatus`].
    EvtchnStatus {
        /// The domain.
        dom: u16,
        /// The port.
        port: u32,
    },

    // grants to domid 0
    /// `GNTTABOP_map_grant_ref` for domid 0, all of them or none. Reply:
    /// [`Reply::Grants`], in the order of `refs`. If `has_file` is not the
    /// domain's generation a descriptor of its memory comes along, which can
    /// be written only if `write`.
    GrantMap {
        /// The granting domain.
        dom: u16,
        /// Its grants, at most [`MAX_GRANT_BATCH`].
        refs: Vec<u32>,
        /// For writing too.
        write: bool,
        /// The generation of the domain whose memory the caller has a
        /// descriptor of, fit for `write`.
        has_file: Option<u64>,
    },
    /// `GNTTABOP_unmap_grant_ref` of mappings of this connection, all of them
    /// or none. The caller must have ended its own mappings of the memory
    /// before: the granting domain may use the frames for something else from
    /// here on.
    GrantUnmap {
        /// As [`Reply::Grants`] told them.
        handles: Vec<u32>,
    },
    /// `GNTTABOP_copy` between grants to domid 0 and the bytes of the message.
    /// Each element has a status of its own. Reply: [`Reply::Copied`].
    GrantCopy {
        /// The granting domain.
        dom: u16,
        /// At most [`MAX_GRANT_BATCH`].
        copies: Vec<CopyElement>,
    },

    /// Memory to copy grants to and from, which the hypervisor and the caller
    /// both have mapped. Reply: [`Reply::CopyBuffer`] with one fd, to be mapped.
    CopyBuffer {
        /// Its length, at most [`MAX_COPY_BUFFER_PAGES`].
        pages: u32,
    },
    /// Gives such a buffer up.
    CloseCopyBuffer {
        /// As [`Reply::CopyBuffer`] told it.
        buffer: u32,
    },
    /// `GNTTABOP_copy` between grants to domid 0 and a buffer, where the parts
    /// lie one behind the other. Each has a status of its own; the bytes of one
    /// that fails stay what they were. Reply: [`Reply::Statuses`].
    GrantCopyBuffer {
        /// The granting domain.
        dom: u16,
        /// As [`Reply::CopyBuffer`] told it.
        buffer: u32,
        /// The first byte in it.
        at: u32,
        /// Into the grants; else out of them.
        write: bool,
        /// At most [`MAX_GRANT_BATCH`].
        parts: Vec<GrantPart>,
    },

    // the connection
    /// `IOCTL_PRIVCMD_RESTRICT`: from here on this connection gets at nothing
    /// but `dom`'s information, grants and event channels. Nothing takes it
    /// back, and it does not go over to a later domain of the same number.
    Restrict {
        /// The domain.
        dom: u16,
    },

    // statistics
    /// What the domain's vCPUs did, counted since it began. Reply:
    /// [`Reply::Counters`].
    GetDomainCounters {
        /// The domain.
        dom: u16,
    },
}

/// A part of a granted page, in a [`Request::GrantCopyBuffer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantPart {
    /// The grant.
    pub gref: u32,
    /// The first byte in its page.
    pub offset: u16,
    /// How many bytes.
    pub len: u16,
}

/// One element of a [`Request::GrantCopy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyElement {
    /// The grant.
    pub gref: u32,
    /// The first byte in its page.
    pub offset: u16,
    /// Which way.
    pub what: CopyWhat,
}

impl CopyElement {
    /// How many bytes it copies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.what {
            CopyWhat::Read(len) => usize::from(*len),
            CopyWhat::Write(bytes) => bytes.len(),
        }
    }
}

/// Which way a [`CopyElement`] goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CopyWhat {
    /// So many bytes out of the page.
    Read(u16),
    /// These bytes into the page.
    Write(Vec<u8>),
}

impl Request {
    /// The operation's name, for traces.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::HostInfo => "HostInfo",
            Self::ReadConsole { .. } => "ReadConsole",
            Self::CreateDomain(_) => "CreateDomain",
            Self::DestroyDomain { .. } => "DestroyDomain",
            Self::PauseDomain { .. } => "PauseDomain",
            Self::UnpauseDomain { .. } => "UnpauseDomain",
            Self::ShutdownDomain { .. } => "ShutdownDomain",
            Self::GetDomainInfo { .. } => "GetDomainInfo",
            Self::ListDomains { .. } => "ListDomains",
            Self::SetMaxMem { .. } => "SetMaxMem",
            Self::GetVcpuInfo { .. } => "GetVcpuInfo",
            Self::SetVcpuAffinity { .. } => "SetVcpuAffinity",
            Self::SetVcpuContext { .. } => "SetVcpuContext",
            Self::GetVcpuContext { .. } => "GetVcpuContext",
            Self::Engine { .. } => "Engine",
            Self::PopulatePhysmap { .. } => "PopulatePhysmap",
            Self::MapMemory { .. } => "MapMemory",
            Self::GetPfns { .. } => "GetPfns",
            Self::GetSharedInfo { .. } => "GetSharedInfo",
            Self::PinTable { .. } => "PinTable",
            Self::EvtchnAllocUnbound { .. } => "EvtchnAllocUnbound",
            Self::EvtchnBindInterdomain { .. } => "EvtchnBindInterdomain",
            Self::EvtchnBindVirq { .. } => "EvtchnBindVirq",
            Self::EvtchnNotify { .. } => "EvtchnNotify",
            Self::EvtchnSignal { .. } => "EvtchnSignal",
            Self::EvtchnClose { .. } => "EvtchnClose",
            Self::Debug(_) => "Debug",
            Self::TraceStart { .. } => "TraceStart",
            Self::TraceRead { .. } => "TraceRead",
            Self::EvtchnStatus { .. } => "EvtchnStatus",
            Self::GrantMap { .. } => "GrantMap",
            Self::GrantUnmap { .. } => "GrantUnmap",
            Self::GrantCopy { .. } => "GrantCopy",
            Self::CopyBuffer { .. } => "CopyBuffer",
            Self::CloseCopyBuffer { .. } => "CloseCopyBuffer",
            Self::GrantCopyBuffer { .. } => "GrantCopyBuffer",
            Self::Restrict { .. } => "Restrict",
            Self::GetDomainCounters { .. } => "GetDomainCounters",
        }
    }
}

impl Request {
    /// Whether no reply is given, not even to a request that fails.
    #[must_use]
    pub const fn is_one_way(&self) -> bool {
        matches!(self, Self::EvtchnSignal { .. })
    }
}

/// What executes a domain's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// Ring 3 of a KVM virtual machine.
    Kvm,
    /// The interpreter in the hypervisor's process.
    Soft,
}

/// What a new domain shall be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateDomain {
    /// The wished domid; `None` takes the next free one.
    pub dom: Option<u16>,
    /// `xen_domain_handle_t`.
    pub uuid: Uuid,
    /// 1 to 32 (the most that fit in `shared_info`).
    pub max_vcpus: u32,
    /// The most pages that the domain may ever have (`max_mem`).
    pub max_pages: u64,
    /// See [`GrantLimits`].
    pub grants: GrantLimits,
}

/// How much a domain may grant, and how much of others' it may map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantLimits {
    /// `max_grant_frames`: frames of its grant table, 512 grants each; 1 to
    /// [`MOST`](Self::MOST).
    pub frames: u32,
    /// `max_maptrack_frames`: frames of its map track, 256 mappings each; 0 to
    /// [`MOST`](Self::MOST). With 0 it can map nothing.
    pub maptrack_frames: u32,
}

impl GrantLimits {
    /// The most frames of either kind.
    pub const MOST: u32 = 1024;
}

/// Xen's.
impl Default for GrantLimits {
    fn default() -> Self {
        Self {
            frames: 64,
            maptrack_frames: 1024,
        }
    }
}

/// The answer to a [`Request`] that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Done; nothing to tell.
    Done,
    /// A domid.
    Domain(u16),
    /// An event channel.
    Port(u32),
    /// Frames by extent, in the order asked: `(first mfn, count)`.
    Frames(Vec<(u64, u64)>),
    /// Where the domain's memory lies; one fd comes along.
    Memory {
        /// The frame at the file's byte 0.
        base_mfn: u64,
        /// The file's length in pages.
        pages: u64,
    },
    /// See [`HostInfo`].
    HostInfo(HostInfo),
    /// Console bytes; `start` is the number of the first one, larger than the
    /// one asked for when the ring has wrapped.
    Console {
        /// The number of the first byte.
        start: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// See [`DomainInfo`].
    DomainInfo(DomainInfo),
    /// In the order of domids.
    DomainList(Vec<DomainInfo>),
    /// See [`VcpuInfo`].
    VcpuInfo(VcpuInfo),
    /// The bytes of a `vcpu_guest_context`.
    VcpuContext(Vec<u8>),
    /// Numbers, in the order asked for.
    Words(Vec<u64>),
    /// Bytes of memory.
    Bytes(Vec<u8>),
    /// What a debugger asked.
    Debug(crate::debug::Answer),
    /// A domain's engine.
    Engine(Engine),
    /// Records of a trace.
    Trace(crate::trace::Batch),
    /// A port's state.
    EvtchnStatus {
        /// What it is bound to.
        state: PortState,
        /// The vCPU that it notifies.
        vcpu: u32,
    },
    /// Mapped grants; perhaps one fd comes along.
    Grants {
        /// Of the domain.
        generation: u64,
        /// The frame at byte 0 of the domain's memory file.
        base_mfn: u64,
        /// A handle and a frame for each.
        grants: Vec<(u32, u64)>,
    },
    /// For each element its `GNTST_*`, and the bytes read, none for one that
    /// writes or failed.
    Copied(Vec<(i16, Vec<u8>)>),
    /// A buffer's number, for this connection.
    CopyBuffer(u32),
    /// For each part its `GNTST_*`.
    Statuses(Vec<i16>),
    /// Counters that are not zero, by name.
    Counters(Vec<(String, u64)>),
}

/// What travels back for each [`Request`].
pub type Response = Result<Reply, Failure>;

/// The answer to a [`Request`] that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why} ({})", Errno(*errno))]
pub struct Failure {
    /// The Xen error number.
    pub errno: u16,
    /// What was wrong, and what to do about it where that is known.
    pub why: String,
}

impl Failure {
    /// A failure with its error number and its reason.
    #[must_use]
    pub fn new(errno: Errno, why: impl Into<String>) -> Self {
        Self {
            errno: errno.0,
            why: why.into(),
        }
    }

    /// The error number.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno(self.errno)
    }
}

/// `xen_domctl_getdomaininfo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainInfo {
    /// The domid.
    pub dom: u16,
    /// Its handle.
    pub uuid: Uuid,
    /// At least one vCPU is on a host CPU.
    pub running: bool,
    /// All vCPUs wait for events.
    pub blocked: bool,
    /// Paused by the control domain.
    pub paused: bool,
    /// `Some(SHUTDOWN_*)` when shut down.
    pub shutdown: Option<u32>,
    /// Being destroyed.
    pub dying: bool,
    /// Pages it has now.
    pub tot_pages: u64,
    /// Pages it may have.
    pub max_pages: u64,
    /// CPU time of all vCPUs, in ns.
    pub cpu_time_ns: u64,
    /// vCPUs that are up.
    pub nr_online_vcpus: u32,
    /// The highest vCPU number that exists.
    pub max_vcpu_id: u32,
    /// The shared info frame.
    pub shared_info_frame: u64,
    /// Counts rise with each domain that ever had this domid.
    pub generation: u64,
}

/// `xen_domctl_getvcpuinfo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuInfo {
    /// Brought up.
    pub online: bool,
    /// Waits for an event.
    pub blocked: bool,
    /// On a host CPU now.
    pub running: bool,
    /// CPU time, in ns.
    pub cpu_time_ns: u64,
    /// The host CPU it runs or last ran on.
    pub cpu: u32,
    /// Host CPUs it may run on; empty = any.
    pub affinity: Vec<u32>,
}

/// A port as `EVTCHNOP_status` tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortState {
    /// Not in use.
    Closed,
    /// Waits for `remote` to bind.
    Unbound {
        /// The domain that may bind.
        remote: u16,
    },
    /// Connected.
    Interdomain {
        /// The domain at the other end.
        remote: u16,
        /// Its port.
        port: u32,
    },
    /// A physical interrupt.
    Pirq {
        /// Its number.
        pirq: u32,
    },
    /// A virtual interrupt.
    Virq {
        /// A `VIRQ_*`.
        virq: u32,
    },
    /// An inter-processor interrupt.
    Ipi,
}

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// `xen_version`: 4.17 reads (4, 17).
    pub xen_version: (u32, u32),
    /// `XENVER_extraversion`, with its leading dot or dash.
    pub extra_version: String,
    /// `XENVER_capabilities`, e.g. `xen-3.0-x86_64`.
    pub capabilities: String,
    /// `XENVER_changeset`.
    pub changeset: String,
    /// `XENVER_commandline`.
    pub command_line: String,
    /// `XENVER_compile_info`: compiler, by, domain, date.
    pub compile_info: [String; 4],
    /// Start of the hypervisor's address range, as `platform_params` gives it.
    pub virt_start: u64,
    /// Host CPUs.
    pub nr_cpus: u32,
    /// CPU clock, in kHz.
    pub cpu_khz: u32,
    /// The host's memory, in pages.
    pub total_pages: u64,
    /// What of it a new domain could get, in pages.
    pub free_pages: u64,
    /// The CPU engine, for people: "kvm (shadow paging)" and the like.
    pub engine: String,
    /// The hypervisor process.
    pub pid: u32,
    /// Since the hypervisor started, in ns.
    pub uptime_ns: u64,
}
