//! What ArceOS' own examples don't come by, checked from inside: exceptions
//! that return, memory that comes by page fault, page tables made and taken
//! down, threads, timers, more than one vCPU. One line each; the last says that all went well.

#![no_std]
#![no_main]
#![feature(thread_local)]

extern crate axplat_x86_xen_pv;

use core::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering},
};

use axhal::{
    irq,
    mem::{MemRegionFlags, VirtAddr, memory_regions},
    paging::MappingFlags,
    percpu::this_cpu_id,
    trap::{PAGE_FAULT, PageFaultFlags, register_trap_handler},
};
use axplat::irq::{IpiTarget, send_ipi};
use axplat_x86_xen_pv::IPI_IRQ;
use axstd::{
    println,
    string::String,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
    vec,
    vec::Vec,
};
use axtask::{AxCpuMask, TaskInner};

const PAGE: usize = 4096;
/// Where nothing of ArceOS' is: a slot of the root table of its own.
const PLACE: usize = 0xffff_9000_0000_0000;
const PAGES: usize = 20;

static SUM: Mutex<usize> = Mutex::new(0);
static FAULTS: Mutex<usize> = Mutex::new(0);
/// Each thread's own: one that begins with a value, one that begins with 0.
#[thread_local]
static OWN: Cell<usize> = Cell::new(1234);
#[thread_local]
static COUNT: Cell<usize> = Cell::new(0);
/// How many vCPUs have come, and how often all together have taken the lock.
static MET: AtomicUsize = AtomicUsize::new(0);
static TURNS: Mutex<usize> = Mutex::new(0);
/// A bit for each vCPU that another one interrupted.
static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);

/// Brings memory that was promised.
#[register_trap_handler(PAGE_FAULT)]
fn page_fault(address: VirtAddr, access: PageFaultFlags, _user: bool) -> bool {
    *FAULTS.lock() += 1;
    let mut space = axmm::kernel_aspace().lock();
    space.handle_page_fault(address, access)
}

#[unsafe(no_mangle)]
fn main() {
    memory();
    breakpoint();
    lazy_memory();
    another_address_space();
    timers();
    threads();
    processors();
    println!("checks: all is well");
}

/// Nearly all that is free can be had, and is memory.
fn memory() {
    let free = memory_regions().filter(|region| region.flags.contains(MemRegionFlags::FREE));
    let free: usize = free.map(|region| region.size).sum();
    let mut words: Vec<u64> = vec![0; free / 2 / 8];
    for (word, number) in words.iter_mut().zip(0..) {
        *word = number;
    }
    assert!(words.iter().zip(0..).all(|(&word, number)| word == number));
    println!("checks: {} KiB of {} KiB used", free / 2048, free / 1024);
}

/// An exception returns with all registers as they were.
fn breakpoint() {
    let (mut a, mut b): (u64, f64) = (0x1234, 0.5);
    // SAFETY: the handler says so and returns. No red zone: see
    // `.cargo/config.toml`.
    unsafe {
        core::arch::asm!("int3", inout("r11") a, inout("xmm7") b);
    }
    assert!(a == 0x1234 && b == 0.5, "{a:#x} {b}");
    println!("checks: a breakpoint returned");
}

/// Pages come when they are touched, keep what is written, and go.
fn lazy_memory() {
    let flags = MappingFlags::READ | MappingFlags::WRITE;
    let start = VirtAddr::from(PLACE);
    let map = |populate| {
        let mut space = axmm::kernel_aspace().lock();
        space
            .map_alloc(start, PAGES * PAGE, flags, populate)
            .expect("a free place");
    };
    for populate in [false, true] {
        let before = *FAULTS.lock();
        map(populate);
        for page in 0..PAGES {
            let at = (PLACE + page * PAGE + page * 8) as *mut usize;
            // SAFETY: mapped, or will be when it is touched.
            unsafe {
                assert_eq!(at.read_volatile(), 0);
                at.write_volatile(page + 1);
            }
        }
        for page in 0..PAGES {
            let at = (PLACE + page * PAGE + page * 8) as *const usize;
            // SAFETY: as above.
            assert_eq!(unsafe { at.read_volatile() }, page + 1);
        }
        let faults = *FAULTS.lock() - before;
        assert_eq!(faults, if populate { 0 } else { PAGES });
        let mut space = axmm::kernel_aspace().lock();
        space
            .protect(start, PAGES * PAGE, MappingFlags::READ)
            .expect("it is mapped");
        let (_, now, _) = space.page_table().query(start).expect("it is mapped");
        assert_eq!(now, MappingFlags::READ);
        space.unmap(start, PAGES * PAGE).expect("it is mapped");
        assert!(space.page_table().query(start).is_err());
    }
    println!("checks: {PAGES} pages came by page fault");
}

