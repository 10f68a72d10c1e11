//! Event channels without a VM: guests are pages of memory and counters.

mod binding;
mod delivery;
mod model;
mod races;
mod security;

use super::*;
use crate::shared_words::{SharedWords, test_memory::Pages};
use guest_abi::addr::{MachineAddr, Mfn};
use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

pub(super) const PENDING: u64 = 2048;
pub(super) const MASK: u64 = 2560;
pub(super) const SELF: DomId = DomId::SELF;

/// Counts the kicks and ended polls of four vCPUs.
#[derive(Default)]
pub(super) struct Counter {
    kicks: [AtomicU32; 4],
    ended: [AtomicU32; 4],
    nudges: [AtomicU32; 4],
    hurries: [AtomicU32; 4],
}

impl VcpuWaker for Counter {
    fn kick(&self, vcpu: VcpuId) {
        self.kicks[vcpu.0 as usize].fetch_add(1, Ordering::SeqCst);
    }
    fn nudge(&self, vcpu: VcpuId) {
        self.nudges[vcpu.0 as usize].fetch_add(1, Ordering::SeqCst);
    }
    fn hurry(&self, vcpu: VcpuId) {
        self.hurries[vcpu.0 as usize].fetch_add(1, Ordering::SeqCst);
    }
    fn end_poll(&self, vcpu: VcpuId) {
        self.ended[vcpu.0 as usize].fetch_add(1, Ordering::SeqCst);
    }
}

/// A guest with `shared_info` in frame 0 and room in frame 1.
pub(super) struct Guest {
    pub(super) events: Arc<EventChannels>,
    pub(super) sink: Arc<TwoLevel>,
    pub(super) memory: Arc<Pages>,
    counter: Arc<Counter>,
}

impl Guest {
    pub(super) fn new(dom: u16, generation: u64, max_port: u32) -> Self {
        let memory = Arc::new(Pages::new(2));
        let counter = Arc::new(Counter::default());
        let sink = Arc::new(TwoLevel::new(memory.clone(), Mfn(0), 4, counter.clone()));
        let key = DomainKey {
            dom: DomId(dom),
            generation,
        };
        let limits = Limits {
            vcpus: 4,
            max_port,
            shared_virqs: false,
        };
        let events = EventChannels::new(key, limits, sink.clone());
        Guest {
            events,
            sink,
            memory,
            counter,
        }
    }

    pub(super) fn pending_bit(&self, port: Port) -> bool {
        self.memory
            .load_u64(MachineAddr(PENDING + u64::from(port.0 / 64) * 8))
            >> (port.0 % 64)
            & 1
            == 1
    }

    pub(super) fn mask_bit(&self, port: Port) {
        let at = MachineAddr(MASK + u64::from(port.0 / 64) * 8);
        self.memory.fetch_or_u64(at, 1 << (port.0 % 64));
    }

    /// What the guest's upcall does: takes all that is pending and unmasked.
    pub(super) fn take_events(&self, vcpu: u32) -> Vec<Port> {
        let info = u64::from(vcpu) * 64;
        let mut taken = Vec::new();
        self.memory.store_u8(MachineAddr(info), 0);
        let selected = self.memory.swap_u64(MachineAddr(info + 8), 0);
        for word in (0..64).filter(|word| selected >> word & 1 == 1) {
            let mask = self.memory.load_u64(MachineAddr(MASK + word * 8));
            let pending = self
                .memory
                .fetch_and_u64(MachineAddr(PENDING + word * 8), mask);
            let bits = (0..64).filter(|bit| pending & !mask & (1 << bit) != 0);
            taken.extend(bits.map(|bit| Port(u32::try_from(word).unwrap() * 64 + bit)));
        }
        taken
    }

    pub(super) fn kicks(&self, vcpu: usize) -> u32 {
        self.counter.kicks[vcpu].load(Ordering::SeqCst)
    }

    pub(super) fn nudges(&self, vcpu: usize) -> u32 {
        self.counter.nudges[vcpu].load(Ordering::SeqCst)
    }

    pub(super) fn hurries(&self, vcpu: usize) -> u32 {
        self.counter.hurries[vcpu].load(Ordering::SeqCst)
    }

    pub(super) fn polls_ended(&self, vcpu: usize) -> u32 {
        self.counter.ended[vcpu].load(Ordering::SeqCst)
    }
}

/// Dom0 with a notifier that remembers.
pub(super) struct Dom0 {
    pub(super) events: Arc<EventChannels>,
    pub(super) sink: Arc<NotifierSink>,
}

#[derive(Default)]
pub(super) struct Heard(pub(super) Mutex<Vec<Port>>);

impl PortNotifier for Heard {
    fn notify(&self, port: Port) {
        self.0.lock().unwrap().push(port);
    }
}

impl Dom0 {
    pub(super) fn new() -> Self {
        let sink = Arc::new(NotifierSink::new());
        let key = DomainKey {
            dom: DomId(0),
            generation: 0,
        };
        let limits = Limits {
            vcpus: 1,
            max_port: 4095,
            shared_virqs: true,
        };
        Dom0 {
            events: EventChannels::new(key, limits, sink.clone()),
            sink,
        }
    }
}

/// The domains that exist in a test.
#[derive(Default)]
pub(super) struct World(pub(super) Mutex<HashMap<DomId, Arc<EventChannels>>>);

impl World {
    pub(super) fn of(domains: &[&Arc<EventChannels>]) -> Self {
        let world = World::default();
        for events in domains {
            world.put(events);
        }
        world
    }
    pub(super) fn put(&self, events: &Arc<EventChannels>) {
        self.0
            .lock()
            .unwrap()
            .insert(events.key().dom, events.clone());
    }
}

impl EventDomains for World {
    fn events(&self, dom: DomId) -> Option<Arc<EventChannels>> {
        self.0.lock().unwrap().get(&dom).cloned()
    }
}

/// Pairs a new port of `a` with a new one of `b`: `(port of a, port of b)`.
pub(super) fn pair(world: &World, a: &Arc<EventChannels>, b: &Arc<EventChannels>) -> (Port, Port) {
    let waiting = a.alloc_unbound(world, SELF, b.key().dom).unwrap();
    let bound = b.bind_interdomain(world, a.key().dom, waiting).unwrap();
    (waiting, bound)
}

/// Binds that many IPIs of a fresh guest and gives the last port.
pub(super) fn bind_ipis(guest: &Guest, count: u32, vcpu: VcpuId) -> Port {
    for port in 1..=count {
        assert_eq!(guest.events.bind_ipi(vcpu), Ok(Port(port)));
    }
    Port(count)
}
