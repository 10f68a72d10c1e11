//! What is hard to execute: the cases in which an engine that is not a processor
//! is most likely to differ from one.
//!
//! **Mechanism.** Guest code runs on a processor, in an interpreter, or now here and
//! now there. An instruction has to happen whole or not at all, and what one vCPU
//! changes (code, page tables, locked words) has to be seen by all.
//!
//! **Scenario.** User mode executes every kind of undefined opcode; code that the kernel
//! changes through another mapping, and that changes itself through one; `rep`
//! strings and stores that run into a missing page, which is then mapped; single
//! steps. The kernel waits for a timer in a loop that never traps. Two vCPUs add
//! to one word with locks across a cache line; one changes what a page maps while the
//! other one reads it.
//!
//! **Expected.** The traps, addresses and registers that a processor gives.
//!
//! **Race.** What is read between two looks at the number of a change that is over has
//! to be the frame of that change: the flush that came with it must have reached the
//! reading vCPU.
//!
//! **Limits.** Needs `vcpus=2`. A race that is lost rarely may be missed. With
//! `defined-only` on its command line undefined opcodes are left out: some emulated
//! processors crash at them (`tests/svm-host`).
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use core::{
    arch::asm,
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use guest_abi::{
    addr::{GuestVirt, Mfn, PAGE_SIZE, Pfn, Port, VcpuId},
    errno::Errno,
    kernel::{
        Boot, boot,
        entry::Stack,
        event, guard, mm, smp, time,
        trap::{TRAP_PAGE_FAULT, TRAP_SYSCALL, TrapFrame},
        user,
    },
    xen::{MMUEXT_PIN_L4_TABLE, VIRQ_TIMER},
};
use test_guests::Report;

guest_abi::pv_kernel!(main, name = "bad-cases");

/// User mode's pages.
const CODE: u64 = 0x40_0000;
const CODE_ALIAS: u64 = 0x50_0000;
const DATA: u64 = 0x60_0000;
const STACK_TOP: u64 = 0x80_0000;
/// The page after [`DATA`], mapped when the kernel likes.
const NEXT: u64 = DATA + PAGE_SIZE;
/// Where the kernel maps one frame and then another.
const WINDOW: GuestVirt = GuestVirt(0xffff_8880_4000_0000);
/// The trap flag.
const TF: u64 = 1 << 8;
/// Locked additions of each vCPU, and changes of the window.
const ADDITIONS: u64 = 400;
const CHANGES: u64 = 400;
/// Longer than anything takes on the slowest host.
const PATIENCE: u64 = 60_000_000_000;

static SECOND_STACK: Stack = Stack::new();
static TIMER: AtomicU64 = AtomicU64::new(0);
static STARTED: AtomicBool = AtomicBool::new(false);
static ADDED: AtomicBool = AtomicBool::new(false);
static READ: AtomicU64 = AtomicU64::new(0);
static OLD_SEEN: AtomicU64 = AtomicU64::new(0);
static ENOUGH: AtomicBool = AtomicBool::new(false);
/// Twice the number of changes, odd while one is under way.
static CHANGE: AtomicU64 = AtomicU64::new(0);

#[repr(align(64))]
struct Lines(UnsafeCell<[u8; 128]>);
// SAFETY: touched by locked instructions alone.
unsafe impl Sync for Lines {}
static LINES: Lines = Lines(UnsafeCell::new([0; 128]));

/// Instructions that no processor has in 64-bit mode, or not in this form.
const UNDEFINED: &[&[u8]] = &[
    &[0x06],
    &[0x07],
    &[0x0e],
    &[0x16],
    &[0x17],
    &[0x1e],
    &[0x1f],
    &[0x27],
    &[0x2f],
    &[0x37],
    &[0x3f],
    &[0x60],
    &[0x61],
    &[0x82, 0xc0, 0],
    &[0x9a],
    &[0xce],
    &[0xd4, 0x0a],
    &[0xd5, 0x0a],
    &[0xd6],
    &[0xea],
    // Of two bytes.
    &[0x0f, 0x04],
    &[0x0f, 0x0a],
    &[0x0f, 0x0b],
    &[0x0f, 0x0c],
    &[0x0f, 0x24, 0xc0],
    &[0x0f, 0x25, 0xc0],
    &[0x0f, 0x26, 0xc0],
    &[0x0f, 0x27, 0xc0],
    &[0x0f, 0x36],
    &[0x0f, 0x39, 0xc0],
    &[0x0f, 0x3b, 0xc0],
    &[0x0f, 0x3c, 0xc0],
    &[0x0f, 0x3d, 0xc0],
    &[0x0f, 0x3e, 0xc0],
    &[0x0f, 0x3f, 0xc0],
    &[0x0f, 0xb9, 0xc0],
    &[0x0f, 0xff, 0xc0],
    // Groups.
    &[0xfe, 0xd0],
    &[0xfe, 0xf8],
    &[0xff, 0xf8],
    &[0xc6, 0xc8, 0],
    &[0xc7, 0xd0, 0, 0, 0, 0],
    &[0x0f, 0xba, 0xc0, 1],
    &[0x0f, 0xba, 0xd8, 1],
    &[0x0f, 0x71, 0xc0, 1],
    &[0x0f, 0x72, 0xc8, 1],
    &[0x0f, 0xc7, 0xc0],
    &[0x0f, 0xc7, 0xc8],
    &[0x0f, 0x00, 0xf0],
    &[0x0f, 0x01, 0xc0],
    // Register forms of what has only memory forms.
    &[0x8d, 0xc0],
    &[0x0f, 0xb2, 0xc0],
    // `lock` where it may not be.
    &[0xf0, 0x90],
    &[0xf0, 0x01, 0xc0],
    &[0xf0, 0x8b, 0x07],
    &[0xf0, 0x39, 0x07],
    &[0xf0, 0xc3],
    // Of three bytes.
    &[0x0f, 0x38, 0x0c, 0xc0],
    &[0x0f, 0x38, 0x7f, 0xc0],
    &[0x0f, 0x3a, 0x00, 0xc0, 0],
    &[0x0f, 0x3a, 0xff, 0xc0, 0],
    // Segment registers that can't be loaded, and those that do not exist.
    &[0x8e, 0xc8],
    &[0x8e, 0xf0],
    &[0x8c, 0xf8],
];

fn main(boot: &'static Boot) -> ! {
    let mut report = Report::begin("bad-cases", boot);
    if smp::is_up(VcpuId(1)).is_err() {
        report.skip(&"needs two vCPUs");
    }
    let all = !boot.command_line().contains("defined-only");
    if let Err(errno) = play(&mut report, all) {
        report.check(false, &format_args!("a step ended early: {errno:?}"));
    }
    report.end()
}

fn play(report: &mut Report, all: bool) -> Result<(), Errno> {
    let user = UserSpace::build()?;
    if all {
        undefined(report, &user);
    }
    changed_code(report, &user);
    strings(report, &user)?;
    straddling(report, &user)?;
    single_steps(report, &user);
    long_run(report)?;
    second_vcpu(report)
}

/// User mode's address space.
struct UserSpace {
    root: Mfn,
    code: Pfn,
    data: Pfn,
    next: Pfn,
}

impl UserSpace {
    fn build() -> Result<Self, Errno> {
        let page = || mm::allocate().ok_or(Errno::ENOMEM);
        let root = mm::make_table(page()?)?;
        // SAFETY: an empty table under nobody's feet.
        unsafe { mm::extended(MMUEXT_PIN_L4_TABLE, root.0, 0) }?;
        let user = UserSpace {
            root,
            code: page()?,
            data: page()?,
            next: page()?,
        };
        user.map(CODE, user.code, mm::PAGE_READONLY)?;
        user.map(CODE_ALIAS, user.code, mm::PAGE_KERNEL | mm::PAGE_NX)?;
        user.map(DATA, user.data, mm::PAGE_KERNEL | mm::PAGE_NX)?;
        user.map(
            STACK_TOP - PAGE_SIZE,
            page()?,
            mm::PAGE_KERNEL | mm::PAGE_NX,
        )?;
        // SAFETY: all these pages are meant for user mode.
        unsafe { user::set_root(root) }?;
        Ok(user)
    }

    fn map(&self, address: u64, page: Pfn, flags: u64) -> Result<(), Errno> {
        let mfn = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
        // SAFETY: an address space of our own.
        unsafe { mm::map(self.root, GuestVirt(address), mm::entry(mfn, flags)) }
    }

    /// Maps the page after the data, or takes it away.
    fn map_next(&self, there: bool) -> Result<(), Errno> {
        let flags = if there {
            mm::PAGE_KERNEL | mm::PAGE_NX
        } else {
            0
        };
        self.map(NEXT, self.next, flags)?;
        // SAFETY: a flush.
        unsafe { mm::extended(guest_abi::xen::MMUEXT_TLB_FLUSH_LOCAL, 0, 0) }
    }

    /// Writes code through the kernel's mapping; a `syscall` comes after it.
    fn write_code(&self, code: &[u8]) {
        let page = boot::pfn_to_virt(self.code).0 as *mut u8;
        for (n, byte) in code.iter().chain(&[0x0f, 0x05]).enumerate() {
            // SAFETY: a few bytes in a page of our own.
            unsafe { page.add(n).write_volatile(*byte) };
        }
    }

    fn fill(&self, byte: u8) {
        for page in [self.data, self.next] {
            // SAFETY: a page of our own.
            unsafe {
                guest_abi::kernel::mem::fill(boot::pfn_to_virt(page).0 as *mut u8, byte, 4096)
            };
        }
    }

    /// Bytes of the data page and the one after it.
    fn data(&self, at: u64) -> u8 {
        let page = if at < PAGE_SIZE { self.data } else { self.next };
        let address = boot::pfn_to_virt(page).0 + at % PAGE_SIZE;
        // SAFETY: a page of our own.
        unsafe { (address as *const u8).read_volatile() }
    }

    /// Runs what was written, with registers set, until it traps.
    fn run(&self, set: impl FnOnce(&mut TrapFrame)) -> TrapFrame {
        let mut context = user::context(GuestVirt(CODE), GuestVirt(STACK_TOP));
        set(&mut context);
        resume(context)
    }
}

fn resume(context: TrapFrame) -> TrapFrame {
    // SAFETY: the user root is loaded.
    unsafe { user::run(context) }
}

fn fault_address() -> u64 {
    // SAFETY: the field lies in the shared info page.
    unsafe { (&raw const (*smp::vcpu_info()).arch.cr2).read_volatile() }
}

fn undefined(report: &mut Report, user: &UserSpace) {
    let mut wrong = 0;
    for code in UNDEFINED {
        user.write_code(code);
        let frame = user.run(|set| (set.rdi, set.rax) = (DATA, 0x1234));
        if (frame.number, frame.rip, frame.rax, frame.rsp) != (6, CODE, 0x1234, STACK_TOP) {
            wrong += 1;
            report.check(
                false,
                &format_args!("{code:02x?}: trap {:#x} at {:#x}", frame.number, frame.rip),
            );
        }
    }
    report.check(
        wrong == 0,
        &format_args!("{} undefined opcodes are #UD", UNDEFINED.len()),
    );
}

fn changed_code(report: &mut Report, user: &UserSpace) {
    let mut right = 0;
    for value in 1..=50u8 {
        // mov ebx, value
        user.write_code(&[0xbb, value, 0, 0, 0]);
        let frame = user.run(|_| ());
        right += u64::from(frame.number == TRAP_SYSCALL && frame.rbx == u64::from(value));
    }
    report.check(
        right == 50,
        &format_args!("code changed by the kernel: {right} of 50"),
    );
    // syscall; mov ebx, 1; after a store over the 1 through the alias
    let mut right = 0;
    for value in 1..=50u64 {
        // mov [rdi], al; syscall; mov ebx, 0
        user.write_code(&[0x88, 0x07, 0x0f, 0x05, 0xbb, 0, 0, 0, 0]);
        let frame = user.run(|set| (set.rdi, set.rax) = (CODE_ALIAS + 5, value));
        let frame = resume(frame);
        right += u64::from(frame.number == TRAP_SYSCALL && frame.rbx == value);
    }
    report.check(
        right == 50,
        &format_args!("code that changes itself through an alias: {right} of 50"),
    );
}

/// `rep` strings over a fault in the middle, which go on when the page is there.
fn strings(report: &mut Report, user: &UserSpace) -> Result<(), Errno> {
    // (code, bytes of an element)
    let programs: [(&[u8], u64, &str); 4] = [
        (&[0xf3, 0xaa], 1, "rep stosb"),
        (&[0xf3, 0x48, 0xab], 8, "rep stosq"),
        (&[0xf3, 0xa4], 1, "rep movsb"),
        (&[0xf3, 0x48, 0xa5], 8, "rep movsq"),
    ];
    for (code, size, name) in programs {
        user.map_next(false)?;
        user.fill(0x11);
        user.write_code(code);
        let start = PAGE_SIZE - 0x40;
        let frame = user.run(|set| {
            (set.rdi, set.rsi) = (DATA + start, DATA);
            (set.rcx, set.rax) = (0x80 / size, 0x2222_2222_2222_2222);
        });
        report.check(
            frame.number == TRAP_PAGE_FAULT && frame.error == 6 && fault_address() == NEXT,
            &format_args!(
                "{name} faults: trap {} error {:#x} address {:#x}",
                frame.number,
                frame.error,
                fault_address()
            ),
        );
        report.check(
            (frame.rip, frame.rdi, frame.rcx) == (CODE, NEXT, 0x40 / size),
            &format_args!(
                "{name} in the middle: rdi {:#x} rcx {:#x}",
                frame.rdi, frame.rcx
            ),
        );
        user.map_next(true)?;
        let frame = resume(frame);
        let expected = if name.contains("stos") { 0x22 } else { 0x11 };
        let whole = (start..start + 0x80).all(|at| user.data(at) == expected);
        report.check(
            frame.number == TRAP_SYSCALL
                && frame.rcx == frame.rip
                && frame.rdi == DATA + start + 0x80
                && whole,
            &format_args!(
                "{name} goes on: trap {:#x}, rdi {:#x}",
                frame.number, frame.rdi
            ),
        );
    }
    Ok(())
}

/// Stores of which the second half is missing: all or nothing.
fn straddling(report: &mut Report, user: &UserSpace) -> Result<(), Errno> {
    let programs: [(&[u8], &str); 7] = [
        (&[0x48, 0x89, 0x07], "mov"),
        (&[0x48, 0x87, 0x07], "xchg"),
        (&[0x48, 0x31, 0x07], "xor"),
        (&[0xf0, 0x48, 0x01, 0x07], "lock add"),
        (&[0x0f, 0x11, 0x07], "movups"),
        (&[0xff, 0x37], "push to rsp"),
        (
            &[0xc6, 0x47, 0x07, 0x33, 0x48, 0x89, 0x07],
            "mov after a byte there",
        ),
    ];
    for (code, name) in programs {
        let stack = name.starts_with("push");
        user.map_next(false)?;
        user.fill(0x11);
        user.write_code(code);
        let start = PAGE_SIZE - 4;
        let frame = user.run(|set| {
            set.rdi = if stack { DATA } else { DATA + start };
            set.rax = 0x4444_4444_4444_4444;
            if stack {
                set.rsp = DATA + start + 8;
            }
        });
        let untouched = (start - 16..start + 16).all(|at| user.data(at) == 0x11);
        report.check(
            frame.number == TRAP_PAGE_FAULT
                && fault_address() == NEXT + if name.ends_with("there") { 3 } else { 0 }
                && untouched
                && frame.rip == CODE,
            &format_args!(
                "{name} across a missing page: trap {} address {:#x}",
                frame.number,
                fault_address()
            ),
        );
        user.map_next(true)?;
        let frame = resume(frame);
        let changed = (start..start + 8).any(|at| user.data(at) != 0x11);
        report.check(
            frame.number == TRAP_SYSCALL && changed != stack,
            &format_args!("{name} when it is there: trap {:#x}", frame.number),
        );
    }
    Ok(())
}

fn single_steps(report: &mut Report, user: &UserSpace) {
    // inc eax; jmp +0; lock inc dword [rdi]; rep stosb (3 elements); pushfq
    user.write_code(&[0xff, 0xc0, 0xeb, 0x00, 0xf0, 0xff, 0x07, 0xf3, 0xaa, 0x9c]);
    let mut frame = user.run(|set| {
        (set.rflags, set.rdi, set.rcx) = (set.rflags | TF, DATA, 3);
    });
    let ends = [2, 4, 7, 7, 7, 9, 10];
    for end in ends {
        report.check(
            frame.number == 1 && frame.rip == CODE + end,
            &format_args!("a step to {end}: trap {} at {:#x}", frame.number, frame.rip),
        );
        frame = resume(frame);
    }
    report.check(
        frame.number == TRAP_SYSCALL,
        &format_args!("the last step is a system call: trap {:#x}", frame.number),
    );
}

fn on_timer(_: Port) {
    TIMER.store(time::system_time(), SeqCst);
}

/// Loops with events unmasked until the timer's handler has run, or for long.
fn loop_without_traps() {
    // SAFETY: the field lies in the shared info page.
    let mask = unsafe { &raw mut (*smp::vcpu_info()).evtchn_upcall_mask };
    event::take();
    // SAFETY: the handler's stubs keep the general registers, the rest is declared as
    // lost; nothing lies below the stack pointer.
    unsafe {
        asm!(
            "mov byte ptr [r12], 0",
            "2:",
            "cmp qword ptr [r13], 0",
            "jne 3f",
            "dec r14",
            "jnz 2b",
            "3:",
            "mov byte ptr [r12], 1",
            in("r12") mask,
            in("r13") TIMER.as_ptr(),
            inout("r14") 20_000_000u64 => _,
            clobber_abi("sysv64"),
        );
    }
}

/// An event that is due while nothing traps.
fn long_run(report: &mut Report) -> Result<(), Errno> {
    let port = event::bind_virq(VIRQ_TIMER, VcpuId(0))?;
    event::listen(port, on_timer)?;
    time::stop_periodic_timer()?;
    let (mut came, mut worst) = (0, 0);
    for _ in 0..10 {
        TIMER.store(0, SeqCst);
        let start = time::system_time();
        let due = start + 3_000_000;
        time::set_singleshot_timer(due, 0)?;
        while TIMER.load(SeqCst) == 0 && time::system_time() < start + PATIENCE {
            loop_without_traps();
        }
        came += u64::from(TIMER.load(SeqCst) != 0);
        worst = worst.max(TIMER.load(SeqCst).saturating_sub(due) / 1000);
    }
    report.check(
        came == 10,
        &format_args!("timers in a long run: {came} of 10, {worst} us late at most"),
    );
    Ok(())
}

/// Adds to a word that lies across two cache lines.
fn add_across_lines() {
    let word = LINES.0.get().cast::<u8>().wrapping_add(60);
    for _ in 0..ADDITIONS {
        // SAFETY: eight bytes of the two lines.
        unsafe { asm!("lock inc qword ptr [{}]", in(reg) word) };
    }
}

fn second(_: VcpuId) -> ! {
    STARTED.store(true, SeqCst);
    add_across_lines();
    ADDED.store(true, SeqCst);
    while !ENOUGH.load(SeqCst) {
        let before = CHANGE.load(SeqCst);
        let seen = guard::read(WINDOW);
        let after = CHANGE.load(SeqCst);
        if before == after && before & 1 == 0 && before != 0 {
            READ.fetch_add(1, SeqCst);
            let right = match before / 2 % 3 {
                0 => seen.is_err(),
                n => seen == Ok(n),
            };
            if !right {
                OLD_SEEN.fetch_add(1, SeqCst);
            }
        }
    }
    smp::down()
}

fn second_vcpu(report: &mut Report) -> Result<(), Errno> {
    let pages = [
        mm::allocate().ok_or(Errno::ENOMEM)?,
        mm::allocate().ok_or(Errno::ENOMEM)?,
    ];
    let mut entries = [0; 3];
    for ((n, entry), page) in (1u64..).zip(&mut entries[1..]).zip(pages) {
        // SAFETY: a page of our own.
        unsafe { (boot::pfn_to_virt(page).0 as *mut u64).write_volatile(n) };
        let mfn = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
        *entry = mm::entry(mfn, mm::PAGE_PRESENT | mm::PAGE_USER | mm::PAGE_RW);
    }
    let root = mm::root().ok_or(Errno::EINVAL)?;
    // SAFETY: nothing else is there.
    unsafe { mm::map(root, WINDOW, entries[1]) }?;
    // SAFETY: the stack is the second vCPU's alone.
    unsafe { smp::start(VcpuId(1), SECOND_STACK.top(), second) }?;
    let limit = time::system_time() + PATIENCE;
    let in_time = || time::system_time() < limit;
    while !STARTED.load(SeqCst) && in_time() {
        core::hint::spin_loop();
    }
    add_across_lines();
    while !ADDED.load(SeqCst) && in_time() {
        core::hint::spin_loop();
    }
    // SAFETY: eight bytes of the two lines, which nobody changes any more.
    let sum = unsafe {
        LINES
            .0
            .get()
            .cast::<u8>()
            .add(60)
            .cast::<u64>()
            .read_unaligned()
    };
    report.check(
        sum == 2 * ADDITIONS,
        &format_args!("locks across cache lines: {sum} of {}", 2 * ADDITIONS),
    );
    for change in 1..=CHANGES {
        CHANGE.store(2 * change - 1, SeqCst);
        // SAFETY: the window is only for reading what is there.
        unsafe { mm::set_mapping(WINDOW, entries[(change % 3) as usize]) }?;
        CHANGE.store(2 * change, SeqCst);
        let read = READ.load(SeqCst);
        while READ.load(SeqCst) < read + 3 && in_time() {
            core::hint::spin_loop();
        }
    }
    ENOUGH.store(true, SeqCst);
    let (read, old) = (READ.load(SeqCst), OLD_SEEN.load(SeqCst));
    report.check(
        read >= 3 * CHANGES && old == 0,
        &format_args!("{read} reads through a page table that changes, {old} of them old"),
    );
    Ok(())
}
