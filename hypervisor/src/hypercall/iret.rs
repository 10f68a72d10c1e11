//! `iret`.

use super::{Done, Outcome};
use crate::{
    cpu::{Compat, reg},
    guest_access::GuestAccessExt,
    vcpu::{Crash, Vcpu, base_of},
};
use guest_abi::{
    addr::GuestVirt,
    arch_x86_64::{FLAT_RING3_CS32, FLAT_USER_CS, IretContext, VGCF_IN_SYSCALL},
};

/// `HYPERVISOR_iret()`: goes on where the frame on the stack says: the only way out of a handler, and into
/// user mode.
///
/// # Arguments
/// - `rsp`: the address of an `IretContext`. There are no arguments in other registers.
///
/// User mode if the RPL of `cs` is 3, else kernel mode. IF in the frame unmasks events. With
/// `VGCF_IN_SYSCALL`, `rcx` and `r11` are those that `sysret` would leave. In user mode `cs` is looked up
/// in the guest's descriptor tables: a segment without the L bit runs 32-bit code, one that is no code
/// segment of ring 3 enters the failsafe handler.
///
/// # Errors
/// - None: nothing comes back. A frame that can't be read, or user mode without a user root, crashes the
///   domain, as on Xen; the cause is in `xm dmesg`.
///
/// # Left out
/// - Data segment selectors are not loaded; a code segment with a base is refused.
///
/// # Guards against
/// - XSA-7, XSA-44: a return to an address that is not canonical becomes a fault of the guest's.
/// - Flags: only those that ring 3 may have are loaded.
/// - XSA-213: not inside a `multicall`.
///
/// # Source
/// - Xen: `public/arch-x86/xen-x86_64.h`
/// - Here: `vcpu/bounce.rs`, `paging/descriptor.rs`
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
    let segment = if vcpu.state.user_mode {
        code_segment(vcpu, frame.cs, frame.ss)
    } else {
        Ok(None)
    };
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
    vcpu.note_iret();
    match segment {
        Ok(compat) => vcpu.state.context.compat = compat,
        Err(NoCode) => {
            if let Err(crash) = vcpu.bounce_failsafe() {
                return Ok(Done::Crash(crash));
            }
        }
    }
    Ok(Done::Registers)
}

/// The selector names no code segment that can be run in.
pub(crate) struct NoCode;

/// Which code a branch to `cs` runs: 64-bit (`None`) or 32-bit, which has a stack segment and
/// is for user mode alone.
pub(crate) fn code_segment(vcpu: &mut Vcpu, cs: u64, ss: u64) -> Result<Option<Compat>, NoCode> {
    /// Linux's own, which also this engine shows.
    const USER_CODE: u16 = 0x33;
    const CODE: u64 = 1 << 43 | 1 << 44 | 1 << 47;
    const LONG: u64 = 1 << 53;
    const BIG: u64 = 1 << 54;
    let low16 = |selector: u64| u16::try_from(selector & 0xffff).unwrap_or(0);
    let (cs, ss) = (low16(cs), low16(ss));
    if matches!(cs, FLAT_USER_CS | USER_CODE) {
        return Ok(None);
    }
    let user = vcpu.state.user_mode;
    if user && cs == FLAT_RING3_CS32 {
        return on_stack(vcpu, Compat { cs, ss });
    }
    let descriptor = vcpu
        .lock_mm()
        .read_descriptor(&vcpu.tables(), vcpu.shared.id, cs)
        .filter(|descriptor| descriptor & CODE == CODE && descriptor >> 45 & 3 == 3)
        .ok_or(NoCode)?;
    // A segment with a base is one for 16-bit or very old programs.
    match (descriptor & LONG != 0, descriptor & BIG != 0) {
        (true, false) => Ok(None),
        (false, true) if user && base_of(descriptor) == 0 => on_stack(vcpu, Compat { cs, ss }),
        _ => Err(NoCode),
    }
}

/// 32-bit code, if its stack segment can be loaded.
fn on_stack(vcpu: &mut Vcpu, compat: Compat) -> Result<Option<Compat>, NoCode> {
    if vcpu.load_stack(compat.ss) {
        Ok(Some(compat))
    } else {
        Err(NoCode)
    }
}
