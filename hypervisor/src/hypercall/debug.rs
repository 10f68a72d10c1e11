//! `set_debugreg`, `get_debugreg`.

use super::{Done, OK, Outcome};
use crate::vcpu::Vcpu;
use guest_abi::errno::Errno;

/// `HYPERVISOR_set_debugreg(reg, value)`: writes a debug register.
///
/// # Arguments
/// - `reg`: 0 to 7; 4 and 5 are names of 6 and 7.
/// - `value`: what `get_debugreg` shall read back.
///
/// # Errors
/// - `ENODEV`: there is no such register.
/// - `EPERM`: an address that is not canonical, or the hypervisor's; a DR7 that watches ports or the debug
///   registers themselves.
///
/// While a DR7 arms a breakpoint, the vCPU's code is interpreted on every engine, one instruction after the
/// other.
///
/// # Left out
/// - Breakpoints on ports: a guest has none.
///
/// # Guards against
/// - A breakpoint on the hypervisor's own addresses.
///
/// # Source
/// - Xen: `public/xen.h`
/// - Here: `vcpu/state.rs`, `interp/careful.rs`
pub(super) fn set_debugreg(vcpu: &mut Vcpu, register: u32, value: u64) -> Outcome {
    vcpu.state.set_debug(register, value)?;
    OK
}

/// `HYPERVISOR_get_debugreg(reg)`: reads a debug register.
///
/// # Arguments
/// - `reg`: 0 to 7; 4 and 5 are names of 6 and 7. The result is the value.
///
/// # Errors
/// - `ENODEV`: there is no such register.
///
/// # Left out
/// - Nothing.
///
/// # Guards against
/// - Nothing: it reads what the guest wrote.
///
/// # Source
/// - Xen: `public/xen.h`
pub(super) fn get_debugreg(vcpu: &mut Vcpu, register: u32) -> Outcome {
    let index = match register {
        0..=3 => register as usize,
        4 | 6 => 6,
        5 | 7 => 7,
        _ => return Err(Errno::ENODEV),
    };
    Ok(Done::Value(vcpu.state.debug[index]))
}
