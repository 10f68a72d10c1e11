//! `set_gdt`, `update_descriptor`.

use super::{Done, Outcome};
use crate::{guest_access::GuestAccessExt, vcpu::Vcpu};
use guest_abi::{
    addr::{GuestVirt, MachineAddr, Mfn},
    errno::Errno,
};

/// Descriptors of a guest's part of the GDT: 14 pages.
const MAX_ENTRIES: u32 = 14 * 512;

/// `HYPERVISOR_set_gdt(frames, entries)`: the GDT is the first descriptors of these frames.
///
/// # Arguments
/// - `frames`: address of an array of frame numbers (`u64`), one for 512 descriptors.
/// - `entries`: descriptors, at most 7168.
///
/// Each frame becomes a descriptor page: the guest can't write it any more. Every descriptor is checked,
/// and its privilege level made 3.
///
/// # Errors
/// - `EINVAL`: too many entries; a frame that is not the domain's or in use as something else; an unsafe
///   descriptor. The old GDT stays.
/// - `EFAULT`: the list can't be read.
///
/// # Left out
/// - The processor runs on a GDT of the monitor's: the guest's is checked, kept, and looked into by `iret`
///   and `set_segment_base`. Loading its selectors into segment registers faults.
///
/// # Guards against
/// - System segments and gates in a guest's table.
/// - A descriptor page that its guest can write: the type excludes it, as for page tables.
/// - XSA-298: a selector past the limit.
///
/// # Source
/// - Xen: `public/arch-x86/xen.h`
/// - Here: `paging/descriptor.rs`
pub(super) fn set_gdt(vcpu: &mut Vcpu, frames: GuestVirt, entries: u32) -> Outcome {
    if entries > MAX_ENTRIES {
        return Err(Errno::EINVAL);
    }
    let access = vcpu.access();
    let count = u64::from(entries.div_ceil(512));
    let frames: Vec<Mfn> = (0..count)
        .map(|index| access.read_element(frames, index).map(Mfn))
        .collect::<Result<_, _>>()?;
    let id = vcpu.shared.id;
    vcpu.update(|mm, tables| mm.set_gdt(tables, id, &frames, entries))
        .map(Done::from)
}

/// `HYPERVISOR_update_descriptor(maddr, descriptor)`: writes one entry of a GDT or LDT.
///
/// # Arguments
/// - `maddr`: machine address of the entry: in a descriptor page, or in a page that the guest may write
///   anyway.
/// - `descriptor`: its 8 bytes.
///
/// # Errors
/// - `EINVAL`: the address is not aligned, not the domain's or in a page table; the descriptor is not safe
///   (a system segment, or a gate other than a call gate into guest code).
///
/// # Left out
/// - Nothing.
///
/// # Guards against
/// - System segments and gates in a guest's table.
///
/// # Source
/// - Xen: `public/arch-x86/xen.h`
/// - Here: `paging/descriptor.rs`
pub(super) fn update_descriptor(vcpu: &mut Vcpu, at: u64, descriptor: u64) -> Outcome {
    vcpu.update(|mm, tables| mm.update_descriptor(tables, MachineAddr(at), descriptor))
        .map(Done::from)
}
