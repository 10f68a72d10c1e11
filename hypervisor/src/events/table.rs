//! The ports of one domain, as plain data: no locks, no other domains.

use super::{
    EventError, EventSink,
    channels::{DomainKey, When},
    interdomain::Link,
    poll::Pollers,
};
use guest_abi::addr::{DomId, Port, VcpuId};
use std::collections::HashMap;

/// The table grows by this many ports. A port past its end is an error where
/// a free one within it is not.
const STEP: usize = 64;

/// What a port is, as `EVTCHNOP_status` tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// Not in use.
    Closed,
    /// Waits for `remote` to bind it.
    Unbound {
        /// Who may bind it.
        remote: DomId,
    },
    /// One end of a pair.
    Interdomain {
        /// The domain of the other end.
        remote: DomId,
        /// The port there.
        port: Port,
    },
    /// Raised by the hypervisor.
    Virq {
        /// The VIRQ's number.
        virq: u32,
    },
    /// Raised by the domain's own vCPUs.
    Ipi,
}

/// A port and the vCPU that it notifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortStatus {
    /// What it is.
    pub state: PortState,
    /// Whom it notifies.
    pub vcpu: VcpuId,
}

/// The domain that may bind an unbound port. If a domain of that number was
/// there when the port was made, then it is that one and not a later domain
/// that got its number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) dom: DomId,
    pub(super) generation: Option<u64>,
}

impl Peer {
    pub(super) fn of(key: DomainKey) -> Self {
        Peer {
            dom: key.dom,
            generation: Some(key.generation),
        }
    }
    fn is(self, key: DomainKey) -> bool {
        self.dom == key.dom && self.generation.is_none_or(|it| it == key.generation)
    }
}

#[derive(Debug, Clone)]
pub(super) enum State {
    Free,
    /// Port 0, which is never given out.
    Reserved,
    Unbound(Peer),
    Interdomain(Link),
    Virq(u32),
    Ipi,
}

impl State {
    pub(super) fn name(&self) -> &'static str {
        match self {
            State::Free => "closed",
            State::Reserved => "reserved",
            State::Unbound(_) => "unbound",
            State::Interdomain(_) => "interdomain",
            State::Virq(_) => "a VIRQ",
            State::Ipi => "an IPI",
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) vcpu: VcpuId,
}

