//! The operations on a domain's ports, one method for each `EVTCHNOP_*`.

use super::{
    EventDomains, EventError, EventSink, PollOutcome, interdomain,
    poll::MAX_POLLED,
    table::{Peer, PortStatus, State, Table},
};
use guest_abi::{
    addr::{DomId, Port, VcpuId},
    xen::{NR_VIRQS, virq_is_per_vcpu},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Physical interrupts that exist on the machine that a guest is shown.
const NR_PIRQS: u32 = 256;

/// A domain, told apart from earlier ones of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainKey {
    /// The number.
    pub dom: DomId,
    /// Counts the domains that had it.
    pub generation: u64,
}

/// When the receiver of an event is to hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At once: a vCPU that runs is interrupted.
    Now,
    /// When it next looks, or at once if it waits for events.
    Soon,
}

/// What a domain may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Its vCPUs are numbered below this.
    pub vcpus: u32,
    /// Its highest port (`max_event_channels`; 1023 unless told), as far as
    /// its sink can tell so many apart.
    pub max_port: u32,
    /// Several ports may be bound to one VIRQ, and all of them are raised.
    /// For Dom0, which is many processes that know nothing of each other.
    pub shared_virqs: bool,
}

/// The event channels of one domain.
pub struct EventChannels {
    key: DomainKey,
    limits: Limits,
    sink: Arc<dyn EventSink>,
    table: Mutex<Table>,
}

impl EventChannels {
    /// A domain without ports. Its events go to `sink`.
    #[must_use]
    pub fn new(key: DomainKey, limits: Limits, sink: Arc<dyn EventSink>) -> Arc<Self> {
        let limit = limits.max_port.saturating_add(1).min(sink.max_ports());
        let table = Mutex::new(Table::new(key.dom, limit));
        Arc::new(EventChannels {
            key,
            limits,
            sink,
            table,
        })
    }

    /// Which domain this is.
    #[must_use]
    pub fn key(&self) -> DomainKey {
        self.key
    }

