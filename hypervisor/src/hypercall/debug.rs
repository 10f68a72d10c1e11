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

/// `HYPERVISOR_set_debugreg(reg, value)`.
///
/// # Errors
/// `ENODEV` for a register that does not exist, `EPERM` for a breakpoint at an
/// address that is not the guest's. `EOPNOTSUPP` for a value of DR7 that arms a
/// breakpoint: hardware breakpoints are left out.
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

/// `HYPERVISOR_get_debugreg(reg)`.
///
/// # Errors
/// `ENODEV` for a register that does not exist.
pub(super) fn get_debugreg(vcpu: &mut Vcpu, register: u32) -> Outcome {
    let index = match register {
        0..=3 => register as usize,
        4 | 6 => 6,
        5 | 7 => 7,
        _ => return Err(Errno::ENODEV),
    };
    Ok(Done::Value(vcpu.state.debug[index]))
}
