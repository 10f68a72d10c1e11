//! Exceptions: the trap table, the entry stubs, and what happens then.
//!
//! The hypervisor calls a handler with a **bounce frame** on the stack, and
//! the handler returns by the hypercall `iret`:
//!
//! ```text
//!   bounce frame          what a stub makes of it     what `iret` takes
//!   ss                    ss                          ss
//!   rsp                   rsp                         rsp
//!   rflags                rflags                      rflags
//!   cs  (event mask<<32)  cs                          cs
//!   rip                   rip                         rip
//!   [error code]          error code, or 0            flags = 0
//!   r11                   number of the trap          rcx
//!   rcx         <- rsp    rax rbx rcx ... r15 <- rsp  r11
//!                                                     rax         <- rsp
//! ```
//!
//! Traps of user mode go to [`user`], faults of the functions in [`guard`] to
//! their way out; any other exception is reported and crashes the domain.

use core::{arch::naked_asm, fmt};

use super::{event, guard, hypercall, sched, smp, user};
use crate::{
    addr::GuestVirt,
    arch_x86::{TI_IF, TrapInfo},
    arch_x86_64::FLAT_KERNEL_CS,
    callback::{CALLBACKF_MASK_EVENTS, CALLBACKTYPE_FAILSAFE, CALLBACKTYPE_SYSCALL},
    errno::Errno,
    xen::HYPERVISOR_IRET,
};

/// [`TrapFrame::number`] of user mode's `syscall`.
pub const TRAP_SYSCALL: u64 = 0x100;
/// [`TrapFrame::number`] of an event.
pub const TRAP_EVENT: u64 = 0x101;
/// [`TrapFrame::number`] of a return to the guest that failed.
pub const TRAP_FAILSAFE: u64 = 0x102;
/// The vector of page faults.
pub const TRAP_PAGE_FAULT: u64 = 14;

/// The interrupted context, as the stubs leave it on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // Registers.
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// The vector, or a `TRAP_*`.
    pub number: u64,
    pub error: u64,
    pub rip: u64,
    /// Code segment; the event mask from before in bits 32 and up.
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const _: () = assert!(size_of::<TrapFrame>() == 176);

impl TrapFrame {
    /// All registers 0.
    pub const ZERO: Self = Self {
        r15: 0,
        r14: 0,
        r13: 0,
        r12: 0,
        r11: 0,
        r10: 0,
        r9: 0,
        r8: 0,
        rdi: 0,
        rsi: 0,
        rbp: 0,
        rdx: 0,
        rcx: 0,
        rbx: 0,
        rax: 0,
        number: 0,
        error: 0,
        rip: 0,
        cs: 0,
        rflags: 0,
        rsp: 0,
        ss: 0,
    };

    /// Whether user mode was interrupted: the hypervisor shows RPL 3 for it
    /// and RPL 0 for the kernel.
    #[must_use]
    pub fn from_user(&self) -> bool {
        self.cs & 3 == 3
    }
}

/// A fault, as it is told to people and to [`guard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The vector.
    pub vector: u64,
    /// The error code, or 0.
    pub error: u64,
    /// The address of a page fault; else 0.
    pub address: GuestVirt,
    /// Where.
    pub rip: GuestVirt,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exception {} error {:#x} at {:#x}, address {:#x}",
            self.vector, self.error, self.rip.0, self.address.0
        )
    }
}

impl Fault {
    fn of(frame: &TrapFrame) -> Self {
        let address = match frame.number {
            // SAFETY: the field lies in the shared info page.
            TRAP_PAGE_FAULT => unsafe { (&raw const (*smp::vcpu_info()).arch.cr2).read_volatile() },
            _ => 0,
        };
        Self {
            vector: frame.number,
            error: frame.error,
            address: GuestVirt(address),
            rip: GuestVirt(frame.rip),
        }
    }
}

/// Where all stubs come together: `rsp` points to the trap number.
#[unsafe(naked)]
unsafe extern "C" fn trap_common() -> ! {
    naked_asm!(
        "push rax",
        "push rbx",
        "push rcx",
        "push rdx",
        "push rbp",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "cld",
        "mov rdi, rsp",
        "mov rbp, rsp",
        "and rsp, -16",
        "call {dispatch}",
        "mov rdi, rbp",
        "jmp {resume}",
        dispatch = sym dispatch,
        resume = sym resume,
    )
}

