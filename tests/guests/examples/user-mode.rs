//! User mode, and the wall between it and the kernel.
//!
//! **Mechanism.** Both modes are ring 3 to the processor. The wall is that user
//! mode runs under a page-table root of its own, in which the kernel is not
//! mapped; the hypervisor changes roots at every crossing. A `syscall` of user
//! mode is no hypercall: it is bounced to the kernel's entry point.
//!
//! **Scenario.** The kernel builds a user address space of one code page and
//! one stack page, and runs small programs in it that try: a `syscall` that
//! would be a hypercall in the kernel; reading kernel memory, the
//! machine-to-phys table and the hypervisor's range; privileged instructions;
//! a call gate; going on after the kernel answered.
//!
//! **Expected.** Each attempt arrives at the kernel as a trap from user mode,
//! with the right number, and nothing of it has an effect.
//!
//! **Limits.** One vCPU; 64-bit user mode only.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use core::arch::global_asm;

use guest_abi::{
    addr::{GuestVirt, Mfn, PAGE_SIZE, Pfn},
    arch_x86_64::HYPERVISOR_VIRT_START,
    errno::Errno,
    kernel::{
        Boot, VIRT_BASE, boot, hypercall, mm,
        trap::{TRAP_FAILSAFE, TRAP_PAGE_FAULT, TRAP_SYSCALL, TrapFrame},
        user,
    },
    sched::SCHEDOP_SHUTDOWN,
    xen::{HYPERVISOR_SCHED_OP, MMUEXT_PIN_L4_TABLE, VMASST_CMD_ENABLE, VMASST_TYPE_M2P_STRICT},
};
use test_guests::Report;

guest_abi::pv_kernel!(main, name = "user-mode");

/// Where the programs lie in user mode's address space.
const CODE: u64 = 0x40_0000;
/// Bytes of all programs.
const PROGRAM_BYTES: usize = 640;
/// The end of its stack.
const STACK_TOP: u64 = 0x80_0000;

// The programs: each starts on a 64-byte line of the code page.
global_asm!(
    ".pushsection .rodata.user_programs, \"a\"",
    ".balign 64",
    "user_programs:",
    // 0: a syscall with chosen registers, then another to say what came back.
    "mov rbx, rdx",
    "syscall",
    "mov r12, rax",
    "mov eax, 0x999",
    "syscall",
    "ud2",
    ".balign 64",
    // 1: read the address in rdi.
    "mov rax, [rdi]",
    "mov eax, 0x777",
    "syscall",
    ".balign 64",
    // 2: write the address in rdi.
    "mov [rdi], rax",
    "mov eax, 0x777",
    "syscall",
    ".balign 64",
    // 3: privileged instructions.
    "hlt",
    ".balign 64",
    "mov rax, cr3",
    ".balign 64",
    "cli",
    ".balign 64",
    "mov dx, 0x3f8",
    "out dx, al",
    ".balign 64",
    // 7: the stack works.
    "push 0x1234",
    "pop rax",
    "syscall",
    ".balign 64",
    // 8: a far call, and a far jump, to the selector in the upper half of rsi.
    "push rsi",
    "call fword ptr [rsp]",
    "mov eax, 0x777",
    "syscall",
    ".balign 64",
    "push rsi",
    "jmp fword ptr [rsp]",
    ".balign 64",
    "user_programs_end:",
    ".popsection",
);

unsafe extern "C" {
    static user_programs: [u8; PROGRAM_BYTES];
}

/// Where program `n` starts.
fn program(n: u64) -> GuestVirt {
    GuestVirt(CODE + 64 * n)
}

fn main(boot: &'static Boot) -> ! {
    let mut report = Report::begin("user-mode", boot);
    let root = match build_user_space() {
        Ok(root) => root,
        Err(errno) => {
            report.check(false, &format_args!("a user address space: {errno:?}"));
            report.end()
        }
    };
    system_calls(&mut report);
    kernel_memory(&mut report);
    privileged(&mut report);
    call_gate(&mut report);
    bad_return(&mut report, boot.command_line().contains("lax-iretq"));
    report.refused(
        // SAFETY: if it is allowed, that is the finding; nothing is stored.
        unsafe { mm::set_mapping(GuestVirt(VIRT_BASE), mm::entry(root, mm::PAGE_KERNEL)) },
        &"a writable mapping of the user root",
    );
    report.end()
}

