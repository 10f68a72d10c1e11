//! What a vCPU's guest has set: its context, mode, handlers and roots.
//!
//! Law: owned by the vCPU's thread alone. Others see of it only what
//! [`VcpuShared`](super::VcpuShared) holds.

use crate::{
    cpu::{Context, reg},
    interp::Breakpoints,
};
use guest_abi::{
    addr::Mfn,
    arch_x86::{
        TI_DPL_MASK, TI_IF, TrapInfo, VGCF_FAILSAFE_DISABLES_EVENTS, VGCF_IN_KERNEL,
        VGCF_SYSCALL_DISABLES_EVENTS, VcpuGuestContext,
    },
    arch_x86_64::{
        FLAT_KERNEL_CS, FLAT_KERNEL_SS, FLAT_USER_CS, FLAT_USER_SS, HYPERVISOR_VIRT_END,
        HYPERVISOR_VIRT_START,
    },
    errno::Errno,
};
use zerocopy::FromZeros;

/// A handler that the guest has registered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handler {
    /// Where it starts; 0 is none.
    pub address: u64,
    /// Events are masked on entry.
    pub masks_events: bool,
}

/// Guest state of one vCPU.
#[derive(Debug)]
pub struct GuestState {
    /// The ring-3 registers.
    pub context: Context,
    /// The guest is in user mode (its own flag; the CPU can't tell).
    pub user_mode: bool,
    /// Page-table root of kernel mode.
    pub kernel_root: Mfn,
    /// Page-table root of user mode, once there is one.
    pub user_root: Option<Mfn>,
    /// Stack on entry from user mode.
    pub kernel_sp: u64,
    /// GS base of the mode that is not running.
    pub other_gs_base: u64,
    /// Exception and `int n` handlers, by vector.
    pub traps: Box<[TrapInfo; 256]>,
    /// Entry point of events.
    pub event: Handler,
    /// Entry point for a faulty return to the guest.
    pub failsafe: Handler,
    /// Entry point of user mode's `syscall`.
    pub syscall: Handler,
    /// The same for `syscall` in 32-bit code.
    pub syscall32: Handler,
    /// I/O privilege level that the guest gave itself.
    pub iopl: u8,
    /// Debug registers, as the guest reads them.
    pub debug: [u64; 8],
    /// CR0.TS as the guest reads it.
    pub task_switched: bool,
    /// CR4 bits as the guest reads them.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
}

impl GuestState {
    /// A vCPU before its context is set.
    #[must_use]
    pub fn new() -> Self {
        GuestState {
            context: Context::default(),
            user_mode: false,
            kernel_root: Mfn(0),
            user_root: None,
            kernel_sp: 0,
            other_gs_base: 0,
            traps: Box::new([TrapInfo::new_zeroed(); 256]),
            event: Handler::default(),
            failsafe: Handler::default(),
            syscall: Handler::default(),
            syscall32: Handler::default(),
            iopl: 0,
            debug: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            task_switched: false,
            cr4: 0,
            xcr0: 1,
        }
    }

    /// The root of the mode that runs.
    #[must_use]
    pub fn root(&self) -> Mfn {
        match self.user_root {
            Some(root) if self.user_mode => root,
            _ => self.kernel_root,
        }
    }

    /// Switches between kernel and user mode: GS base and root go along.
    pub fn toggle_mode(&mut self) {
        self.user_mode = !self.user_mode;
        std::mem::swap(&mut self.context.gs_base, &mut self.other_gs_base);
    }

    /// GS base of kernel mode.
    pub fn gs_base_kernel(&mut self) -> &mut u64 {
        if self.user_mode {
            &mut self.other_gs_base
        } else {
            &mut self.context.gs_base
        }
    }

    /// GS base of user mode.
    pub fn gs_base_user(&mut self) -> &mut u64 {
        if self.user_mode {
            &mut self.context.gs_base
        } else {
            &mut self.other_gs_base
        }
    }

    /// The handler of an exception.
    #[must_use]
    pub fn trap_handler(&self, vector: u8) -> Handler {
        let entry = &self.traps[usize::from(vector)];
        Handler {
            address: entry.address,
            masks_events: entry.flags & TI_IF != 0,
        }
    }

    /// Whether the running mode may use `int vector`.
    #[must_use]
    pub fn may_raise(&self, vector: u8) -> bool {
        let entry = &self.traps[usize::from(vector)];
        let ring = if self.user_mode { 3 } else { 1 };
        entry.address != 0 && entry.flags & TI_DPL_MASK >= ring
    }

    /// CS and SS as the guest sees its own.
    #[must_use]
    pub fn selectors(&self) -> (u64, u64) {
        if let Some(compat) = self.context.compat {
            (compat.cs.into(), compat.ss.into())
        } else if self.user_mode {
            (FLAT_USER_CS.into(), FLAT_USER_SS.into())
        } else {
            // RPL 0: Linux tells kernel from user by it.
            (u64::from(FLAT_KERNEL_CS & !3), FLAT_KERNEL_SS.into())
        }
    }

    /// The breakpoints that the debug registers arm.
    #[must_use]
    pub fn breakpoints(&self) -> Breakpoints {
        let [dr0, dr1, dr2, dr3, .., control] = self.debug;
        Breakpoints {
            address: [dr0, dr1, dr2, dr3],
            control,
        }
    }