/// Goes back to the context in a frame. The frame's memory is used up: what
/// `iret` takes is built in its place.
///
/// # Safety
/// `frame` must be a context that can run, on a stack of the kernel's below
/// which nothing is live.
#[unsafe(naked)]
pub unsafe extern "C" fn resume(frame: *mut TrapFrame) -> ! {
    naked_asm!(
        "mov rsp, rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rbp",
        "pop rdx",
        "pop rcx",
        "pop rbx",
        "pop rax",
        "add rsp, 16",
        "push 0",
        "push rcx",
        "push r11",
        "push rax",
        "mov eax, {iret}",
        "syscall",
        "ud2",
        iret = const HYPERVISOR_IRET,
    )
}

/// A stub: takes `rcx` and `r11` back, leaves an error code and a number.
macro_rules! stub {
    ($name:ident, $number:expr, $($drop:literal)?, $($error:literal)?) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name() -> ! {
            naked_asm!(
                "pop rcx",
                "pop r11",
                $($drop,)?
                $($error,)?
                "push {number}",
                "jmp {common}",
                number = const $number,
                common = sym trap_common,
            )
        }
    };
}

/// The stubs of exceptions, by vector.
macro_rules! exceptions {
    ($($name:ident $vector:literal $($error:literal)?;)*) => {
        $(stub!($name, $vector, , $($error)?);)*
        const EXCEPTIONS: &[(u8, unsafe extern "C" fn() -> !)] = &[$(($vector, $name)),*];
    };
}

exceptions! {
    trap_de 0 "push 0"; trap_db 1 "push 0"; trap_bp 3 "push 0"; trap_of 4 "push 0";
    trap_br 5 "push 0"; trap_ud 6 "push 0"; trap_nm 7 "push 0"; trap_df 8;
    trap_ts 10; trap_np 11; trap_ss 12; trap_gp 13;
    trap_pf 14; trap_mf 16 "push 0"; trap_ac 17; trap_xm 19 "push 0";
}

stub!(syscall_entry, TRAP_SYSCALL, , "push 0");
stub!(event_entry, TRAP_EVENT, , "push 0");
// The failsafe frame has ds, es, fs and gs above r11.
stub!(failsafe_entry, TRAP_FAILSAFE, "add rsp, 32", "push 0");

/// The address of the event entry point.
#[must_use]
pub fn event_entry_address() -> u64 {
    event_entry as *const () as u64
}

/// The address of the failsafe entry point.
#[must_use]
pub fn failsafe_entry_address() -> u64 {
    failsafe_entry as *const () as u64
}

/// The address of the entry point of user mode's `syscall`.
#[must_use]
pub fn syscall_entry_address() -> u64 {
    syscall_entry as *const () as u64
}

/// The trap table: every exception, with events masked; its last entry is empty.
#[must_use]
pub fn table() -> [TrapInfo; EXCEPTIONS.len() + 1] {
    let mut table = [TrapInfo::default(); EXCEPTIONS.len() + 1];
    for (entry, &(vector, handler)) in table.iter_mut().zip(EXCEPTIONS) {
        // User mode may raise breakpoint and overflow by instruction.
        let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
        *entry = TrapInfo {
            vector,
            flags: TI_IF | dpl,
            cs: FLAT_KERNEL_CS,
            address: handler as *const () as u64,
            ..Default::default()
        };
    }
    table
}

/// Registers the trap table and the failsafe and syscall entry points.
///
/// # Errors
/// The hypervisor's.
pub fn install() -> Result<(), Errno> {
    // SAFETY: the stubs are entry points of their kinds.
    unsafe {
        hypercall::set_trap_table(&table())?;
        hypercall::callback_register(
            CALLBACKTYPE_FAILSAFE,
            CALLBACKF_MASK_EVENTS,
            failsafe_entry_address(),
        )?;
        hypercall::callback_register(
            CALLBACKTYPE_SYSCALL,
            CALLBACKF_MASK_EVENTS,
            syscall_entry_address(),
        )?;
    }
    Ok(())
}

/// What to do about a trap; returns to go on with the frame.
unsafe extern "C" fn dispatch(frame: *mut TrapFrame) {
    // SAFETY: the stub's own frame, on the stack below us.
    let frame = unsafe { &mut *frame };
    match frame.number {
        TRAP_EVENT => event::dispatch(),
        _ if frame.from_user() => user::trapped(frame),
        number if number < 32 => {
            let fault = Fault::of(frame);
            if !guard::recover(frame, fault) {
                sched::crash(&fault);
            }
        }
        number => sched::crash(&format_args!("trap {number:#x} at {:#x}", frame.rip)),
    }
}
