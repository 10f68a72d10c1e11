//! Every hypercall, with pointers that point nowhere good.
//!
//! **Mechanism.** Hypercall arguments are pointers into the guest's address
//! space, lengths and numbers, all of the guest's choosing. The hypervisor
//! copies through them; an address that is not mapped, not canonical, in its
//! own range or at the end of the address space must give `-EFAULT`.
//!
//! **Scenario.** For every hypercall number there is and some that are not,
//! every sub-operation from 0 to 47 and some beyond, with ten wild pointers and
//! five counts. What would legally stop, sleep or redirect the caller is left
//! out ([`Call::Skip`]), as are calls that take no pointer.
//!
//! **Expected.** Errors, or harmless success where nothing had to be copied;
//! numbers that do not exist give `-ENOSYS`. Afterwards traps, events, console
//! and paging still work.
//!
//! **Limits.** Does not change memory under the hypervisor's hands (a second
//! vCPU would be needed), and pointers are wild at their first level only.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use guest_abi::{
    addr::{GuestVirt, PAGE_SIZE, VcpuId},
    arch_x86_64::HYPERVISOR_VIRT_START,
    errno::Errno,
    kernel::{Boot, VIRT_BASE, boot, event, guard, hypercall, mm, time, trap},
    kprintln, sched, vcpu, xen,
};
use test_guests::Report;

guest_abi::pv_kernel!(main, name = "wild-pointers");

/// How a hypercall takes its arguments.
#[derive(Clone, Copy)]
enum Call {
    /// `(pointer, count, pointer, domid)`.
    List,
    /// `(command, pointer, count)`.
    Command,
    /// `(command, vcpu, pointer)`.
    Vcpu,
    /// `(command, count, pointer)`.
    Counted,
    /// Not called: no pointer, or legally deadly.
    Skip,
    /// There is no such hypercall.
    Missing,
}

fn shape(number: u64) -> Call {
    match number {
        xen::HYPERVISOR_SET_TRAP_TABLE
        | xen::HYPERVISOR_MMU_UPDATE
        | xen::HYPERVISOR_SET_GDT
        | xen::HYPERVISOR_MULTICALL
        | xen::HYPERVISOR_MMUEXT_OP
        | xen::HYPERVISOR_EVENT_CHANNEL_OP_COMPAT
        | xen::HYPERVISOR_PHYSDEV_OP_COMPAT
        | xen::HYPERVISOR_PLATFORM_OP
        | xen::HYPERVISOR_SYSCTL
        | xen::HYPERVISOR_DOMCTL
        | xen::HYPERVISOR_XSM_OP => Call::List,
        xen::HYPERVISOR_VCPU_OP => Call::Vcpu,
        xen::HYPERVISOR_CONSOLE_IO => Call::Counted,
        // Stacks, callbacks, flags and registers: values, not pointers.
        xen::HYPERVISOR_STACK_SWITCH
        | xen::HYPERVISOR_SET_CALLBACKS
        | xen::HYPERVISOR_FPU_TASKSWITCH
        | xen::HYPERVISOR_SCHED_OP_COMPAT
        | xen::HYPERVISOR_SET_DEBUGREG
        | xen::HYPERVISOR_GET_DEBUGREG
        | xen::HYPERVISOR_UPDATE_DESCRIPTOR
        | xen::HYPERVISOR_UPDATE_VA_MAPPING
        | xen::HYPERVISOR_SET_TIMER_OP
        | xen::HYPERVISOR_VM_ASSIST
        | xen::HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN
        | xen::HYPERVISOR_IRET
        | xen::HYPERVISOR_SET_SEGMENT_BASE => Call::Skip,
        11 | 43..=47 | 56.. => Call::Missing,
        _ => Call::Command,
    }
}

/// Whether a command does what it says without looking at its pointer, and
/// that is the caller's end or sleep.
fn deadly(number: u64, command: u64) -> bool {
    match number {
        xen::HYPERVISOR_SCHED_OP => command == u64::from(sched::SCHEDOP_BLOCK),
        xen::HYPERVISOR_VCPU_OP => {
            command == u64::from(vcpu::VCPUOP_DOWN) || command == u64::from(vcpu::VCPUOP_SEND_NMI)
        }
        _ => false,
    }
}

