//! `stack_switch`, `set_segment_base`, `fpu_taskswitch`.

use super::{OK, Outcome};
use crate::vcpu::{Vcpu, base_of};
use guest_abi::{
    addr::GuestVirt,
    arch_x86_64::{SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL},
    errno::Errno,
};

/// `HYPERVISOR_stack_switch(ss, rsp)`: the stack on which the kernel is entered from user mode.
///
/// # Arguments
/// - `ss`: means nothing in 64-bit mode.
/// - `rsp`: the stack's end. Any value is taken; one that can't be written crashes the domain at the next
///   entry.
///
/// # Errors
/// - None.
///
/// # Left out
/// - Nothing.
///
/// # Guards against
/// - Nothing: the value is used by the guest alone, through checked writes.
///
/// # Source
/// - Xen: `public/xen.h`
/// - Here: `vcpu/bounce.rs`
pub(super) fn stack_switch(vcpu: &mut Vcpu, _ss: u64, rsp: u64) -> Outcome {
    vcpu.state.kernel_sp = rsp;
    OK
}

/// `HYPERVISOR_set_segment_base(which, base)`: the base of FS or GS.
///
/// # Arguments
/// - `which`: the operation.
/// - `base`: an address, or a selector.
///
/// # Operations
/// ## `SEGBASE_FS`
/// The base of FS.
///
/// Errors: `EINVAL`: not canonical.
/// ## `SEGBASE_GS_USER`
/// The base of GS in user mode.
///
/// Errors: `EINVAL`: not canonical.
/// ## `SEGBASE_GS_KERNEL`
/// The base of GS in kernel mode.
///
/// Errors: `EINVAL`: not canonical.
/// ## `SEGBASE_GS_USER_SEL`
/// The low 16 bits of `base` are a selector for user mode's GS: its base is that of the descriptor in the
/// guest's GDT or LDT; 0 if there is none within their limits.
///
/// Errors: none.
///
/// # Errors
/// - `EINVAL`: an unknown operation; or see the operations.
///
/// # Left out
/// - Nothing.
///
/// # Guards against
/// - An address that is not canonical in a base register (the class of XSA-193).
/// - XSA-298: a selector past the table's current limit.
///
/// # Source
/// - Xen: `public/arch-x86/xen-x86_64.h`
/// - Here: `paging/descriptor.rs`
pub(super) fn set_segment_base(vcpu: &mut Vcpu, which: u32, base: u64) -> Outcome {
    if which != SEGBASE_GS_USER_SEL && !GuestVirt(base).is_canonical() {
        return Err(Errno::EINVAL);
    }
    let state = &mut vcpu.state;
    match which {
        SEGBASE_FS => state.context.fs_base = base,
        SEGBASE_GS_USER => *state.gs_base_user() = base,
        SEGBASE_GS_KERNEL => *state.gs_base_kernel() = base,
        // A null selector has base 0; others would need a GDT entry.
        SEGBASE_GS_USER_SEL if base & 0xffff & !3 == 0 => {
            *state.gs_base_user() = 0;
            state.context.data.gs = 0;
        }
        SEGBASE_GS_USER_SEL => return load_gs_selector(vcpu, base),
        _ => return Err(Errno::EINVAL),
    }
    OK
}

/// The base of the descriptor that user mode's GS shall select.
fn load_gs_selector(vcpu: &mut Vcpu, selector: u64) -> Outcome {
    let selector = u16::try_from(selector & 0xffff).unwrap_or(0);
    let id = vcpu.shared.id;
    let descriptor = vcpu.lock_mm().read_descriptor(&vcpu.tables(), id, selector);
    *vcpu.state.gs_base_user() = descriptor.map_or(0, base_of);
    vcpu.state.context.data.gs = if descriptor.is_some() { selector } else { 0 };
    OK
}

/// `HYPERVISOR_fpu_taskswitch(set)`: sets or clears CR0.TS as the guest reads it.
///
/// # Arguments
/// - `set`: 0 clears it, anything else sets it.
///
/// # Errors
/// - None.
///
/// # Left out
/// - #NM: the FPU is always there, so a set TS traps nothing.
///
/// # Guards against
/// - Nothing: it is a flag that the guest alone reads.
///
/// # Source
/// - Xen: `public/xen.h`
pub(super) fn fpu_taskswitch(vcpu: &mut Vcpu, set: u32) -> Outcome {
    vcpu.state.task_switched = set != 0;
    OK
}
