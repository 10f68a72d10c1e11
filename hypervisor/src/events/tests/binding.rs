//! Who may bind what, and what closing leaves behind.

use super::*;
use guest_abi::errno::Errno;

const VIRQ_TIMER: u32 = 0;
const VIRQ_CONSOLE: u32 = 2;
const VIRQ_DOM_EXC: u32 = 3;

fn errno<T: std::fmt::Debug>(outcome: Result<T, EventError>) -> Errno {
    outcome.unwrap_err().errno()
}

#[test]
fn the_lowest_free_port_is_given_first_and_never_port_0() {
    let guest = Guest::new(1, 1, 1023);
    let ports: Vec<_> = (0..3)
        .map(|_| guest.events.bind_ipi(VcpuId(0)).unwrap())
        .collect();
    assert_eq!(ports, [Port(1), Port(2), Port(3)]);
    guest.events.close(Port(2)).unwrap();
    assert_eq!(guest.events.bind_ipi(VcpuId(1)), Ok(Port(2)));
    assert_eq!(guest.events.bind_ipi(VcpuId(1)), Ok(Port(4)));
    assert_eq!(errno(guest.events.close(Port(0))), Errno::EINVAL);
}

#[test]
fn only_dom0_allocates_for_others() {
    let (a, b, dom0) = (Guest::new(1, 1, 1023), Guest::new(2, 1, 1023), Dom0::new());
    let world = World::of(&[&a.events, &b.events, &dom0.events]);
    let port = dom0.events.alloc_unbound(&world, DomId(1), SELF).unwrap();
    let status = a.events.status(&world, SELF, port).unwrap();
    assert_eq!(status.state, PortState::Unbound { remote: DomId(0) });
    assert_eq!(
        errno(a.events.alloc_unbound(&world, DomId(2), DomId(1))),
        Errno::EPERM
    );
    assert_eq!(
        errno(a.events.alloc_unbound(&world, DomId(9), DomId(1))),
        Errno::ESRCH
    );
    assert_eq!(
        errno(a.events.status(&world, DomId(2), Port(1))),
        Errno::EPERM
    );
    assert!(dom0.events.status(&world, DomId(2), Port(1)).is_ok());
    assert!(a.events.alloc_unbound(&world, DomId(1), DomId(9)).is_ok());
}

#[test]
fn both_ends_of_a_pair_name_each_other() {
    let (a, b) = (Guest::new(1, 1, 1023), Guest::new(2, 1, 1023));
    let world = World::of(&[&a.events, &b.events]);
    b.events.bind_ipi(VcpuId(0)).unwrap();
    let (pa, pb) = pair(&world, &a.events, &b.events);
    let at = |guest: &Guest, port| guest.events.status(&world, SELF, port).unwrap().state;
    assert_eq!(
        at(&a, pa),
        PortState::Interdomain {
            remote: DomId(2),
            port: pb
        }
    );
    assert_eq!(
        at(&b, pb),
        PortState::Interdomain {
            remote: DomId(1),
            port: pa
        }
    );
    b.events.close(pb).unwrap();
    assert_eq!(at(&a, pa), PortState::Unbound { remote: DomId(2) });
    assert_eq!(at(&b, pb), PortState::Closed);
    assert_eq!(a.events.send(pa), Ok(()));
    assert_eq!(errno(b.events.send(pb)), Errno::EINVAL);
    let again = b.events.bind_interdomain(&world, DomId(1), pa).unwrap();
    assert_eq!(
        at(&a, pa),
        PortState::Interdomain {
            remote: DomId(2),
            port: again
        }
    );
}

#[test]
fn a_domain_can_pair_ports_with_itself() {
    let a = Guest::new(1, 1, 1023);
    let world = World::of(&[&a.events]);
    let (one, other) = pair(&world, &a.events, &a.events);
    assert_ne!(one, other);
    a.take_events(0);
    a.events.send(one).unwrap();
    assert_eq!(a.take_events(0), [other]);
    a.events.send(other).unwrap();
    assert_eq!(a.take_events(0), [one]);
    a.events.close(one).unwrap();
    let left = a.events.status(&world, SELF, other).unwrap().state;
    assert_eq!(left, PortState::Unbound { remote: DomId(1) });
}

