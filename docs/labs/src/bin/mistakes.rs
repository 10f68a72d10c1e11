//! The mistakes that the author of a first kernel makes, one at a time.
//!
//! **Mechanism.** An errno or the end of a domain says little. For each mistake
//! the hypervisor has one line that names it, the instruction, and what to do, on
//! its console and on the domain's own.
//!
//! **Scenario.** The command line names a mistake of the table [`MISTAKES`]. The
//! kernel makes it, and says so before and, if it lives on, after.
//!
//! **Expected.** The lines of `docs/labs/mistakes.md`; `tests/tests/system/mistakes.rs`
//! looks for each.
//!
//! **Limits.** Mistakes that the domain builder finds are not here: nothing runs
//! then.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

use guest_abi::{
    addr::{DomId, GuestVirt, MachineAddr, Mfn, Port, VcpuId},
    arch_x86::TrapInfo,
    arch_x86_64::FLAT_KERNEL_CS,
    grant_table::*,
    kernel::{Boot, VIRT_BASE, boot, event, hypercall, mm, mmuext, sched, time, trap},
    kprintln,
    sched::SHUTDOWN_POWEROFF,
    vcpu::{VCPUOP_REGISTER_VCPU_INFO, VcpuRegisterVcpuInfo},
    xen::{HYPERVISOR_CONSOLE_IO, HYPERVISOR_IRET, VIRQ_TIMER},
};

guest_abi::pv_kernel!(main, name = "mistakes");

