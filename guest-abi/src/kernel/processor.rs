//! What a kernel asks about its (virtual) processor: `vcpu_op` beyond starting
//! one, debug registers, IOPL, NMIs, callbacks, what the hypervisor can.
//!
//! ```no_run
//! use guest_abi::{addr::VcpuId, kernel::processor};
//!
//! let state = processor::runstate(VcpuId(0)).expect("there is always a vCPU 0");
//! guest_abi::kprintln!("state {}, features {:#x}", state.state, processor::features(0).unwrap_or(0));
//! ```

use super::hypercall::{self, Outcome};
use crate::{
    addr::{GuestVirt, Mfn, VcpuId},
    callback::{CALLBACKOP_UNREGISTER, CallbackUnregister},
    errno::Errno,
    nmi::{XENNMI_REGISTER_CALLBACK, XENNMI_UNREGISTER_CALLBACK, XennmiCallback},
    physdev::{PHYSDEVOP_SET_IOBITMAP, PHYSDEVOP_SET_IOPL, PhysdevSetIobitmap, PhysdevSetIopl},
    vcpu::*,
    version::{FeatureInfo, XENVER_GET_FEATURES},
    xen,
};

/// How long a vCPU was running, runnable, blocked and offline.
///
/// # Errors
/// `ENOENT` for a vCPU that the domain has not.
pub fn runstate(vcpu: VcpuId) -> Result<VcpuRunstateInfo, Errno> {
    let mut info = VcpuRunstateInfo::default();
    let address = (&raw mut info) as u64;
    // SAFETY: the command's type.
    unsafe { hypercall::vcpu_op(VCPUOP_GET_RUNSTATE_INFO, vcpu.0, address) }?;
    Ok(info)
}

/// Has the hypervisor keep a vCPU's [`VcpuRunstateInfo`] at `address`.
///
/// # Safety
/// It writes there from now on, for good.
///
/// # Errors
/// `ENOENT`, `EFAULT`.
pub unsafe fn register_runstate(vcpu: VcpuId, address: GuestVirt) -> Outcome {
    let area = VcpuRegisterMemoryArea { addr: address.0 };
    let at = (&raw const area) as u64;
    // SAFETY: the caller's duty.
    unsafe { hypercall::vcpu_op(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, vcpu.0, at) }
}

/// Has the hypervisor keep a copy of a vCPU's clock at `address`, which user
/// mode may read.
///
/// # Safety
/// It writes there from now on, for good.
///
/// # Errors
/// `ENOENT`, `EFAULT`.
pub unsafe fn register_time(vcpu: VcpuId, address: GuestVirt) -> Outcome {
    let area = VcpuRegisterMemoryArea { addr: address.0 };
    let at = (&raw const area) as u64;
    // SAFETY: the caller's duty.
    unsafe { hypercall::vcpu_op(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, vcpu.0, at) }
}

/// Moves a vCPU's [`VcpuInfo`](xen::VcpuInfo) out of shared info. The modules
/// of this crate look for it in shared info, so a kernel that does this does
/// without [`event`](super::event).
///
/// # Safety
/// The frame is the hypervisor's to write to for good.
///
/// # Errors
/// `EINVAL` the second time, or where it would cross the page's end; `ENOENT`.
pub unsafe fn register_vcpu_info(vcpu: VcpuId, frame: Mfn, offset: u32) -> Outcome {
    let info = VcpuRegisterVcpuInfo {
        mfn: frame.0,
        offset,
        ..Default::default()
    };
    let at = (&raw const info) as u64;
    // SAFETY: the caller's duty.
    unsafe { hypercall::vcpu_op(VCPUOP_REGISTER_VCPU_INFO, vcpu.0, at) }
}

/// `VIRQ_TIMER` every `period` ns.
///
/// # Errors
/// `EINVAL` below 1 ms; `ENOENT`.
pub fn set_periodic_timer(vcpu: VcpuId, period: u64) -> Outcome {
    let timer = VcpuSetPeriodicTimer { period_ns: period };
    let at = (&raw const timer) as u64;
    // SAFETY: the command's type, read only.
    unsafe { hypercall::vcpu_op(VCPUOP_SET_PERIODIC_TIMER, vcpu.0, at) }
}

/// Stops the single-shot timer of the vCPU that asks.
///
/// # Errors
/// `EINVAL` for another one.
pub fn stop_singleshot_timer(vcpu: VcpuId) -> Outcome {
    // SAFETY: no argument.
    unsafe { hypercall::vcpu_op(VCPUOP_STOP_SINGLESHOT_TIMER, vcpu.0, 0) }
}

/// Sends a vCPU an NMI.
///
/// # Errors
/// `EOPNOTSUPP` by Domus, which has none; `ENOENT`.
pub fn send_nmi(vcpu: VcpuId) -> Outcome {
    // SAFETY: no argument.
    unsafe { hypercall::vcpu_op(VCPUOP_SEND_NMI, vcpu.0, 0) }
}

