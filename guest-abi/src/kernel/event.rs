//! Event channels: making ports, and taking events where it is safe.
//!
//! An event of a port sets its pending bit, then (if the port is not masked)
//! the word's selector bit, then the vCPU's `upcall_pending`. [`dispatch`]
//! undoes it in the opposite order, so that an event in between is never
//! lost: clear `upcall_pending`, take the selector, take each pending bit,
//! call its handler.
//!
//! The pending words are the domain's, not the vCPU's: a word may hold bits of
//! ports whose events go to another vCPU. Those are left alone; the vCPU that
//! a port was bound to is remembered here.
//!
//! ```no_run
//! use guest_abi::{addr::{DomId, Port}, errno::Errno, kernel::event};
//!
//! fn ring_domain(peer: DomId) -> Result<(), Errno> {
//!     let port = event::alloc_unbound(peer)?;
//!     event::listen(port, |port: Port| guest_abi::kprintln!("{port:?} rang"))?;
//!     // ... the peer binds to it; then:
//!     event::send(port)?;
//!     event::block();
//!     event::close(port)
//! }
//! ```

use core::{
    arch::asm,
    sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use super::{boot, hypercall, smp, trap};
use crate::{
    addr::{DomId, Port, VcpuId},
    callback::{CALLBACKF_MASK_EVENTS, CALLBACKTYPE_EVENT},
    errno::Errno,
    event_channel::*,
    sched::SCHEDOP_BLOCK,
    xen::{HYPERVISOR_SCHED_OP, HYPERVISOR_XEN_VERSION},
};

/// Called with the port, events masked, on the stack of the interrupted code.
pub type Handler = fn(Port);

const PORTS: usize = EVTCHN_2L_NR_CHANNELS as usize;
static HANDLERS: [AtomicPtr<()>; PORTS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; PORTS];

/// The vCPU that each port's events go to.
static OWNERS: [AtomicU32; PORTS] = [const { AtomicU32::new(0) }; PORTS];

fn owner(port: Port) -> &'static AtomicU32 {
    &OWNERS[port.0 as usize % PORTS]
}

/// Masks every port and registers the event entry point.
///
/// # Errors
/// The hypervisor's.
pub fn install() -> Result<(), Errno> {
    for word in 0..64 {
        mask_word(word).store(u64::MAX, Ordering::SeqCst);
    }
    // SAFETY: the stub is an event entry point.
    unsafe {
        hypercall::callback_register(
            CALLBACKTYPE_EVENT,
            CALLBACKF_MASK_EVENTS,
            trap::event_entry_address(),
        )
    }?;
    Ok(())
}

/// Takes all events that are pending, and those that come meanwhile: unmasks
/// this vCPU, lets the hypervisor deliver, masks again.
pub fn take() {
    // SAFETY: this is a safe point (see `kernel`): `clobber_abi` covers what
    // handlers change, no `nostack` means no live red zone. r12 is kept by
    // handlers and hypercalls. The two bytes are pending and mask.
    unsafe {
        asm!(
            "mov byte ptr [r12 + 1], 0",
            "cmp byte ptr [r12], 0",
            "je 2f",
            "xor edi, edi",
            "xor esi, esi",
            "mov eax, {version}",
            "syscall",
            "2:",
            "mov byte ptr [r12 + 1], 1",
            version = const HYPERVISOR_XEN_VERSION,
            in("r12") smp::vcpu_info(),
            clobber_abi("sysv64"),
        );
    }
}

/// Sleeps until an event is pending, and takes it (`SCHEDOP_block` unmasks
/// and sleeps in one step, so that no event is slept through).
pub fn block() {
    // SAFETY: as in `take`.
    unsafe {
        asm!(
            "mov edi, {block}",
            "xor esi, esi",
            "mov eax, {sched_op}",
            "syscall",
            "mov byte ptr [r12 + 1], 1",
            block = const SCHEDOP_BLOCK,
            sched_op = const HYPERVISOR_SCHED_OP,
            in("r12") smp::vcpu_info(),
            clobber_abi("sysv64"),
        );
    }
}

