//! `sched_op`, `set_timer_op`.

use super::{Done, OK, Outcome};
use crate::{
    guest_access::GuestAccessExt,
    vcpu::{Vcpu, Wait},
};
use guest_abi::{
    addr::{GuestVirt, Port},
    errno::Errno,
    sched::*,
};

/// Ports that one poll may name.
const MAX_PORTS: u32 = 128;

/// `HYPERVISOR_sched_op(cmd, arg)`: how a vCPU gives up its CPU, and a domain its life.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `arg`: address of its structure.
///
/// # Operations
/// ## `SCHEDOP_YIELD`
/// Lets another thread of the host run. No argument.
///
/// Errors: none.
/// ## `SCHEDOP_BLOCK`
/// Unmasks events, and sleeps unless one can be delivered: in one step, so that no wake-up is lost. No
/// argument.
///
/// Errors: none.
/// ## `SCHEDOP_SHUTDOWN` `SchedShutdown`
/// Stops all vCPUs with this reason (`SHUTDOWN_*`) and tells Dom0. The first reason stands.
///
/// Errors: `EFAULT`.
/// ## `SCHEDOP_POLL` `SchedPoll`
/// Sleeps until one of the ports is pending or the time comes. Masks don't matter.
///
/// Errors: `EINVAL`: more than 128 ports, or a port that the domain does not have. `EFAULT`.
/// ## `SCHEDOP_REMOTE_SHUTDOWN` `SchedRemoteShutdown`
/// The control domain's.
///
/// Errors: `EPERM`: always.
/// ## `SCHEDOP_SHUTDOWN_CODE` `SchedShutdown`
/// Notes the reason of the shutdown that is to come.
///
/// Errors: `EFAULT`.
///
/// # Errors
/// - `ENOSYS`: an unknown operation, and what is left out.
/// - `EINVAL`, `EPERM`, `EFAULT`: see the operations.
///
/// # Left out
/// - `SCHEDOP_watchdog`, `SCHEDOP_pin_override`.
///
/// # Guards against
/// - XSA-221: a port that is polled without being checked.
///
/// # Source
/// - Xen: `public/sched.h`
/// - Here: `vcpu/mod.rs`, `events/poll.rs`, `events/error.rs`
pub(super) fn sched_op(vcpu: &mut Vcpu, cmd: u32, arg: GuestVirt) -> Outcome {
    match cmd {
        SCHEDOP_YIELD => {
            std::thread::yield_now();
            OK
        }
        SCHEDOP_BLOCK => {
            vcpu.mask_events(false);
            if !vcpu.event_deliverable() {
                vcpu.wait = Wait::Block;
            }
            OK
        }
        SCHEDOP_SHUTDOWN => {
            let arg: SchedShutdown = vcpu.access().read_obj(arg)?;
            vcpu.domain.shut_down(arg.reason);
            OK
        }
        SCHEDOP_POLL => poll(vcpu, arg),
        SCHEDOP_REMOTE_SHUTDOWN => Err(Errno::EPERM),
        SCHEDOP_SHUTDOWN_CODE => {
            let arg: SchedShutdown = vcpu.access().read_obj(arg)?;
            vcpu.domain.lock_life().shutdown_code = Some(arg.reason);
            OK
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn poll(vcpu: &mut Vcpu, arg: GuestVirt) -> Outcome {
    let arg: SchedPoll = vcpu.access().read_obj(arg)?;
    if arg.nr_ports > MAX_PORTS {
        return Err(Errno::EINVAL);
    }
    let ports: Vec<Port> = (0..u64::from(arg.nr_ports))
        .map(|index| {
            vcpu.access()
                .read_element(GuestVirt(arg.ports), index)
                .map(Port)
        })
        .collect::<Result<_, _>>()?;
    let deadline = (arg.timeout != 0).then_some(arg.timeout);
    vcpu.poll(&ports, deadline).map(Done::from)
}

/// `HYPERVISOR_set_timer_op(timeout)`: `VIRQ_TIMER` for this vCPU at a system time.
///
/// # Arguments
/// - `timeout`: nanoseconds of system time; 0 stops the timer. A time that is past fires at once, one that
///   makes no sense (negative, or too far ahead) after 100 ms.
///
/// # Errors
/// - None.
///
/// # Left out
/// - Nothing.
///
/// # Guards against
/// - Nothing: one timer a vCPU, whatever is asked for.
///
/// # Source
/// - Xen: `public/xen.h`
/// - Here: `time/timers.rs`
pub(super) fn set_timer_op(vcpu: &mut Vcpu, timeout: u64) -> Outcome {
    vcpu.set_timer(&vcpu.shared, |timers, now| {
        timers.set_timer_op(timeout, now)
    });
    OK
}
