//! `iret`.

use super::{Done, Outcome};
use crate::{
    cpu::reg,
    guest_access::GuestAccessExt,
    vcpu::{Crash, Vcpu},
};
use guest_abi::{
    addr::GuestVirt,
    arch_x86_64::{IretContext, VGCF_IN_SYSCALL},
};

/// `HYPERVISOR_iret()`: goes on where the frame at `rsp` says, in user mode if
/// its code selector has RPL 3. IF in the frame unmasks events.
///
/// Flags, selectors and `rip` are the guest's word: the engine loads only
/// flags that ring 3 may have, and a `rip` that is not canonical becomes a
/// fault of the guest's.
///
/// A frame that can't be read, or a return to user mode without a user root,
/// crashes the domain, as on Xen.
pub(super) fn iret(vcpu: &mut Vcpu) -> Outcome {
    let rsp = vcpu.state.context.gpr[reg::RSP];
    let Ok(frame) = vcpu.access_kernel().read_obj::<IretContext>(GuestVirt(rsp)) else {
        return Ok(Done::Crash(Crash::BadIret("the frame can't be read")));
    };
    if frame.cs & 3 == 3 {
        if vcpu.state.user_root.is_none() {
            return Ok(Done::Crash(Crash::BadIret(
                "there is no page-table root for user mode",
            )));
        }
        vcpu.state.toggle_mode();
    }
    let context = &mut vcpu.state.context;
    context.rip = frame.rip;
    context.rflags = frame.rflags;
    context.gpr[reg::RSP] = frame.rsp;
    context.gpr[reg::RAX] = frame.rax;
    if frame.flags & VGCF_IN_SYSCALL == 0 {
        context.gpr[reg::R11] = frame.r11;
        context.gpr[reg::RCX] = frame.rcx;
    } else {
        context.gpr[reg::R11] = frame.rflags;
        context.gpr[reg::RCX] = frame.rip;
    }
    vcpu.mask_events(frame.rflags & (1 << 9) == 0);
    Ok(Done::Registers)
}
