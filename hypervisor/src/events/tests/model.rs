//! Random operations on two domains against a model that knows only what a
//! port is. Refused or not, and the state of each port afterwards, must agree.

use super::*;
use guest_abi::xen::virq_is_per_vcpu;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Op {
    Alloc { dom: u16, remote: u16 },
    Bind { dom: u16, remote: u16, port: u32 },
    Virq { dom: u16, virq: u32, vcpu: u32 },
    Ipi { dom: u16, vcpu: u32 },
    Close { dom: u16, port: u32 },
    Send { dom: u16, port: u32 },
    Move { dom: u16, port: u32, vcpu: u32 },
    Reset { dom: u16 },
}

fn operations() -> impl Strategy<Value = Op> {
    let dom = || 1u16..3;
    let port = || 0u32..9;
    prop_oneof![
        4 => (dom(), 1u16..4).prop_map(|(dom, remote)| Op::Alloc { dom, remote }),
        4 => (dom(), dom(), port()).prop_map(|(dom, remote, port)| Op::Bind { dom, remote, port }),
        2 => (dom(), 0u32..4, 0u32..3).prop_map(|(dom, virq, vcpu)| Op::Virq { dom, virq, vcpu }),
        1 => (dom(), 0u32..5).prop_map(|(dom, vcpu)| Op::Ipi { dom, vcpu }),
        3 => (dom(), port()).prop_map(|(dom, port)| Op::Close { dom, port }),
        4 => (dom(), port()).prop_map(|(dom, port)| Op::Send { dom, port }),
        2 => (dom(), port(), 0u32..5).prop_map(|(dom, port, vcpu)| Op::Move { dom, port, vcpu }),
        1 => dom().prop_map(|dom| Op::Reset { dom }),
    ]
}

const LAST: u32 = 6;

#[derive(Default)]
struct Model {
    ports: BTreeMap<(u16, u32), (PortState, u32)>,
    pending: std::collections::BTreeSet<(u16, u32)>,
}

impl Model {
    fn free(&self, dom: u16) -> Option<u32> {
        (1..=LAST).find(|port| !self.ports.contains_key(&(dom, *port)))
    }

    fn put(&mut self, dom: u16, state: PortState, vcpu: u32) -> Option<u32> {
        let port = self.free(dom)?;
        self.ports.insert((dom, port), (state, vcpu));
        Some(port)
    }

    fn bind(&mut self, dom: u16, remote: u16, far: u32) -> Option<u32> {
        let port = self.free(dom)?;
        let waiting = self.ports.get_mut(&(remote, far))?;
        if waiting.0 != (PortState::Unbound { remote: DomId(dom) }) {
            return None;
        }
        waiting.0 = PortState::Interdomain {
            remote: DomId(dom),
            port: Port(port),
        };
        let end = PortState::Interdomain {
            remote: DomId(remote),
            port: Port(far),
        };
        self.ports.insert((dom, port), (end, 0));
        self.pending.insert((dom, port));
        Some(port)
    }

    fn close(&mut self, dom: u16, port: u32) -> Option<u32> {
        let (state, _) = self.ports.remove(&(dom, port))?;
        self.pending.remove(&(dom, port));
        if let PortState::Interdomain { remote, port } = state
            && let Some(far) = self.ports.get_mut(&(remote.0, port.0))
        {
            far.0 = PortState::Unbound { remote: DomId(dom) };
        }
        Some(0)
    }

    fn send(&mut self, dom: u16, port: u32) -> Option<u32> {
        match self.ports.get(&(dom, port))?.0 {
            PortState::Interdomain { remote, port } => self.pending.insert((remote.0, port.0)),
            PortState::Ipi => self.pending.insert((dom, port)),
            PortState::Unbound { .. } => true,
            PortState::Closed | PortState::Virq { .. } => return None,
        };
        Some(0)
    }

