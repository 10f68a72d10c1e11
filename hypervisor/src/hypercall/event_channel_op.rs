//! `HYPERVISOR_event_channel_op`: its arguments in, its results out.
//!
//! The operations themselves are methods of [`EventChannels`].

use crate::{
    events::{EventChannels, EventDomains, EventError, PortState, PortStatus},
    guest_access::{GuestAccess, GuestAccessExt},
    mistakes::reason::{self, Reason},
};
use guest_abi::{
    addr::{DomId, GuestVirt, Port, VcpuId},
    errno::Errno,
    event_channel::*,
};
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// One call of the hypercall.
struct Call<'a> {
    caller: &'a Arc<EventChannels>,
    domains: &'a dyn EventDomains,
    guest: &'a dyn GuestAccess,
    arg: GuestVirt,
}

/// `HYPERVISOR_event_channel_op(cmd, arg)`: event channels, the interrupts of a PV guest. A guest has ports
/// 1 to 1023; port 0 is never given out.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `arg`: address of its structure.
///
/// # Operations
/// ## `EVTCHNOP_BIND_INTERDOMAIN` `EvtchnBindInterdomain`
/// Connects to a port that another domain left unbound for the caller, and gives the own end.
///
/// Errors: `ESRCH`: no such domain. `EINVAL`: the port does not wait for the caller. `ENOSPC`: no port is
/// free.
/// ## `EVTCHNOP_BIND_VIRQ` `EvtchnBindVirq`
/// Binds a port to a virtual interrupt. Those of the control domain may be bound, and are never raised.
///
/// Errors: `EINVAL`: no such interrupt, or one that exists once a domain on another vCPU than 0. `ENOENT`:
/// no such vCPU. `EEXIST`: it is bound. `ENOSPC`.
/// ## `EVTCHNOP_BIND_PIRQ` `EvtchnBindPirq`
/// A guest has no physical interrupts.
///
/// Errors: `EPERM`; `EINVAL` for a number that does not exist.
/// ## `EVTCHNOP_CLOSE` `EvtchnClose`
/// Closes a port. The other end of a pair waits again for the caller.
///
/// Errors: `EINVAL`: no such port.
/// ## `EVTCHNOP_SEND` `EvtchnSend`
/// An event for the other end.
///
/// Errors: `EINVAL`: no such port, or one that is neither a pair's nor an IPI's.
/// ## `EVTCHNOP_STATUS` `EvtchnStatus`
/// What a port is bound to.
///
/// Errors: `EINVAL`: no such port. `EPERM`: another domain's. `ESRCH`: no such domain.
/// ## `EVTCHNOP_ALLOC_UNBOUND` `EvtchnAllocUnbound`
/// Makes a port of the caller's to which `remote_dom` may connect.
///
/// Errors: `EPERM`: a port of another domain's. `ESRCH`: no such domain. `ENOSPC`.
/// ## `EVTCHNOP_BIND_IPI` `EvtchnBindIpi`
/// Makes a port that interrupts a vCPU of one's own.
///
/// Errors: `ENOENT`: no such vCPU. `ENOSPC`.
/// ## `EVTCHNOP_BIND_VCPU` `EvtchnBindVcpu`
/// Chooses the vCPU that gets a port's events.
///
/// Errors: `EINVAL`: no such port, or one that belongs to its vCPU. `ENOENT`: no such vCPU.
/// ## `EVTCHNOP_UNMASK` `EvtchnUnmask`
/// Clears the mask, and delivers what is pending.
///
/// Errors: `EINVAL`: no such port.
/// ## `EVTCHNOP_RESET` `EvtchnReset`
/// Closes all ports.
///
/// Errors: `EPERM`: another domain's. `ESRCH`: no such domain.
/// ## `EVTCHNOP_INIT_CONTROL` `EvtchnInitControl`
/// There are no FIFO channels.
///
/// Errors: `ENOSYS`: always.
/// ## `EVTCHNOP_EXPAND_ARRAY` `EvtchnExpandArray`
/// There are no FIFO channels.
///
/// Errors: `ENOSYS`: always.
/// ## `EVTCHNOP_SET_PRIORITY` `EvtchnSetPriority`
/// There are no FIFO channels.
///
/// Errors: `ENOSYS`: always. `EFAULT`.
///
/// # Errors
/// - `ENOSYS`: an unknown operation, and FIFO channels.
/// - `EFAULT`: the structure can't be read, or the answer not written; a new port is closed again then.
/// - `EPERM`, `ESRCH`, `ENOENT`, `EEXIST`, `EINVAL`, `ENOSPC`: see the operations. The hypervisor's log has
///   the reason, at the debug level.
///
/// # Left out
/// - FIFO channels, and physical interrupts.
///
/// # Guards against
/// - XSA-317, XSA-342: ports without a limit.
/// - XSA-221: a port that is used without being checked.
/// - XSA-340, XSA-344: half of a pair.
/// - XSA-47, XSA-107, XSA-188, XSA-358, XSA-359: published before it is initialised, or the reverse.
/// - XSA-419: a domain number that is used again inherits no port.
/// - XSA-391: a storm of events costs one kick until it is seen.
///
/// # Source
/// - Xen: `public/event_channel.h`
/// - Here: `events/channels.rs`, `events/table.rs`, `events/interdomain.rs`, `events/error.rs`
pub fn event_channel_op(
    caller: &Arc<EventChannels>,
    domains: &dyn EventDomains,
    guest: &dyn GuestAccess,
    cmd: u32,
    arg: GuestVirt,
) -> Result<(), Errno> {
    let call = Call {
        caller,
        domains,
        guest,
        arg,
    };
    let outcome = call.dispatch(cmd);
    if let Err(Refusal::Event(error)) = &outcome {
        tracing::debug!(dom = caller.key().dom.0, cmd, %error, "event_channel_op refused");
        reason::leave(Reason::Event(error.clone()));
    }
    outcome.map_err(|refusal| match refusal {
        Refusal::Event(error) => error.errno(),
        Refusal::Errno(errno) => errno,
    })
}

