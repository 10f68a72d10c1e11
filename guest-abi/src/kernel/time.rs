//! System time from the page that the hypervisor keeps, without a hypercall,
//! and the timers that it sets off.
//!
//! ```no_run
//! use guest_abi::kernel::time;
//!
//! let begin = time::system_time();
//! time::set_singleshot_timer(begin + 1_000_000, 0).expect("no flag, no error");
//! assert!(time::system_time() >= begin);
//! ```

use core::{
    arch::x86_64::{_mm_lfence, _rdtsc},
    sync::atomic::{Ordering, fence},
};

use super::{hypercall, smp};
use crate::{
    errno::Errno,
    vcpu::{VCPUOP_SET_SINGLESHOT_TIMER, VCPUOP_STOP_PERIODIC_TIMER, VcpuSetSingleshotTimer},
    xen::VcpuTimeInfo,
};

/// Nanoseconds of system time.
#[must_use]
pub fn system_time() -> u64 {
    // SAFETY: the field lies in the shared info page; only its address is taken.
    let info = unsafe { &raw const (*smp::vcpu_info()).time };
    loop {
        // SAFETY: mapped for good once shared info is; a torn read shows in
        // the version.
        let (before, copy, after, tsc) = unsafe {
            let before = (&raw const (*info).version).read_volatile();
            fence(Ordering::Acquire);
            let copy = info.read_volatile();
            _mm_lfence();
            let tsc = _rdtsc();
            fence(Ordering::Acquire);
            let after = (&raw const (*info).version).read_volatile();
            (before, copy, after, tsc)
        };
        if before == after && before & 1 == 0 {
            return scale(&copy, tsc);
        }
    }
}

/// System time at a reading of the TSC.
#[must_use]
pub fn scale(info: &VcpuTimeInfo, tsc: u64) -> u64 {
    let ticks = tsc.wrapping_sub(info.tsc_timestamp);
    let shift = u32::from(info.tsc_shift.unsigned_abs());
    let ticks = if info.tsc_shift < 0 {
        ticks.checked_shr(shift).unwrap_or(0)
    } else {
        ticks.checked_shl(shift).unwrap_or(0)
    };
    let scaled = (u128::from(ticks) * u128::from(info.tsc_to_system_mul)) >> 32;
    info.system_time
        .wrapping_add(u64::try_from(scaled).unwrap_or(u64::MAX))
}

/// `VCPUOP_set_singleshot_timer`: `VIRQ_TIMER` at `deadline`.
///
/// # Errors
/// `ETIME` if `flags` is `VCPU_SSHOTTMR_FUTURE` and the time is past.
pub fn set_singleshot_timer(deadline: u64, flags: u32) -> Result<(), Errno> {
    let argument = VcpuSetSingleshotTimer {
        timeout_abs_ns: deadline,
        flags,
        ..Default::default()
    };
    let address = (&raw const argument) as u64;
    // SAFETY: the command's type, read only.
    unsafe { hypercall::vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, smp::current(), address) }?;
    Ok(())
}

/// `VCPUOP_stop_periodic_timer`: Xen may start a vCPU with one.
///
/// # Errors
/// The hypervisor's.
pub fn stop_periodic_timer() -> Result<(), Errno> {
    // SAFETY: no argument.
    unsafe { hypercall::vcpu_op(VCPUOP_STOP_PERIODIC_TIMER, smp::current(), 0) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_shifts_both_ways() {
        let mut info = VcpuTimeInfo {
            tsc_timestamp: 1000,
            system_time: 5,
            tsc_to_system_mul: 1 << 31, // half a nanosecond a shifted tick
            tsc_shift: 1,
            ..Default::default()
        };
        assert_eq!(scale(&info, 1100), 105);
        info.tsc_shift = -1;
        assert_eq!(scale(&info, 1100), 30);
    }

    #[test]
    fn a_tsc_behind_the_stamp_wraps_and_does_not_panic() {
        let info = VcpuTimeInfo {
            tsc_timestamp: 10,
            tsc_to_system_mul: u32::MAX,
            ..Default::default()
        };
        let _ = scale(&info, 0);
    }
}
