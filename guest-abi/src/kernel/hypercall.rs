//! Typed hypercalls, one function each, by their Xen names.
//!
//! The convention: number in `rax`, arguments in `rdi`, `rsi`, `rdx`, `r10`,
//! `r8`, the instruction `syscall`; the result comes back in `rax`, `rcx` and
//! `r11` are lost. No hypercall page is needed for that.
//!
//! ```no_run
//! use guest_abi::{errno::Errno, kernel::hypercall};
//!
//! assert_eq!(hypercall::console_io_write(b"hello\n"), Ok(0));
//! // SAFETY: there is no such hypercall.
//! let answer = unsafe { hypercall::raw(99, [0; 5]) };
//! assert_eq!(answer, Err(Errno::ENOSYS));
//! ```

use core::arch::asm;

use crate::{
    addr::{DomId, GuestVirt},
    arch_x86::TrapInfo,
    arch_x86_64::FLAT_KERNEL_SS,
    callback::{CALLBACKOP_REGISTER, CallbackRegister},
    errno::Errno,
    xen::{self, MmuUpdate, MmuextOp, MulticallEntry},
};

/// What a hypercall gives: its non-negative result, or why it failed.
pub type Outcome = Result<i64, Errno>;

/// Any hypercall at all, with whatever arguments.
///
/// # Errors
/// Those of the hypercall; `ENOSYS` where there is none of this number.
///
/// # Safety
/// The caller answers for what the hypercall does to this kernel's memory,
/// and must have events masked (see [`kernel`](crate::kernel)).
#[inline]
pub unsafe fn raw(number: u64, args: [u64; 5]) -> Outcome {
    let result: i64;
    // SAFETY: the registers are those of the convention. Without `nostack` no
    // red zone is live here, and memory counts as changed.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number.cast_signed() => result,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            inlateout("r8") args[4] => _,
            out("rcx") _,
            out("r11") _,
        );
    }
    Errno::from_return(result)
}

/// A hypercall of the form `(command, &mut argument)`.
///
/// # Safety
/// As for [`raw`]; `argument` must be the type that the command takes.
unsafe fn command<T>(number: u64, cmd: u32, argument: &mut T) -> Outcome {
    let address = core::ptr::from_mut(argument) as u64;
    // SAFETY: the caller's duty.
    unsafe { raw(number, [u64::from(cmd), address, 0, 0, 0]) }
}

/// `console_io`, command `write`.
///
/// # Errors
/// What the hypervisor says, `EPERM` where it keeps guests off its console.
pub fn console_io_write(bytes: &[u8]) -> Outcome {
    let args = [
        u64::from(xen::CONSOLEIO_WRITE),
        bytes.len() as u64,
        bytes.as_ptr() as u64,
        0,
        0,
    ];
    // SAFETY: the hypervisor only reads the slice.
    unsafe { raw(xen::HYPERVISOR_CONSOLE_IO, args) }
}

/// `xen_version` without an argument: `major << 16 | minor`.
///
/// # Errors
/// None known.
pub fn xen_version() -> Outcome {
    // SAFETY: touches no memory.
    unsafe { raw(xen::HYPERVISOR_XEN_VERSION, [0; 5]) }
}

/// `xen_version` with an argument of the command's type.
///
/// # Safety
/// `T` must be the command's type, or at least as large.
///
/// # Errors
/// `ENOSYS` for an unknown command.
pub unsafe fn xen_version_op<T>(cmd: u32, argument: &mut T) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe { command(xen::HYPERVISOR_XEN_VERSION, cmd, argument) }
}

/// `sched_op` with an argument of the command's type.
///
/// # Safety
/// `T` must be the command's type.
///
/// # Errors
/// As the command has it.
pub unsafe fn sched_op<T>(cmd: u32, argument: &mut T) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe { command(xen::HYPERVISOR_SCHED_OP, cmd, argument) }
}

/// `event_channel_op`.
///
/// # Safety
/// `T` must be the command's type.
///
/// # Errors
/// As the command has it.
pub unsafe fn event_channel_op<T>(cmd: u32, argument: &mut T) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe { command(xen::HYPERVISOR_EVENT_CHANNEL_OP, cmd, argument) }
}