enum Refusal {
    Event(EventError),
    Errno(Errno),
}

impl From<EventError> for Refusal {
    fn from(error: EventError) -> Self {
        Refusal::Event(error)
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::Errno(errno)
    }
}

type Outcome = Result<(), Refusal>;

impl Call<'_> {
    fn dispatch(&self, cmd: u32) -> Outcome {
        match cmd {
            EVTCHNOP_ALLOC_UNBOUND => self.alloc_unbound(),
            EVTCHNOP_BIND_INTERDOMAIN => self.bind_interdomain(),
            EVTCHNOP_BIND_VIRQ => self.bind_virq(),
            EVTCHNOP_BIND_IPI => self.bind_ipi(),
            EVTCHNOP_BIND_PIRQ => {
                let arg: EvtchnBindPirq = self.read()?;
                Err(self.caller.bind_pirq(arg.pirq).into())
            }
            EVTCHNOP_CLOSE => {
                let arg: EvtchnClose = self.read()?;
                Ok(self.caller.close(Port(arg.port))?)
            }
            EVTCHNOP_SEND => {
                let arg: EvtchnSend = self.read()?;
                Ok(self.caller.send(Port(arg.port))?)
            }
            EVTCHNOP_STATUS => self.status(),
            EVTCHNOP_BIND_VCPU => {
                let arg: EvtchnBindVcpu = self.read()?;
                Ok(self.caller.bind_vcpu(Port(arg.port), VcpuId(arg.vcpu))?)
            }
            EVTCHNOP_UNMASK => {
                let arg: EvtchnUnmask = self.read()?;
                Ok(self.caller.unmask(Port(arg.port))?)
            }
            EVTCHNOP_RESET => self.reset(),
            EVTCHNOP_INIT_CONTROL | EVTCHNOP_EXPAND_ARRAY => {
                Err(self.caller.fifo_operation(None).into())
            }
            EVTCHNOP_SET_PRIORITY => {
                let arg: EvtchnSetPriority = self.read()?;
                Err(self.caller.fifo_operation(Some(Port(arg.port))).into())
            }
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    fn read<T: FromBytes + IntoBytes>(&self) -> Result<T, Errno> {
        self.guest.read_obj(self.arg)
    }

    /// Tells the guest of its new port, or takes the port back.
    fn give<T: IntoBytes + Immutable>(&self, port: Port, arg: &T) -> Outcome {
        self.guest.write_obj(self.arg, arg).map_err(|fault| {
            let _ = self.caller.close(port);
            fault.into()
        })
    }

    fn alloc_unbound(&self) -> Outcome {
        let mut arg: EvtchnAllocUnbound = self.read()?;
        let remote = DomId(arg.remote_dom);
        let port = self
            .caller
            .alloc_unbound(self.domains, DomId(arg.dom), remote)?;
        arg.port = port.0;
        self.give(port, &arg)
    }

    fn bind_interdomain(&self) -> Outcome {
        let mut arg: EvtchnBindInterdomain = self.read()?;
        let (remote, remote_port) = (DomId(arg.remote_dom), Port(arg.remote_port));
        let port = self
            .caller
            .bind_interdomain(self.domains, remote, remote_port)?;
        arg.local_port = port.0;
        self.give(port, &arg)
    }

    fn bind_virq(&self) -> Outcome {
        let mut arg: EvtchnBindVirq = self.read()?;
        let port = self.caller.bind_virq(arg.virq, VcpuId(arg.vcpu))?;
        arg.port = port.0;
        self.give(port, &arg)
    }

    fn bind_ipi(&self) -> Outcome {
        let mut arg: EvtchnBindIpi = self.read()?;
        let port = self.caller.bind_ipi(VcpuId(arg.vcpu))?;
        arg.port = port.0;
        self.give(port, &arg)
    }

    fn status(&self) -> Outcome {
        let mut arg: EvtchnStatus = self.read()?;
        let status = self
            .caller
            .status(self.domains, DomId(arg.dom), Port(arg.port))?;
        fill_status(&mut arg, status);
        Ok(self.guest.write_obj(self.arg, &arg)?)
    }

    fn reset(&self) -> Outcome {
        let arg: EvtchnReset = self.read()?;
        let own = self.caller.key().dom;
        let dom = DomId(arg.dom);
        if dom == DomId::SELF || dom == own {
            self.caller.reset();
            return Ok(());
        }
        self.domains
            .events(dom)
            .ok_or(EventError::NoSuchDomain(dom))?;
        Err(EventError::NotPermitted {
            caller: own,
            target: dom,
        }
        .into())
    }
}

fn fill_status(arg: &mut EvtchnStatus, status: PortStatus) {
    arg.vcpu = status.vcpu.0;
    // The union's members shorter than it leave the rest of it as it was.
    let with_dom = |dom: DomId| (arg.u & 0xffff_0000) | u32::from(dom.0);
    match status.state {
        PortState::Closed => arg.status = EVTCHNSTAT_CLOSED,
        PortState::Unbound { remote } => {
            arg.u = with_dom(remote);
            arg.status = EVTCHNSTAT_UNBOUND;
        }
        PortState::Interdomain { remote, port } => {
            arg.u = with_dom(remote);
            arg.u_port = port.0;
            arg.status = EVTCHNSTAT_INTERDOMAIN;
        }
        PortState::Virq { virq } => {
            arg.u = virq;
            arg.status = EVTCHNSTAT_VIRQ;
        }
        PortState::Ipi => arg.status = EVTCHNSTAT_IPI,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        events::{DomainKey, Limits, NotifierSink},
        hypercall::test_guest::TestGuest,
    };

    const ARG: GuestVirt = GuestVirt(0x100);

    struct Alone(Arc<EventChannels>);

    impl EventDomains for Alone {
        fn events(&self, dom: DomId) -> Option<Arc<EventChannels>> {
            (dom == DomId(5)).then(|| self.0.clone())
        }
    }

    fn domain(dom: u16) -> Arc<EventChannels> {
        let limits = Limits {
            vcpus: 2,
            max_port: 100,
            shared_virqs: false,
        };
        let key = DomainKey {
            dom: DomId(dom),
            generation: 1,
        };
        EventChannels::new(key, limits, Arc::new(NotifierSink::new()))
    }

    struct Fixture {
        own: Arc<EventChannels>,
        others: Alone,
        guest: TestGuest,
    }

    impl Fixture {
        fn new() -> Self {
            Fixture {
                own: domain(1),
                others: Alone(domain(5)),
                guest: TestGuest::new(4096),
            }
        }

        fn call<T: FromBytes + IntoBytes + Immutable>(&self, cmd: u32, arg: T) -> Result<T, Errno> {
            self.guest.write_obj(ARG, &arg).unwrap();
            event_channel_op(&self.own, &self.others, &self.guest, cmd, ARG)?;
            self.guest.read_obj(ARG)
        }
    }

    #[test]
    fn each_command_reaches_its_operation() {
        let f = Fixture::new();
        let unbound = EvtchnAllocUnbound {
            dom: DomId::SELF.0,
            remote_dom: 5,
            port: 0,
        };
        assert_eq!(f.call(EVTCHNOP_ALLOC_UNBOUND, unbound).unwrap().port, 1);
        let virq = EvtchnBindVirq {
            virq: 0,
            vcpu: 1,
            port: 0,
        };
        assert_eq!(f.call(EVTCHNOP_BIND_VIRQ, virq).unwrap().port, 2);
        assert_eq!(
            f.call(EVTCHNOP_BIND_IPI, EvtchnBindIpi { vcpu: 1, port: 0 })
                .unwrap()
                .port,
            3
        );
        let far = f
            .others
            .0
            .alloc_unbound(&f.others, DomId::SELF, DomId(1))
            .unwrap();
        let arg = EvtchnBindInterdomain {
            remote_dom: 5,
            remote_port: far.0,
            ..EvtchnBindInterdomain::default()
        };
        assert_eq!(
            f.call(EVTCHNOP_BIND_INTERDOMAIN, arg).unwrap().local_port,
            4
        );
        f.call(EVTCHNOP_SEND, EvtchnSend { port: 4 }).unwrap();
        f.call(EVTCHNOP_BIND_VCPU, EvtchnBindVcpu { port: 4, vcpu: 1 })
            .unwrap();
        f.call(EVTCHNOP_UNMASK, EvtchnUnmask { port: 4 }).unwrap();
        f.call(EVTCHNOP_CLOSE, EvtchnClose { port: 3 }).unwrap();
        f.call(EVTCHNOP_RESET, EvtchnReset { dom: DomId::SELF.0 })
            .unwrap();
        assert_eq!(
            f.call(EVTCHNOP_SEND, EvtchnSend { port: 4 }),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn status_tells_each_kind_of_port() {
        let f = Fixture::new();
        let unbound = f
            .own
            .alloc_unbound(&f.others, DomId::SELF, DomId(5))
            .unwrap();
        let virq = f.own.bind_virq(13, VcpuId(1)).unwrap();
        let ipi = f.own.bind_ipi(VcpuId(1)).unwrap();
        let far = f
            .others
            .0
            .alloc_unbound(&f.others, DomId::SELF, DomId(1))
            .unwrap();
        let pair = f.own.bind_interdomain(&f.others, DomId(5), far).unwrap();
        let status = |port: u32| {
            let arg = EvtchnStatus {
                dom: DomId::SELF.0,
                port,
                ..EvtchnStatus::default()
            };
            let told = f.call(EVTCHNOP_STATUS, arg).unwrap();
            (told.status, told.vcpu, told.u, told.u_port)
        };
        assert_eq!(status(unbound.0), (EVTCHNSTAT_UNBOUND, 0, 5, 0));
        assert_eq!(status(virq.0), (EVTCHNSTAT_VIRQ, 1, 13, 0));
        assert_eq!(status(ipi.0), (EVTCHNSTAT_IPI, 1, 0, 0));
        assert_eq!(status(pair.0), (EVTCHNSTAT_INTERDOMAIN, 0, 5, far.0));
        assert_eq!(status(60), (EVTCHNSTAT_CLOSED, 0, 0, 0));
    }

    #[test]
    fn refusals_carry_xens_numbers() {
        let f = Fixture::new();
        let reset = |dom| f.call(EVTCHNOP_RESET, EvtchnReset { dom });
        assert_eq!(reset(5), Err(Errno::EPERM));
        assert_eq!(reset(6), Err(Errno::ESRCH));
        let init = f.call(EVTCHNOP_INIT_CONTROL, EvtchnInitControl::default());
        assert_eq!(init, Err(Errno::ENOSYS));
        assert_eq!(f.call(14, EvtchnReset { dom: 1 }), Err(Errno::ENOSYS));
        assert_eq!(f.call(u32::MAX, EvtchnReset { dom: 1 }), Err(Errno::ENOSYS));
        let pirq = EvtchnBindPirq {
            pirq: 9,
            flags: 0,
            port: 0,
        };
        assert_eq!(f.call(EVTCHNOP_BIND_PIRQ, pirq), Err(Errno::EPERM));
    }

    #[test]
    fn an_unreadable_argument_changes_nothing() {
        let f = Fixture::new();
        let at = GuestVirt(4092);
        for cmd in 0..14 {
            if cmd == EVTCHNOP_INIT_CONTROL || cmd == EVTCHNOP_EXPAND_ARRAY {
                continue;
            }
            let outcome = event_channel_op(&f.own, &f.others, &f.guest, cmd, GuestVirt(4095));
            assert_eq!(outcome, Err(Errno::EFAULT), "command {cmd}");
        }
        assert_eq!(f.guest.read_obj::<u32>(at), Ok(0));
        assert_eq!(f.own.bind_ipi(VcpuId(0)), Ok(Port(1)));
    }

    #[test]
    fn a_port_that_cannot_be_told_is_taken_back() {
        let f = Fixture::new();
        f.guest
            .write_obj(ARG, &EvtchnBindIpi { vcpu: 1, port: 0 })
            .unwrap();
        f.guest.make_read_only();
        let outcome = event_channel_op(&f.own, &f.others, &f.guest, EVTCHNOP_BIND_IPI, ARG);
        assert_eq!(outcome, Err(Errno::EFAULT));
        assert_eq!(f.own.bind_ipi(VcpuId(0)), Ok(Port(1)));
    }
}
