//! Why an operation was refused, and the errno that Xen gives for it.

use guest_abi::{
    addr::{GuestVirt, Mfn, VcpuId},
    errno::Errno,
};

use crate::mistakes::reason::{self, Reason};

use super::{
    frame::FrameType,
    pte::{Level, Pte},
};

/// The reason of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Refusal {
    #[error("{mfn:?} is not RAM of the domain")]
    NotRam { mfn: Mfn },
    #[error("{mfn:?} is not allocated to the domain")]
    NotOwned { mfn: Mfn },
    #[error("entry {pte} maps {mfn:?}, which is no memory of the domain")]
    MapOutside { pte: Pte, mfn: Mfn },
    #[error("entry {pte} maps {mfn:?}, which is free or the hypervisor's own")]
    MapNotOwned { pte: Pte, mfn: Mfn },
    #[error("entry {pte} maps {mfn:?} writable, which is {has:?} with {count} uses")]
    MapNotWritable {
        pte: Pte,
        mfn: Mfn,
        has: FrameType,
        count: u32,
    },
    #[error("entry {pte} maps {mfn:?} writable, which the hypervisor shares read-only")]
    MapReadOnlyShare { pte: Pte, mfn: Mfn },
    #[error("entry {pte} has bits {bits:#x}, which no {level:?} entry may have")]
    BadFlags { level: Level, pte: Pte, bits: u64 },
    #[error("{mfn:?} is {has:?} with {count} uses, wanted as {want:?}")]
    TypeInUse {
        mfn: Mfn,
        has: FrameType,
        want: FrameType,
        count: u32,
    },
    #[error("a count of {mfn:?} is at its limit")]
    CountOverflow { mfn: Mfn },
    #[error("L4 slot {index} is the hypervisor's")]
    HypervisorSlot { index: usize },
    #[error("entry {index} of {table:?} kept changing: found {found}")]
    Contended {
        table: Mfn,
        index: usize,
        found: Pte,
    },
    #[error("{mfn:?} is pinned already")]
    AlreadyPinned { mfn: Mfn },
    #[error("{mfn:?} is not pinned")]
    NotPinned { mfn: Mfn },
    #[error("descriptor {value:#018x} at index {index} of {mfn:?} is not safe for a guest")]
    BadDescriptor { mfn: Mfn, index: usize, value: u64 },
    #[error("a table of {entries} descriptors is too long or does not fit its {frames} frames")]
    DescriptorTableSize { entries: u32, frames: usize },
    #[error("an LDT may not start at {base:?}")]
    BadLdtBase { base: GuestVirt },
    #[error("{mfn:?} is no L1 table in use")]
    NoTable { mfn: Mfn },
    #[error("entry {found} is not the one that maps the granted {mfn:?}")]
    NotThatGrant { found: Pte, mfn: Mfn },
    #[error("no L1 table maps {va:?}")]
    NoL1 { va: GuestVirt },
    #[error("address {addr:#x} is not a multiple of {align}")]
    Misaligned { addr: u64, align: u64 },
    #[error("{bytes} bytes at {va:?} is not a page-table access")]
    BadAccess { va: GuestVirt, bytes: usize },
    #[error("the domain has no vCPU {vcpu}")]
    NoVcpu { vcpu: VcpuId },
    #[error("the domain is dying")]
    Dying,
    #[error("superpages are not offered to PV guests")]
    Superpage,
    #[error("{free} frames are free, none of them 2^{order} in a row")]
    NoMemory { order: u32, free: u64 },
    #[error("{mfn:?} is no longer part of the reservation")]
    NotAllocated { mfn: Mfn },
    #[error("{mfn:?} still has {refs} mappings")]
    StillMapped { mfn: Mfn, refs: u32 },
    #[error("to be continued")]
    Restart,
    #[error("{frames} frames from {base:?} on is more than a domain can have")]
    Size { base: Mfn, frames: u64 },
}

impl Refusal {
    /// The errno that Xen returns for this cause.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::MapOutside { mfn, .. } if mfn.0 == Pte::ALL_ONES_MFN.0 => Errno::EINVAL,
            Self::MapOutside { .. } => Errno::EPERM,
            Self::MapNotOwned { .. }
            | Self::MapNotWritable { .. }
            | Self::MapReadOnlyShare { .. }
            | Self::Contended { .. }
            | Self::StillMapped { .. } => Errno::EBUSY,
            Self::Restart => Errno::ERESTART,
            Self::Superpage => Errno::EOPNOTSUPP,
            Self::NoMemory { .. } => Errno::ENOMEM,
            Self::NoVcpu { .. } => Errno::ENOENT,
            _ => Errno::EINVAL,
        }
    }

    /// The errno, after a trace line: the one place where a refusal leaves
    /// this module.
    pub(super) fn traced(self, operation: &'static str) -> Errno {
        let errno = self.errno();
        tracing::debug!(operation, ?errno, "refused: {self}");
        reason::leave(Reason::Paging(self));
        errno
    }
}

/// [`Refusal::traced`] on a result.
pub(super) trait Traced<T> {
    fn traced(self, operation: &'static str) -> Result<T, Errno>;
}

impl<T> Traced<T> for Result<T, Refusal> {
    fn traced(self, operation: &'static str) -> Result<T, Errno> {
        self.map_err(|refusal| refusal.traced(operation))
    }
}
