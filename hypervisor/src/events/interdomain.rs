//! Pairs of ports: binding, breaking, and sending across.
//!
//! Law: both ends change under both locks, taken in ascending order of key.

use super::{
    EventChannels, EventError,
    channels::{DomainKey, When},
    table::{Peer, State, Table},
};
use guest_abi::addr::{Port, VcpuId};
use std::{
    cmp::Ordering,
    sync::{Arc, MutexGuard, Weak},
};

/// One end's knowledge of the other.
#[derive(Clone)]
pub(super) struct Link {
    channels: Weak<EventChannels>,
    key: DomainKey,
    pub(super) port: Port,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.key, self.port)
    }
}

impl Link {
    fn to(channels: &Arc<EventChannels>, port: Port) -> Self {
        Link {
            channels: Arc::downgrade(channels),
            key: channels.key(),
            port,
        }
    }

    pub(super) fn dom(&self) -> guest_abi::addr::DomId {
        self.key.dom
    }

    /// The other end's table; `None` once its domain is gone.
    pub(super) fn channels(&self) -> Option<Arc<EventChannels>> {
        self.channels.upgrade()
    }

    fn is(&self, channels: &EventChannels, port: Port) -> bool {
        std::ptr::eq(self.channels.as_ptr(), channels) && self.port == port
    }
}

/// The locked tables of two domains, which may be one and the same.
enum Pair<'a> {
    Loopback(MutexGuard<'a, Table>),
    Two {
        local: MutexGuard<'a, Table>,
        remote: MutexGuard<'a, Table>,
    },
}

impl<'a> Pair<'a> {
    fn lock(local: &'a EventChannels, remote: &'a EventChannels) -> Self {
        match local.key().cmp(&remote.key()) {
            Ordering::Equal => Pair::Loopback(local.table()),
            Ordering::Less => {
                let local = local.table();
                Pair::Two {
                    local,
                    remote: remote.table(),
                }
            }
            Ordering::Greater => {
                let remote = remote.table();
                Pair::Two {
                    local: local.table(),
                    remote,
                }
            }
        }
    }

    fn local(&mut self) -> &mut Table {
        match self {
            Pair::Loopback(table) | Pair::Two { local: table, .. } => table,
        }
    }

    fn remote(&mut self) -> &mut Table {
        match self {
            Pair::Loopback(table) | Pair::Two { remote: table, .. } => table,
        }
    }
}

/// Binds a new port of `local` to `remote_port`, which waits for it.
pub(super) fn bind(
    local: &Arc<EventChannels>,
    remote: &Arc<EventChannels>,
    remote_port: Port,
) -> Result<Port, EventError> {
    let mut pair = Pair::lock(local, remote);
    let port = pair.local().free_port()?;
    pair.remote().expect_unbound_for(remote_port, local.key())?;
    let end = State::Interdomain(Link::to(remote, remote_port));
    pair.local().bind(port, end, VcpuId(0));
    pair.remote().slot_mut(remote_port)?.state = State::Interdomain(Link::to(local, port));
    // The remote end may have sent before there was anybody to hear it.
    pair.local().deliver(port, local.sink());
    Ok(port)
}

/// Closes `port`, which was linked to `link` a moment ago.
pub(super) fn close(local: &EventChannels, port: Port, link: &Link) -> Result<(), EventError> {
    let Some(remote) = link.channels() else {
        local.table().release(port, local.sink());
        return Ok(());
    };
    let mut pair = Pair::lock(local, &remote);
    let now = match &pair.local().slot(port)?.state {
        State::Unbound(_) => None,
        State::Interdomain(now) if now.key == link.key => Some(now.port),
        // Closed and bound anew between the locks: it has been closed once.
        _ => return Err(EventError::PeerChanged(port)),
    };
    if let Some(remote_port) = now {
        unlink(pair.remote(), remote_port, local, port);
    }
    pair.local().release(port, local.sink());
    Ok(())
}

/// Makes the far end of a pair wait for the near one again.
fn unlink(remote: &mut Table, remote_port: Port, local: &EventChannels, port: Port) {
    if let Ok(slot) = remote.slot_mut(remote_port)
        && let State::Interdomain(back) = &slot.state
        && back.is(local, port)
    {
        slot.state = State::Unbound(Peer::of(local.key()));
    }
}

/// Raises the event at the far end of `port`, unless the pair is broken by now.
pub(super) fn send(local: &EventChannels, port: Port, link: &Link, when: When) {
    let Some(remote) = link.channels() else {
        return;
    };
    let mut table = remote.table();
    let linked = match table.slot(link.port) {
        Ok(slot) => matches!(&slot.state, State::Interdomain(back) if back.is(local, port)),
        Err(_) => false,
    };
    if linked {
        table.deliver_when(link.port, remote.sink(), when);
    }
}
