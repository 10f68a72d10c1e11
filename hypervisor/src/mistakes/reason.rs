//! Why an operation was refused, from the module that knows to the vCPU that
//! asked.
//!
//! In between lies Xen's ABI, where a cause is one number. So the module leaves
//! the cause on its thread, and the hypercall's end takes it from there. Nothing
//! depends on it but a message.

use crate::{
    events::EventError,
    grants::GrantError,
    paging::{FrameType, Refusal},
};
use std::{
    cell::RefCell,
    fmt,
    mem::{Discriminant, discriminant},
};

thread_local! {
    static LAST: RefCell<Option<Reason>> = const { RefCell::new(None) };
}

/// A cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A rule of direct paging.
    Paging(Refusal),
    /// Of event channels.
    Event(EventError),
    /// Of grants.
    Grant(GrantError),
}

/// Leaves the cause of a refusal for whoever asked on this thread.
pub fn leave(reason: Reason) {
    LAST.with(|last| *last.borrow_mut() = Some(reason));
}

/// Takes the last cause that was left on this thread.
#[must_use]
pub fn take() -> Option<Reason> {
    LAST.with(|last| last.borrow_mut().take())
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paging(refusal) => refusal.fmt(f),
            Self::Event(error) => error.fmt(f),
            Self::Grant(error) => error.fmt(f),
        }
    }
}

/// Which cause it is, whatever the numbers in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A rule of direct paging.
    Paging(Discriminant<Refusal>),
    /// Of event channels.
    Event(Discriminant<EventError>),
    /// Of grants.
    Grant(Discriminant<GrantError>),
}

impl Reason {
    /// Which cause it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Paging(refusal) => Kind::Paging(discriminant(refusal)),
            Self::Event(error) => Kind::Event(discriminant(error)),
            Self::Grant(error) => Kind::Grant(discriminant(error)),
        }
    }

    /// What the kernel's author should do. `None` where nothing was wrong with
    /// the request: it came at a bad time.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Paging(refusal) => paging(refusal),
            Self::Event(error) => event(error),
            Self::Grant(error) => grant(error),
        }
    }
}

fn paging(refusal: &Refusal) -> Option<&'static str> {
    Some(match refusal {
        Refusal::NotRam { .. }
        | Refusal::NotOwned { .. }
        | Refusal::MapOutside { .. }
        | Refusal::MapNotOwned { .. }
        | Refusal::NotAllocated { .. } => {
            "page tables hold machine frame numbers: translate the PFN by the list at start_info.mfn_list"
        }
        Refusal::MapNotWritable { .. } => {
            "a page table or descriptor table is mapped read-only (without bit 1, RW) as long as it is one"
        }
        Refusal::MapReadOnlyShare { .. } => "map it without bit 1, RW",
        Refusal::BadFlags { .. } => {
            "leave these bits clear: large pages, global pages of the guest's and caching attributes are not offered"
        }
        Refusal::TypeInUse {
            has: FrameType::Writable,
            ..
        } => {
            "before a page becomes a page table, make every mapping of it read-only (update_va_mapping without RW), then pin it"
        }
        Refusal::TypeInUse { .. } => {
            "a frame has one role at a time: end the other one first (unpin it, take it out of its tables)"
        }
        Refusal::HypervisorSlot { .. } => {
            "leave L4 slots 256 to 271 zero: they are the hypervisor's, and it fills them in itself"
        }
        Refusal::AlreadyPinned { .. } => "pin a table once; unpin it before it is pinned anew",
        Refusal::NotPinned { .. } => {
            "pin a table with MMUEXT_PIN_L1_TABLE to MMUEXT_PIN_L4_TABLE before it is unpinned, and name its MFN"
        }
        Refusal::BadDescriptor { .. } => {
            "only present code and data segments of DPL 3 are allowed, no gates and no system segments"
        }
        Refusal::DescriptorTableSize { .. } => {
            "a GDT has 1 to 7168 entries, 512 in each of the frames that are named"
        }
        Refusal::BadLdtBase { .. } => "an LDT starts at the beginning of a page of the guest's own",
        Refusal::NoTable { .. } | Refusal::NoL1 { .. } => {
            "make the tables above it first: write their entries into L4, L3 and L2 by mmu_update"
        }
        Refusal::Misaligned { .. } => {
            "an entry has 8 bytes: its machine address is a multiple of 8; the command is in bits 0 and 1"
        }
        Refusal::BadAccess { .. } => "write whole, aligned entries of 8 bytes, or use mmu_update",
        Refusal::Superpage => "map pages of 4 KiB: larger ones are not offered to PV guests",
        Refusal::StillMapped { .. } => "take its mappings out of the page tables first",
        Refusal::NotThatGrant { .. } => {
            "name the address at which the grant is mapped, and leave its entry to the hypervisor"
        }
        Refusal::NoVcpu { .. } => "use the numbers of vCPUs that the domain was created with",
        Refusal::CountOverflow { .. }
        | Refusal::Contended { .. }
        | Refusal::Dying
        | Refusal::NoMemory { .. }
        | Refusal::Restart
        | Refusal::Size { .. } => return None,
    })
}