/// A second kernel address space: its tables are made, and pages again.
fn another_address_space() {
    for _ in 0..3 {
        let mut space = axmm::new_kernel_aspace().expect("memory for it");
        let flags = MappingFlags::READ | MappingFlags::WRITE;
        space
            .map_alloc(VirtAddr::from(PLACE), PAGES * PAGE, flags, true)
            .expect("a free place");
        let other = space.page_table_root();
        let ours = axmm::kernel_page_table_root();
        // SAFETY: both map all that is in use.
        unsafe {
            axhal::asm::write_kernel_page_table(other);
            (PLACE as *mut u64).write_volatile(1);
            axhal::asm::write_kernel_page_table(ours);
        }
        drop(space);
    }
    println!("checks: another address space came and went");
}

/// Time passes, and sleep ends.
fn timers() {
    let long = Duration::from_millis(200);
    let start = Instant::now();
    thread::sleep(long);
    let slept = start.elapsed();
    assert!(slept >= long, "{slept:?}");
    let year_2024 = Duration::from_secs(1_704_067_200);
    assert!(axhal::time::wall_time() > year_2024, "no wall clock");
    println!("checks: slept {} ms", slept.as_millis());
}

/// Threads take turns, sleep, share a lock, and have storage of their own.
fn threads() {
    let all: Vec<_> = (1..=8)
        .map(|number| {
            thread::spawn(move || {
                assert_eq!((OWN.get(), COUNT.get()), (1234, 0));
                OWN.set(number);
                for _ in 0..10 {
                    thread::sleep(Duration::from_millis(5));
                    *SUM.lock() += number;
                    COUNT.set(COUNT.get() + 1);
                    thread::yield_now();
                }
                assert_eq!(COUNT.get(), 10);
                OWN.get()
            })
        })
        .collect();
    let numbers: usize = all
        .into_iter()
        .map(|one| one.join().expect("it ends"))
        .sum();
    assert_eq!((numbers, *SUM.lock()), (36, 360));
    assert_eq!((OWN.get(), COUNT.get()), (1234, 0));
    println!("checks: 8 threads");
}

/// Each vCPU runs a task of its own.
fn processors() {
    let count = axhal::cpu_num();
    let interrupted = || {
        INTERRUPTED.fetch_or(1 << this_cpu_id(), Ordering::SeqCst);
    };
    assert!(irq::register(IPI_IRQ, interrupted), "somebody has it");
    let start = |cpu| {
        let run = move || on_one_of(cpu, count);
        let task = TaskInner::new(run, String::from("processor"), 64 * 1024);
        task.set_cpumask(AxCpuMask::one_shot(cpu));
        axtask::spawn_task(task)
    };
    let tasks: Vec<_> = (0..count).map(start).collect();
    for task in tasks {
        task.join();
    }
    assert_eq!(*TURNS.lock(), 1000 * count);
    println!("checks: {count} vCPUs met");
}

/// What each does: all run at once, are woken by timers of their own, take turns
/// at a lock, and all but the first are interrupted by the first.
fn on_one_of(cpu: usize, count: usize) {
    assert_eq!(this_cpu_id(), cpu);
    MET.fetch_add(1, Ordering::SeqCst);
    // Nobody gives way here: it ends only if all run.
    within_seconds(
        || MET.load(Ordering::SeqCst) == count,
        core::hint::spin_loop,
    );
    let before = Instant::now();
    thread::sleep(Duration::from_millis(30));
    assert!(before.elapsed() >= Duration::from_millis(30));
    assert_eq!(this_cpu_id(), cpu);
    for _ in 0..1000 {
        *TURNS.lock() += 1;
    }
    if cpu == 0 {
        let others = (1 << count) - 2;
        let target = IpiTarget::AllExceptCurrent {
            cpu_id: cpu,
            cpu_num: count,
        };
        send_ipi(IPI_IRQ, target);
        let all = || INTERRUPTED.load(Ordering::SeqCst) == others;
        within_seconds(all, thread::yield_now);
    }
}

/// Until it is so.
fn within_seconds(so: impl Fn() -> bool, meanwhile: impl Fn()) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(30), "nothing happens");
        meanwhile();
    }
}