/// Root, code page, stack page; the root is pinned and loaded.
fn build_user_space() -> Result<Mfn, Errno> {
    let page = mm::allocate().ok_or(Errno::ENOMEM)?;
    let root = mm::make_table(page)?;
    // SAFETY: an empty table under nobody's feet.
    unsafe { mm::extended(MMUEXT_PIN_L4_TABLE, root.0, 0) }?;
    let code = mm::allocate().ok_or(Errno::ENOMEM)?;
    // SAFETY: the programs, less than a page, into a page of our own.
    unsafe {
        let programs = &raw const user_programs;
        let page = boot::pfn_to_virt(code).0 as *mut u8;
        guest_abi::kernel::mem::copy(page, programs.cast(), PROGRAM_BYTES);
    }
    map_user(root, CODE, code, mm::PAGE_READONLY)?;
    let stack = mm::allocate().ok_or(Errno::ENOMEM)?;
    map_user(
        root,
        STACK_TOP - PAGE_SIZE,
        stack,
        mm::PAGE_KERNEL | mm::PAGE_NX,
    )?;
    // SAFETY: the two pages are meant for user mode.
    unsafe { user::set_root(root) }?;
    Ok(root)
}

fn map_user(root: Mfn, address: u64, page: Pfn, flags: u64) -> Result<(), Errno> {
    let mfn = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
    // SAFETY: a new mapping in an address space that nobody uses yet.
    unsafe { mm::map(root, GuestVirt(address), mm::entry(mfn, flags)) }
}

/// Runs a program with `rax`, `rdi`, `rsi` set until it traps.
fn run(n: u64, rax: u64, rdi: u64, rsi: u64) -> TrapFrame {
    let mut context = user::context(program(n), GuestVirt(STACK_TOP));
    context.rax = rax;
    context.rdi = rdi;
    context.rsi = rsi;
    context.rdx = 0x5555;
    // SAFETY: the user root is loaded.
    unsafe { user::run(context) }
}

fn system_calls(report: &mut Report) {
    let poweroff = 0u32;
    let frame = run(
        0,
        HYPERVISOR_SCHED_OP,
        u64::from(SCHEDOP_SHUTDOWN),
        (&raw const poweroff) as u64,
    );
    report.check(
        frame.number == TRAP_SYSCALL && frame.rax == HYPERVISOR_SCHED_OP,
        &"a hypercall's number from user mode is the kernel's system call",
    );
    report.check(
        frame.from_user() && frame.rbx == 0x5555 && frame.rdi == u64::from(SCHEDOP_SHUTDOWN),
        &"with its registers",
    );
    report.check(
        frame.rip == program(0).0 + 5 && frame.rsp == STACK_TOP,
        &format_args!("behind the instruction ({:#x})", frame.rip),
    );
    let mut answer = frame;
    answer.rax = 0xabcd;
    // SAFETY: the context that user mode was left in.
    let frame = unsafe { user::run(answer) };
    report.check(
        frame.number == TRAP_SYSCALL && frame.rax == 0x999 && frame.r12 == 0xabcd,
        &"which can be answered",
    );
    let frame = run(7, 0, 0, 0);
    report.check(
        frame.number == TRAP_SYSCALL && frame.rax == 0x1234,
        &"user mode has a stack",
    );
}

