//! A domain as gdb sees it.

use domus_privcmd::{
    client::{Client, ClientError},
    debug::{Call, MAX_TRANSFER, Stop},
};
use gdbstub::{
    common::{Signal, Tid},
    target::{
        Target, TargetError, TargetResult,
        ext::{
            base::{
                BaseOps,
                multithread::{
                    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps,
                    MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
                    MultiThreadSingleStep, MultiThreadSingleStepOps,
                },
            },
            breakpoints::{Breakpoints, BreakpointsOps, SwBreakpoint, SwBreakpointOps},
            thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps},
        },
    },
};
use gdbstub_arch::x86::{X86_64_SSE, reg::X86_64CoreRegs};
use guest_abi::{
    addr::{DomId, VcpuId},
    arch_x86::{VGCF_IN_KERNEL, VcpuGuestContext},
    errno::Errno,
};
use std::io::Write;
use zerocopy::{FromBytes, IntoBytes};

/// What gdb is told where memory or registers can't be had.
const EFAULT: u8 = 14;

/// Why a domain can't be debugged.
#[derive(Debug, thiserror::Error)]
pub enum GdbError {
    /// The hypervisor said no, or is gone.
    #[error(transparent)]
    Hypervisor(#[from] ClientError),
    /// What came is not gdb's protocol.
    #[error("gdb: {0}")]
    Protocol(String),
}

impl GdbError {
    /// Whether the domain has gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Hypervisor(ClientError::Failed(failure)) if failure.errno() == Errno::ESRCH)
    }
}

/// The thread of a vCPU.
pub(super) fn thread(vcpu: u32) -> Tid {
    let number = usize::try_from(vcpu).unwrap_or(0);
    Tid::MIN.saturating_add(number)
}

fn vcpu(thread: Tid) -> VcpuId {
    VcpuId(u32::try_from(thread.get() - 1).unwrap_or(u32::MAX))
}

/// A domain that is debugged over a connection of its own.
#[derive(Debug)]
pub struct Guest {
    hypervisor: Client,
    dom: DomId,
    next: Next,
}

/// What gdb wants of the next run.
#[derive(Debug, Clone, Copy, Default)]
struct Next {
    /// The vCPU that was named last.
    named: Option<VcpuId>,
    /// It takes a step.
    step: bool,
    /// The others stay where they are.
    locked: bool,
}

impl Guest {
    /// Stops the domain.
    ///
    /// # Errors
    /// There is no such domain, or it has a debugger.
    pub fn attach(hypervisor: Client, dom: DomId) -> Result<Self, GdbError> {
        hypervisor.debug(Call::Attach { dom: dom.0 })?;
        Ok(Guest {
            hypervisor,
            dom,
            next: Next::default(),
        })
    }

    /// Waits for a stop.
    ///
    /// # Errors
    /// The domain or the hypervisor has gone.
    pub fn wait(&self, patience_ms: u32) -> Result<Option<Stop>, GdbError> {
        Ok(self.hypervisor.debug_wait(patience_ms)?)
    }

    /// Stops it.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn halt(&self) -> Result<(), GdbError> {
        Ok(self.hypervisor.debug(Call::Halt)?)
    }

    /// Ends it.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn destroy(&self) -> Result<(), GdbError> {
        Ok(self.hypervisor.destroy_domain(self.dom)?)
    }

    fn context(&self, vcpu: VcpuId) -> Result<Box<VcpuGuestContext>, ClientError> {
        let bytes = self.hypervisor.vcpu_context(self.dom, vcpu)?;
        // A context of another size is one of another protocol version, which
        // the connection would have refused.
        let context = VcpuGuestContext::read_from_bytes(&bytes);
        Ok(Box::new(context.unwrap_or_default()))
    }
}

/// What gdb is told of a failed call: an error number, or, if the domain or
/// the hypervisor is gone, the session's end.
fn told(error: ClientError) -> TargetError<GdbError> {
    match error {
        ClientError::Failed(failure) if failure.errno() != Errno::ESRCH => {
            TargetError::Errno(EFAULT)
        }
        other => TargetError::Fatal(other.into()),
    }
}