const FREE: Slot = Slot {
    state: State::Free,
    vcpu: VcpuId(0),
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Table {
    dom: DomId,
    slots: Vec<Slot>,
    /// No port below this is free.
    free_from: usize,
    limit: u32,
    pub(super) dying: bool,
    virqs: HashMap<(u32, VcpuId), Vec<Port>>,
    pub(super) pollers: Pollers,
}

impl Table {
    /// A table that can hold ports 1 to `limit - 1`.
    pub(super) fn new(dom: DomId, limit: u32) -> Self {
        let mut slots = vec![FREE; STEP];
        slots[0].state = State::Reserved;
        Table {
            dom,
            slots,
            free_from: 1,
            limit,
            dying: false,
            virqs: HashMap::new(),
            pollers: Pollers::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn slot(&self, port: Port) -> Result<&Slot, EventError> {
        let index = usize::try_from(port.0).ok();
        index
            .and_then(|index| self.slots.get(index))
            .ok_or_else(|| self.no_such(port))
    }

    pub(super) fn slot_mut(&mut self, port: Port) -> Result<&mut Slot, EventError> {
        let error = self.no_such(port);
        let index = usize::try_from(port.0).ok();
        index
            .and_then(|index| self.slots.get_mut(index))
            .ok_or(error)
    }

    fn no_such(&self, port: Port) -> EventError {
        EventError::NoSuchPort {
            dom: self.dom,
            port,
            ports: self.slots.len(),
        }
    }

    /// The lowest free port, which stays free until [`bind`](Self::bind).
    pub(super) fn free_port(&mut self) -> Result<Port, EventError> {
        if self.dying {
            return Err(EventError::Dying(self.dom));
        }
        let taken = |slot: &Slot| !matches!(slot.state, State::Free);
        let from = self.free_from.min(self.slots.len());
        let index = from
            + self.slots[from..]
                .iter()
                .take_while(|slot| taken(slot))
                .count();
        self.free_from = index;
        let port = u32::try_from(index).unwrap_or(u32::MAX);
        if port >= self.limit {
            return Err(EventError::NoFreePort {
                dom: self.dom,
                limit: self.limit,
            });
        }
        if index == self.slots.len() {
            self.slots.resize(index + STEP, FREE);
        }
        Ok(Port(port))
    }

    /// Gives a port from [`free_port`](Self::free_port) its state.
    pub(super) fn bind(&mut self, port: Port, state: State, vcpu: VcpuId) {
        if let State::Virq(virq) = state {
            self.virqs.entry((virq, vcpu)).or_default().push(port);
        }
        if let Ok(slot) = self.slot_mut(port) {
            *slot = Slot { state, vcpu };
        }
    }

    /// Frees a port and the pending bit behind it.
    pub(super) fn release(&mut self, port: Port, sink: &dyn EventSink) {
        let Ok(slot) = self.slot_mut(port) else {
            return;
        };
        let old = std::mem::replace(slot, FREE);
        if let State::Virq(virq) = old.state {
            self.virqs.retain(|(bound, _), ports| {
                if *bound == virq {
                    ports.retain(|it| *it != port);
                }
                !ports.is_empty()
            });
        }
        sink.clear_pending(port);
        self.free_from = self
            .free_from
            .min(usize::try_from(port.0).unwrap_or(usize::MAX));
    }

    /// The ports of `virq` on `vcpu` (0 for a global one).
    pub(super) fn virq_ports(&self, virq: u32, vcpu: VcpuId) -> Vec<Port> {
        self.virqs.get(&(virq, vcpu)).cloned().unwrap_or_default()
    }

    /// Raises the event of a bound port.
    pub(super) fn deliver(&mut self, port: Port, sink: &dyn EventSink) {
        self.deliver_when(port, sink, When::Now);
    }

    /// Raises the event of a bound port, now or soon.
    pub(super) fn deliver_when(&mut self, port: Port, sink: &dyn EventSink, when: When) {
        let Ok(slot) = self.slot(port) else { return };
        let vcpu = slot.vcpu;
        let marked = match when {
            When::Now => sink.set_pending(port, vcpu),
            When::Soon => sink.set_pending_soon(port, vcpu),
        };
        if marked {
            for sleeper in self.pollers.take(port) {
                sink.wake_poller(sleeper);
            }
        }
    }

    /// Fails unless `port` waits for the domain `caller` to bind it.
    pub(super) fn expect_unbound_for(
        &self,
        port: Port,
        caller: DomainKey,
    ) -> Result<(), EventError> {
        match &self.slot(port)?.state {
            State::Unbound(peer) if peer.is(caller) => Ok(()),
            State::Unbound(_) => Err(EventError::NotForCaller {
                dom: self.dom,
                port,
                caller: caller.dom,
            }),
            other => Err(EventError::WrongState {
                port,
                state: other.name(),
                needed: "an unbound one",
            }),
        }
    }

    pub(super) fn status(&self, port: Port) -> Result<PortStatus, EventError> {
        let slot = self.slot(port)?;
        let state = match &slot.state {
            State::Free | State::Reserved => PortState::Closed,
            State::Unbound(peer) => PortState::Unbound { remote: peer.dom },
            State::Interdomain(link) => PortState::Interdomain {
                remote: link.dom(),
                port: link.port,
            },
            State::Virq(virq) => PortState::Virq { virq: *virq },
            State::Ipi => PortState::Ipi,
        };
        Ok(PortStatus {
            state,
            vcpu: slot.vcpu,
        })
    }
}
