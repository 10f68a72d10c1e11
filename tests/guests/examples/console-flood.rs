//! A kernel that talks too much.
//!
//! **Mechanism.** Console output reaches Dom0 two ways: `console_io` copies it
//! into the hypervisor's ring, where new bytes overwrite old ones; the PV
//! console's ring is the guest's own memory, emptied by the console daemon.
//!
//! **Scenario.** A mebibyte by `console_io` in writes of all sizes, control
//! characters and bytes that are no UTF-8 among them; a quarter of that through
//! the ring, which is full most of the time; a broken ring index at the end.
//!
//! **Expected.** Memory of hypervisor and daemon stays bounded; nothing is
//! written past a buffer; a ring whose indices claim more bytes than it has
//! room for is not believed. The last line comes through on `console_io`
//! whatever the daemon makes of the ring.
//!
//! **Limits.** Says nothing about fairness between domains.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use core::sync::atomic::{AtomicU32, Ordering};

use guest_abi::{
    addr::{GuestVirt, PAGE_SIZE},
    kernel::{Boot, VIRT_BASE, boot, console, hypercall, mm, sched, time},
    xen::{CONSOLEIO_WRITE, HYPERVISOR_CONSOLE_IO},
};
use test_guests::Report;

guest_abi::pv_kernel!(main, name = "console-flood");

static JUNK: [u8; 4096] = junk();

/// All byte values, in no order that a terminal likes.
const fn junk() -> [u8; 4096] {
    let mut bytes = [0; 4096];
    let mut state = 0x2545_f491u32;
    let mut i = 0;
    while i < bytes.len() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes[i] = state.to_be_bytes()[0];
        i += 1;
    }
    bytes
}

fn main(boot: &'static Boot) -> ! {
    let mut report = Report::begin("console-flood", boot);
    flood_hypervisor(&mut report);
    refuse_wild_lengths(&mut report);
    flood_ring(&mut report);
    break_ring();
    report.end()
}

fn flood_hypervisor(report: &mut Report) {
    let mut written = 0;
    let mut size = 1;
    let mut answer = Ok(0);
    while written < 1 << 20 && answer.is_ok() {
        answer = hypercall::console_io_write(&JUNK[..size]);
        written += size;
        size = size * 7 % 4093 + 1;
    }
    // Where guests are kept off the hypervisor's console, that is an answer too.
    let kept_off = answer == Err(guest_abi::errno::Errno::EPERM);
    report.check(
        answer.is_ok() || kept_off,
        &format_args!("{written} bytes by console_io: {answer:?}"),
    );
}

/// Sixteen bytes, then a page that is not mapped.
fn refuse_wild_lengths(report: &mut Report) {
    let fresh = GuestVirt(VIRT_BASE + (1 << 30));
    let page = mm::allocate().and_then(boot::pfn_to_mfn);
    let (Some(root), Some(mfn)) = (mm::root(), page) else {
        return report.check(false, &"a page of our own");
    };
    // SAFETY: nothing is mapped there.
    let mapped = unsafe { mm::map(root, fresh, mm::entry(mfn, mm::PAGE_KERNEL)) };
    report.allowed(mapped, &"a page of our own");
    for length in [u64::from(u32::MAX), u64::MAX, 1 << 31] {
        let args = [
            u64::from(CONSOLEIO_WRITE),
            length,
            fresh.0 + PAGE_SIZE - 16,
            0,
            0,
        ];
        // SAFETY: the hypervisor reads at most what is mapped.
        let answer = unsafe { hypercall::raw(HYPERVISOR_CONSOLE_IO, args) };
        report.refused(answer, &format_args!("a write of {length:#x} bytes"));
    }
}

fn flood_ring(report: &mut Report) {
    if console::port().is_none() {
        return;
    }
    let mut written = 0;
    for _ in 0..64 {
        let count = console::ring_write(&JUNK);
        written += count;
        if count < JUNK.len() {
            break;
        }
    }
    console::ring_write(b"\x1b[0m\n");
    report.check(
        written == 64 * JUNK.len(),
        &format_args!("{written} bytes through the console ring"),
    );
}

/// Claims far more bytes than the ring has, for a tenth of a second.
fn break_ring() {
    let ring = console::ring();
    if ring.is_null() {
        return;
    }
    // SAFETY: the fields lie in the ring's page, mapped for good.
    let (prod, cons) = unsafe {
        (
            AtomicU32::from_ptr(&raw mut (*ring).out_prod),
            AtomicU32::from_ptr(&raw mut (*ring).out_cons),
        )
    };
    // What is still to be read must not be lost with the index.
    let patience = time::system_time() + 2_000_000_000;
    while prod.load(Ordering::Acquire) != cons.load(Ordering::Acquire)
        && time::system_time() < patience
    {
        sched::yield_now();
    }
    for claim in [0x1_0000, u32::MAX, 1 << 31] {
        prod.store(
            cons.load(Ordering::Acquire).wrapping_add(claim),
            Ordering::Release,
        );
        console::notify();
        // No port: only the deadline wakes us.
        let _ = sched::poll(&[], time::system_time() + 30_000_000);
    }
    prod.store(cons.load(Ordering::Acquire), Ordering::Release);
    console::notify();
}