impl Target for Guest {
    type Arch = X86_64_SSE;
    type Error = GdbError;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, regs: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let context = self.context(vcpu(tid)).map_err(told)?;
        show(&context, regs);
        Ok(())
    }

    fn write_registers(&mut self, regs: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let mut context = self.context(vcpu(tid)).map_err(told)?;
        take(regs, &mut context);
        let call = Call::SetRegisters {
            vcpu: vcpu(tid).0,
            context: context.as_bytes().to_vec(),
        };
        self.hypervisor.debug(call).map_err(told)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let length = u32::try_from(data.len()).unwrap_or(MAX_TRANSFER);
        let bytes = self
            .hypervisor
            .debug_read(vcpu(tid), start, length)
            .map_err(told)?;
        let count = bytes.len().min(data.len());
        data[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let call = Call::Write {
            vcpu: vcpu(tid).0,
            address: start,
            bytes: data.to_vec(),
        };
        self.hypervisor.debug(call).map_err(told)
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), GdbError> {
        let info = self.hypervisor.domain_info(self.dom)?;
        for number in 0..=info.max_vcpu_id {
            if self.hypervisor.vcpu_info(self.dom, VcpuId(number))?.online {
                active(thread(number));
            }
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, tid: Tid, mut buf: &mut [u8]) -> Result<usize, GdbError> {
        let vcpu = vcpu(tid);
        let context = self.context(vcpu)?;
        let mode = if context.flags & VGCF_IN_KERNEL == 0 {
            "user"
        } else {
            "kernel"
        };
        let room = buf.len();
        // More than fits is cut off.
        let _ = write!(buf, "vCPU {}, {mode} mode", vcpu.0);
        Ok(room - buf.len())
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), GdbError> {
        let Next {
            named,
            step,
            locked,
        } = self.next;
        let only = named.filter(|_| step || locked).map(|vcpu| vcpu.0);
        Ok(self.hypervisor.debug(Call::Go { only, step })?)
    }

    fn clear_resume_actions(&mut self) -> Result<(), GdbError> {
        self.next = Next::default();
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), GdbError> {
        // A step of another thread goes first: gdb asks for the rest again.
        if !self.next.step {
            self.next.named = Some(vcpu(tid));
        }
        Ok(())
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), GdbError> {
        (self.next.named, self.next.step) = (Some(vcpu(tid)), true);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), GdbError> {
        self.next.locked = true;
        Ok(())
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let call = Call::AddBreakpoint { vcpu: 0, address };
        self.hypervisor.debug(call).map_err(told)?;
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let call = Call::RemoveBreakpoint { address };
        match self.hypervisor.debug(call) {
            Ok(()) => Ok(true),
            Err(ClientError::Failed(failure)) if failure.errno() == Errno::ENOENT => Ok(false),
            Err(error) => Err(told(error)),
        }
    }
}

/// gdb's registers out of a context.
fn show(context: &VcpuGuestContext, to: &mut X86_64CoreRegs) {
    let r = &context.user_regs;
    to.regs = [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    to.rip = r.rip;
    to.eflags = u32::try_from(r.rflags & 0xffff_ffff).unwrap_or(0);
    (to.segments.cs, to.segments.ss) = (r.cs.into(), r.ss.into());
}

/// A context with gdb's registers.
fn take(from: &X86_64CoreRegs, context: &mut VcpuGuestContext) {
    let r = &mut context.user_regs;
    [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ] = from.regs;
    (r.rip, r.rflags) = (from.rip, from.eflags.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_go_to_gdb_and_back() {
        let mut from = X86_64CoreRegs::default();
        for (value, register) in (1u64..).zip(&mut from.regs) {
            *register = value;
        }
        (from.rip, from.eflags) = (0xffff_ffff_8100_0000, 0x246);
        let mut context = VcpuGuestContext::default();
        take(&from, &mut context);
        let r = &context.user_regs;
        assert_eq!((r.rax, r.rbx, r.rsp, r.r15), (1, 2, 8, 16));
        let mut back = X86_64CoreRegs::default();
        show(&context, &mut back);
        assert_eq!(back, from);
    }

    #[test]
    fn threads_are_vcpus() {
        assert_eq!(thread(0).get(), 1);
        assert_eq!(vcpu(thread(31)), VcpuId(31));
    }
}
