//! The hypercalls: each in a file of its Xen name.
//!
//! Registers: number in `rax`; arguments in `rdi`, `rsi`, `rdx`, `r10`, `r8`,
//! `r9`; result in `rax`, an errno negated. `rcx` and `r11` are lost, as
//! `syscall` loses them.
//!
//! Law: an argument in guest memory is copied once; no lock is held while it
//! is. A hypercall that a guest can make long gives way to other requests: it
//! puts what is left to do into the argument registers and lets the guest
//! execute the `syscall` again.

pub mod event_channel_op;
pub mod grant_table_op;
mod grant_target;

mod callback;
mod console_io;
mod context;
mod debug;
mod descriptor;
mod iret;
mod memory_op;
mod mmu_update;
mod mmuext_op;
mod multicall;
mod physdev_op;
mod sched_op;
mod segment;
mod trap_table;
mod vcpu_op;
mod vm_assist;
mod xen_version;

#[cfg(test)]
pub(crate) mod test_guest;

pub use context::install as install_context;
pub(crate) use iret::code_segment;

use crate::{
    cpu::reg,
    guest_access::GuestAccess,
    mistakes::reason,
    vcpu::{Crash, Vcpu},
};
use guest_abi::{
    addr::{DomId, GuestVirt},
    errno::Errno,
    xen::*,
};
use std::cell::RefCell;

/// What a hypercall comes to.
pub enum Done {
    /// This value goes to `rax`.
    Value(u64),
    /// Registers are already as they shall be.
    Registers,
    /// The domain can't go on.
    Crash(Crash),
}

/// The usual success.
const OK: Result<Done, Errno> = Ok(Done::Value(0));
/// A result as it goes back to the guest.
pub(crate) type Outcome = Result<Done, Errno>;

impl From<()> for Done {
    fn from((): ()) -> Self {
        Done::Value(0)
    }
}

/// Bytes of the `syscall` instruction.
const SYSCALL_BYTES: u64 = 2;

/// Carries out the hypercall that the vCPU's registers ask for.
///
/// # Errors
/// The domain can't go on.
pub fn dispatch(vcpu: &mut Vcpu) -> Result<(), Crash> {
    let g = &vcpu.state.context.gpr;
    let number = g[reg::RAX];
    let args = [
        g[reg::RDI],
        g[reg::RSI],
        g[reg::RDX],
        g[reg::R10],
        g[reg::R8],
        g[reg::R9],
    ];
    vcpu.domain.counts.hypercall(number);
    let trace = vcpu.trace_hypercall(number, args);
    let outcome = call(vcpu, number, args);
    if let Some(trace) = trace {
        vcpu.trace_result(trace, result(&outcome));
    }
    match outcome {
        Ok(Done::Value(value)) => vcpu.state.context.gpr[reg::RAX] = value,
        Ok(Done::Registers) => {}
        Ok(Done::Crash(crash)) => return Err(crash),
        Err(errno) => {
            tracing::trace!(
                domain = vcpu.domain.id.0,
                number,
                ?args,
                ?errno,
                "hypercall refused"
            );
            vcpu.state.context.gpr[reg::RAX] = failure(errno);
        }
    }
    Ok(())
}

/// What the guest gets to see of an outcome, if that is known.
fn result(outcome: &Outcome) -> Option<u64> {
    match outcome {
        Ok(Done::Value(value)) => Some(*value),
        Ok(Done::Registers | Done::Crash(_)) => None,
        Err(errno) => Some(failure(*errno)),
    }
}

/// An errno as `rax` holds it.
fn failure(errno: Errno) -> u64 {
    errno.to_return().cast_unsigned()
}

