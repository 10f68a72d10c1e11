//! The five memory functions that compiled code calls and that the ordinary
//! target expects from a C library.
//!
//! [`pv_kernel!`](crate::pv_kernel) exports them under their C names. String
//! instructions, because a loop would be compiled into a call of itself.
//!
//! ```
//! use guest_abi::kernel::mem;
//!
//! let mut bytes = *b"abcdef";
//! let at = bytes.as_mut_ptr();
//! // SAFETY: all of it inside the array.
//! unsafe {
//!     mem::copy_overlapping(at.add(1), at, 5);
//!     mem::fill(at, b'-', 1);
//!     assert_eq!(mem::compare(at, b"-abcde".as_ptr(), 6), 0);
//! }
//! ```

use core::arch::asm;

/// C's `memcpy`.
///
/// # Safety
/// As in C.
#[inline]
pub unsafe fn copy(to: *mut u8, from: *const u8, count: usize) {
    // SAFETY: the caller vouches for both ranges; DF is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _,
             inout("rcx") count => _, options(nostack, preserves_flags));
    }
}

/// C's `memmove`.
///
/// # Safety
/// As in C.
#[inline]
pub unsafe fn copy_overlapping(to: *mut u8, from: *const u8, count: usize) {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: copying upwards never reads what it has written.
        return unsafe { copy(to, from, count) };
    }
    // SAFETY: the caller vouches for both ranges; DF is clear again at the end.
    unsafe {
        asm!("std", "rep movsb", "cld",
             inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _,
             inout("rcx") count => _, options(nostack));
    }
}

/// C's `memset`.
///
/// # Safety
/// As in C.
#[inline]
pub unsafe fn fill(to: *mut u8, byte: u8, count: usize) {
    // SAFETY: the caller vouches for the range; DF is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") byte,
             inout("rcx") count => _, options(nostack, preserves_flags));
    }
}

/// C's `memcmp`.
///
/// # Safety
/// As in C.
#[inline]
pub unsafe fn compare(a: *const u8, b: *const u8, count: usize) -> i32 {
    let mut i = 0;
    while i < count {
        // SAFETY: the caller vouches for both ranges. Volatile, so that the
        // loop is not recognised as a `memcmp`.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        i += 1;
    }
    0
}
