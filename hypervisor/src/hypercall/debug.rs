//! `set_debugreg`, `get_debugreg`.

use super::{Done, OK, Outcome};
use crate::vcpu::Vcpu;
use guest_abi::{
    addr::GuestVirt,
    arch_x86_64::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START},
    errno::Errno,
};

/// Bits of DR7 that arm a breakpoint.
const ENABLED: u64 = 0xff;

/// `HYPERVISOR_set_debugreg(reg, value)`: writes a debug register.
///
/// # Arguments
/// - `reg`: 0 to 7; 4 and 5 are names of 6 and 7.
/// - `value`: what `get_debugreg` shall read back.
///
/// # Errors
/// - `ENODEV`: there is no such register.
/// - `EPERM`: an address that is not canonical, or the hypervisor's.
/// - `EOPNOTSUPP`: a DR7 that arms a breakpoint.
///
/// # Left out
/// - Hardware breakpoints: values are kept and trap nothing.
///
/// # Guards against
/// - A breakpoint on the hypervisor's own addresses.
///
/// # Source
/// - Xen: `public/xen.h`
pub(super) fn set_debugreg(vcpu: &mut Vcpu, register: u32, value: u64) -> Outcome {
    match register {
        0..=3 if !guests_address(value) => return Err(Errno::EPERM),
        0..=3 => vcpu.state.debug[register as usize] = value,
        4 | 6 => vcpu.state.debug[6] = value & 0xe00f | 0xffff_0ff0,
        5 | 7 if value & ENABLED != 0 => return Err(Errno::EOPNOTSUPP),
        5 | 7 => vcpu.state.debug[7] = value & 0xffff_0000 | 0x400,
        _ => return Err(Errno::ENODEV),
    }
    OK
}

/// Canonical, and outside the hypervisor's range.
fn guests_address(address: u64) -> bool {
    GuestVirt(address).is_canonical()
        && !(HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&address)
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
