//! Why a grant operation was refused, and Xen's status for it.

use guest_abi::{
    addr::{DomId, GrantRef, Mfn},
    errno::Errno,
    grant_table::*,
};

/// A refused grant operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The domain named does not exist or has no grant table.
    #[error("there is no domain {0} with a grant table")]
    NoSuchDomain(DomId),
    /// The domain is another one, over which the caller has no say.
    #[error("domain {caller} may not do this to domain {target}")]
    NotPermitted {
        /// Who asked.
        caller: DomId,
        /// Whose table it is.
        target: DomId,
    },
    /// The granting domain is being destroyed.
    #[error("domain {0} is being destroyed")]
    Dying(DomId),
    /// The reference is past the end of the table.
    #[error("grant {gref} of domain {dom} does not exist: its table has {entries} entries")]
    NoSuchGrant {
        /// Whose table.
        dom: DomId,
        /// The reference.
        gref: GrantRef,
        /// The table's size.
        entries: u32,
    },
    /// The entry does not grant access to the caller.
    #[error("grant {gref} has flags {flags:#x} for domain {granted}: nothing for domain {caller}")]
    NotGranted {
        /// The reference.
        gref: GrantRef,
        /// The entry's flags.
        flags: u16,
        /// To whom it grants.
        granted: DomId,
        /// Who asked.
        caller: DomId,
    },
    /// The entry grants reading only.
    #[error("grant {0} is read-only")]
    ReadOnly(GrantRef),
    /// The granting domain kept changing the entry.
    #[error("grant {0} changed at each of 5 attempts to use it")]
    Unstable(GrantRef),
    /// The grant is in use by another domain, which the entry named before.
    #[error("grant {gref} is in use by domain {user}")]
    InUseBy {
        /// The reference.
        gref: GrantRef,
        /// By whom it is in use.
        user: DomId,
    },
    /// Counters have an end.
    #[error("grant {0} is in use too often")]
    TooManyUses(GrantRef),
    /// The grant is of a part of a page, which can be copied only.
    #[error("grant {0} is of a part of a page: it cannot be mapped")]
    PartOnly(GrantRef),
    /// A copy reaches out of the part of a page that is granted.
    #[error("{len} bytes at {offset:#x} are not in the part of a page that grant {gref} is of")]
    OutsidePart {
        /// The reference.
        gref: GrantRef,
        /// The first byte.
        offset: u16,
        /// How many.
        len: usize,
    },
    /// Grants are in use, so that the table's version stays.
    #[error("{0} grants are in use: the version of the table stays")]
    TableInUse(usize),
    /// The grant is in use and cannot move.
    #[error("grant {0} is in use")]
    Busy(GrantRef),
    /// The frame is not one of the granting domain's.
    #[error("{0:?} is not RAM of the granting domain")]
    NotRam(Mfn),
    /// The frame cannot be written.
    #[error("{0:?} is not writable: it is a page table or the like")]
    NotWritable(Mfn),
    /// A map that asks for no mapping at all.
    #[error("flags {0:#x} ask neither for a host nor for a device mapping")]
    NoMapping(u32),
    /// No more handles.
    #[error("all {0} grant mappings are in use")]
    NoHandle(u32),
    /// The handle names no mapping.
    #[error("no grant mapping has handle {0:#x}")]
    BadHandle(u32),
    /// The device address is not that of the mapped frame.
    #[error("device address {told:#x} is not that of the mapping, {real:#x}")]
    BadBusAddress {
        /// The one given.
        told: u64,
        /// The right one.
        real: u64,
    },
    /// The user's page tables do not take the mapping (or its end).
    #[error("the mapping at {addr:#x} was refused: {}", gntst_text(*status))]
    Target {
        /// `host_addr`.
        addr: u64,
        /// `GNTST_*`.
        status: i16,
    },
    /// A frame is named for a domain other than the caller.
    #[error("a copy may name a frame of the caller's only; domain {0} has to grant it")]
    FrameNotOwn(DomId),
    /// A copy that crosses the end of a page.
    #[error("a copy of {len} bytes at offset {offset} crosses the end of its page")]
    CrossesPage {
        /// Where it begins.
        offset: u16,
        /// Its length.
        len: u16,
    },
    /// More frames than the table may have.
    #[error("a grant table of {asked} frames is more than the {max} allowed")]
    TooManyFrames {
        /// How many were asked for.
        asked: u32,
        /// `max_grant_frames`.
        max: u32,
    },
    /// The hypervisor has no more frames.
    #[error("no frame is left for the grant table")]
    NoMemory,
    /// Frames don't change their owner here.
    #[error("{0:?} cannot be transferred: transfers are not offered")]
    NoTransfer(Mfn),
    /// An address for results that cannot be written.
    #[error("results cannot be written at {0:#x}")]
    BadResultAddress(u64),
}

impl GrantError {
    /// The status that Xen gives for this cause.
    #[must_use]
    pub const fn status(&self) -> i16 {
        match self {
            Self::NoSuchDomain(_) => GNTST_BAD_DOMAIN,
            Self::NotPermitted { .. } | Self::FrameNotOwn(_) => GNTST_PERMISSION_DENIED,
            Self::NoSuchGrant { .. } | Self::NoMapping(_) => GNTST_BAD_GNTREF,
            Self::NotRam(_) => GNTST_BAD_PAGE,
            Self::NoHandle(_) => GNTST_NO_SPACE,
            Self::BadHandle(_) => GNTST_BAD_HANDLE,
            Self::CrossesPage { .. } => GNTST_BAD_COPY_ARG,
            Self::Busy(_) => GNTST_EAGAIN,
            Self::BadResultAddress(_) => GNTST_BAD_VIRT_ADDR,
            Self::Target { status, .. } => *status,
            Self::Dying(_)
            | Self::NotGranted { .. }
            | Self::ReadOnly(_)
            | Self::Unstable(_)
            | Self::PartOnly(_)
            | Self::OutsidePart { .. }
            | Self::TableInUse(_)
            | Self::InUseBy { .. }
            | Self::TooManyUses(_)
            | Self::NotWritable(_)
            | Self::BadBusAddress { .. }
            | Self::TooManyFrames { .. }
            | Self::NoMemory
            | Self::NoTransfer(_) => GNTST_GENERAL_ERROR,
        }
    }

    /// The error number for a Dom0 process, whose calls fail as a whole.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NoSuchDomain(_) | Self::Dying(_) => Errno::ESRCH,
            Self::NotPermitted { .. }
            | Self::FrameNotOwn(_)
            | Self::NotGranted { .. }
            | Self::ReadOnly(_)
            | Self::PartOnly(_)
            | Self::OutsidePart { .. }
            | Self::NotWritable(_) => Errno::EACCES,
            Self::NoHandle(_) | Self::TooManyUses(_) => Errno::ENOSPC,
            Self::NoMemory => Errno::ENOMEM,
            Self::Busy(_) | Self::InUseBy { .. } | Self::TableInUse(_) => Errno::EBUSY,
            Self::Unstable(_) => Errno::EAGAIN,
            _ => Errno::EINVAL,
        }
    }
}