/// The privilege level that may use `cli`, `sti` and ports, as the kernel sees it.
///
/// # Errors
/// `EINVAL` above 3.
pub fn set_iopl(level: u32) -> Outcome {
    let mut argument = PhysdevSetIopl { iopl: level };
    // SAFETY: the command's type.
    unsafe { hypercall::physdev_op(PHYSDEVOP_SET_IOPL, &mut argument) }
}

/// Which ports user mode may use: a bit of 0 allows one.
///
/// # Safety
/// The bitmap must stay as long as it is in force.
///
/// # Errors
/// `EINVAL` for more than 65536 ports.
pub unsafe fn set_iobitmap(bitmap: &'static [u8], ports: u32) -> Outcome {
    let mut argument = PhysdevSetIobitmap {
        bitmap: bitmap.as_ptr() as u64,
        nr_ports: ports,
        ..Default::default()
    };
    // SAFETY: the command's type.
    unsafe { hypercall::physdev_op(PHYSDEVOP_SET_IOBITMAP, &mut argument) }
}

/// Sets a debug register.
///
/// # Errors
/// `ENODEV` for one that does not exist, `EPERM` for an address of the
/// hypervisor's, `EOPNOTSUPP` by Domus for a breakpoint that is armed.
pub fn set_debugreg(register: u32, value: u64) -> Outcome {
    let args = [u64::from(register), value, 0, 0, 0];
    // SAFETY: a breakpoint is a trap that this kernel has a handler for.
    unsafe { hypercall::raw(xen::HYPERVISOR_SET_DEBUGREG, args) }
}

/// Reads a debug register; one that does not exist reads as a large number,
/// which is how Xen has it.
#[must_use]
pub fn debugreg(register: u32) -> u64 {
    let args = [u64::from(register), 0, 0, 0, 0];
    // SAFETY: touches no memory.
    match unsafe { hypercall::raw(xen::HYPERVISOR_GET_DEBUGREG, args) } {
        Ok(value) => value.cast_unsigned(),
        Err(errno) => errno.to_return().cast_unsigned(),
    }
}

/// Sets or clears CR0.TS as the kernel sees it. On Xen the next FPU
/// instruction is a #NM then; on Domus the FPU is always there.
///
/// # Safety
/// The kernel must have a handler for #NM.
///
/// # Errors
/// None known.
pub unsafe fn fpu_taskswitch(set: bool) -> Outcome {
    let args = [u64::from(set), 0, 0, 0, 0];
    // SAFETY: the caller's duty.
    unsafe { hypercall::raw(xen::HYPERVISOR_FPU_TASKSWITCH, args) }
}

/// Registers the handler of NMIs, on vCPU 0.
///
/// # Safety
/// `handler` must be a trap entry point.
///
/// # Errors
/// `EINVAL` on another vCPU or for an address that is not canonical.
pub unsafe fn register_nmi(handler: GuestVirt) -> Outcome {
    let callback = XennmiCallback {
        handler_address: handler.0,
        ..Default::default()
    };
    let at = (&raw const callback) as u64;
    let args = [u64::from(XENNMI_REGISTER_CALLBACK), at, 0, 0, 0];
    // SAFETY: the caller's duty; the argument is read only.
    unsafe { hypercall::raw(xen::HYPERVISOR_NMI_OP, args) }
}

/// Takes it back.
///
/// # Errors
/// None known.
pub fn unregister_nmi() -> Outcome {
    let args = [u64::from(XENNMI_UNREGISTER_CALLBACK), 0, 0, 0, 0];
    // SAFETY: no argument.
    unsafe { hypercall::raw(xen::HYPERVISOR_NMI_OP, args) }
}

/// `callback_op`, command `unregister`.
///
/// # Errors
/// `EINVAL` for the event, failsafe and syscall handlers, which must stay;
/// `ENOSYS` for an unknown kind.
pub fn callback_unregister(kind: u16) -> Outcome {
    let argument = CallbackUnregister {
        kind,
        ..Default::default()
    };
    let at = (&raw const argument) as u64;
    let args = [u64::from(CALLBACKOP_UNREGISTER), at, 0, 0, 0];
    // SAFETY: the command's type, read only.
    unsafe { hypercall::raw(xen::HYPERVISOR_CALLBACK_OP, args) }
}

/// `set_callbacks`, the older form: event, failsafe and syscall handlers.
///
/// # Safety
/// Each must be an entry point of its kind.
///
/// # Errors
/// `EINVAL` for an address that is not canonical.
pub unsafe fn set_callbacks(event: GuestVirt, failsafe: GuestVirt, syscall: GuestVirt) -> Outcome {
    let args = [event.0, failsafe.0, syscall.0, 0, 0];
    // SAFETY: the caller's duty.
    unsafe { hypercall::raw(xen::HYPERVISOR_SET_CALLBACKS, args) }
}

/// Word `index` of the hypervisor's feature bits (`XENFEAT_*`).
///
/// # Errors
/// `EINVAL` past the last word, by Xen; Domus says 0.
pub fn features(index: u32) -> Result<u32, Errno> {
    let mut info = FeatureInfo {
        submap_idx: index,
        submap: 0,
    };
    // SAFETY: the command's type.
    unsafe { hypercall::xen_version_op(XENVER_GET_FEATURES, &mut info) }?;
    Ok(info.submap)
}