    pub(super) fn sink(&self) -> &dyn EventSink {
        &*self.sink
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `DOMID_SELF` or a domain's number, as a number.
    fn resolve(&self, dom: DomId) -> DomId {
        if dom == DomId::SELF {
            self.key.dom
        } else {
            dom
        }
    }

    /// The table of `dom`, which the caller may change: its own, or Dom0 any.
    fn target(
        self: &Arc<Self>,
        domains: &dyn EventDomains,
        dom: DomId,
    ) -> Result<Arc<Self>, EventError> {
        let dom = self.resolve(dom);
        if dom == self.key.dom {
            return Ok(self.clone());
        }
        let target = domains.events(dom).ok_or(EventError::NoSuchDomain(dom))?;
        if self.key.dom != DomId::DOM0 {
            return Err(EventError::NotPermitted {
                caller: self.key.dom,
                target: dom,
            });
        }
        Ok(target)
    }

    fn check_vcpu(&self, vcpu: VcpuId) -> Result<(), EventError> {
        if vcpu.0 < self.limits.vcpus {
            return Ok(());
        }
        Err(EventError::NoSuchVcpu {
            dom: self.key.dom,
            vcpu,
        })
    }

    /// `EVTCHNOP_alloc_unbound`: a new port of `dom` that `remote` may bind.
    ///
    /// # Errors
    /// `ESRCH` for an unknown `dom`, `EPERM` unless it is the caller or the
    /// caller is Dom0, `ENOSPC` with all ports taken, `EINVAL` for a dying one.
    pub fn alloc_unbound(
        self: &Arc<Self>,
        domains: &dyn EventDomains,
        dom: DomId,
        remote: DomId,
    ) -> Result<Port, EventError> {
        let target = self.target(domains, dom)?;
        let remote = self.resolve(remote);
        let peer = if remote == self.key.dom {
            Peer::of(self.key)
        } else {
            let generation = domains.events(remote).map(|it| it.key.generation);
            Peer {
                dom: remote,
                generation,
            }
        };
        let mut table = target.table();
        let port = table.free_port()?;
        table.bind(port, State::Unbound(peer), VcpuId(0));
        Ok(port)
    }

    /// `EVTCHNOP_bind_interdomain`: a new port, paired with a waiting one.
    ///
    /// # Errors
    /// `ESRCH` for an unknown domain, `ENOSPC` with all ports taken, `EINVAL`
    /// unless the remote port waits for the caller.
    pub fn bind_interdomain(
        self: &Arc<Self>,
        domains: &dyn EventDomains,
        remote: DomId,
        remote_port: Port,
    ) -> Result<Port, EventError> {
        let remote = self.resolve(remote);
        let other = if remote == self.key.dom {
            self.clone()
        } else {
            domains
                .events(remote)
                .ok_or(EventError::NoSuchDomain(remote))?
        };
        interdomain::bind(self, &other, remote_port)
    }

    /// `EVTCHNOP_bind_virq`. As in Xen, a guest may bind any VIRQ; those that
    /// are for the control domain are never raised for it.
    ///
    /// # Errors
    /// `EINVAL` for no VIRQ and for a global one on a vCPU other than 0,
    /// `ENOENT` for no vCPU, `EEXIST` if it is bound, `ENOSPC` with all ports
    /// taken.
    pub fn bind_virq(&self, virq: u32, vcpu: VcpuId) -> Result<Port, EventError> {
        if virq >= NR_VIRQS {
            return Err(EventError::NoSuchVirq(virq));
        }
        if !virq_is_per_vcpu(virq) && vcpu.0 != 0 {
            return Err(EventError::GlobalVirq { virq, vcpu });
        }
        self.check_vcpu(vcpu)?;
        let mut table = self.table();
        let bound = table.virq_ports(virq, vcpu).first().copied();
        if let Some(port) = bound.filter(|_| !self.limits.shared_virqs) {
            return Err(EventError::VirqInUse { virq, vcpu, port });
        }
        let port = table.free_port()?;
        table.bind(port, State::Virq(virq), vcpu);
        Ok(port)
    }

    /// `EVTCHNOP_bind_ipi`.
    ///
    /// # Errors
    /// `ENOENT` for no vCPU, `ENOSPC` with all ports taken.
    pub fn bind_ipi(&self, vcpu: VcpuId) -> Result<Port, EventError> {
        self.check_vcpu(vcpu)?;
        let mut table = self.table();
        let port = table.free_port()?;
        table.bind(port, State::Ipi, vcpu);
        Ok(port)
    }

    /// `EVTCHNOP_bind_pirq`, as Xen answers a domain to which no physical
    /// interrupt was given.
    #[must_use]
    pub fn bind_pirq(&self, pirq: u32) -> EventError {
        if pirq < NR_PIRQS {
            EventError::PirqNotPermitted(pirq)
        } else {
            EventError::NoSuchPirq(pirq)
        }
    }

    /// `EVTCHNOP_close`. The other end of a pair becomes unbound again.
    ///
    /// # Errors
    /// `EINVAL` for a port that is not in use.
    pub fn close(&self, port: Port) -> Result<(), EventError> {
        let link = {
            let mut table = self.table();
            match &table.slot(port)?.state {
                state @ (State::Free | State::Reserved) => {
                    let state = state.name();
                    return Err(EventError::WrongState {
                        port,
                        state,
                        needed: "a bound one",
                    });
                }
                State::Interdomain(link) => link.clone(),
                State::Unbound(_) | State::Virq(_) | State::Ipi => {
                    table.release(port, self.sink());
                    return Ok(());
                }
            }
        };
        interdomain::close(self, port, &link)
    }

    /// `EVTCHNOP_send`. To an unbound port it succeeds and does nothing.
    ///
    /// # Errors
    /// `EINVAL` for a port that is neither one end of a pair, nor an IPI, nor
    /// unbound.
    pub fn send(&self, port: Port) -> Result<(), EventError> {
        self.send_when(port, When::Now)
    }

    /// As [`send`](Self::send); a vCPU that runs is interrupted for it only if
    /// it is to hear now.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_when(&self, port: Port, when: When) -> Result<(), EventError> {
        let link = {
            let mut table = self.table();
            match &table.slot(port)?.state {
                State::Interdomain(link) => link.clone(),
                State::Ipi => {
                    table.deliver(port, self.sink());
                    return Ok(());
                }
                State::Unbound(_) => return Ok(()),
                state => {
                    let needed = "a pair's end or an IPI";
                    return Err(EventError::WrongState {
                        port,
                        state: state.name(),
                        needed,
                    });
                }
            }
        };
        interdomain::send(self, port, &link, when);
        Ok(())
    }

