//! Lab 3: a page table by `mmu_update`, and what the hypervisor refuses.
#![no_std]
#![no_main]

use guest_abi::{
    addr::{GuestVirt, Mfn},
    errno::Errno,
    kernel::{Boot, VIRT_BASE, boot, mm, mmuext, sched},
    kprintln,
    sched::SHUTDOWN_POWEROFF,
};

guest_abi::pv_kernel!(main, name = "lab3");

/// Where nothing is mapped yet.
const FRESH: GuestVirt = GuestVirt(VIRT_BASE + (1 << 30));

fn main(boot: &'static Boot) -> ! {
    boot.init().expect("the usual set-up");
    tables().expect("what is allowed works");
    sched::shutdown(SHUTDOWN_POWEROFF)
}

fn tables() -> Result<(), Errno> {
    let root = mm::root().ok_or(Errno::EINVAL)?;
    let page = mm::allocate().ok_or(Errno::ENOMEM)?;
    let data = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
    // Adds the tables that are missing, from the top down: each is made
    // read-only first, then named in the table above.
    // SAFETY: nothing is mapped there, and the page is ours.
    unsafe { mm::map(root, FRESH, mm::entry(data, mm::PAGE_KERNEL)) }?;
    kprintln!("lab3: mapped");

    let table = mm::table(FRESH, 1).ok_or(Errno::EINVAL)?;
    let slot = mm::entry_address(table, mm::index(FRESH, 1));
    let write = |value| {
        // SAFETY: what is refused changes nothing.
        unsafe { mm::write_entry(slot, value) }
    };
    refused(
        "a page table, writable",
        write(mm::entry(table, mm::PAGE_KERNEL)),
    );
    refused(
        "a frame that is not ours",
        write(mm::entry(Mfn(1), mm::PAGE_KERNEL)),
    );
    allowed(
        "a page table, read-only",
        write(mm::entry(table, mm::PAGE_READONLY)),
    );
    allowed("nothing", write(0));

    // A data page with garbage is no page table.
    let at = boot::pfn_to_virt(page).0 as *mut u64;
    // SAFETY: the page is ours.
    unsafe { at.write_volatile(mm::entry(root, mm::PAGE_KERNEL)) };
    // SAFETY: it is refused.
    refused("a table that is mapped writable", unsafe {
        mmuext::pin(1, data)
    });
    mm::make_table(page)?;
    // SAFETY: it is refused.
    refused("a table that maps a table writable", unsafe {
        mmuext::pin(1, data)
    });
    Ok(())
}

fn refused(what: &str, answer: Result<(), Errno>) {
    match answer {
        Ok(()) => kprintln!("lab3: {what}: ALLOWED"),
        Err(errno) => kprintln!("lab3: {what}: {errno:?}"),
    }
}

fn allowed(what: &str, answer: Result<(), Errno>) {
    kprintln!("lab3: {what}: {answer:?}");
}
