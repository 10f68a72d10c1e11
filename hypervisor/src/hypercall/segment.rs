//! `stack_switch`, `set_segment_base`, `fpu_taskswitch`.

use super::{OK, Outcome};
use crate::vcpu::{Vcpu, base_of};
use guest_abi::{
    addr::GuestVirt,
    arch_x86_64::{SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL},
    errno::Errno,
};

/// `HYPERVISOR_stack_switch(ss, rsp)`: the stack that is used on entry from
/// user mode. In 64-bit mode `ss` means nothing.
pub(super) fn stack_switch(vcpu: &mut Vcpu, _ss: u64, rsp: u64) -> Outcome {
    vcpu.state.kernel_sp = rsp;
    OK
}

/// `HYPERVISOR_set_segment_base(which, base)`.
///
/// # Errors
/// `EINVAL` for a base that is not canonical or an unknown `which`.
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

/// `HYPERVISOR_fpu_taskswitch(set)`: CR0.TS. The guest's FPU is always there,
/// so the flag is kept for the guest to read and traps nothing.
pub(super) fn fpu_taskswitch(vcpu: &mut Vcpu, set: u32) -> Outcome {
    vcpu.state.task_switched = set != 0;
    OK
}