fn kernel_memory(report: &mut Report) {
    let (m2p, _) = boot::m2p_table();
    // Xen shows the table to user mode unless this aid is on.
    let strict = hypercall::vm_assist(VMASST_CMD_ENABLE, VMASST_TYPE_M2P_STRICT).is_ok();
    let frame = run(2, 0, m2p.0, 0);
    report.check(
        frame.number == TRAP_PAGE_FAULT,
        &format_args!("writing the machine-to-phys table: trap {}", frame.number),
    );
    if strict {
        let frame = run(1, 0, m2p.0, 0);
        report.check(
            frame.number == TRAP_PAGE_FAULT,
            &format_args!("reading it in strict mode: trap {}", frame.number),
        );
    }
    let secrets = [
        ("kernel text", VIRT_BASE),
        ("shared info", boot::shared_info() as u64),
        ("the kernel's stack", BOOT_STACK.top() - 8),
        ("the hypervisor", HYPERVISOR_VIRT_START + (5 << 39)),
        ("a page that nobody has", 0x1000),
    ];
    for (what, address) in secrets {
        for (verb, n) in [("reading", 1), ("writing", 2)] {
            let frame = run(n, 0xdead, address, 0);
            report.check(
                frame.number == TRAP_PAGE_FAULT && frame.rip == program(n).0,
                &format_args!(
                    "{verb} {what} at {address:#x}: trap {} error {:#x}",
                    frame.number, frame.error
                ),
            );
        }
    }
    let frame = run(2, 0, CODE, 0);
    report.check(
        frame.number == TRAP_PAGE_FAULT && frame.error & 7 == 7,
        &format_args!("its own code is read-only (error {:#x})", frame.error),
    );
    let mut context = user::context(GuestVirt(STACK_TOP - 64), GuestVirt(STACK_TOP));
    context.rax = 1;
    // SAFETY: the user root is loaded.
    let frame = unsafe { user::run(context) };
    report.check(
        frame.number == TRAP_PAGE_FAULT && frame.error & 0x10 != 0,
        &format_args!("its stack is not executable (error {:#x})", frame.error),
    );
    let frame = run(1, 0, 0x8000_0000_0000, 0);
    report.check(
        frame.number == 13,
        &format_args!("no canonical address: trap {}", frame.number),
    );
}

/// The kernel wants to go on in user mode at an address that no processor takes:
/// the failsafe entry point is told, and nothing has run. `lax`: this is an
/// emulator whose `iretq` takes any address, so that its first instruction faults.
fn bad_return(report: &mut Report, lax: bool) {
    let context = user::context(GuestVirt(0x8000_0000_0000), GuestVirt(STACK_TOP));
    // SAFETY: the user root is loaded.
    let frame = unsafe { user::run(context) };
    report.check(
        (frame.number == TRAP_FAILSAFE || lax && frame.number == 13)
            && frame.rip == 0x8000_0000_0000,
        &format_args!("a bad return: trap {} at {:#x}", frame.number, frame.rip),
    );
}

/// A call gate of the kernel's own tables for ring 3, to the kernel's code: it is taken,
/// and who uses it is told by a #GP that names it. (Xen emulates gates for 32-bit guests
/// alone.)
fn call_gate(report: &mut Report) {
    /// Type, present, level 3; Xen's selector for a guest's kernel.
    const GATE: u64 = 0x0000_ec00_e033_1000;
    const LEVEL: u64 = 3 << 45;
    let table = mm::allocate().ok_or(Errno::ENOMEM);
    let Some(table) = report.allowed(table, &"a page for descriptors") else {
        return;
    };
    let Some(gdt) = report.allowed(mm::make_table(table), &"which is read-only") else {
        return;
    };
    // SAFETY: empty descriptors; we use the hypervisor's selectors only.
    report.allowed(unsafe { hypercall::set_gdt(&[gdt.0], 512) }, &"as GDT");
    // SAFETY: checked by the hypervisor; its second half is zero.
    let answer = unsafe { hypercall::update_descriptor((gdt.0 << 12) + 8, GATE) };
    report.allowed(answer, &"a call gate of 64 bits");
    // SAFETY: a page of ours, which is mapped.
    let stored = unsafe { ((boot::pfn_to_virt(table).0 + 8) as *const u64).read_volatile() };
    report.check(stored & LEVEL == 0, &"has level 0 now");
    for (n, what) in [(8, "called"), (9, "jumped to")] {
        for selector in [8, 11] {
            let frame = run(n, 0, 0, selector << 32);
            report.check(
                frame.number == 13 && frame.error == 8 && frame.from_user(),
                &format_args!("{what}: trap {} error {:#x}", frame.number, frame.error),
            );
        }
    }
    // SAFETY: no entries: no page either.
    report.allowed(unsafe { hypercall::set_gdt(&[], 0) }, &"the GDT taken away");
}

fn privileged(report: &mut Report) {
    let programs = [(3, "hlt"), (4, "mov from cr3"), (5, "cli"), (6, "out")];
    for (n, what) in programs {
        let frame = run(n, 0, 0, 0);
        report.check(
            frame.number == 13 && frame.from_user(),
            &format_args!("{what}: trap {}", frame.number),
        );
    }
}
