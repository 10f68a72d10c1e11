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

/// `HYPERVISOR_sched_op(cmd, arg)`.
///
/// # Errors
/// `EINVAL` for bad arguments; `EPERM` for another domain's shutdown;
/// `EFAULT`; `ENOSYS` for an unknown command and the watchdog, which is left
/// out.
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

/// `HYPERVISOR_set_timer_op(timeout)`: `VIRQ_TIMER` at this system time; 0
/// stops the timer.
pub(super) fn set_timer_op(vcpu: &mut Vcpu, timeout: u64) -> Outcome {
    vcpu.set_timer(&vcpu.shared, |timers, now| {
        timers.set_timer_op(timeout, now)
    });
    OK
}
