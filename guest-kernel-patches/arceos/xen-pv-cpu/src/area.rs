//! Per-CPU data: each vCPU has a copy of the section `.percpu`.
//!
//! ArceOS finds it by GS on real machines. Here GS leads to `guest_abi`'s record
//! of the vCPU, and that has the vCPU's number: one step more, and no two owners
//! of one register. Nothing preempts a task between the two steps (see
//! [`irq`](crate::irq)).
//!
//! ```text
//!   _percpu_load_start  +------------------+
//!                       | vCPU 0           |  as the linker made it
//!   _percpu_load_end    +------------------+  aligned to 64
//!                       | vCPU 1           |  copied before anything runs
//!                       | ...              |
//!   _percpu_areas_end   +------------------+
//! ```

use guest_abi::kernel::{mem, smp};

/// What the copies are aligned to, as the linker aligns the first.
const ALIGN: usize = 64;

unsafe extern "C" {
    static _percpu_load_start: u8;
    static _percpu_load_end: u8;
    static _percpu_areas_end: u8;
}

fn start() -> usize {
    &raw const _percpu_load_start as usize
}

/// Bytes of one area.
fn size() -> usize {
    (&raw const _percpu_load_end as usize - start()).next_multiple_of(ALIGN)
}

/// How many vCPUs there is room for.
#[must_use]
pub fn count() -> usize {
    let room = &raw const _percpu_areas_end as usize - start();
    // Without any per-CPU data there is room for as many as one likes.
    room.checked_div(size()).unwrap_or(usize::MAX)
}

/// Where a vCPU's area is.
#[must_use]
pub fn base(vcpu: usize) -> usize {
    start() + vcpu * size()
}

/// Where the area is of the vCPU that asks.
#[inline]
#[must_use]
pub fn current() -> usize {
    base(smp::current() as usize)
}

/// Makes the copies.
///
/// # Safety
/// Once, before anything has used per-CPU data.
pub unsafe fn copy() {
    for vcpu in 1..count() {
        // SAFETY: areas of the image, which the linker reserved; nobody uses them yet.
        unsafe { mem::copy(base(vcpu) as *mut u8, base(0) as *const u8, size()) };
    }
}

/// The name by which `percpu` asks for it.
#[unsafe(no_mangle)]
extern "C" fn _percpu_base_ptr(vcpu: usize) -> *mut u8 {
    base(vcpu) as *mut u8
}
