//! The table of exceptions: what the IDT is to a machine.

use guest_abi::{
    arch_x86::{TI_IF, TrapInfo},
    arch_x86_64::FLAT_KERNEL_CS,
    callback::{CALLBACKF_MASK_EVENTS, CALLBACKTYPE_FAILSAFE},
    errno::Errno,
    kernel::{event, hypercall, smp, trap},
};

/// The exceptions that a PV kernel can get.
const VECTORS: [u8; 18] = [
    0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 21,
];

/// Hands this vCPU's exceptions to `entries`, entry points by vector. The first
/// vCPU masks all ports.
///
/// # Safety
/// Each must take a bounce frame and end with the hypercall `iret`.
///
/// # Errors
/// The hypervisor's.
pub unsafe fn install(entries: &[extern "C" fn()]) -> Result<(), Errno> {
    let mut table = [TrapInfo::default(); VECTORS.len() + 1];
    for (info, vector) in table.iter_mut().zip(VECTORS) {
        let entry = entries.get(usize::from(vector)).ok_or(Errno::EINVAL)?;
        // User mode may raise breakpoint and overflow by instruction.
        let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
        *info = TrapInfo {
            vector,
            flags: TI_IF | dpl,
            cs: FLAT_KERNEL_CS,
            address: *entry as *const () as u64,
            ..Default::default()
        };
    }
    // SAFETY: the caller's duty; the failsafe entry point is one of its kind.
    unsafe {
        hypercall::set_trap_table(&table)?;
        hypercall::callback_register(
            CALLBACKTYPE_FAILSAFE,
            CALLBACKF_MASK_EVENTS,
            trap::failsafe_entry_address(),
        )?;
    }
    match smp::current() {
        0 => event::install(),
        _ => Ok(()),
    }
}
