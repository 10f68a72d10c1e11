//! Debuggers' calls: see [`domus_privcmd::debug`].

use super::{Result, failure, no_domain};
use crate::{
    domain::Domain,
    hypervisor::Hypervisor,
    privcmd::{Answer, Session},
};
use domus_privcmd::{
    debug::{self, Call, MAX_TRANSFER},
    protocol::{Failure, Reply},
};
use guest_abi::{
    addr::{DomId, GuestVirt, VcpuId},
    arch_x86::VcpuGuestContext,
    errno::Errno,
};
use std::{sync::Arc, time::Duration};
use zerocopy::FromBytes;

/// The longest wait for a stop.
const MAX_PATIENCE_MS: u32 = 1000;

impl Hypervisor {
    pub(super) fn debug(&self, session: &mut Session, call: Call) -> Result<Answer> {
        if let Call::Attach { dom } = call {
            return self.debug_attach(session, dom);
        }
        let id = session.id();
        let (domain, dom) = debugged(session)?;
        if matches!(call, Call::Detach) {
            domain.debug_detach(id);
            session.forget_debugged();
            return Ok(Answer::DONE);
        }
        serve(&domain, id, call).map_err(|errno| explain(errno, dom))
    }

    fn debug_attach(&self, session: &mut Session, dom: u16) -> Result<Answer> {
        if session.debugged().is_some() {
            let why = "this connection debugs a domain: use one connection for each";
            return Err(failure(Errno::EBUSY, why));
        }
        let domain = self
            .domain(DomId(dom))
            .filter(|domain| !domain.is_dying())
            .ok_or_else(|| no_domain(dom))?;
        domain.debug_attach(session.id()).map_err(|errno| {
            failure(
                errno,
                format!("domain {dom} has another debugger: detach that first"),
            )
        })?;
        session.hold_debugged(dom, Arc::downgrade(&domain));
        Ok(Answer::DONE)
    }
}

fn debugged(session: &Session) -> Result<(Arc<Domain>, u16)> {
    let (dom, domain) = session
        .debugged()
        .ok_or_else(|| failure(Errno::EINVAL, "this connection debugs no domain"))?;
    let domain = domain
        .upgrade()
        .filter(|domain| !domain.is_dying())
        .ok_or_else(|| no_domain(dom))?;
    Ok((domain, dom))
}

/// Takes back what a session's debugger did.
pub(super) fn release(session: &Session) {
    if let Ok((domain, _)) = debugged(session) {
        domain.debug_detach(session.id());
    }
}

fn serve(domain: &Domain, session: u64, call: Call) -> std::result::Result<Answer, Errno> {
    match call {
        Call::Attach { .. } | Call::Detach => return Err(Errno::EINVAL),
        Call::Halt => domain.debug_halt(session)?,
        Call::Go { only, step } => domain.debug_go(session, only.map(VcpuId), step)?,
        Call::Wait { patience_ms } => {
            let patience = Duration::from_millis(patience_ms.min(MAX_PATIENCE_MS).into());
            let stop = domain.debugger.wait(session, patience)?;
            return Ok(Reply::Debug(debug::Answer::Stop(stop)).into());
        }
        Call::Read {
            vcpu,
            address,
            length,
        } => {
            let length = usize::try_from(length.min(MAX_TRANSFER)).unwrap_or(0);
            let bytes = domain.debug_read(session, VcpuId(vcpu), GuestVirt(address), length)?;
            return Ok(Reply::Debug(debug::Answer::Bytes(bytes)).into());
        }
        Call::Write {
            vcpu,
            address,
            bytes,
        } => {
            if u32::try_from(bytes.len()).map_or(true, |length| length > MAX_TRANSFER) {
                return Err(Errno::E2BIG);
            }
            domain.debug_write(session, VcpuId(vcpu), GuestVirt(address), &bytes)?;
        }
        Call::SetRegisters { vcpu, context } => {
            let context = VcpuGuestContext::read_from_bytes(&context).map_err(|_| Errno::EINVAL)?;
            domain.debug_set_registers(session, VcpuId(vcpu), Box::new(context))?;
        }
        Call::AddBreakpoint { vcpu, address } => {
            domain.debug_add_breakpoint(session, VcpuId(vcpu), GuestVirt(address))?;
        }
        Call::RemoveBreakpoint { address } => {
            domain.debug_remove_breakpoint(session, GuestVirt(address))?;
        }
    }
    Ok(Answer::DONE)
}

fn explain(errno: Errno, dom: u16) -> Failure {
    let why = match errno {
        Errno::EFAULT => "nothing is mapped there".into(),
        Errno::EPERM => "a page table can't be written by a debugger".into(),
        Errno::ENOENT => "there is no such vCPU or breakpoint".into(),
        Errno::ENODATA => "the vCPU has no registers to show".into(),
        Errno::ENOSPC => "too many breakpoints".into(),
        Errno::EINVAL => format!("domain {dom} is not stopped, or not by this debugger"),
        _ => format!("domain {dom} can't be debugged so"),
    };
    failure(errno, why)
}