type Mistake = fn(&'static Boot);

/// By name. The first ones are made before there is a trap table.
const MISTAKES: [(&str, Mistake); 24] = [
    ("no-trap-table", no_trap_table),
    ("null-call", null_call),
    ("hlt-untrapped", hlt),
    ("no-event-callback", no_event_callback),
    ("event-masked", event_masked),
    ("no-stack", no_stack),
    ("handler-faults", handler_faults),
    ("fault-again", fault_again),
    ("error-code-left", error_code_left),
    ("iret-nowhere", iret_nowhere),
    ("iret-no-user", iret_no_user),
    ("hlt", with_traps),
    ("mov-cr3", with_traps),
    ("plain-store", with_traps),
    ("pfn-for-mfn", with_traps),
    ("table-writable", with_traps),
    ("table-not-readonly", with_traps),
    ("not-pinned", with_traps),
    ("entry-unaligned", with_traps),
    ("info-unaligned", with_traps),
    ("unknown-hypercall", with_traps),
    ("bad-pointer", with_traps),
    ("bad-grant", with_traps),
    ("port-unbound", with_traps),
];

fn main(boot: &'static Boot) -> ! {
    boot.init_console().expect("a console");
    let name = boot.command_line();
    let found = MISTAKES.iter().find(|(known, _)| *known == name);
    let Some((_, make)) = found else {
        kprintln!("mistakes: there is none that is called {name}; see MISTAKES in the source");
        sched::shutdown(SHUTDOWN_POWEROFF)
    };
    kprintln!("mistakes: {name}");
    make(boot);
    kprintln!("mistakes: survived");
    sched::shutdown(SHUTDOWN_POWEROFF)
}

fn no_trap_table(_: &'static Boot) {
    // SAFETY: it is none: nothing is mapped there.
    unsafe { asm!("mov {0}, [{0}]", inout(reg) 0u64 => _) };
}

fn null_call(_: &'static Boot) {
    // SAFETY: it does not come back.
    unsafe { asm!("push 0", "ret") };
}

fn hlt(_: &'static Boot) {
    // SAFETY: it faults.
    unsafe { asm!("hlt") };
}

/// Asks for an event soon.
fn timer(boot: &'static Boot) -> Port {
    boot.map_shared_info().expect("shared info");
    let port = event::bind_virq(VIRQ_TIMER, VcpuId(0)).expect("the timer's port");
    time::stop_periodic_timer().expect("stopped");
    time::set_singleshot_timer(time::system_time() + 10_000_000, 0).expect("a timer");
    port
}

fn no_event_callback(boot: &'static Boot) {
    trap::install().expect("a trap table");
    let port = timer(boot);
    let _ = event::unmask(port);
    event::block();
}

fn event_masked(boot: &'static Boot) {
    boot.init().expect("the usual set-up");
    let port = timer(boot);
    event::mask(port);
    loop {
        event::block();
    }
}

fn no_stack(_: &'static Boot) {
    trap::install().expect("a trap table");
    // SAFETY: none; the domain ends.
    unsafe { asm!("mov rsp, 0x10000", "ud2") };
}

/// Names `handler` for all exceptions.
fn handle_with(handler: u64) {
    let mut table = [TrapInfo::default(); 33];
    for (vector, entry) in (0..32u8).zip(&mut table) {
        *entry = TrapInfo {
            vector,
            cs: FLAT_KERNEL_CS,
            address: handler,
            ..Default::default()
        };
    }
    // SAFETY: the handlers are wrong, and that is the test.
    unsafe { hypercall::set_trap_table(&table) }.expect("the table can be set");
}

fn handler_faults(boot: &'static Boot) {
    boot.init().expect("the usual set-up");
    let end = GuestVirt((BOOT_STACK.top() - 8 * 4096) & !4095);
    // SAFETY: the kernel does not reach that deep into its stack.
    unsafe { mm::set_mapping(end, 0) }.expect("own memory can be unmapped");
    handle_with(VIRT_BASE - 4096);
    // SAFETY: it faults.
    unsafe { asm!("ud2") };
}

// A handler that returns to where the exception was; it takes no error code off
// the stack.
global_asm!(
    "return_at_once:",
    "pop rcx",
    "pop r11",
    "push 0",
    "push rcx",
    "push r11",
    "push rax",
    "mov eax, {iret}",
    "syscall",
    iret = const HYPERVISOR_IRET,
);

unsafe extern "C" {
    fn return_at_once();
}

fn fault_again(_: &'static Boot) {
    handle_with(return_at_once as *const () as u64);
    // SAFETY: it faults for ever.
    unsafe { asm!("ud2") };
}

fn error_code_left(_: &'static Boot) {
    handle_with(return_at_once as *const () as u64);
    // The instruction's address is taken for a code selector: its RPL is 0.
    // SAFETY: it faults.
    unsafe { asm!(".balign 16", "mov {0}, [{0}]", inout(reg) 0u64 => _) };
}

fn iret_nowhere(_: &'static Boot) {
    trap::install().expect("a trap table");
    // SAFETY: the domain ends.
    unsafe { asm!("mov rsp, 0x10000", "mov eax, {}", "syscall", const HYPERVISOR_IRET) };
}

fn iret_no_user(_: &'static Boot) {
    trap::install().expect("a trap table");
    // SAFETY: the domain ends.
    unsafe {
        asm!(
            "push 0x2b", "push rsp", "push 0x202", "push 0x33", "push 0x400000", "push 0",
            "push 0", "push 0", "push 0", "mov eax, {}", "syscall", const HYPERVISOR_IRET
        );
    }
}

/// Mistakes of a kernel that is set up as it should be.
fn with_traps(boot: &'static Boot) {
    boot.init().expect("the usual set-up");
    let page = mm::allocate().expect("a page");
    let (at, mfn) = (
        boot::pfn_to_virt(page),
        boot::pfn_to_mfn(page).expect("its frame"),
    );
    let root = mm::root().expect("a root");
    let l1 = mm::table(at, 1).expect("its table");
    // SAFETY: what is asked for is refused, or ends the domain.
    unsafe {
        match boot.command_line() {
            "hlt" => asm!("hlt"),
            "mov-cr3" => asm!("mov cr3, {}", in(reg) root.0 << 12),
            "plain-store" => {
                let of_l1 = boot::pfn_to_virt(boot::mfn_to_pfn(l1).expect("RAM"));
                let slot = of_l1.0 + 8 * mm::index(at, 1) as u64;
                // A page table, writable.
                asm!("mov [{}], {}", in(reg) slot, in(reg) mm::entry(root, mm::PAGE_KERNEL));
            }
            "pfn-for-mfn" => {
                let _ = mm::set_mapping(at, mm::entry(Mfn(page.0), mm::PAGE_KERNEL));
            }
            "table-writable" => {
                let _ = mm::set_mapping(at, mm::entry(root, mm::PAGE_KERNEL));
            }
            "table-not-readonly" => {
                let _ = mmuext::pin(1, mfn);
            }
            "not-pinned" => {
                let _ = mmuext::unpin(mfn);
            }
            "entry-unaligned" => {
                let _ = mm::write_entry(MachineAddr((l1.0 << 12) + 4), 0);
            }
            "info-unaligned" => {
                let mut info = VcpuRegisterVcpuInfo {
                    mfn: mfn.0,
                    offset: 4,
                    ..Default::default()
                };
                let _ = hypercall::vcpu_op(
                    VCPUOP_REGISTER_VCPU_INFO,
                    0,
                    core::ptr::from_mut(&mut info) as u64,
                );
            }
            "unknown-hypercall" => {
                let _ = hypercall::raw(99, [0; 5]);
            }
            "bad-pointer" => {
                let _ = hypercall::raw(HYPERVISOR_CONSOLE_IO, [0, 8, 0x10, 0, 0]);
            }
            "bad-grant" => {
                let mut copy = GnttabCopy {
                    source: GnttabCopyPtr {
                        u: 17,
                        domid: DomId::SELF.0,
                        ..Default::default()
                    },
                    dest: GnttabCopyPtr {
                        u: mfn.0,
                        domid: DomId::SELF.0,
                        ..Default::default()
                    },
                    len: 64,
                    flags: GNTCOPY_SOURCE_GREF,
                    ..Default::default()
                };
                let _ =
                    hypercall::grant_table_op(GNTTABOP_COPY, core::slice::from_mut(&mut copy));
            }
            "port-unbound" => {
                let _ = event::send(Port(77));
            }
            _ => {}
        }
    }
}
