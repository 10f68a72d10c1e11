//! vCPUs that sleep in `SCHEDOP_poll`.
//!
//! A polling vCPU sleeps until one of its ports becomes pending, masked or
//! not. As in Xen, a vCPU that names one port is woken by that port only; one
//! that names several, or none, by every port of its domain, and looks again.

use guest_abi::addr::{Port, VcpuId};

/// The most ports that one poll may name.
pub(super) const MAX_POLLED: usize = 128;

/// What [`EventChannels::poll`](super::EventChannels::poll) found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollOutcome {
    /// An event is there: the hypercall returns 0 at once.
    Ready,
    /// The vCPU is registered; it sleeps until it is woken or times out, and
    /// then calls [`end_poll`](super::EventChannels::end_poll).
    Sleep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interest {
    Any,
    One(Port),
}

/// The polling vCPUs of a domain.
#[derive(Debug, Default)]
pub(super) struct Pollers(Vec<(VcpuId, Interest)>);

impl Pollers {
    pub(super) fn add(&mut self, vcpu: VcpuId, ports: &[Port]) {
        self.remove(vcpu);
        let interest = match ports {
            [one] => Interest::One(*one),
            _ => Interest::Any,
        };
        self.0.push((vcpu, interest));
    }

    pub(super) fn remove(&mut self, vcpu: VcpuId) {
        self.0.retain(|(sleeper, _)| *sleeper != vcpu);
    }

    /// Takes out those whom an event on `port` wakes.
    pub(super) fn take(&mut self, port: Port) -> impl Iterator<Item = VcpuId> {
        self.0
            .extract_if(.., move |(_, interest)| match interest {
                Interest::Any => true,
                Interest::One(wanted) => *wanted == port,
            })
            .map(|(vcpu, _)| vcpu)
    }
}