/// `physdev_op`.
///
/// # Safety
/// `T` must be the command's type.
///
/// # Errors
/// As the command has it.
pub unsafe fn physdev_op<T>(cmd: u32, argument: &mut T) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe { command(xen::HYPERVISOR_PHYSDEV_OP, cmd, argument) }
}

/// `memory_op`.
///
/// # Safety
/// `T` must be the command's type, and the pointers in it must be valid.
///
/// # Errors
/// As the command has it.
pub unsafe fn memory_op<T>(cmd: u32, argument: &mut T) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe { command(xen::HYPERVISOR_MEMORY_OP, cmd, argument) }
}

/// `grant_table_op` on a batch; each element has a status of its own.
///
/// # Safety
/// `T` must be the command's type, and what it maps must not be in use.
///
/// # Errors
/// `EFAULT`, `ENOSYS`; the elements' own failures are in the elements.
pub unsafe fn grant_table_op<T>(cmd: u32, batch: &mut [T]) -> Outcome {
    let args = [
        u64::from(cmd),
        batch.as_mut_ptr() as u64,
        batch.len() as u64,
        0,
        0,
    ];
    // SAFETY: the caller's duty.
    unsafe { raw(xen::HYPERVISOR_GRANT_TABLE_OP, args) }
}

/// `vcpu_op`; `argument` is the address of the command's type, or 0.
///
/// # Safety
/// What the command reads or writes there must be valid.
///
/// # Errors
/// As the command has it.
pub unsafe fn vcpu_op(cmd: u32, vcpu: u32, argument: u64) -> Outcome {
    let args = [u64::from(cmd), u64::from(vcpu), argument, 0, 0];
    // SAFETY: the caller's duty.
    unsafe { raw(xen::HYPERVISOR_VCPU_OP, args) }
}

/// `mmu_update` on the own domain's page tables. Returns how many were done.
///
/// # Safety
/// The new mappings must not break what this kernel relies on.
///
/// # Errors
/// `EINVAL` and others for an entry that the hypervisor refuses; those before
/// it are in force.
pub unsafe fn mmu_update(updates: &[MmuUpdate]) -> Result<u32, Errno> {
    let mut done = 0u32;
    let args = [
        updates.as_ptr() as u64,
        updates.len() as u64,
        core::ptr::from_mut(&mut done) as u64,
        u64::from(DomId::SELF.0),
        0,
    ];
    // SAFETY: the caller's duty; `done` outlives the call.
    unsafe { raw(xen::HYPERVISOR_MMU_UPDATE, args) }?;
    Ok(done)
}

/// `mmuext_op` on the own domain. Returns how many were done.
///
/// # Safety
/// As for [`mmu_update`].
///
/// # Errors
/// As the first operation that fails has it.
pub unsafe fn mmuext_op(ops: &[MmuextOp]) -> Result<u32, Errno> {
    let mut done = 0u32;
    let args = [
        ops.as_ptr() as u64,
        ops.len() as u64,
        core::ptr::from_mut(&mut done) as u64,
        u64::from(DomId::SELF.0),
        0,
    ];
    // SAFETY: the caller's duty; `done` outlives the call.
    unsafe { raw(xen::HYPERVISOR_MMUEXT_OP, args) }?;
    Ok(done)
}

/// `update_va_mapping`: the L1 entry of `address` becomes `entry`.
///
/// # Safety
/// As for [`mmu_update`].
///
/// # Errors
/// `EINVAL` for an entry that the hypervisor refuses, or where no L1 table is.
pub unsafe fn update_va_mapping(address: GuestVirt, entry: u64, flags: u64) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe {
        raw(
            xen::HYPERVISOR_UPDATE_VA_MAPPING,
            [address.0, entry, flags, 0, 0],
        )
    }
}