    fn virq(&mut self, dom: u16, virq: u32, vcpu: u32) -> Option<u32> {
        // A global one is found by its number alone: it may have moved.
        let taken = self.ports.iter().any(|((at, _), (state, on))| {
            *at == dom
                && *state == PortState::Virq { virq }
                && (!virq_is_per_vcpu(virq) || *on == vcpu)
        });
        if taken || (!virq_is_per_vcpu(virq) && vcpu != 0) {
            return None;
        }
        self.put(dom, PortState::Virq { virq }, vcpu)
    }

    fn shift(&mut self, dom: u16, port: u32, vcpu: u32) -> Option<u32> {
        let (state, on) = self.ports.get_mut(&(dom, port)).filter(|_| vcpu < 4)?;
        match state {
            PortState::Virq { virq } if virq_is_per_vcpu(*virq) => None,
            PortState::Ipi => None,
            _ => {
                *on = vcpu;
                Some(0)
            }
        }
    }

    fn apply(&mut self, op: &Op) -> Option<u32> {
        match *op {
            Op::Alloc { dom, remote } => self.put(
                dom,
                PortState::Unbound {
                    remote: DomId(remote),
                },
                0,
            ),
            Op::Bind { dom, remote, port } => self.bind(dom, remote, port),
            Op::Virq { dom, virq, vcpu } => self.virq(dom, virq, vcpu),
            Op::Ipi { dom, vcpu } if vcpu < 4 => self.put(dom, PortState::Ipi, vcpu),
            Op::Ipi { .. } => None,
            Op::Close { dom, port } => self.close(dom, port),
            Op::Send { dom, port } => self.send(dom, port),
            Op::Move { dom, port, vcpu } => self.shift(dom, port, vcpu),
            Op::Reset { dom } => {
                for port in 1..=LAST {
                    let _ = self.close(dom, port);
                }
                Some(0)
            }
        }
    }
}

fn apply(world: &World, guests: &[Guest; 2], op: &Op) -> Option<u32> {
    let at = |dom: u16| &guests[usize::from(dom - 1)].events;
    let zero = |()| 0;
    let number = |port: Port| port.0;
    match *op {
        Op::Alloc { dom, remote } => at(dom)
            .alloc_unbound(world, SELF, DomId(remote))
            .map(number)
            .ok(),
        Op::Bind { dom, remote, port } => at(dom)
            .bind_interdomain(world, DomId(remote), Port(port))
            .map(number)
            .ok(),
        Op::Virq { dom, virq, vcpu } => at(dom).bind_virq(virq, VcpuId(vcpu)).map(number).ok(),
        Op::Ipi { dom, vcpu } => at(dom).bind_ipi(VcpuId(vcpu)).map(number).ok(),
        Op::Close { dom, port } => at(dom).close(Port(port)).map(zero).ok(),
        Op::Send { dom, port } => at(dom).send(Port(port)).map(zero).ok(),
        Op::Move { dom, port, vcpu } => at(dom).bind_vcpu(Port(port), VcpuId(vcpu)).map(zero).ok(),
        Op::Reset { dom } => {
            at(dom).reset();
            Some(0)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_tables_agree_with_the_model(ops in prop::collection::vec(operations(), 1..120)) {
        let guests = [Guest::new(1, 1, LAST), Guest::new(2, 1, LAST)];
        let world = World::of(&[&guests[0].events, &guests[1].events]);
        let mut model = Model::default();
        for op in &ops {
            prop_assert_eq!(apply(&world, &guests, op), model.apply(op), "{:?}", op);
            for (guest, dom) in guests.iter().zip(1..) {
                for port in 0..=LAST + 2 {
                    let status = guest.events.status(&world, SELF, Port(port)).unwrap();
                    let expected = model.ports.get(&(dom, port)).copied();
                    let (state, vcpu) = expected.unwrap_or((PortState::Closed, 0));
                    prop_assert_eq!((status.state, status.vcpu), (state, VcpuId(vcpu)));
                    let pending = model.pending.contains(&(dom, port));
                    prop_assert_eq!(guest.pending_bit(Port(port)), pending);
                }
            }
        }
    }
}
