//! `multicall`.

use super::{Done, OK, Outcome, call, failure, result};
use crate::{cpu::reg, guest_access::GuestAccessExt, vcpu::Vcpu};
use guest_abi::{
    addr::GuestVirt,
    errno::Errno,
    xen::{HYPERVISOR_IRET, HYPERVISOR_MULTICALL, MulticallEntry},
};

/// `HYPERVISOR_multicall(calls, count)`: hypercalls in a batch.
///
/// # Arguments
/// - `calls`: address of an array of `MulticallEntry`; each gets its result.
/// - `count`: its length.
///
/// The batch goes on after an element that fails. If one makes the vCPU sleep, the rest runs after the
/// sleep. An element that is a `multicall` gets `EINVAL`, and `iret` gets `ENOSYS`.
///
/// # Errors
/// - `EINVAL`: a `multicall` inside a `multicall`.
/// - `ENOSYS`: the result of an `iret` in a batch.
/// - `EFAULT`: an entry can't be read or its result not written. Those before it are done.
///
/// # Left out
/// - Nothing.
///
/// # Guards against
/// - XSA-213: an `iret` that changes the mode under the batch.
/// - XSA-45, XSA-58: a batch gives way to other work between its elements.
///
/// # Source
/// - Xen: `public/xen.h`
pub(super) fn multicall(vcpu: &mut Vcpu, calls: GuestVirt, count: u32) -> Outcome {
    if vcpu.in_multicall {
        return Err(Errno::EINVAL);
    }
    for index in 0..u64::from(count) {
        if index != 0 && vcpu.should_yield() {
            let done = index * size_of::<MulticallEntry>() as u64;
            let rest = [
                (reg::RDI, calls.0.wrapping_add(done)),
                (reg::RSI, u64::from(count) - index),
            ];
            return Ok(vcpu.restart(HYPERVISOR_MULTICALL, &rest));
        }
        let mut entry: MulticallEntry = vcpu.access().read_element(calls, index)?;
        entry.result = match element(vcpu, &entry) {
            Ok(Done::Value(value)) => value,
            Ok(Done::Registers) => 0,
            Ok(crash @ Done::Crash(_)) => return Ok(crash),
            Err(errno) => failure(errno),
        };
        vcpu.access().write_element(calls, index, &entry)?;
        if vcpu.wait != crate::vcpu::Wait::No && index + 1 < u64::from(count) {
            // The rest of the batch runs after the sleep.
            let done = (index + 1) * size_of::<MulticallEntry>() as u64;
            let rest = [
                (reg::RDI, calls.0.wrapping_add(done)),
                (reg::RSI, u64::from(count) - index - 1),
            ];
            return Ok(vcpu.restart(HYPERVISOR_MULTICALL, &rest));
        }
    }
    OK
}

fn element(vcpu: &mut Vcpu, entry: &MulticallEntry) -> Outcome {
    if entry.op == HYPERVISOR_IRET {
        return Err(Errno::ENOSYS);
    }
    vcpu.domain.counts.hypercall(entry.op);
    vcpu.in_multicall = true;
    let trace = vcpu.trace_hypercall(entry.op, entry.args);
    let outcome = call(vcpu, entry.op, entry.args);
    if let Some(trace) = trace {
        vcpu.trace_result(trace, result(&outcome));
    }
    vcpu.in_multicall = false;
    outcome
}