/// `update_descriptor`: writes the 8-byte descriptor at a machine address.
///
/// # Safety
/// A segment in use must stay usable.
///
/// # Errors
/// `EINVAL` for a descriptor or frame that the hypervisor refuses.
pub unsafe fn update_descriptor(machine_address: u64, descriptor: u64) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe {
        raw(
            xen::HYPERVISOR_UPDATE_DESCRIPTOR,
            [machine_address, descriptor, 0, 0, 0],
        )
    }
}

/// `set_gdt`: `frames` hold `entries` descriptors.
///
/// # Safety
/// The selectors in use must stay usable.
///
/// # Errors
/// `EINVAL` for frames that can't be descriptor pages.
pub unsafe fn set_gdt(frames: &[u64], entries: u32) -> Outcome {
    let args = [frames.as_ptr() as u64, u64::from(entries), 0, 0, 0];
    // SAFETY: the caller's duty; the frame list is read only.
    unsafe { raw(xen::HYPERVISOR_SET_GDT, args) }
}

/// `set_trap_table`; the last entry of `table` must have address 0.
///
/// # Safety
/// The handlers must be trap entry points.
///
/// # Errors
/// `EFAULT`, `EINVAL`.
pub unsafe fn set_trap_table(table: &[TrapInfo]) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe {
        raw(
            xen::HYPERVISOR_SET_TRAP_TABLE,
            [table.as_ptr() as u64, 0, 0, 0, 0],
        )
    }
}

/// `callback_op`, command `register`.
///
/// # Safety
/// `address` must be an entry point of that kind.
///
/// # Errors
/// `ENOSYS` for an unknown kind.
pub unsafe fn callback_register(kind: u16, flags: u16, address: u64) -> Outcome {
    let mut argument = CallbackRegister {
        kind,
        flags,
        address,
        ..Default::default()
    };
    // SAFETY: the caller's duty.
    unsafe {
        command(
            xen::HYPERVISOR_CALLBACK_OP,
            CALLBACKOP_REGISTER,
            &mut argument,
        )
    }
}

/// `stack_switch`: the kernel's stack for the next trap from user mode.
///
/// # Safety
/// `sp` must be the top of a stack that nobody uses then.
///
/// # Errors
/// None known.
pub unsafe fn stack_switch(sp: u64) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe {
        raw(
            xen::HYPERVISOR_STACK_SWITCH,
            [u64::from(FLAT_KERNEL_SS), sp, 0, 0, 0],
        )
    }
}

/// `set_segment_base`: `which` is a `SEGBASE_*`.
///
/// # Safety
/// What uses that segment must expect the new base.
///
/// # Errors
/// `EINVAL` for a base that is not canonical.
pub unsafe fn set_segment_base(which: u32, base: u64) -> Outcome {
    // SAFETY: the caller's duty.
    unsafe {
        raw(
            xen::HYPERVISOR_SET_SEGMENT_BASE,
            [u64::from(which), base, 0, 0, 0],
        )
    }
}

/// `set_timer_op`: `VIRQ_TIMER` at this system time (ns); 0 stops it.
///
/// # Errors
/// None known.
pub fn set_timer_op(deadline: u64) -> Outcome {
    // SAFETY: touches no memory.
    unsafe { raw(xen::HYPERVISOR_SET_TIMER_OP, [deadline, 0, 0, 0, 0]) }
}

/// `vm_assist`.
///
/// # Errors
/// `ENOSYS` or `EINVAL` for an aid that does not exist.
pub fn vm_assist(cmd: u32, kind: u32) -> Outcome {
    // SAFETY: touches no memory.
    unsafe {
        raw(
            xen::HYPERVISOR_VM_ASSIST,
            [u64::from(cmd), u64::from(kind), 0, 0, 0],
        )
    }
}

/// `multicall`: the results are in the entries.
///
/// # Safety
/// As for each of the calls.
///
/// # Errors
/// `EFAULT`; the calls' own failures are in the entries.
pub unsafe fn multicall(calls: &mut [MulticallEntry]) -> Outcome {
    let args = [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0];
    // SAFETY: the caller's duty.
    unsafe { raw(xen::HYPERVISOR_MULTICALL, args) }
}
