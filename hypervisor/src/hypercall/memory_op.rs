//! `memory_op`.

use super::{Done, OK, Outcome, low32, own_domain};
use crate::{
    cpu::reg, engine::kvm::M2P, guest_access::GuestAccessExt, memory::BASE_MFN, paging::Released,
    vcpu::Vcpu,
};
use guest_abi::{
    addr::{DomId, GuestVirt, Mfn},
    errno::Errno,
    memory::*,
    xen::HYPERVISOR_MEMORY_OP,
};
use std::sync::atomic::Ordering;
use zerocopy::FromZeros;

/// `HYPERVISOR_memory_op(cmd, arg)`.
///
/// The operations on reservations give the number of extents done, which is
/// less than asked for when one was refused.
///
/// # Errors
/// `EINVAL`, `EPERM` for another domain, `EFAULT`, `ENOMEM`; `ENOSYS` for what
/// 64-bit PV guests don't have and for what is left out.
pub(super) fn memory_op(vcpu: &mut Vcpu, cmd: u64, arg: GuestVirt) -> Outcome {
    let start = cmd >> MEMOP_EXTENT_SHIFT;
    match low32(cmd & MEMOP_CMD_MASK) {
        XENMEM_INCREASE_RESERVATION => reservation(vcpu, arg, cmd, start, Change::Increase),
        XENMEM_DECREASE_RESERVATION => reservation(vcpu, arg, cmd, start, Change::Decrease),
        XENMEM_POPULATE_PHYSMAP => reservation(vcpu, arg, cmd, start, Change::Populate),
        XENMEM_EXCHANGE => exchange(vcpu, arg),
        XENMEM_MAXIMUM_RAM_PAGE => Ok(Done::Value(
            BASE_MFN.0 + vcpu.domain.space.memory.max_pages(),
        )),
        XENMEM_CURRENT_RESERVATION => {
            own(vcpu, arg)?;
            Ok(Done::Value(vcpu.domain.space.tot_pages()))
        }
        XENMEM_MAXIMUM_RESERVATION => {
            own(vcpu, arg)?;
            Ok(Done::Value(vcpu.domain.max_pages.load(Ordering::Relaxed)))
        }
        XENMEM_MEMORY_MAP => memory_map(vcpu, arg),
        XENMEM_MACHPHYS_MAPPING => {
            let entries = vcpu.domain.space.memory.m2p_area().bytes() / 8;
            let mapping = MachphysMapping {
                v_start: M2P,
                v_end: M2P + entries * 8,
                max_mfn: entries - 1,
            };
            vcpu.access().write_obj(arg, &mapping)?;
            OK
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn own(vcpu: &Vcpu, arg: GuestVirt) -> Result<(), Errno> {
    let arg: MemoryDomain = vcpu.access().read_obj(arg)?;
    own_domain(vcpu, DomId(arg.domid))
}

/// One region: all that the guest may ever have.
fn memory_map(vcpu: &Vcpu, arg: GuestVirt) -> Outcome {
    let mut map: MemoryMap = vcpu.access().read_obj(arg)?;
    if map.nr_entries < 1 {
        return Err(Errno::EINVAL);
    }
    let mut entry = E820Entry::new_zeroed();
    entry.addr = 0;
    entry.size = vcpu.domain.space.memory.max_pages() * 4096;
    entry.kind = E820_RAM;
    vcpu.access().write_obj(GuestVirt(map.buffer), &entry)?;
    map.nr_entries = 1;
    vcpu.access().write_obj(arg, &map)?;
    OK
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Increase,
    Decrease,
    Populate,
}

fn reservation(vcpu: &mut Vcpu, arg: GuestVirt, cmd: u64, start: u64, change: Change) -> Outcome {
    let request: MemoryReservation = vcpu.access().read_obj(arg)?;
    own_domain(vcpu, DomId(request.domid))?;
    if start > request.nr_extents || request.nr_extents >> 32 != 0 {
        return Err(Errno::EINVAL);
    }
    for index in start..request.nr_extents {
        if index != start && vcpu.should_yield() {
            let rest = [(reg::RDI, cmd & MEMOP_CMD_MASK | index << MEMOP_EXTENT_SHIFT)];
            return Ok(vcpu.restart(HYPERVISOR_MEMORY_OP, &rest));
        }
        let done = match change {
            Change::Decrease => give_back(vcpu, &request, index),
            Change::Increase | Change::Populate => take(vcpu, &request, index, change),
        };
        if let Err(errno) = done {
            tracing::debug!(domain = vcpu.domain.id.0, index, ?errno, "extent refused");
            return Ok(Done::Value(index));
        }
    }
    Ok(Done::Value(request.nr_extents))
}

fn give_back(vcpu: &Vcpu, request: &MemoryReservation, index: u64) -> Result<(), Errno> {
    if request.extent_order != 0 {
        return Err(Errno::EINVAL);
    }
    let mfn = Mfn(vcpu
        .access()
        .read_element(GuestVirt(request.extent_start), index)?);
    let released = vcpu.lock_mm().release(mfn)?;
    vcpu.domain.space.memory.set_m2p(mfn, None);
    if released == Released::Freed {
        // The host gets the memory; whoever gets the frame next finds zeros.
        vcpu.domain.space.discard(mfn);
    }
    Ok(())
}

fn take(vcpu: &Vcpu, request: &MemoryReservation, index: u64, change: Change) -> Result<(), Errno> {
    let list = GuestVirt(request.extent_start);
    let pfn: Option<u64> = match change {
        Change::Populate => Some(vcpu.access().read_element(list, index)?),
        _ => None,
    };
    let pages = 1u64
        .checked_shl(request.extent_order)
        .ok_or(Errno::EINVAL)?;
    let first = {
        let mut mm = vcpu.lock_mm();
        let limit = vcpu.domain.max_pages.load(Ordering::Relaxed);
        if mm
            .owned_frames()
            .checked_add(pages)
            .is_none_or(|total| total > limit)
        {
            return Err(Errno::ENOMEM);
        }
        mm.allocate(request.extent_order)?
    };
    for offset in 0..pages {
        let pfn = pfn.and_then(|pfn| pfn.checked_add(offset));
        vcpu.domain.space.memory.set_m2p(Mfn(first.0 + offset), pfn);
    }
    if list.0 != 0 {
        vcpu.access().write_element(list, index, &first.0)?;
    }
    Ok(())
}

/// `XENMEM_exchange`: trades single frames for others, which stock kernels do
/// for contiguous buffers. Orders other than 0 on the output side are
/// answered as Xen answers when it has no such memory.
fn exchange(vcpu: &mut Vcpu, arg: GuestVirt) -> Outcome {
    let request: MemoryExchange = vcpu.access().read_obj(arg)?;
    own_domain(vcpu, DomId(request.input.domid))?;
    let (input, output) = (&request.input, &request.output);
    let frames = |r: &MemoryReservation| {
        r.nr_extents
            .checked_shl(r.extent_order)
            .filter(|n| *n <= 1 << 20)
    };
    if input.domid != output.domid || frames(input).is_none() || frames(input) != frames(output) {
        return Err(Errno::EINVAL);
    }
    Err(Errno::ENOMEM)
}
