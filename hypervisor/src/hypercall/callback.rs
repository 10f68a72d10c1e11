//! `set_callbacks`, `callback_op`, `nmi_op`: where the guest wants to be called.

use super::{OK, Outcome};
use crate::{
    guest_access::GuestAccessExt,
    vcpu::{Handler, Vcpu},
};
use guest_abi::{
    addr::GuestVirt,
    callback::*,
    errno::Errno,
    nmi::{XENNMI_REGISTER_CALLBACK, XENNMI_UNREGISTER_CALLBACK, XennmiCallback},
};

fn canonical(address: u64) -> Result<u64, Errno> {
    if GuestVirt(address).is_canonical() {
        Ok(address)
    } else {
        Err(Errno::EINVAL)
    }
}

/// `HYPERVISOR_set_callbacks(event, failsafe, syscall)`, the old form.
///
/// # Errors
/// `EINVAL` for an address that is not canonical.
pub(super) fn set_callbacks(vcpu: &mut Vcpu, event: u64, failsafe: u64, syscall: u64) -> Outcome {
    let (event, failsafe, syscall) = (canonical(event)?, canonical(failsafe)?, canonical(syscall)?);
    vcpu.state.event = Handler {
        address: event,
        masks_events: true,
    };
    vcpu.state.failsafe = Handler {
        address: failsafe,
        masks_events: true,
    };
    vcpu.state.syscall.address = syscall;
    OK
}

/// `HYPERVISOR_callback_op(cmd, arg)`.
///
/// # Errors
/// `EINVAL` for an unknown type, an address that is not canonical, or taking
/// back what can't be; `ENOSYS` for an unknown command; `EFAULT`.
pub(super) fn callback_op(vcpu: &mut Vcpu, cmd: u32, arg: GuestVirt) -> Outcome {
    match cmd {
        CALLBACKOP_REGISTER => register(vcpu, arg),
        CALLBACKOP_UNREGISTER => unregister(vcpu, arg),
        _ => Err(Errno::ENOSYS),
    }
}

fn register(vcpu: &mut Vcpu, arg: GuestVirt) -> Outcome {
    let arg: CallbackRegister = vcpu.access().read_obj(arg)?;
    let handler = Handler {
        address: canonical(arg.address)?,
        masks_events: arg.flags & CALLBACKF_MASK_EVENTS != 0,
    };
    match arg.kind {
        CALLBACKTYPE_EVENT => {
            vcpu.state.event = Handler {
                masks_events: true,
                ..handler
            }
        }
        CALLBACKTYPE_FAILSAFE => vcpu.state.failsafe = handler,
        CALLBACKTYPE_SYSCALL => vcpu.state.syscall = handler,
        CALLBACKTYPE_SYSCALL32 => vcpu.state.syscall32 = handler,
        // The CPU that we show has no `sysenter`. NMIs are never sent.
        CALLBACKTYPE_SYSENTER | CALLBACKTYPE_SYSENTER_DEPRECATED | CALLBACKTYPE_NMI => {}
        _ => return Err(Errno::ENOSYS),
    }
    OK
}

fn unregister(vcpu: &mut Vcpu, arg: GuestVirt) -> Outcome {
    let arg: CallbackUnregister = vcpu.access().read_obj(arg)?;
    match arg.kind {
        CALLBACKTYPE_EVENT | CALLBACKTYPE_FAILSAFE | CALLBACKTYPE_SYSCALL => Err(Errno::EINVAL),
        CALLBACKTYPE_SYSCALL32 => {
            vcpu.state.syscall32 = Handler::default();
            OK
        }
        CALLBACKTYPE_SYSENTER | CALLBACKTYPE_SYSENTER_DEPRECATED | CALLBACKTYPE_NMI => OK,
        _ => Err(Errno::ENOSYS),
    }
}

/// `HYPERVISOR_nmi_op(cmd, arg)`: vCPU 0 may register a handler. No NMI is
/// ever sent.
///
/// # Errors
/// `EINVAL` on another vCPU or for an address that is not canonical; `ENOSYS`
/// for an unknown command; `EFAULT`.
pub(super) fn nmi_op(vcpu: &mut Vcpu, cmd: u32, arg: GuestVirt) -> Outcome {
    match cmd {
        XENNMI_REGISTER_CALLBACK if !vcpu.is_first() => Err(Errno::EINVAL),
        XENNMI_REGISTER_CALLBACK => {
            let arg: XennmiCallback = vcpu.access().read_obj(arg)?;
            canonical(arg.handler_address)?;
            OK
        }
        XENNMI_UNREGISTER_CALLBACK => OK,
        _ => Err(Errno::ENOSYS),
    }
}