/// Hypercalls whose every command copies an argument in before all else.
fn copies_always(number: u64) -> bool {
    matches!(
        number,
        xen::HYPERVISOR_EVENT_CHANNEL_OP
            | xen::HYPERVISOR_CALLBACK_OP
            | xen::HYPERVISOR_GRANT_TABLE_OP
            | xen::HYPERVISOR_DOMCTL
            | xen::HYPERVISOR_SYSCTL
    )
}

struct Wild {
    pointers: [u64; 10],
    counts: [u64; 5],
    calls: u32,
    failures: u32,
    /// Successes where there can be none.
    believed: u32,
}

fn main(boot: &'static Boot) -> ! {
    let mut report = Report::begin("wild-pointers", boot);
    let mut wild = Wild {
        pointers: pointers(),
        counts: [1, 2, 0xffff_ffff, 1 << 31, u64::MAX],
        calls: 0,
        failures: 0,
        believed: 0,
    };
    for number in (0..80).chain([255, 1 << 31, u64::from(u32::MAX), 1 << 32, u64::MAX]) {
        one_number(&mut wild, &mut report, number);
    }
    report.count(wild.calls);
    report.check(
        wild.failures > 0,
        &format_args!("{} of {} calls failed", wild.failures, wild.calls),
    );
    report.check(
        wild.believed == 0,
        &format_args!("{} calls did something with such a pointer", wild.believed),
    );
    values(&mut report);
    still_alive(&mut report);
    report.end()
}

fn pointers() -> [u64; 10] {
    // The last byte of a page that is mapped, before one that is not.
    let last = (VIRT_BASE + (1 << 30) + PAGE_SIZE) - 1;
    let fresh = GuestVirt(VIRT_BASE + (1 << 30));
    let page = mm::allocate().and_then(boot::pfn_to_mfn);
    if let (Some(root), Some(mfn)) = (mm::root(), page) {
        // SAFETY: nothing is mapped there.
        let mapped = unsafe { mm::map(root, fresh, mm::entry(mfn, mm::PAGE_KERNEL)) };
        mapped.expect("a page can be mapped");
    }
    [
        0,
        8,
        0x1000,
        0x7fff_ffff_fff8,
        0x8000_0000_0000,
        HYPERVISOR_VIRT_START,
        boot::m2p_table().0.0,
        0xffff_87ff_ffff_fffc,
        last,
        u64::MAX - 7,
    ]
}

fn one_number(wild: &mut Wild, report: &mut Report, number: u64) {
    let call = shape(number);
    match call {
        Call::Skip => return,
        Call::Missing => {
            // SAFETY: no such hypercall.
            let answer = unsafe { hypercall::raw(number, [wild.pointers[2]; 5]) };
            return report.refused_with(
                Errno::ENOSYS,
                answer,
                &format_args!("hypercall {number:#x}"),
            );
        }
        _ => {}
    }
    let name = xen::hypercall_name(number).unwrap_or("?");
    let (calls, failures) = (wild.calls, wild.failures);
    let commands: &[u64] = match call {
        Call::List => &[0],
        _ => &COMMANDS,
    };
    for &command in commands {
        if !deadly(number, command) {
            one_command(wild, number, call, command);
        }
    }
    kprintln!(
        "  {name}: {} calls, {} failed",
        wild.calls - calls,
        wild.failures - failures
    );
}

/// 0 to 47, and numbers that sign extension and truncation make interesting.
static COMMANDS: [u64; 53] = commands();

const fn commands() -> [u64; 53] {
    let mut commands = [0; 53];
    let mut i = 0;
    while i < 48 {
        commands[i] = i as u64;
        i += 1;
    }
    commands[48] = 0x7fff_ffff;
    commands[49] = 0x8000_0000;
    commands[50] = 0xffff_ffff;
    commands[51] = 1 << 20;
    commands[52] = u64::MAX;
    commands
}

