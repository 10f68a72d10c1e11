//! What compiled code expects of the place where it runs. ArceOS brings the
//! panic handler and the allocator.

use guest_abi::kernel::{mem, sched};

/// The prebuilt `core` names it; nothing unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Where the clean-up code of `core` ends; nobody gets there.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    sched::crash(&"unwinding in a kernel")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's duty, as in C.
    unsafe { mem::copy(to, from, count) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's duty, as in C.
    unsafe { mem::copy_overlapping(to, from, count) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's duty, as in C.
    unsafe { mem::fill(to, byte.to_le_bytes()[0], count) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's duty, as in C.
    unsafe { mem::compare(a, b, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's duty, as in C.
    unsafe { mem::compare(a, b, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's duty, as in C. Volatile, so that the loop is not
    // recognised as a `strlen`.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
