//! Mapped grants as entries of the calling vCPU's page tables.

use crate::{
    domain::DomainError,
    grants::{Granted, Installed, MapRequest, MapTarget, UnmapRequest},
    paging::{GrantSlot, Pte},
    vcpu::Vcpu,
    window::WindowError,
};
use guest_abi::{
    addr::{GuestVirt, MachineAddr, Mfn},
    grant_table::*,
};
use std::sync::Arc;

/// The bits of an entry that a mapping may choose: 9 to 11.
const AVAILABLE_SHIFT: u32 = 9;
const AVAILABLE: u64 = 7;

/// See the [module](self).
pub(super) struct PageTables<'a>(pub &'a Vcpu);

impl PageTables<'_> {
    /// The entry that a mapping names.
    fn slot(&self, request: &MapRequest, host_addr: u64) -> GrantSlot {
        if request.flags & GNTMAP_CONTAINS_PTE != 0 {
            GrantSlot::Entry(MachineAddr(host_addr))
        } else {
            GrantSlot::Virtual(self.0.state.root(), GuestVirt(host_addr))
        }
    }
}

/// The entry's bits, as Xen sets them. All of a PV guest runs in ring 3, so
/// `GNTMAP_application_map` changes nothing.
fn entry(request: &MapRequest, frame: Mfn) -> Pte {
    let available = u64::from(request.flags >> GNTMAP_GUEST_AVAIL0_SHIFT) & AVAILABLE;
    let writable = if request.flags & GNTMAP_READONLY == 0 {
        Pte::RW
    } else {
        0
    };
    let flags = Pte::PRESENT | Pte::USER | Pte::ACCESSED_DIRTY | writable;
    Pte::new(frame, flags | available << AVAILABLE_SHIFT)
}

fn status(error: &DomainError) -> i16 {
    tracing::debug!(%error, "no place for a granted page");
    match error {
        DomainError::Window(WindowError::NoPlace(_)) => GNTST_BAD_PAGE,
        _ => GNTST_NO_SPACE,
    }
}

impl MapTarget for PageTables<'_> {
    fn install(&self, request: &MapRequest, granted: &Arc<Granted>) -> Result<Installed, i16> {
        let window = self.0.domain.window().map_err(|error| status(&error))?;
        let page = window
            .open(granted)
            .map_err(|error| status(&error.into()))?;
        let at = self.slot(request, request.host_addr);
        let entry = entry(request, page.frame());
        let mapped = self.0.update(|mm, tables| mm.map_grant(tables, at, entry));
        mapped.map_err(|_| GNTST_GENERAL_ERROR)?;
        Ok(Installed {
            frame: page.frame(),
            place: Some(Box::new(page)),
        })
    }

    fn remove(&self, request: &MapRequest, unmap: &UnmapRequest, frame: Mfn) -> Result<(), i16> {
        let at = self.slot(request, unmap.host_addr);
        let instead = match (unmap.new_addr, at) {
            (0, _) => None,
            // Xen replaces mappings of addresses only.
            (_, GrantSlot::Entry(_)) => return Err(GNTST_GENERAL_ERROR),
            (new, GrantSlot::Virtual(root, _)) => Some(GrantSlot::Virtual(root, GuestVirt(new))),
        };
        let writable = request.flags & GNTMAP_READONLY == 0;
        let removed = self
            .0
            .update(|mm, tables| mm.unmap_grant(tables, at, frame, writable, instead));
        removed.map_err(|_| GNTST_GENERAL_ERROR)
    }
}