fn one_command(wild: &mut Wild, number: u64, call: Call, command: u64) {
    let counts = match call {
        Call::List | Call::Counted | Call::Vcpu => &wild.counts[..],
        _ if number == xen::HYPERVISOR_GRANT_TABLE_OP => &wild.counts[..],
        _ => &wild.counts[..1],
    };
    for pointer in wild.pointers {
        for &count in counts {
            let args = match call {
                Call::List => [pointer, count, pointer, 0x7ff0, pointer],
                Call::Vcpu => [command, count & 1, pointer, pointer, pointer],
                Call::Counted => [command, count, pointer, pointer, pointer],
                _ => [command, pointer, count, pointer, pointer],
            };
            // SAFETY: nothing of ours is at these addresses but the end of a
            // page that nobody uses.
            let answer = unsafe { hypercall::raw(number, args) };
            wild.calls += 1;
            wild.failures += u32::from(answer.is_err());
            if answer.is_ok() && copies_always(number) {
                kprintln!("  FAILED: {number} with {args:x?} gave {answer:?}");
                wild.believed += 1;
            }
        }
        // Traps may have been unregistered by a null table: that is legal.
        if number == xen::HYPERVISOR_SET_TRAP_TABLE {
            trap::install().expect("traps can be installed again");
        }
    }
}

/// Calls that take addresses as values.
fn values(report: &mut Report) {
    // SAFETY: all of these are refused, or a finding.
    unsafe {
        for base in [0x8000_0000_0000, 1 << 63] {
            for which in 0..3 {
                let answer = hypercall::set_segment_base(which, base);
                report.refused(answer, &format_args!("segment base {which} = {base:#x}"));
            }
        }
        report.refused(hypercall::set_segment_base(99, 0), &"no such segment base");
        for address in [0, 8, 1 << 40, !7, u64::MAX] {
            let answer = hypercall::update_descriptor(address, 0);
            report.refused(answer, &format_args!("a descriptor at {address:#x}"));
        }
        for address in [0x1000, 0x8000_0000_0000, HYPERVISOR_VIRT_START, u64::MAX] {
            let answer = hypercall::update_va_mapping(GuestVirt(address), 0, u64::MAX);
            report.refused(answer, &format_args!("a mapping at {address:#x}"));
        }
        for reg in [4u64, 5, 8, u64::MAX] {
            let answer = hypercall::raw(xen::HYPERVISOR_SET_DEBUGREG, [reg, 1 << 13, 0, 0, 0]);
            report.check(
                answer.is_err() || reg == 4 || reg == 5,
                &format_args!("debug register {reg:#x}: {answer:?}"),
            );
        }
        let answer = hypercall::raw(
            xen::HYPERVISOR_SET_DEBUGREG,
            [0, HYPERVISOR_VIRT_START, 0, 0, 0],
        );
        report.refused(answer, &"a breakpoint in the hypervisor");
    }
    report.refused(hypercall::vm_assist(0, 999), &"no such aid");
    report.refused(hypercall::vm_assist(999, 0), &"no such command");
}

/// After all that: traps, time, events, console, paging.
fn still_alive(report: &mut Report) {
    report.check(
        guard::read(GuestVirt(0x1000)).is_err(),
        &"a fault comes as a fault",
    );
    report.check(hypercall::xen_version().is_ok(), &"hypercalls work");
    let start = time::system_time();
    report.check(time::system_time() >= start, &"time goes forwards");
    let port = event::bind_ipi(VcpuId(0));
    if let Some(port) = report.allowed(port, &"a port") {
        report.allowed(event::send(port), &"an event");
        report.check(event::is_pending(port), &"which is pending");
    }
    let fresh = GuestVirt(VIRT_BASE + (1 << 30));
    // SAFETY: our own page; nobody uses it any more.
    report.allowed(unsafe { mm::set_mapping(fresh, 0) }, &"an unmapping");
}
