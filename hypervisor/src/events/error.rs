//! Why an event channel operation was refused, and Xen's number for it.

use guest_abi::{
    addr::{DomId, Port, VcpuId},
    errno::Errno,
};

/// A refused event channel operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The domain named does not exist.
    #[error("there is no domain {0}")]
    NoSuchDomain(DomId),
    /// Only Dom0 and the domain itself may do this.
    #[error("domain {caller} may not change the event channels of domain {target}")]
    NotPermitted {
        /// Who asked.
        caller: DomId,
        /// Whose table it is.
        target: DomId,
    },
    /// The port is past the end of the table.
    #[error("domain {dom} has no port {port}: its table has {ports} entries")]
    NoSuchPort {
        /// Whose table.
        dom: DomId,
        /// The port asked for.
        port: Port,
        /// The size of the table.
        ports: usize,
    },
    /// The port is not in a state that allows this.
    #[error("port {port} is {state}; {needed} is needed")]
    WrongState {
        /// The port asked for.
        port: Port,
        /// What it is.
        state: &'static str,
        /// What it would have to be.
        needed: &'static str,
    },
    /// The port waits for another domain than the caller.
    #[error("port {port} of domain {dom} does not wait for domain {caller} to bind it")]
    NotForCaller {
        /// Whose table.
        dom: DomId,
        /// The port asked for.
        port: Port,
        /// Who asked.
        caller: DomId,
    },
    /// The port was closed and bound anew while it was being closed.
    #[error("port {0} was bound to another domain while it was being closed")]
    PeerChanged(Port),
    /// All ports are taken.
    #[error(
        "all {limit} ports of domain {dom} are in use: close some, or raise max_event_channels"
    )]
    NoFreePort {
        /// Whose table.
        dom: DomId,
        /// How many ports it may have.
        limit: u32,
    },
    /// The domain is being destroyed.
    #[error("domain {0} is being destroyed")]
    Dying(DomId),
    /// No such vCPU.
    #[error("domain {dom} has no vCPU {vcpu}")]
    NoSuchVcpu {
        /// Whose vCPU.
        dom: DomId,
        /// The vCPU asked for.
        vcpu: VcpuId,
    },
    /// The number is not a VIRQ.
    #[error("VIRQ {0} does not exist: they end at 23")]
    NoSuchVirq(u32),
    /// Global VIRQs are bound on vCPU 0.
    #[error("VIRQ {virq} is global: bind it on vCPU 0, not {vcpu}")]
    GlobalVirq {
        /// The VIRQ.
        virq: u32,
        /// The vCPU asked for.
        vcpu: VcpuId,
    },
    /// Per-vCPU VIRQs and IPIs stay where they were bound.
    #[error("port {0} belongs to one vCPU and cannot move to another")]
    PerVcpu(Port),
    /// The VIRQ has a port already.
    #[error("VIRQ {virq} of vCPU {vcpu} is bound to port {port} already")]
    VirqInUse {
        /// The VIRQ.
        virq: u32,
        /// On which vCPU.
        vcpu: VcpuId,
        /// The port that has it.
        port: Port,
    },
    /// No physical interrupt has this number.
    #[error("there is no physical interrupt {0}")]
    NoSuchPirq(u32),
    /// There is no passthrough: no domain has access to a physical interrupt.
    #[error("physical interrupt {0} is not given to this domain: there is no passthrough")]
    PirqNotPermitted(u32),
    /// A poll names too many ports.
    #[error("a poll names {0} ports; 128 are the most")]
    PollTooLong(usize),
    /// The vCPU's `vcpu_info` has been moved before; it stays.
    #[error("vCPU {0} has registered its vcpu_info already")]
    InfoRegistered(VcpuId),
    /// A `vcpu_info` must lie in one frame, aligned to 8 bytes.
    #[error("a vcpu_info at offset {0:#x} of a frame crosses its end or is not aligned to 8")]
    InfoMisplaced(u32),
    /// Absent on this hypervisor: FIFO event channels and what needs them.
    #[error("only 2-level event channels are offered")]
    NotOffered,
}

impl EventError {
    /// The number that Xen gives for this cause.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NoSuchDomain(_) => Errno::ESRCH,
            Self::NotPermitted { .. } | Self::PirqNotPermitted(_) => Errno::EPERM,
            Self::NoFreePort { .. } => Errno::ENOSPC,
            Self::NoSuchVcpu { .. } => Errno::ENOENT,
            Self::VirqInUse { .. } => Errno::EEXIST,
            Self::NotOffered => Errno::ENOSYS,
            Self::NoSuchPort { .. }
            | Self::WrongState { .. }
            | Self::NotForCaller { .. }
            | Self::PeerChanged(_)
            | Self::Dying(_)
            | Self::NoSuchVirq(_)
            | Self::GlobalVirq { .. }
            | Self::PerVcpu(_)
            | Self::NoSuchPirq(_)
            | Self::PollTooLong(_)
            | Self::InfoRegistered(_)
            | Self::InfoMisplaced(_) => Errno::EINVAL,
        }
    }
}
