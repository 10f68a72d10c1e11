//! `vcpu_op`.

use super::{Done, OK, Outcome, context};
use crate::{
    guest_access::GuestAccessExt,
    mistakes::reason::{self, Reason},
    vcpu::{Vcpu, VcpuShared},
};
use guest_abi::{
    addr::{GuestVirt, Mfn, VcpuId},
    arch_x86::VcpuGuestContext,
    errno::Errno,
    vcpu::*,
};
use std::sync::Arc;
use zerocopy::{FromZeros, IntoBytes};

/// `HYPERVISOR_vcpu_op(cmd, vcpu, arg)`: operations on one vCPU of the domain.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `vcpu`: the vCPU's number.
/// - `arg`: address of the operation's structure.
///
/// # Operations
/// ## `VCPUOP_INITIALISE` `VcpuGuestContext`
/// The first state of a vCPU that never had one. Roots, GDT and LDT are taken as by their own hypercalls.
/// After an error nothing is kept.
///
/// Errors: `EEXIST`: it has one. `EINVAL`: a root or table that can't be one, an entry point that is not
/// canonical, too large a GDT. `ENOMEM`: the host refuses a thread. `EFAULT`.
/// ## `VCPUOP_UP`
/// Sets an initialised vCPU going.
///
/// Errors: `EINVAL`: it has no state.
/// ## `VCPUOP_DOWN`
/// Takes it down; its state is kept.
///
/// Errors: none.
/// ## `VCPUOP_IS_UP`
/// 1 if it is up, else 0.
///
/// Errors: none.
/// ## `VCPUOP_GET_RUNSTATE_INFO` `VcpuRunstateInfo`
/// Copies out where its time went.
///
/// Errors: `EFAULT`.
/// ## `VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA` `VcpuRegisterMemoryArea`
/// The address of a `VcpuRunstateInfo` that is written at each change of state; 0 ends it.
///
/// Errors: `EFAULT`: an address that can't be the guest's.
/// ## `VCPUOP_SET_PERIODIC_TIMER` `VcpuSetPeriodicTimer`
/// `VIRQ_TIMER` every so often, of any vCPU. It does not wake one that sleeps.
///
/// Errors: `EINVAL`: below 1 ms, or above 2^62 ns. `EFAULT`.
/// ## `VCPUOP_STOP_PERIODIC_TIMER`
/// Stops it.
///
/// Errors: none.
/// ## `VCPUOP_SET_SINGLESHOT_TIMER` `VcpuSetSingleshotTimer`
/// `VIRQ_TIMER` at a system time, of the own vCPU.
///
/// Errors: `EINVAL`: another vCPU. `ETIME`: a past time, with `VCPU_SSHOTTMR_FUTURE`. `EFAULT`.
/// ## `VCPUOP_STOP_SINGLESHOT_TIMER`
/// Stops it.
///
/// Errors: `EINVAL`: another vCPU.
/// ## `VCPUOP_REGISTER_VCPU_INFO` `VcpuRegisterVcpuInfo`
/// Moves the vCPU's `VcpuInfo` to a frame of the guest's, once. The frame stays writable for good.
///
/// Errors: `EINVAL`: it was moved before; it does not lie within the frame; the frame is not the domain's
/// or is in use as a table.
/// ## `VCPUOP_SEND_NMI`
/// Left out.
///
/// Errors: `EOPNOTSUPP`: always.
/// ## `VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA` `VcpuRegisterMemoryArea`
/// The address of a second `VcpuTimeInfo`, for user mode to read.
///
/// Errors: `EFAULT`: an address that can't be the guest's.
///
/// # Errors
/// - `ENOENT`: there is no such vCPU.
/// - `ENOSYS`: an unknown operation.
/// - `EFAULT`: the structure can't be read or written.
/// - `EINVAL`, `EEXIST`, `ENOMEM`, `ETIME`, `EOPNOTSUPP`: see the operations.
///
/// # Left out
/// - `VCPUOP_get_physid`; NMIs.
///
/// # Guards against
/// - Areas that move or are written after their frame was given away: the frame is held (XSA-47's class).
/// - An entry point or base that is not canonical.
///
/// # Source
/// - Xen: `public/vcpu.h`
/// - Here: `hypercall/context.rs`, `vcpu/clock.rs`, `time/timers.rs`, `time/runstate.rs`, `events/error.rs`
pub(super) fn vcpu_op(vcpu: &mut Vcpu, cmd: u32, id: u32, arg: GuestVirt) -> Outcome {
    let index = usize::try_from(id).map_err(|_| Errno::ENOENT)?;
    let target = Arc::clone(vcpu.domain.vcpus.get(index).ok_or(Errno::ENOENT)?);
    match cmd {
        VCPUOP_INITIALISE => initialise(vcpu, target.id, arg),
        VCPUOP_UP => up(vcpu, &target),
        VCPUOP_DOWN => {
            target.set_online(false);
            OK
        }
        VCPUOP_IS_UP => Ok(Done::Value(target.is_online().into())),
        VCPUOP_REGISTER_VCPU_INFO => register_vcpu_info(vcpu, &target, arg),
        VCPUOP_SEND_NMI => Err(Errno::EOPNOTSUPP),
        VCPUOP_GET_RUNSTATE_INFO => {
            let now = vcpu.domain.host.clock.now_ns();
            let info = target.lock_time().runstate.get(now);
            vcpu.access().write_obj(arg, &info)?;
            OK
        }
        VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => {
            let area: VcpuRegisterMemoryArea = vcpu.access().read_obj(arg)?;
            vcpu.register_runstate(&target, GuestVirt(area.addr))
                .map(Done::from)
        }
        VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA => {
            let area: VcpuRegisterMemoryArea = vcpu.access().read_obj(arg)?;
            vcpu.register_time_area(&target, GuestVirt(area.addr))
                .map(Done::from)
        }
        _ => timer_op(vcpu, cmd, &target, arg),
    }
}