/// Calls the handlers of all pending, unmasked ports of this vCPU.
pub fn dispatch() {
    let info = smp::vcpu_info();
    // SAFETY: fields of this vCPU's info, which is mapped for good.
    let (upcall, selector) = unsafe {
        (
            AtomicU8::from_ptr(&raw mut (*info).evtchn_upcall_pending),
            AtomicU64::from_ptr(&raw mut (*info).evtchn_pending_sel),
        )
    };
    let vcpu = smp::current();
    while upcall.swap(0, Ordering::SeqCst) != 0 {
        let mut words = selector.swap(0, Ordering::SeqCst);
        while words != 0 {
            dispatch_word(vcpu, words.trailing_zeros() as usize);
            words &= words - 1;
        }
    }
}

fn dispatch_word(vcpu: u32, word: usize) {
    let masked = mask_word(word).load(Ordering::SeqCst);
    let mut ready = pending_word(word).load(Ordering::SeqCst) & !masked;
    while ready != 0 {
        let bit = ready.trailing_zeros();
        ready &= ready - 1;
        let index = word * 64 + bit as usize;
        if owner(port(index)).load(Ordering::SeqCst) != vcpu {
            continue;
        }
        pending_word(word).fetch_and(!(1 << bit), Ordering::SeqCst);
        let handler = HANDLERS[index].load(Ordering::Acquire);
        if !handler.is_null() {
            // SAFETY: only `listen` stores there, and only `Handler`s.
            let handler: Handler = unsafe { core::mem::transmute(handler) };
            handler(port(index));
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // below 4096
fn port(index: usize) -> Port {
    Port(index as u32)
}

fn slot(port: Port) -> (usize, u64) {
    let index = port.0 as usize % PORTS;
    (index / 64, 1 << (index % 64))
}

fn pending_word(word: usize) -> &'static AtomicU64 {
    // SAFETY: a word of the shared info page, mapped for good, accessed
    // atomically only.
    unsafe { AtomicU64::from_ptr((&raw mut (*boot::shared_info()).evtchn_pending[word]).cast()) }
}

fn mask_word(word: usize) -> &'static AtomicU64 {
    // SAFETY: as in `pending_word`.
    unsafe { AtomicU64::from_ptr((&raw mut (*boot::shared_info()).evtchn_mask[word]).cast()) }
}

/// Sets the port's handler and unmasks it.
///
/// # Errors
/// The hypervisor's, for a port that is not open.
pub fn listen(port: Port, handler: Handler) -> Result<(), Errno> {
    HANDLERS[port.0 as usize % PORTS].store(handler as *mut (), Ordering::Release);
    unmask(port)
}

/// Masks a port: its events stay pending.
pub fn mask(port: Port) {
    let (word, bit) = slot(port);
    mask_word(word).fetch_or(bit, Ordering::SeqCst);
}

/// Unmasks a port, by the hypercall that also delivers what is pending.
///
/// # Errors
/// The hypervisor's.
pub fn unmask(port: Port) -> Result<(), Errno> {
    let mut argument = EvtchnUnmask { port: port.0 };
    // SAFETY: the command's type.
    unsafe { hypercall::event_channel_op(EVTCHNOP_UNMASK, &mut argument) }?;
    Ok(())
}

/// Whether the port's pending bit is set.
#[must_use]
pub fn is_pending(port: Port) -> bool {
    let (word, bit) = slot(port);
    pending_word(word).load(Ordering::SeqCst) & bit != 0
}

/// Clears the port's pending bit; returns whether it was set.
pub fn clear(port: Port) -> bool {
    let (word, bit) = slot(port);
    pending_word(word).fetch_and(!bit, Ordering::SeqCst) & bit != 0
}

/// `EVTCHNOP_alloc_unbound` for this domain.
///
/// # Errors
/// The hypervisor's.
pub fn alloc_unbound(remote: DomId) -> Result<Port, Errno> {
    let mut argument = EvtchnAllocUnbound {
        dom: boot::SELF,
        remote_dom: remote.0,
        port: 0,
    };
    // SAFETY: the command's type.
    unsafe { hypercall::event_channel_op(EVTCHNOP_ALLOC_UNBOUND, &mut argument) }?;
    Ok(Port(argument.port))
}

/// `EVTCHNOP_bind_interdomain`.
///
/// # Errors
/// The hypervisor's.
pub fn bind_interdomain(remote: DomId, remote_port: Port) -> Result<Port, Errno> {
    let mut argument = EvtchnBindInterdomain {
        remote_dom: remote.0,
        remote_port: remote_port.0,
        ..Default::default()
    };
    // SAFETY: the command's type.
    unsafe { hypercall::event_channel_op(EVTCHNOP_BIND_INTERDOMAIN, &mut argument) }?;
    Ok(Port(argument.local_port))
}

/// `EVTCHNOP_bind_virq`.
///
/// # Errors
/// The hypervisor's; `EEXIST` if it is bound already.
pub fn bind_virq(virq: u32, vcpu: VcpuId) -> Result<Port, Errno> {
    let mut argument = EvtchnBindVirq {
        virq,
        vcpu: vcpu.0,
        port: 0,
    };
    // SAFETY: the command's type.
    unsafe { hypercall::event_channel_op(EVTCHNOP_BIND_VIRQ, &mut argument) }?;
    owner(Port(argument.port)).store(vcpu.0, Ordering::SeqCst);
    Ok(Port(argument.port))
}

/// `EVTCHNOP_bind_ipi`: a port that interrupts `vcpu`.
///
/// # Errors
/// The hypervisor's.
pub fn bind_ipi(vcpu: VcpuId) -> Result<Port, Errno> {
    let mut argument = EvtchnBindIpi {
        vcpu: vcpu.0,
        port: 0,
    };
    // SAFETY: the command's type.
    unsafe { hypercall::event_channel_op(EVTCHNOP_BIND_IPI, &mut argument) }?;
    owner(Port(argument.port)).store(vcpu.0, Ordering::SeqCst);
    Ok(Port(argument.port))
}

/// `EVTCHNOP_bind_vcpu`: the port's events go to `vcpu` from now on.
///
/// # Errors
/// The hypervisor's.
pub fn bind_vcpu(port: Port, vcpu: VcpuId) -> Result<(), Errno> {
    let mut argument = EvtchnBindVcpu {
        port: port.0,
        vcpu: vcpu.0,
    };
    // SAFETY: the command's type.
    unsafe { hypercall::event_channel_op(EVTCHNOP_BIND_VCPU, &mut argument) }?;
    owner(port).store(vcpu.0, Ordering::SeqCst);
    Ok(())
}

/// `EVTCHNOP_send`.
///
/// # Errors
/// The hypervisor's.
pub fn send(port: Port) -> Result<(), Errno> {
    let mut argument = EvtchnSend { port: port.0 };
    // SAFETY: the command's type.
    unsafe { hypercall::event_channel_op(EVTCHNOP_SEND, &mut argument) }?;
    Ok(())
}

/// `EVTCHNOP_close`; the handler is forgotten.
///
/// # Errors
/// The hypervisor's.
pub fn close(port: Port) -> Result<(), Errno> {
    HANDLERS[port.0 as usize % PORTS].store(core::ptr::null_mut(), Ordering::Release);
    owner(port).store(0, Ordering::SeqCst);
    let mut argument = EvtchnClose { port: port.0 };
    // SAFETY: the command's type.
    unsafe { hypercall::event_channel_op(EVTCHNOP_CLOSE, &mut argument) }?;
    Ok(())
}

/// `EVTCHNOP_status` of a port of this domain.
///
/// # Errors
/// The hypervisor's.
pub fn status(port: Port) -> Result<EvtchnStatus, Errno> {
    let mut argument = EvtchnStatus {
        dom: boot::SELF,
        port: port.0,
        ..Default::default()
    };
    // SAFETY: the command's type.
    unsafe { hypercall::event_channel_op(EVTCHNOP_STATUS, &mut argument) }?;
    Ok(argument)
}
