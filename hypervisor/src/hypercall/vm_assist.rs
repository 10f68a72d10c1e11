//! `vm_assist`.

use super::{OK, Outcome};
use crate::vcpu::Vcpu;
use guest_abi::{errno::Errno, xen::*};
use std::sync::atomic::Ordering;

/// `HYPERVISOR_vm_assist(cmd, type)`. Writable page tables are always in
/// force: a native write to one is emulated whether or not it was asked for.
///
/// # Errors
/// `EINVAL` for a type that 64-bit guests don't have; `ENOSYS` for an unknown
/// command.
pub(super) fn vm_assist(vcpu: &mut Vcpu, cmd: u32, kind: u32) -> Outcome {
    const KNOWN: [u32; 4] = [
        VMASST_TYPE_WRITABLE_PAGETABLES,
        VMASST_TYPE_PAE_EXTENDED_CR3,
        VMASST_TYPE_ARCHITECTURAL_IOPL,
        VMASST_TYPE_RUNSTATE_UPDATE_FLAG,
    ];
    if !KNOWN.contains(&kind) {
        return Err(Errno::EINVAL);
    }
    match cmd {
        VMASST_CMD_ENABLE => vcpu.domain.vm_assist.fetch_or(1 << kind, Ordering::Relaxed),
        VMASST_CMD_DISABLE => vcpu
            .domain
            .vm_assist
            .fetch_and(!(1 << kind), Ordering::Relaxed),
        _ => return Err(Errno::ENOSYS),
    };
    OK
}