/// The timers of a vCPU; the single-shot timer is only its own to set.
fn timer_op(vcpu: &Vcpu, cmd: u32, target: &VcpuShared, arg: GuestVirt) -> Outcome {
    let own = target.id == vcpu.shared.id;
    match cmd {
        VCPUOP_SET_PERIODIC_TIMER => {
            let arg: VcpuSetPeriodicTimer = vcpu.access().read_obj(arg)?;
            let set = vcpu.set_timer(target, |timers, now| {
                timers.set_periodic(arg.period_ns, now)
            });
            set.map_err(|error| error.errno())?;
        }
        VCPUOP_STOP_PERIODIC_TIMER => vcpu.set_timer(target, |timers, _| timers.stop_periodic()),
        VCPUOP_SET_SINGLESHOT_TIMER | VCPUOP_STOP_SINGLESHOT_TIMER if !own => {
            return Err(Errno::EINVAL);
        }
        VCPUOP_SET_SINGLESHOT_TIMER => {
            let arg: VcpuSetSingleshotTimer = vcpu.access().read_obj(arg)?;
            let set = vcpu.set_timer(target, |timers, now| {
                timers.set_singleshot(arg.timeout_abs_ns, arg.flags, now)
            });
            set.map_err(|error| error.errno())?;
        }
        VCPUOP_STOP_SINGLESHOT_TIMER => {
            vcpu.set_timer(target, |timers, _| timers.stop_singleshot())
        }
        _ => return Err(Errno::ENOSYS),
    }
    OK
}

fn initialise(vcpu: &mut Vcpu, id: VcpuId, arg: GuestVirt) -> Outcome {
    let mut state = Box::new(VcpuGuestContext::new_zeroed());
    crate::guest_access::GuestAccess::read_bytes(&vcpu.access(), arg, state.as_mut_bytes())?;
    let target = &vcpu.domain.vcpus[usize::try_from(id.0).map_err(|_| Errno::ENOENT)?];
    if target.is_initialised() {
        return Err(Errno::EEXIST);
    }
    context::install(&vcpu.domain, id, state).map(Done::from)
}

fn up(vcpu: &Vcpu, target: &VcpuShared) -> Outcome {
    if !target.is_initialised() {
        return Err(Errno::EINVAL);
    }
    tracing::debug!(domain = vcpu.domain.id.0, vcpu = target.id.0, "up");
    target.set_online(true);
    OK
}

fn register_vcpu_info(vcpu: &Vcpu, target: &VcpuShared, arg: GuestVirt) -> Outcome {
    let arg: VcpuRegisterVcpuInfo = vcpu.access().read_obj(arg)?;
    let frame = Mfn(arg.mfn);
    // The reference is kept for the domain's life: the area can't move again.
    vcpu.update(|mm, tables| mm.get_writable(tables, frame))?;
    let registered = vcpu.domain.delivery.register(target.id, frame, arg.offset);
    registered.map_err(|error| {
        vcpu.lock_mm().put_writable(&vcpu.tables(), frame);
        reason::leave(Reason::Event(error.clone()));
        error.errno()
    })?;
    vcpu.domain.space.note_written(frame);
    vcpu.domain.publish_clock(target.id);
    OK
}
