//! `vm_assist`.

use super::{OK, Outcome};
use crate::vcpu::Vcpu;
use guest_abi::{errno::Errno, xen::*};
use std::sync::atomic::Ordering;

/// `HYPERVISOR_vm_assist(cmd, type)`: aids for the guest, on or off.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `type`: `writable_pagetables` (2; always in force: a native write to a page table is emulated whether
///   or not it was asked for), `pae_extended_cr3` (3), `architectural_iopl` (4), `runstate_update_flag` (5).
///
/// # Operations
/// ## `VMASST_CMD_ENABLE`
/// Switches the aid on.
///
/// Errors: `EINVAL`: an unknown type.
/// ## `VMASST_CMD_DISABLE`
/// Switches it off.
///
/// Errors: `EINVAL`: an unknown type.
///
/// # Errors
/// - `EINVAL`: a type that 64-bit guests don't have, or that is left out.
/// - `ENOSYS`: an unknown operation.
///
/// # Left out
/// - `m2p_strict` (32), and the aids of 32-bit guests.
///
/// # Guards against
/// - Nothing.
///
/// # Source
/// - Xen: `public/xen.h`
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
