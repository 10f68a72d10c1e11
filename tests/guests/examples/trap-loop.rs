//! A kernel whose exception handlers can't be executed: PV's triple fault.
//!
//! **Mechanism.** To deliver an exception the hypervisor pushes a bounce frame
//! on the kernel's stack and sets the instruction pointer to the handler. It
//! can't know whether the handler is mapped.
//!
//! **Scenario.** All handlers lie at an address that is not mapped. The first
//! exception goes there, which is a page fault, which goes there, and so on:
//! each turn pushes a frame, until the stack ends at memory that can't be
//! written.
//!
//! **Expected.** The loop ends when a frame can't be pushed: the domain is
//! crashed. The hypervisor must not loop with it out of anybody's reach, and
//! must push nothing below the stack into what the guest may not write.
//!
//! **Limits.** The stack's lower end is a page that was unmapped; on the way
//! down nothing else is hit.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use guest_abi::{
    addr::{GuestVirt, PAGE_SIZE},
    arch_x86::{TI_IF, TrapInfo},
    arch_x86_64::FLAT_KERNEL_CS,
    kernel::{Boot, VIRT_BASE, hypercall, mm},
};

guest_abi::pv_kernel!(main, name = "trap-loop");

fn main(boot: &'static Boot) -> ! {
    boot.init().expect("the set-up is refused");
    let stack_end = GuestVirt((BOOT_STACK.top() - 8 * PAGE_SIZE) & !(PAGE_SIZE - 1));
    // SAFETY: the kernel does not reach that deep into its stack.
    unsafe { mm::set_mapping(stack_end, 0) }.expect("own memory can be unmapped");
    let mut table = [TrapInfo::default(); 33];
    for (vector, entry) in (0..32u8).zip(&mut table) {
        *entry = TrapInfo {
            vector,
            flags: TI_IF,
            cs: FLAT_KERNEL_CS,
            address: VIRT_BASE - PAGE_SIZE,
            ..Default::default()
        };
    }
    test_guests::expect_crash("trap-loop", "by handlers that are not mapped");
    // SAFETY: no, and that is the test: the handlers are none.
    unsafe {
        hypercall::set_trap_table(&table).expect("the table can be set");
        core::arch::asm!("ud2");
    }
    test_guests::survived("trap-loop")
}
