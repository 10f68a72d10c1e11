//! Lab 1: hello through console_io, with the hypercall made by hand.
#![no_std]
#![no_main]

use core::arch::asm;

use guest_abi::{
    kernel::{Boot, sched},
    sched::SHUTDOWN_POWEROFF,
    xen::{CONSOLEIO_WRITE, HYPERVISOR_CONSOLE_IO},
};

guest_abi::pv_kernel!(main, name = "lab1");

fn main(_: &'static Boot) -> ! {
    let answer = console_io(b"lab1: hello\n");
    let refused = write_from_nowhere();
    if answer == 0 && refused == -14 {
        console_io(b"lab1: that gave 0, and a bad pointer -14\n");
    }
    sched::shutdown(SHUTDOWN_POWEROFF)
}

fn console_io(text: &[u8]) -> i64 {
    hypercall(text.len() as u64, text.as_ptr() as u64)
}

/// The hypervisor looks at pointers: this one leads nowhere.
fn write_from_nowhere() -> i64 {
    hypercall(1, 0x1000)
}

/// Number in rax, arguments in rdi, rsi, rdx; the answer comes in rax.
fn hypercall(count: u64, buffer: u64) -> i64 {
    let answer: i64;
    // SAFETY: the hypervisor reads `count` bytes at `buffer`, or refuses.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") HYPERVISOR_CONSOLE_IO => answer,
            in("rdi") u64::from(CONSOLEIO_WRITE),
            in("rsi") count,
            in("rdx") buffer,
            out("rcx") _,
            out("r11") _,
        );
    }
    answer
}
