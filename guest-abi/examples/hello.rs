//! A guest of our own: a Xen PV kernel in one file.
//!
//! It greets, takes three timer events, changes its page tables by hypercall
//! (and is refused what direct paging forbids), and powers off. Each step
//! prints a line that begins with `hello:`.
//!
//! ```text
//! cargo build -p guest-abi --example hello --features kernel
//! xm create /dev/null kernel=$PWD/target/debug/examples/hello memory=8 name=hello -c
//! ```
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use core::sync::atomic::{AtomicU32, Ordering};

use guest_abi::{
    addr::{GuestVirt, PAGE_SIZE, Port, VcpuId},
    errno::Errno,
    kernel::{self, Boot, boot, console, event, guard, hypercall, mm, sched, time},
    kprintln,
    sched::SHUTDOWN_POWEROFF,
    vcpu::VCPU_SSHOTTMR_FUTURE,
    xen::{HYPERVISOR_XEN_VERSION, VIRQ_TIMER},
};

guest_abi::pv_kernel!(main, name = "hello", hypercall_page);

fn main(boot: &'static Boot) -> ! {
    // The hypervisor's console works from the first instruction.
    let _ = hypercall::console_io_write(b"hello: from a PV kernel, by console_io\n");
    boot.init()
        .expect("the hypervisor refuses the usual set-up");
    if let Err(error) = steps(boot) {
        panic!("a step failed: {error}");
    }
    kprintln!("hello: goodbye");
    sched::shutdown(SHUTDOWN_POWEROFF)
}

fn steps(boot: &Boot) -> Result<(), Errno> {
    greet(boot)?;
    call_through_page()?;
    take_timer_events()?;
    let page = mm::allocate().ok_or(Errno::ENOMEM)?;
    let fresh = GuestVirt(kernel::VIRT_BASE + (1 << 30));
    map_fresh_page(page, fresh)?;
    make_it_read_only(page, fresh)?;
    be_refused(fresh)
}

/// Who we are and what we were given; this line goes to the PV console's ring
/// too, where a person with `xm console` reads it.
fn greet(boot: &Boot) -> Result<(), Errno> {
    let version = hypercall::xen_version()?;
    console::ring_write(b"hello: from a PV kernel, by the console ring\n");
    kprintln!("hello: on Xen {}.{}", version >> 16, version & 0xffff);
    let info = boot.start_info();
    kprintln!(
        "hello: {} KiB, {} page-table frames, command line \"{}\"",
        info.nr_pages * PAGE_SIZE / 1024,
        info.nr_pt_frames,
        boot.command_line()
    );
    Ok(())
}

/// The page of stubs that we asked for by an ELF note does the same hypercalls.
fn call_through_page() -> Result<(), Errno> {
    let number = usize::try_from(HYPERVISOR_XEN_VERSION).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `xen_version(0)` touches no memory.
    let version = unsafe { HYPERCALL_PAGE.call(number, [0; 5]) }?;
    assert_eq!(version, hypercall::xen_version()?, "two ways, two answers");
    kprintln!("hello: the hypercall page agrees");
    Ok(())
}

static TICKS: AtomicU32 = AtomicU32::new(0);

fn on_timer(_: Port) {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

/// Sleeps 10 ms, three times: twice by the vCPU's single-shot timer, once by
/// the older `set_timer_op`.
fn take_timer_events() -> Result<(), Errno> {
    time::stop_periodic_timer()?;
    let port = event::bind_virq(VIRQ_TIMER, VcpuId(0))?;
    event::listen(port, on_timer)?;
    for turn in 1..=3 {
        let start = if turn < 3 {
            wake_in_10_ms()?
        } else {
            let start = time::system_time();
            hypercall::set_timer_op(start + 10_000_000)?;
            start
        };
        while TICKS.load(Ordering::Relaxed) < turn {
            event::block();
        }
        let slept = time::system_time() - start;
        assert!(slept >= 10_000_000, "woken after {slept} ns, too early");
        kprintln!("hello: timer event {turn} after {} us", slept / 1000);
    }
    event::close(port)
}

/// Sets the single-shot timer; returns the time then. On a busy host 10 ms may have gone by
/// before the hypervisor is asked: then anew.
fn wake_in_10_ms() -> Result<u64, Errno> {
    loop {
        let start = time::system_time();
        match time::set_singleshot_timer(start + 10_000_000, VCPU_SSHOTTMR_FUTURE) {
            Err(Errno::ETIME) => {}
            set => return set.map(|_| start),
        }
    }
}

/// Maps one of our pages a second time, where no table was: two tables are
/// added on the way.
fn map_fresh_page(page: guest_abi::addr::Pfn, fresh: GuestVirt) -> Result<(), Errno> {
    let mfn = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
    let root = mm::root().ok_or(Errno::EINVAL)?;
    // SAFETY: nothing is mapped at `fresh`, and the page is ours alone.
    unsafe { mm::map(root, fresh, mm::entry(mfn, mm::PAGE_KERNEL)) }?;
    let first = boot::pfn_to_virt(page);
    // SAFETY: both addresses map the page that we allocated.
    unsafe {
        (first.0 as *mut u64).write_volatile(0x646f_6d75_7321);
        assert_eq!((fresh.0 as *const u64).read_volatile(), 0x646f_6d75_7321);
    }
    kprintln!(
        "hello: pfn {:#x} = mfn {:#x} at {:#x}",
        page.0,
        mfn.0,
        fresh.0
    );
    Ok(())
}

/// The same address read-only: reading works, writing faults.
fn make_it_read_only(page: guest_abi::addr::Pfn, fresh: GuestVirt) -> Result<(), Errno> {
    let mfn = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
    // SAFETY: nobody writes there any more.
    unsafe { mm::set_mapping(fresh, mm::entry(mfn, mm::PAGE_READONLY)) }?;
    let value = guard::read(fresh).expect("a read-only page can be read");
    // SAFETY: the page is ours; nobody relies on its content.
    let fault = unsafe { guard::write(fresh, !value) }.expect_err("it was to be read-only");
    kprintln!("hello: writing to a read-only page: {fault}");
    Ok(())
}

/// The one rule of direct paging: no writable mapping of a page table, ever.
fn be_refused(fresh: GuestVirt) -> Result<(), Errno> {
    let root = mm::root().ok_or(Errno::EINVAL)?;
    // SAFETY: if the hypervisor allowed it we would panic, not use it.
    let answer = unsafe { mm::set_mapping(fresh, mm::entry(root, mm::PAGE_KERNEL)) };
    let errno = answer.expect_err("the root page table became writable");
    kprintln!("hello: mapping a page table writable is refused: {errno}");
    // SAFETY: reading one's page tables is allowed.
    unsafe { mm::set_mapping(fresh, mm::entry(root, mm::PAGE_READONLY)) }?;
    kprintln!("hello: mapping it read-only is allowed");
    Ok(())
}