fn event(error: &EventError) -> Option<&'static str> {
    Some(match error {
        EventError::NoSuchPort { .. } | EventError::WrongState { .. } => {
            "bind the port first (bind_interdomain, bind_virq, bind_ipi), use the number that the bind gave, and not after close"
        }
        EventError::NotForCaller { .. } => {
            "its owner must have opened it for this domain: alloc_unbound with remote_dom"
        }
        EventError::NoSuchDomain(_) => "name a running domain, or DOMID_SELF",
        EventError::NoFreePort { .. } => "close ports that are no longer used",
        EventError::NoSuchVcpu { .. } => {
            "use the numbers of vCPUs that the domain was created with"
        }
        EventError::NoSuchVirq(_) => "VIRQs are numbered 0 to 23; the timer's is 0",
        EventError::GlobalVirq { .. } => "bind it on vCPU 0 and move its port by bind_vcpu",
        EventError::PerVcpu(_) => "bind another one on the other vCPU",
        EventError::VirqInUse { .. } => "use the port that was bound, or close it first",
        EventError::PollTooLong(_) => "poll at most 128 ports",
        EventError::InfoRegistered(_) => "register a vcpu_info once for each vCPU",
        EventError::InfoMisplaced(_) => {
            "give the structure an alignment of 64 bytes, so that it neither begins askew nor crosses a page"
        }
        EventError::NoSuchPirq(_) | EventError::PirqNotPermitted(_) => {
            "there are no physical devices: use the PV drivers"
        }
        EventError::NotPermitted { .. } => "name DOMID_SELF: other domains' ports are theirs",
        EventError::PeerChanged(_) | EventError::Dying(_) | EventError::NotOffered => return None,
    })
}

fn grant(error: &GrantError) -> Option<&'static str> {
    Some(match error {
        GrantError::NoSuchDomain(_) => "name the domain that made the grant, and while it lives",
        GrantError::NoSuchGrant { .. } => {
            "use the reference that the granting domain told; its table may be smaller than that"
        }
        GrantError::NotGranted { .. } => {
            "the granting domain writes frame and domid of the entry first and GTF_permit_access last, for the domain that maps it"
        }
        GrantError::ReadOnly(_) => "map it with GNTMAP_readonly, or grant it without GTF_readonly",
        GrantError::NotRam(_) => {
            "grants hold machine frame numbers: translate the PFN by the p2m list"
        }
        GrantError::NotWritable(_) => "page tables can't be granted for writing",
        GrantError::NoMapping(_) => "set GNTMAP_host_map",
        GrantError::BadHandle(_) => "use the handle that the mapping gave, once",
        GrantError::Target { .. } => {
            "host_addr is a mapped page whose L1 table exists, or with GNTMAP_contains_pte an entry's machine address"
        }
        GrantError::FrameNotOwn(_) => {
            "set GNTCOPY_source_gref or GNTCOPY_dest_gref for what another domain granted"
        }
        GrantError::CrossesPage { .. } => "copy within one page",
        GrantError::PartOnly(_) => "grant the whole page, without GTF_sub_page",
        GrantError::OutsidePart { .. } => "copy within page_off and length of the entry",
        GrantError::TableInUse(_) => "choose the version before the first grant",
        GrantError::TooManyFrames { .. } => {
            "ask GNTTABOP_query_size how many frames the table may have"
        }
        GrantError::BadResultAddress(_) => "frame_list points to mapped, writable memory",
        GrantError::NotPermitted { .. } => "name DOMID_SELF",
        GrantError::BadBusAddress { .. } => "give the bus address that the mapping gave",
        GrantError::NoTransfer(_) => "copy or grant the page: transfers are not offered",
        GrantError::Dying(_)
        | GrantError::Unstable(_)
        | GrantError::InUseBy { .. }
        | GrantError::TooManyUses(_)
        | GrantError::Busy(_)
        | GrantError::NoHandle(_)
        | GrantError::NoMemory => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_abi::addr::{Mfn, Port};

    #[test]
    fn the_last_cause_is_taken_once() {
        assert_eq!(take(), None);
        leave(Reason::Paging(Refusal::Superpage));
        let event = Reason::Event(EventError::PeerChanged(Port(3)));
        leave(event.clone());
        assert_eq!(take(), Some(event));
        assert_eq!(take(), None);
    }

    #[test]
    fn a_writable_page_that_shall_be_a_table_is_told_from_a_table_of_another_level() {
        let refusal = |has| Refusal::TypeInUse {
            mfn: Mfn(1),
            has,
            want: FrameType::L1,
            count: 1,
        };
        let of = |has| Reason::Paging(refusal(has)).remedy().unwrap();
        assert!(of(FrameType::Writable).contains("read-only"));
        assert!(of(FrameType::L2).contains("unpin"));
        assert_eq!(Reason::Paging(Refusal::Restart).remedy(), None);
    }
}
