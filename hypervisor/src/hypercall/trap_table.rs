//! `set_trap_table`.

use super::{OK, Outcome};
use crate::{guest_access::GuestAccessExt, vcpu::Vcpu};
use guest_abi::{addr::GuestVirt, arch_x86::TrapInfo};

/// `HYPERVISOR_set_trap_table(traps)`: handlers for exceptions and `int n`, as
/// an array that an entry with address 0 ends. A null pointer removes all.
///
/// # Errors
/// `EFAULT`; entries before the unreadable one are set.
pub(super) fn set_trap_table(vcpu: &mut Vcpu, traps: GuestVirt) -> Outcome {
    if traps.0 == 0 {
        vcpu.state.traps.fill(TrapInfo::default());
        return OK;
    }
    // A vector may be named twice, but a table longer than this is a mistake.
    for index in 0..512 {
        let entry: TrapInfo = vcpu.access().read_element(traps, index)?;
        if entry.address == 0 {
            break;
        }
        vcpu.state.traps[usize::from(entry.vector)] = entry;
    }
    OK
}