    /// `EVTCHNOP_status` of a port of `dom`.
    ///
    /// # Errors
    /// `ESRCH` for an unknown domain, `EPERM` unless it is the caller or the
    /// caller is Dom0, `EINVAL` for a port past the table's end.
    pub fn status(
        self: &Arc<Self>,
        domains: &dyn EventDomains,
        dom: DomId,
        port: Port,
    ) -> Result<PortStatus, EventError> {
        self.target(domains, dom)?.table().status(port)
    }

    /// `EVTCHNOP_bind_vcpu`: whom a port notifies.
    ///
    /// # Errors
    /// `ENOENT` for no vCPU, `EINVAL` for a port that is not in use or belongs
    /// to one vCPU.
    pub fn bind_vcpu(&self, port: Port, vcpu: VcpuId) -> Result<(), EventError> {
        self.check_vcpu(vcpu)?;
        let mut table = self.table();
        let slot = table.slot_mut(port)?;
        match slot.state {
            State::Unbound(_) | State::Interdomain(_) => {}
            State::Virq(virq) if !virq_is_per_vcpu(virq) => {}
            State::Virq(_) | State::Ipi => return Err(EventError::PerVcpu(port)),
            State::Free | State::Reserved => {
                let state = slot.state.name();
                return Err(EventError::WrongState {
                    port,
                    state,
                    needed: "a bound one",
                });
            }
        }
        slot.vcpu = vcpu;
        Ok(())
    }

    /// `EVTCHNOP_unmask`.
    ///
    /// # Errors
    /// `EINVAL` for a port past the table's end.
    pub fn unmask(&self, port: Port) -> Result<(), EventError> {
        let table = self.table();
        let slot = table.slot(port)?;
        if !matches!(slot.state, State::Free | State::Reserved) {
            self.sink.unmask(port, slot.vcpu);
        }
        Ok(())
    }

    /// `EVTCHNOP_reset` of the caller's own domain: closes every port.
    pub fn reset(&self) {
        let ports = self.table().len();
        for port in 0..u32::try_from(ports).unwrap_or(u32::MAX) {
            // Refused for ports that are closed already, which is all right.
            let _ = self.close(Port(port));
        }
    }

    /// `EVTCHNOP_init_control`, `expand_array` and (for an existing port)
    /// `set_priority`: only 2-level channels are offered.
    #[must_use]
    pub fn fifo_operation(&self, port: Option<Port>) -> EventError {
        match port.map(|port| self.table().slot(port).map(|_| ())) {
            Some(Err(error)) => error,
            _ => EventError::NotOffered,
        }
    }

    /// Closes every port for ever: the domain is being destroyed. What other
    /// domains had bound to it becomes unbound there, and no later domain of
    /// the same number can bind that.
    pub fn destroy(&self) {
        self.table().dying = true;
        self.reset();
    }

    /// Raises a per-vCPU VIRQ, if it is bound.
    pub fn send_virq(&self, vcpu: VcpuId, virq: u32) {
        let mut table = self.table();
        for port in table.virq_ports(virq, vcpu) {
            table.deliver(port, self.sink());
        }
    }

    /// Raises a global VIRQ, if it is bound. Those of the control domain
    /// (`VIRQ_DOM_EXC`, `VIRQ_CONSOLE`, ...) are to be raised on Dom0's table.
    pub fn send_global_virq(&self, virq: u32) {
        self.send_virq(VcpuId(0), virq);
    }

    /// The first half of `SCHEDOP_poll`: looks, and registers `vcpu` if there
    /// is nothing to see. A wake-up between this and the sleep reaches the
    /// vCPU through [`EventSink::wake_poller`], which therefore has to stick.
    ///
    /// # Errors
    /// `EINVAL` for more than 128 ports, or one past the table's end.
    pub fn poll(&self, vcpu: VcpuId, ports: &[Port]) -> Result<PollOutcome, EventError> {
        if ports.len() > MAX_POLLED {
            return Err(EventError::PollTooLong(ports.len()));
        }
        let mut table = self.table();
        if self.sink.deliverable(vcpu) {
            return Ok(PollOutcome::Ready);
        }
        for port in ports {
            table.slot(*port)?;
            if self.sink.is_pending(*port) {
                return Ok(PollOutcome::Ready);
            }
        }
        table.pollers.add(vcpu, ports);
        Ok(PollOutcome::Sleep)
    }

    /// The second half of `SCHEDOP_poll`: `vcpu` woke up, for whatever reason.
    pub fn end_poll(&self, vcpu: VcpuId) {
        self.table().pollers.remove(vcpu);
    }
}
