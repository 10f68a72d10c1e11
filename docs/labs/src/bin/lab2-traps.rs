//! Lab 2: the trap table and a page fault.
#![no_std]
#![no_main]

use guest_abi::{
    addr::GuestVirt,
    kernel::{Boot, guard, sched, trap},
    kprintln,
    sched::SHUTDOWN_POWEROFF,
};

guest_abi::pv_kernel!(main, name = "lab2");

fn main(boot: &'static Boot) -> ! {
    // What `Boot::init` does, without the events.
    boot.init_console().expect("a console");
    trap::install().expect("a trap table");
    let filled = trap::table()
        .iter()
        .filter(|entry| entry.address != 0)
        .count();
    kprintln!("lab2: the trap table has {filled} handlers");

    // Nothing is mapped at address 0.
    let fault = guard::read(GuestVirt(0)).expect_err("nothing is there");
    kprintln!(
        "lab2: reading 0: vector {}, error {:#x}",
        fault.vector,
        fault.error
    );

    // Kernel and user mode are both ring 3: the U bit of the error code is
    // the hypervisor's to show, and it shows the guest's mode.
    let text = GuestVirt(main as *const () as u64);
    // SAFETY: if it were possible, nobody would rely on what was there.
    match unsafe { guard::write(GuestVirt(0xffff_8080_0000_0000), 0) } {
        Ok(()) => kprintln!("lab2: the hypervisor's table is writable?"),
        Err(fault) => kprintln!("lab2: the machine-to-phys table: error {:#x}", fault.error),
    }
    let first = guard::read(text).expect("our own code can be read");
    kprintln!("lab2: main begins with {:#x}", first & 0xff);

    // An address that is not canonical is no page fault.
    let fault = guard::read(GuestVirt(0x8000_0000_0000)).expect_err("not canonical");
    kprintln!("lab2: no canonical address: vector {}", fault.vector);
    sched::shutdown(SHUTDOWN_POWEROFF)
}
