//! Accesses that may fault and say so: for tests of walls, and for pointers
//! that are not to be trusted.
//!
//! Each is a naked function whose first instruction may fault. When a fault
//! comes from there, the trap handler puts what happened into the registers
//! of the result and goes on at a `ret`. Naked, because what a compiled
//! function keeps in its red zone would be lost to the bounce frame.
//!
//! ```no_run
//! use guest_abi::{addr::GuestVirt, kernel::guard};
//!
//! match guard::read(GuestVirt(0)) {
//!     Ok(word) => guest_abi::kprintln!("{word:#x} is there"),
//!     Err(fault) => assert_eq!(fault.vector, 14),
//! }
//! ```

use core::arch::naked_asm;

use super::trap::{Fault, TrapFrame};
use crate::addr::GuestVirt;

/// What the naked functions return, in `rax` and `rdx`.
#[repr(C)]
struct Raw {
    /// The value read, or the faulting address.
    value: u64,
    /// 0, or the vector plus one, with the error code in bits 32 and up.
    fault: u64,
}

macro_rules! guarded {
    ($name:ident, $($line:literal),*) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name(address: u64, value: u64) -> Raw {
            naked_asm!($($line,)* "xor edx, edx", "ret")
        }
    };
}

guarded!(read_raw, "mov rax, [rdi]");
guarded!(write_raw, "mov [rdi], rsi");
guarded!(swap_raw, "xchg [rdi], rsi", "mov rax, rsi");

/// The way out: the guarded functions leave the stack as they found it.
#[unsafe(naked)]
unsafe extern "C" fn way_out() {
    naked_asm!("ret")
}

/// Sends a faulting guarded function to its way out. `false` if the fault is
/// not from one.
pub(super) fn recover(frame: &mut TrapFrame, fault: Fault) -> bool {
    let guarded = [
        read_raw as *const () as u64,
        write_raw as *const () as u64,
        swap_raw as *const () as u64,
    ];
    if !guarded.contains(&frame.rip) {
        return false;
    }
    frame.rip = way_out as *const () as u64;
    frame.rax = fault.address.0;
    frame.rdx = fault.error << 32 | (fault.vector + 1);
    true
}

fn decode(raw: &Raw, function: unsafe extern "C" fn(u64, u64) -> Raw) -> Result<u64, Fault> {
    match (raw.fault & 0xffff_ffff).checked_sub(1) {
        None => Ok(raw.value),
        Some(vector) => Err(Fault {
            vector,
            error: raw.fault >> 32,
            address: GuestVirt(raw.value),
            rip: GuestVirt(function as *const () as u64),
        }),
    }
}

/// Reads 8 bytes.
///
/// # Errors
/// The fault.
pub fn read(address: GuestVirt) -> Result<u64, Fault> {
    // SAFETY: reads memory, whatever it is, or faults and says so.
    decode(&unsafe { read_raw(address.0, 0) }, read_raw)
}

/// Writes 8 bytes.
///
/// # Safety
/// If the write succeeds, nobody may rely on what was there.
///
/// # Errors
/// The fault.
pub unsafe fn write(address: GuestVirt, value: u64) -> Result<(), Fault> {
    // SAFETY: the caller's duty.
    decode(&unsafe { write_raw(address.0, value) }, write_raw).map(drop)
}

/// Swaps 8 bytes atomically; returns what was there.
///
/// # Safety
/// If the write succeeds, nobody may rely on what was there.
///
/// # Errors
/// The fault.
pub unsafe fn swap(address: GuestVirt, value: u64) -> Result<u64, Fault> {
    // SAFETY: the caller's duty.
    decode(&unsafe { swap_raw(address.0, value) }, swap_raw)
}
