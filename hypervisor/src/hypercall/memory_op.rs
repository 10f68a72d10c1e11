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

/// `HYPERVISOR_memory_op(cmd, arg)`: a domain's memory: how much, which frames, where.
///
/// # Arguments
/// - `cmd`: the operation in the low six bits; above them the extent to go on with, which is the
///   hypervisor's own: a guest leaves it 0.
/// - `arg`: address of the operation's structure.
///
/// # Operations
/// ## `XENMEM_INCREASE_RESERVATION` `MemoryReservation`
/// Adds extents of `1 << extent_order` frames, and writes the first frame of each to the list if there is
/// one. Gives the number done, which is less than asked for when one was refused: at `maxmem`, for an order
/// above 9, or where no frames in a row are left.
///
/// Errors: `EPERM`: another domain. `EINVAL`: more than 2^32 extents, or a start past their end.
/// ## `XENMEM_DECREASE_RESERVATION` `MemoryReservation`
/// Gives single frames back, named by the list. A frame that is mapped, pinned or granted is freed when
/// its last use ends. Gives the number done.
///
/// Errors: as `XENMEM_INCREASE_RESERVATION`.
/// ## `XENMEM_MAXIMUM_RAM_PAGE`
/// The highest frame number that the domain may have. No argument.
///
/// Errors: none.
/// ## `XENMEM_CURRENT_RESERVATION` `MemoryDomain`
/// The number of frames that the domain has.
///
/// Errors: `EPERM`: another domain.
/// ## `XENMEM_MAXIMUM_RESERVATION` `MemoryDomain`
/// The number of frames that it may have.
///
/// Errors: `EPERM`: another domain.
/// ## `XENMEM_POPULATE_PHYSMAP` `MemoryReservation`
/// As `XENMEM_INCREASE_RESERVATION`; the list holds the PFNs at which the extents shall appear, gets their
/// frames, and the machine-to-phys entries are set.
///
/// Errors: as `XENMEM_INCREASE_RESERVATION`.
/// ## `XENMEM_MEMORY_MAP` `MemoryMap`
/// The memory map: one RAM region (`E820Entry`), from 0 to all that the domain may ever have.
///
/// Errors: `EINVAL`: room for no entry.
/// ## `XENMEM_EXCHANGE` `MemoryExchange`
/// Trades frames that nobody uses for others: how stock kernels get a contiguous buffer. One side consists
/// of single frames. `nr_exchanged` counts the input extents that were traded, also when it fails, and an
/// exchange goes on from there.
///
/// Errors: `EINVAL`: sides that don't match, or a frame that is in use or not the domain's. `ENOMEM`: no
/// frames in a row are left. `EPERM`: another domain.
/// ## `XENMEM_MACHPHYS_MAPPING` `MachphysMapping`
/// Where the machine-to-phys table is mapped for the guest, and its highest frame.
///
/// Errors: none.
///
/// # Errors
/// - `ENOSYS`: what 64-bit PV guests don't have, and what is left out.
/// - `EFAULT`: a structure can't be read, or an answer not written. An element of a reservation's list
///   that can't be read ends it, and the number done is the result.
/// - `EINVAL`, `EPERM`, `ENOMEM`: see the operations.
///
/// # Left out
/// - `mem_flags`: address bits and NUMA nodes mean nothing in a machine address space of one's own.
/// - `machphys_mfn_list`, the physmap operations of translated guests, populate on demand, sharing, paging:
///   `ENOSYS`.
/// - An exchange with extents of several frames on both sides.
///
/// # Guards against
/// - XSA-31, XSA-158, XSA-159: an order without a limit; work on a dying domain.
/// - XSA-29, XSA-212: an element of an array outside of the guest's addresses.
/// - XSA-214, XSA-287: an exchange of a frame that is in use.
/// - XSA-252: a frame that is given back while it is a page table.
/// - Old data of another domain: a frame that is given back and taken again holds zeros, or the same
///   domain's own.
/// - XSA-109: operations on another domain.
///
/// # Source
/// - Xen: `public/memory.h`
/// - Here: `paging/reserve.rs`, `memory.rs`, `paging/refusal.rs`
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

/// `XENMEM_exchange`: trades frames that nobody uses for others, which stock
/// kernels do to get a contiguous buffer. `nr_exchanged` counts the input
/// extents that were traded; with it set, the exchange goes on from there.
///
/// One side must consist of single frames. An output extent of more than one
/// frame needs frames that the domain may have and never had; where there are
/// none the answer is `ENOMEM`, as on a Xen without contiguous memory.
fn exchange(vcpu: &mut Vcpu, arg: GuestVirt) -> Outcome {
    let mut request: MemoryExchange = vcpu.access().read_obj(arg)?;
    own_domain(vcpu, DomId(request.input.domid))?;
    let shape = Shape::of(&request).ok_or(Errno::EINVAL)?;
    let mut outcome = Ok(());
    while request.nr_exchanged < request.input.nr_extents {
        let chunk = request.nr_exchanged / shape.inputs;
        outcome = exchange_chunk(vcpu, &request, shape, chunk);
        if outcome.is_err() {
            break;
        }
        request.nr_exchanged += shape.inputs;
        if vcpu.should_yield() && request.nr_exchanged < request.input.nr_extents {
            vcpu.access().write_obj(arg, &request)?;
            let again = [(reg::RDI, u64::from(XENMEM_EXCHANGE))];
            return Ok(vcpu.restart(HYPERVISOR_MEMORY_OP, &again));
        }
    }
    vcpu.access().write_obj(arg, &request)?;
    outcome.map(Done::from)
}