    /// Writes a debug register.
    ///
    /// # Errors
    /// `ENODEV` for one that there is not, `EPERM` for a value that the guest may not
    /// have.
    pub fn set_debug(&mut self, register: u32, value: u64) -> Result<(), Errno> {
        match register {
            0..=3 if !guests_address(value) => return Err(Errno::EPERM),
            0..=3 => self.debug[register as usize] = value,
            4 | 6 => self.debug[6] = value & 0xe00f | 0xffff_0ff0,
            5 | 7 if !is_breakpoint_control(value) => return Err(Errno::EPERM),
            5 | 7 => self.debug[7] = value & 0xffff_03ff | 0x400,
            _ => return Err(Errno::ENODEV),
        }
        Ok(())
    }

    /// Takes over a context, all but its memory references (roots, GDT, LDT).
    pub fn load(&mut self, from: &VcpuGuestContext) {
        self.context = Context {
            gpr: general_registers(from),
            rip: from.user_regs.rip,
            rflags: from.user_regs.rflags,
            fs_base: canonical_or_zero(from.fs_base),
            gs_base: canonical_or_zero(from.gs_base_kernel),
            ..Context::default()
        };
        self.other_gs_base = canonical_or_zero(from.gs_base_user);
        self.user_mode = false;
        if from.flags & VGCF_IN_KERNEL == 0 {
            self.toggle_mode();
        }
        self.kernel_sp = from.kernel_sp;
        *self.traps = from.trap_ctxt;
        self.event = Handler {
            address: from.event_callback_eip,
            masks_events: true,
        };
        self.failsafe = Handler {
            address: from.failsafe_callback_eip,
            masks_events: from.flags & VGCF_FAILSAFE_DISABLES_EVENTS != 0,
        };
        self.syscall = Handler {
            address: from.syscall_callback_eip,
            masks_events: from.flags & VGCF_SYSCALL_DISABLES_EVENTS != 0,
        };
        self.debug = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
    }

    /// Takes over the registers and segment bases of a context, nothing else.
    pub fn set_registers(&mut self, from: &VcpuGuestContext) {
        self.context.gpr = general_registers(from);
        (self.context.rip, self.context.rflags) = (from.user_regs.rip, from.user_regs.rflags);
        self.context.fs_base = canonical_or_zero(from.fs_base);
        *self.gs_base_kernel() = canonical_or_zero(from.gs_base_kernel);
        *self.gs_base_user() = canonical_or_zero(from.gs_base_user);
    }

    /// The context as `XEN_DOMCTL_getvcpucontext` tells it, without FPU, GDT
    /// and LDT, which others own.
    #[must_use]
    pub fn save(&self) -> Box<VcpuGuestContext> {
        let mut to = Box::new(VcpuGuestContext::new_zeroed());
        let g = &self.context.gpr;
        let r = &mut to.user_regs;
        (r.rax, r.rcx, r.rdx, r.rbx) = (g[reg::RAX], g[reg::RCX], g[reg::RDX], g[reg::RBX]);
        (r.rsp, r.rbp, r.rsi, r.rdi) = (g[reg::RSP], g[reg::RBP], g[reg::RSI], g[reg::RDI]);
        (r.r8, r.r9, r.r10, r.r11) = (g[reg::R8], g[reg::R9], g[reg::R10], g[reg::R11]);
        (r.r12, r.r13, r.r14, r.r15) = (g[reg::R12], g[reg::R13], g[reg::R14], g[reg::R15]);
        (r.rip, r.rflags) = (self.context.rip, self.context.rflags);
        let (cs, ss) = self.selectors();
        r.cs = u16::try_from(cs).unwrap_or(FLAT_KERNEL_CS);
        r.ss = u16::try_from(ss).unwrap_or(FLAT_KERNEL_SS);
        let (kernel_gs, user_gs) = if self.user_mode {
            (self.other_gs_base, self.context.gs_base)
        } else {
            to.flags |= VGCF_IN_KERNEL;
            (self.context.gs_base, self.other_gs_base)
        };
        (to.fs_base, to.gs_base_kernel, to.gs_base_user) =
            (self.context.fs_base, kernel_gs, user_gs);
        to.trap_ctxt = *self.traps;
        to.kernel_sp = self.kernel_sp;
        to.kernel_ss = FLAT_KERNEL_SS.into();
        to.ctrlreg[3] = self.kernel_root.0 << 12;
        to.ctrlreg[1] = self.user_root.map_or(0, |root| root.0 << 12 | 1);
        to.debugreg = self.debug;
        to.event_callback_eip = self.event.address;
        to.failsafe_callback_eip = self.failsafe.address;
        to.syscall_callback_eip = self.syscall.address;
        to
    }
}

impl Default for GuestState {
    fn default() -> Self {
        Self::new()
    }
}

/// Canonical, and outside the hypervisor's range.
fn guests_address(address: u64) -> bool {
    guest_abi::addr::GuestVirt(address).is_canonical()
        && !(HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&address)
}

/// No watch over the debug registers themselves (GD), and none over ports.
fn is_breakpoint_control(value: u64) -> bool {
    const GENERAL_DETECT: u64 = 1 << 13;
    const PORT: u64 = 2;
    value & GENERAL_DETECT == 0 && (0..4).all(|n| value >> (16 + 4 * n) & 3 != PORT)
}

/// In the order of [`reg`].
fn general_registers(from: &VcpuGuestContext) -> [u64; 16] {
    let r = &from.user_regs;
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

/// A segment base that the CPU would take, or 0.
#[must_use]
pub fn canonical_or_zero(base: u64) -> u64 {
    if guest_abi::addr::GuestVirt(base).is_canonical() {
        base
    } else {
        0
    }
}