/// The low 32 bits: the type of an `unsigned int` argument.
fn low32(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

/// A `domid_t` argument.
fn domid(value: u64) -> DomId {
    DomId(u16::try_from(value & 0xffff).unwrap_or(0))
}

/// Checks that an operation names the caller itself.
fn own_domain(vcpu: &Vcpu, dom: DomId) -> Result<(), Errno> {
    if dom == DomId::SELF || dom == vcpu.domain.id {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// One hypercall, from registers or from a multicall.
fn call(vcpu: &mut Vcpu, number: u64, args: [u64; 6]) -> Outcome {
    // What an earlier operation left on this thread is not about this one.
    let _ = reason::take();
    let outcome = perform(vcpu, number, args);
    vcpu.judge(number, &args, &outcome);
    outcome
}

fn perform(vcpu: &mut Vcpu, number: u64, a: [u64; 6]) -> Outcome {
    match number {
        HYPERVISOR_SET_TRAP_TABLE => trap_table::set_trap_table(vcpu, GuestVirt(a[0])),
        HYPERVISOR_MMU_UPDATE => mmu_update::mmu_update(
            vcpu,
            GuestVirt(a[0]),
            low32(a[1]),
            GuestVirt(a[2]),
            low32(a[3]),
        ),
        HYPERVISOR_SET_GDT => descriptor::set_gdt(vcpu, GuestVirt(a[0]), low32(a[1])),
        HYPERVISOR_STACK_SWITCH => segment::stack_switch(vcpu, a[0], a[1]),
        HYPERVISOR_SET_CALLBACKS => callback::set_callbacks(vcpu, a[0], a[1], a[2]),
        HYPERVISOR_FPU_TASKSWITCH => segment::fpu_taskswitch(vcpu, low32(a[0])),
        HYPERVISOR_SET_DEBUGREG => debug::set_debugreg(vcpu, low32(a[0]), a[1]),
        HYPERVISOR_GET_DEBUGREG => debug::get_debugreg(vcpu, low32(a[0])),
        HYPERVISOR_UPDATE_DESCRIPTOR => descriptor::update_descriptor(vcpu, a[0], a[1]),
        HYPERVISOR_MEMORY_OP => memory_op::memory_op(vcpu, a[0], GuestVirt(a[1])),
        HYPERVISOR_MULTICALL => multicall::multicall(vcpu, GuestVirt(a[0]), low32(a[1])),
        HYPERVISOR_UPDATE_VA_MAPPING => {
            mmu_update::update_va_mapping(vcpu, GuestVirt(a[0]), a[1], a[2])
        }
        HYPERVISOR_SET_TIMER_OP => sched_op::set_timer_op(vcpu, a[0]),
        HYPERVISOR_XEN_VERSION => xen_version::xen_version(vcpu, low32(a[0]), GuestVirt(a[1])),
        HYPERVISOR_CONSOLE_IO => {
            console_io::console_io(vcpu, low32(a[0]), low32(a[1]), GuestVirt(a[2]))
        }
        HYPERVISOR_VM_ASSIST => vm_assist::vm_assist(vcpu, low32(a[0]), low32(a[1])),
        HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN => mmu_update::update_va_mapping_otherdomain(
            vcpu,
            GuestVirt(a[0]),
            a[1],
            a[2],
            domid(a[3]),
        ),
        HYPERVISOR_IRET => iret::iret(vcpu),
        HYPERVISOR_VCPU_OP => vcpu_op::vcpu_op(vcpu, low32(a[0]), low32(a[1]), GuestVirt(a[2])),
        HYPERVISOR_SET_SEGMENT_BASE => segment::set_segment_base(vcpu, low32(a[0]), a[1]),
        HYPERVISOR_MMUEXT_OP => mmuext_op::mmuext_op(
            vcpu,
            GuestVirt(a[0]),
            low32(a[1]),
            GuestVirt(a[2]),
            low32(a[3]),
        ),
        HYPERVISOR_NMI_OP => callback::nmi_op(vcpu, low32(a[0]), GuestVirt(a[1])),
        HYPERVISOR_SCHED_OP => sched_op::sched_op(vcpu, low32(a[0]), GuestVirt(a[1])),
        HYPERVISOR_CALLBACK_OP => callback::callback_op(vcpu, low32(a[0]), GuestVirt(a[1])),
        HYPERVISOR_EVENT_CHANNEL_OP => {
            let host = &vcpu.domain.host;
            let access = vcpu.access();
            let guest: &dyn GuestAccess = &access;
            let events = &vcpu.domain.events;
            event_channel_op::event_channel_op(events, &**host, guest, low32(a[0]), GuestVirt(a[1]))
                .map(Done::from)
        }
        HYPERVISOR_GRANT_TABLE_OP => grants(vcpu, low32(a[0]), GuestVirt(a[1]), low32(a[2])),
        HYPERVISOR_PHYSDEV_OP => physdev_op::physdev_op(vcpu, low32(a[0]), GuestVirt(a[1])),
        // The control domain's own: an ordinary domain may not.
        HYPERVISOR_PLATFORM_OP | HYPERVISOR_SYSCTL | HYPERVISOR_DOMCTL | HYPERVISOR_KEXEC_OP => {
            Err(Errno::EPERM)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn grants(vcpu: &mut Vcpu, cmd: u32, arg: GuestVirt, count: u32) -> Outcome {
    use grant_table_op::Progress;
    let (mut arg, mut count) = (arg, count);
    loop {
        match some_grants(vcpu, cmd, arg, count)? {
            Progress::Done => return OK,
            Progress::Continue {
                arg: rest,
                count: left,
            } if vcpu.should_yield() => {
                let rest = [(reg::RSI, rest.0), (reg::RDX, left.into())];
                return Ok(vcpu.restart(HYPERVISOR_GRANT_TABLE_OP, &rest));
            }
            Progress::Continue {
                arg: rest,
                count: left,
            } => (arg, count) = (rest, left),
        }
    }
}

/// A batch of grant operations. The grants whose mappings it ended are given
/// back when no vCPU has a translation of them any more.
fn some_grants(
    vcpu: &Vcpu,
    cmd: u32,
    arg: GuestVirt,
    count: u32,
) -> Result<grant_table_op::Progress, Errno> {
    let (access, ended) = (vcpu.access(), RefCell::default());
    let domain = &vcpu.domain;
    let caller = grant_table_op::GrantCaller {
        own: &domain.grants,
        maps: &domain.maps,
        target: &grant_target::PageTables(vcpu),
        domains: &*domain.host,
        guest: &access,
        ended: &ended,
    };
    let progress = grant_table_op::grant_table_op(&caller, cmd, arg, count);
    if !ended.borrow().is_empty() {
        vcpu.flush_everywhere();
    }
    drop(ended);
    progress
}

impl Vcpu {
    /// Lets the guest execute the hypercall again, with these arguments, after
    /// whatever waits has been dealt with.
    fn restart(&mut self, number: u64, args: &[(usize, u64)]) -> Done {
        let context = &mut self.state.context;
        context.rip = context.rip.wrapping_sub(SYSCALL_BYTES);
        context.gpr[reg::RAX] = number;
        for (register, value) in args {
            context.gpr[*register] = *value;
        }
        Done::Registers
    }

    /// Whether a long hypercall should give way.
    fn should_yield(&self) -> bool {
        !self.in_multicall && self.shared.has_requests()
    }
}
