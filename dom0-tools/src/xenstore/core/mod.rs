//! The daemon's whole state, and the one way in: a message of a client.
//!
//! Law: no file, socket or guest memory is touched here. A message changes the
//! state, puts messages into outboxes, and leaves a list of [`Change`]s that
//! says all of what has to survive a restart. Whatever the message, nothing
//! panics and nothing grows without a limit.

mod control;
mod dispatch;
mod domains;
mod events;
mod restore;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use guest_abi::addr::DomId;

use super::{
    change::Change,
    fairness::Credits,
    hypervisor::Hypervisor,
    peers::{Peer, PeerId},
    perms::{Perms, Who},
    quota::Limits,
    tree::Tree,
    watch::Watches,
    wire::Message,
};

pub use domains::Domain;

/// Fires when a domain has been introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// Fires when a domain has shut down or is gone.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";

/// The state of the daemon.
#[derive(Debug)]
pub struct Core {
    tree: Tree,
    watches: Watches,
    specials: BTreeMap<Arc<str>, Perms>,
    peers: BTreeMap<PeerId, Peer>,
    domains: BTreeMap<DomId, Domain>,
    generations: BTreeMap<DomId, u64>,
    limits: Limits,
    credits: Credits,
    changes: Vec<Change>,
    last_socket: u64,
    log_requests: bool,
}

/// Whether a client's next request may be taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Take it.
    Open,
    /// Not before the client has read some of its replies.
    UntilItReads,
    /// Not before this time has passed.
    After(Duration),
}

impl Default for Core {
    fn default() -> Core {
        Core::new()
    }
}

impl Core {
    /// A daemon that holds the nodes every installation has.
    #[must_use]
    pub fn new() -> Core {
        let private = Perms::private(DomId::DOM0);
        let specials = [INTRODUCE_DOMAIN, RELEASE_DOMAIN];
        Core {
            tree: Tree::new(),
            watches: Watches::default(),
            specials: specials
                .into_iter()
                .map(|name| (name.into(), private.clone()))
                .collect(),
            peers: BTreeMap::new(),
            domains: BTreeMap::new(),
            generations: BTreeMap::new(),
            limits: Limits::default(),
            credits: Credits::default(),
            changes: Vec::new(),
            last_socket: 0,
            log_requests: false,
        }
    }

    /// The tree.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The limits, for changing.
    pub fn limits_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }

    /// A new client on the socket.
    pub fn connect(&mut self) -> PeerId {
        self.last_socket += 1;
        let peer = PeerId::Socket(self.last_socket);
        self.peers.insert(peer, Peer::default());
        peer
    }

    /// A client on the socket is gone, with its watches and transactions.
    pub fn disconnect(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
        self.watches.remove_all(peer);
    }

    /// The client's state, if it is connected.
    pub fn peer_mut(&mut self, peer: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(&peer)
    }

    /// The client's state, if it is connected.
    #[must_use]
    pub fn peer(&self, peer: PeerId) -> Option<&Peer> {
        self.peers.get(&peer)
    }

    /// All connected clients.
    pub fn peers(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        self.peers.iter().map(|(id, peer)| (*id, peer))
    }

    /// Whether the client's next request may be taken now.
    pub fn gate(&mut self, peer: PeerId, now: Instant) -> Gate {
        let waiting = self
            .peers
            .get(&peer)
            .map_or(0, |peer| peer.outbox.replies());
        if waiting >= self.limits.outstanding {
            return Gate::UntilItReads;
        }
        match self.credits.wait(peer.dom(), now) {
            Some(time) => Gate::After(time),
            None => Gate::Open,
        }
    }

    /// Does what a message asks, and puts the reply into the client's outbox.
    pub fn handle(
        &mut self,
        hypervisor: &mut dyn Hypervisor,
        now: Instant,
        peer: PeerId,
        message: &Message,
    ) {
        if self.peers.contains_key(&peer) {
            self.dispatch(hypervisor, now, peer, message);
        }
    }

    /// What has to survive a restart, since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    fn who(&self, peer: PeerId) -> Who {
        who_is(&self.domains, peer)
    }

    /// Notes a change that matters only if the client is a guest: sockets
    /// don't survive a restart.
    fn note_for(&mut self, peer: PeerId, change: impl FnOnce(DomId) -> Change) {
        if let PeerId::Guest(dom) = peer {
            self.changes.push(change(dom));
        }
    }
}

fn who_is(domains: &BTreeMap<DomId, Domain>, peer: PeerId) -> Who {
    let dom = peer.dom();
    Who {
        dom,
        target: domains.get(&dom).and_then(|domain| domain.target),
    }
}

#[cfg(test)]
mod tests;