#[test]
fn only_the_named_domain_binds_an_unbound_port() {
    let (a, b, c) = (
        Guest::new(1, 1, 1023),
        Guest::new(2, 1, 1023),
        Guest::new(3, 1, 1023),
    );
    let world = World::of(&[&a.events, &b.events, &c.events]);
    let port = a.events.alloc_unbound(&world, SELF, DomId(2)).unwrap();
    let bind = |guest: &Guest, dom, port| guest.events.bind_interdomain(&world, dom, port);
    assert_eq!(errno(bind(&c, DomId(1), port)), Errno::EINVAL);
    assert_eq!(errno(bind(&b, DomId(1), Port(7))), Errno::EINVAL);
    assert_eq!(errno(bind(&b, DomId(1), Port(0))), Errno::EINVAL);
    assert_eq!(errno(bind(&b, DomId(1), Port(u32::MAX))), Errno::EINVAL);
    assert_eq!(errno(bind(&b, DomId(8), port)), Errno::ESRCH);
    assert_eq!(bind(&b, DomId(1), port), Ok(Port(1)));
    assert_eq!(errno(bind(&b, DomId(1), port)), Errno::EINVAL);
}

#[test]
fn virqs_are_bound_once_and_global_ones_on_vcpu_0() {
    let a = Guest::new(1, 1, 1023);
    let bind = |virq, vcpu| a.events.bind_virq(virq, VcpuId(vcpu));
    let timer = bind(VIRQ_TIMER, 1).unwrap();
    assert_eq!(errno(bind(VIRQ_TIMER, 1)), Errno::EEXIST);
    assert!(bind(VIRQ_TIMER, 2).is_ok());
    assert_eq!(errno(bind(VIRQ_CONSOLE, 1)), Errno::EINVAL);
    assert!(bind(VIRQ_CONSOLE, 0).is_ok());
    assert_eq!(errno(bind(VIRQ_TIMER, 4)), Errno::ENOENT);
    assert_eq!(errno(bind(24, 0)), Errno::EINVAL);
    assert_eq!(errno(bind(u32::MAX, 0)), Errno::EINVAL);
    a.events.close(timer).unwrap();
    assert_eq!(bind(VIRQ_TIMER, 1), Ok(timer));
}

#[test]
fn each_process_of_dom0_hears_a_global_virq() {
    let dom0 = Dom0::new();
    let heard = [Arc::new(Heard::default()), Arc::new(Heard::default())];
    let ports: Vec<_> = heard
        .iter()
        .map(|heard| {
            let port = dom0.events.bind_virq(VIRQ_DOM_EXC, VcpuId(0)).unwrap();
            dom0.sink.attach(port, heard.clone());
            port
        })
        .collect();
    dom0.events.send_global_virq(VIRQ_DOM_EXC);
    dom0.events.close(ports[0]).unwrap();
    dom0.events.send_global_virq(VIRQ_DOM_EXC);
    assert_eq!(*heard[0].0.lock().unwrap(), [ports[0]]);
    assert_eq!(*heard[1].0.lock().unwrap(), [ports[1], ports[1]]);
}

#[test]
fn ports_move_between_vcpus_unless_they_belong_to_one() {
    let a = Guest::new(1, 1, 1023);
    let world = World::of(&[&a.events]);
    let console = a.events.bind_virq(VIRQ_CONSOLE, VcpuId(0)).unwrap();
    let timer = a.events.bind_virq(VIRQ_TIMER, VcpuId(0)).unwrap();
    let ipi = a.events.bind_ipi(VcpuId(0)).unwrap();
    let unbound = a.events.alloc_unbound(&world, SELF, DomId(0)).unwrap();
    let moved = |port| a.events.bind_vcpu(port, VcpuId(3));
    assert_eq!(moved(console), Ok(()));
    assert_eq!(moved(unbound), Ok(()));
    assert_eq!(errno(moved(timer)), Errno::EINVAL);
    assert_eq!(errno(moved(ipi)), Errno::EINVAL);
    assert_eq!(errno(moved(Port(60))), Errno::EINVAL);
    assert_eq!(errno(a.events.bind_vcpu(console, VcpuId(4))), Errno::ENOENT);
    a.events.send_global_virq(VIRQ_CONSOLE);
    assert_eq!(a.take_events(3), [console]);
    a.events.close(console).unwrap();
    let again = a.events.bind_virq(VIRQ_CONSOLE, VcpuId(0)).unwrap();
    assert_eq!(
        a.events.status(&world, SELF, again).unwrap().vcpu,
        VcpuId(0)
    );
}

#[test]
fn absent_features_answer_as_absent() {
    let a = Guest::new(1, 1, 1023);
    let ipi = a.events.bind_ipi(VcpuId(0)).unwrap();
    assert_eq!(a.events.fifo_operation(None).errno(), Errno::ENOSYS);
    assert_eq!(a.events.fifo_operation(Some(ipi)).errno(), Errno::ENOSYS);
    assert_eq!(
        a.events.fifo_operation(Some(Port(5000))).errno(),
        Errno::EINVAL
    );
    assert_eq!(a.events.bind_pirq(9).errno(), Errno::EPERM);
    assert_eq!(a.events.bind_pirq(u32::MAX).errno(), Errno::EINVAL);
}
