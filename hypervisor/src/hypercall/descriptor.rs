//! `set_gdt`, `update_descriptor`.

use super::{Done, Outcome};
use crate::{guest_access::GuestAccessExt, vcpu::Vcpu};
use guest_abi::{
    addr::{GuestVirt, MachineAddr, Mfn},
    errno::Errno,
};

/// Descriptors of a guest's part of the GDT: 14 pages.
const MAX_ENTRIES: u32 = 14 * 512;

/// `HYPERVISOR_set_gdt(frames, entries)`: the GDT is the first `entries`
/// descriptors of these frames, which stop being writable.
///
/// # Errors
/// `EINVAL` for too many entries or a frame that can't be a descriptor table;
/// `EFAULT`.
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

/// `HYPERVISOR_update_descriptor(maddr, descriptor)`: changes one entry of a
/// GDT or LDT.
///
/// # Errors
/// `EINVAL` for an address that is not one of the domain's, or an unsafe
/// descriptor.
pub(super) fn update_descriptor(vcpu: &mut Vcpu, at: u64, descriptor: u64) -> Outcome {
    vcpu.update(|mm, tables| mm.update_descriptor(tables, MachineAddr(at), descriptor))
        .map(Done::from)
}
