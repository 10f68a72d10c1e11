//! `set_debugreg`, `get_debugreg`.

use super::{Done, OK, Outcome};
use crate::vcpu::Vcpu;
use guest_abi::errno::Errno;

/// Bits of DR7 that arm a breakpoint.
const ENABLED: u64 = 0xff;

/// `HYPERVISOR_set_debugreg(reg, value)`.
///
/// # Errors
/// `EINVAL` for a register that does not exist. `EOPNOTSUPP` for a value of
/// DR7 that arms a breakpoint: hardware breakpoints are left out.
pub(super) fn set_debugreg(vcpu: &mut Vcpu, register: u32, value: u64) -> Outcome {
    match register {
        0..=3 => vcpu.state.debug[register as usize] = value,
        4 | 6 => vcpu.state.debug[6] = value & 0xe00f | 0xffff_0ff0,
        5 | 7 if value & ENABLED != 0 => return Err(Errno::EOPNOTSUPP),
        5 | 7 => vcpu.state.debug[7] = value & 0xffff_0000 | 0x400,
        _ => return Err(Errno::EINVAL),
    }
    OK
}

/// `HYPERVISOR_get_debugreg(reg)`.
///
/// # Errors
/// `EINVAL` for a register that does not exist.
pub(super) fn get_debugreg(vcpu: &mut Vcpu, register: u32) -> Outcome {
    let index = match register {
        0..=3 => register as usize,
        4 | 6 => 6,
        5 | 7 => 7,
        _ => return Err(Errno::EINVAL),
    };
    Ok(Done::Value(vcpu.state.debug[index]))
}
