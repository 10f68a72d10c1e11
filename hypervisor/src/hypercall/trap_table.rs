//! `set_trap_table`.

use super::{OK, Outcome};
use crate::{guest_access::GuestAccessExt, vcpu::Vcpu};
use guest_abi::{addr::GuestVirt, arch_x86::TrapInfo};

/// `HYPERVISOR_set_trap_table(traps)`: the handlers of exceptions and of `int n`.
///
/// # Arguments
/// - `traps`: address of an array of `TrapInfo`, ended by an entry whose `address` is 0. Null
///   removes all handlers.
///
/// At most 512 entries are read. A vector that is named twice has the later handler. The low two bits
/// of `flags` are the privilege that `int n` needs, bit 2 masks events on entry.
///
/// # Errors
/// - `EFAULT`: an entry can't be read. Those before it are set.
///
/// # Left out
/// - `cs` is not looked at: a kernel runs on the flat segments.
///
/// # Guards against
/// - A batch without an end: the table is cut at 512 entries.
/// - An address that is not canonical is the guest's own fault, when the handler is entered (XSA-7).
///
/// # Source
/// - Xen: `public/arch-x86/xen.h`
/// - Here: `vcpu/bounce.rs`
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