/// How an exchange is cut: the smallest number of extents of either side that
/// have the same number of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    inputs: u64,
    outputs: u64,
    in_order: u32,
    out_order: u32,
}

impl Shape {
    /// `None` for sides that do not match, or extents larger than 2 MiB.
    fn of(request: &MemoryExchange) -> Option<Self> {
        let (input, output) = (&request.input, &request.output);
        let (in_order, out_order) = (input.extent_order, output.extent_order);
        let small = in_order.max(out_order) <= 9 && in_order.min(out_order) == 0;
        let frames = |r: &MemoryReservation| r.nr_extents.checked_mul(1 << r.extent_order.min(9));
        let fits = frames(input).is_some_and(|n| n <= 1 << 24) && frames(input) == frames(output);
        let shape = Shape {
            inputs: 1 << out_order.min(9),
            outputs: 1 << in_order.min(9),
            in_order,
            out_order,
        };
        let whole = request.nr_exchanged.is_multiple_of(shape.inputs)
            && request.nr_exchanged <= input.nr_extents;
        (small && fits && whole && input.domid == output.domid).then_some(shape)
    }
}

fn exchange_chunk(
    vcpu: &Vcpu,
    request: &MemoryExchange,
    shape: Shape,
    chunk: u64,
) -> Result<(), Errno> {
    let access = vcpu.access();
    let element = |list: u64, index: u64| access.read_element::<u64>(GuestVirt(list), index);
    let mut given = Vec::new();
    for index in chunk * shape.inputs..(chunk + 1) * shape.inputs {
        let first = element(request.input.extent_start, index)?;
        for offset in 0..1u64 << shape.in_order {
            given.push(Mfn(first.checked_add(offset).ok_or(Errno::EINVAL)?));
        }
    }
    let outputs = chunk * shape.outputs..(chunk + 1) * shape.outputs;
    let pfns: Vec<u64> = outputs
        .clone()
        .map(|index| element(request.output.extent_start, index))
        .collect::<Result<_, _>>()?;
    let taken = trade(vcpu, &given, shape)?;
    for ((index, pfn), first) in outputs.zip(pfns).zip(taken) {
        for offset in 0..1u64 << shape.out_order {
            let memory = &vcpu.domain.space.memory;
            memory.set_m2p(Mfn(first.0 + offset), pfn.checked_add(offset));
        }
        access.write_element(GuestVirt(request.output.extent_start), index, &first.0)?;
    }
    Ok(())
}

/// Gives these frames for as many of the wished order; all or nothing.
fn trade(vcpu: &Vcpu, given: &[Mfn], shape: Shape) -> Result<Vec<Mfn>, Errno> {
    let mut mm = vcpu.lock_mm();
    let large = match shape.out_order {
        0 => None,
        order => Some(mm.allocate(order)?),
    };
    for (done, mfn) in given.iter().enumerate() {
        if mm.release_unused(*mfn).is_err() {
            // Those given so far come back: free frames are handed out again
            // last in, first out.
            for _ in 0..done {
                mm.allocate(0)?;
            }
            for offset in 0..large.map_or(0, |_| 1u64 << shape.out_order) {
                let first = large.map_or(0, |first| first.0);
                mm.release(Mfn(first + offset))?;
            }
            return Err(Errno::EINVAL);
        }
    }
    for mfn in given {
        vcpu.domain.space.memory.set_m2p(*mfn, None);
    }
    match large {
        Some(first) => {
            drop(mm);
            given.iter().for_each(|mfn| vcpu.domain.space.discard(*mfn));
            Ok(vec![first])
        }
        None => given.iter().map(|_| mm.allocate(0)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(inputs: (u64, u32), outputs: (u64, u32)) -> MemoryExchange {
        let mut request = MemoryExchange::new_zeroed();
        (request.input.nr_extents, request.input.extent_order) = inputs;
        (request.output.nr_extents, request.output.extent_order) = outputs;
        request
    }

    #[test]
    fn an_exchange_is_cut_into_equal_sides() {
        let shape = Shape::of(&request((8, 0), (1, 3))).unwrap();
        assert_eq!((shape.inputs, shape.outputs), (8, 1));
        let shape = Shape::of(&request((2, 2), (8, 0))).unwrap();
        assert_eq!((shape.inputs, shape.outputs), (1, 4));
    }

    #[test]
    fn sides_that_do_not_match_are_refused() {
        for (inputs, outputs) in [
            ((8, 0), (2, 3)),
            ((1, 64), (1, 64)),
            ((u64::MAX, 0), (u64::MAX, 0)),
            ((4, 1), (2, 2)),
            ((1 << 60, 9), (1 << 60, 9)),
        ] {
            assert_eq!(
                Shape::of(&request(inputs, outputs)),
                None,
                "{inputs:?} {outputs:?}"
            );
        }
        let mut half = request((16, 0), (2, 3));
        half.nr_exchanged = 4;
        assert_eq!(Shape::of(&half), None);
        half.nr_exchanged = !7;
        assert_eq!(Shape::of(&half), None);
    }
}
