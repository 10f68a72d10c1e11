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

/// `HYPERVISOR_set_callbacks(event, failsafe, syscall)`: the guest's entry points, in the old form.
///
/// # Arguments
/// - `event`: entered for a pending event, with events masked.
/// - `failsafe`: entered when a return to the guest fails, with events masked.
/// - `syscall`: entered for user mode's `syscall`; whether it masks events stays as it was.
///
/// # Errors
/// - `EINVAL`: an address that is not canonical. Nothing is changed.
///
/// # Left out
/// - Nothing.
///
/// # Guards against
/// - XSA-7: going on at an address that is not canonical.
///
/// # Source
/// - Xen: `public/xen.h`
/// - Here: `vcpu/bounce.rs`
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

/// `HYPERVISOR_callback_op(cmd, arg)`: the guest's entry points.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `arg`: address of its structure.
///
/// # Operations
/// ## `CALLBACKOP_REGISTER` `CallbackRegister`
/// Registers the entry point of one type. Event, failsafe, `syscall` and 32-bit `syscall` are entered; the
/// event's masks events always, the others' if the flag says so. `sysenter` and NMI are accepted, and never
/// entered: the processor that is shown has no `sysenter`, and no NMI is sent.
///
/// Errors: `EINVAL`: an address that is not canonical. `ENOSYS`: an unknown type.
/// ## `CALLBACKOP_UNREGISTER` `CallbackUnregister`
/// Takes an entry point back.
///
/// Errors: `EINVAL`: event, failsafe and `syscall` can't be taken back. `ENOSYS`: an unknown type.
///
/// # Errors
/// - `ENOSYS`: an unknown operation or type.
/// - `EFAULT`: the structure can't be read.
/// - `EINVAL`: see the operations.
///
/// # Left out
/// - Entries by `sysenter` and NMI.
///
/// # Guards against
/// - XSA-7: going on at an address that is not canonical.
///
/// # Source
/// - Xen: `public/callback.h`
/// - Here: `vcpu/bounce.rs`
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

/// `HYPERVISOR_nmi_op(cmd, arg)`: the handler of non-maskable interrupts.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `arg`: address of its structure.
///
/// # Operations
/// ## `XENNMI_REGISTER_CALLBACK` `XennmiCallback`
/// Registers a handler. It is checked and never called.
///
/// Errors: `EINVAL`: not on vCPU 0, or an address that is not canonical.
/// ## `XENNMI_UNREGISTER_CALLBACK`
/// Takes it back.
///
/// Errors: none.
///
/// # Errors
/// - `ENOSYS`: an unknown operation.
/// - `EFAULT`: the structure can't be read.
/// - `EINVAL`: see the operations.
///
/// # Left out
/// - NMIs: none is ever sent.
///
/// # Guards against
/// - XSA-7: going on at an address that is not canonical.
///
/// # Source
/// - Xen: `public/nmi.h`
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
