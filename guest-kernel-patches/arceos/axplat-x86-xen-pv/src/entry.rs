//! Where the domain builder enters, and the notes by which it knows a kernel.

use core::{arch::naked_asm, cell::UnsafeCell};

use guest_abi::kernel::{VIRT_BASE, sched, smp};
use xen_pv_cpu::area;

guest_abi::pv_notes!("ArceOS");

/// Bytes of the boot stack: as on ArceOS' other platforms.
const STACK_SIZE: usize = 256 * 1024;

/// Memory that only the code that runs on it touches.
#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: see above.
unsafe impl Sync for Stack {}

/// The stack on which ArceOS comes up, and of its first task. Not in `.bss`,
/// which ArceOS zeroes while it stands on this.
#[unsafe(link_section = ".bss.stack")]
static STACK: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));

/// `rsi` = `start_info`.
///
/// # Safety
/// Not to be called.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "cld",
        "lea rsp, [rip + {stack} + {size}]",
        "xor ebp, ebp",
        "mov rdi, rsi",
        "call {rust}",
        "ud2",
        stack = sym STACK,
        size = const STACK_SIZE,
        rust = sym start,
    )
}

/// The argument that goes through ArceOS to `init_early` is the address of
/// `start_info` in physical memory: ArceOS looks for a device tree there, and
/// finds that it is none.
unsafe extern "C" fn start(start_info: u64) -> ! {
    // ArceOS' first step uses per-CPU data, which the vCPU's number leads to.
    if let Err(errno) = smp::init_boot_vcpu() {
        sched::crash(&errno);
    }
    // SAFETY: the first use is ArceOS', below.
    unsafe { area::copy() };
    let physical = start_info.wrapping_sub(VIRT_BASE);
    axplat::call_main(0, physical as usize)
}
