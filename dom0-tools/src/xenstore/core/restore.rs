//! The state as changes, and back.
//!
//! Law: [`Core::snapshot`] and [`Core::restore`] are each other's inverse for
//! all that survives a restart: everything except the clients on the socket
//! and the contents of guests' transactions. A transaction that was open stays
//! open, and fails with `EAGAIN` at its end, which its guest is prepared for.

use std::time::SystemTime;

use super::{Core, Domain, domains::connection_changes};
use crate::xenstore::{
    change::Change, path::Path, peers::PeerId, ring::Stream, transaction::Transaction, watch::Watch,
};

impl Core {
    /// Changes that lead from an empty daemon to this one.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (path, node) in self.tree.root().walk(&Path::root()) {
            let path = Path::absolute(if path.is_empty() { "/" } else { &path });
            changes.extend(path.ok().map(|path| Change::Node {
                path,
                value: node.value.clone(),
                perms: node.perms.clone(),
            }));
        }
        for (name, perms) in &self.specials {
            changes.push(Change::Special {
                name: name.clone(),
                perms: perms.clone(),
            });
        }
        for (name, value) in self.limits.list() {
            let name = name.into();
            changes.push(Change::Limit { name, value });
        }
        for (dom, generation) in &self.generations {
            changes.push(Change::Seen {
                dom: *dom,
                generation: *generation,
            });
        }
        for (dom, domain) in &self.domains {
            changes.extend(connection_changes(*dom, domain));
            self.snapshot_guest(PeerId::Guest(*dom), &mut changes);
        }
        changes
    }

    fn snapshot_guest(&self, id: PeerId, changes: &mut Vec<Change>) {
        let dom = id.dom();
        changes.extend(self.watches.of(id).map(|watch| Change::Watched {
            dom,
            id: watch.id,
            path: watch.path.clone(),
            depth: watch.depth,
            token: watch.token.clone(),
        }));
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let open = peer.transactions.keys();
        changes.extend(open.map(|id| Change::Started { dom, id: *id }));
        let waiting = peer.outbox.items().cloned();
        changes.extend(waiting.map(|item| Change::Queued { dom, item }));
    }

    /// The daemon that these changes lead to.
    #[must_use]
    pub fn restored(changes: impl IntoIterator<Item = Change>) -> Core {
        let mut core = Core::new();
        let age = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let age = u64::try_from(age.as_nanos()).unwrap_or_default();
        core.tree.skip_generations_to(age);
        for change in changes {
            core.restore(change);
        }
        // What a lost transaction answers from is the tree as it is now.
        let lost = Transaction::lost(&core.tree);
        for peer in core.peers.values_mut() {
            for transaction in peer.transactions.values_mut() {
                *transaction = lost.clone();
            }
        }
        core
    }

    fn restore(&mut self, change: Change) {
        match change {
            Change::Node { path, value, perms } => {
                if self.tree.restore(&path, value, perms).is_err() {
                    tracing::error!(%path, "the journal has a node without a parent");
                }
            }
            Change::Removed(path) => self.tree.forget(&path),
            Change::Special { name, perms } => drop(self.specials.insert(name, perms)),
            Change::Limit { name, value } => {
                if let Some(limit) = self.limits.by_name(&name) {
                    *limit = value;
                }
            }
            Change::Seen { dom, generation } => drop(self.generations.insert(dom, generation)),
            Change::Gone(dom) => self.forget_number(dom),
            Change::Introduced { dom, mfn, port } => {
                let domain = Domain {
                    mfn,
                    port,
                    target: None,
                    shutdown_told: false,
                    stream: Stream::default(),
                };
                self.disconnect_guest(dom);
                self.connect_guest(dom, domain);
            }
            Change::Disconnected(dom) => self.disconnect_guest(dom),
            Change::Target { dom, target } => self.restore_domain(dom, |domain| {
                domain.target = Some(target);
            }),
            Change::Shutdown { dom, told } => self.restore_domain(dom, |domain| {
                domain.shutdown_told = told;
            }),
            Change::Progress {
                dom,
                req_cons,
                input,
            } => self.restore_domain(dom, |domain| {
                domain.stream.req_cons = req_cons;
                domain.stream.input = input;
            }),
            Change::Ring { dom, stream } => {
                self.restore_domain(dom, |domain| domain.stream = stream);
            }
            other => self.restore_guest(other),
        }
    }

    fn restore_domain(&mut self, dom: guest_abi::addr::DomId, change: impl FnOnce(&mut Domain)) {
        if let Some(domain) = self.domains.get_mut(&dom) {
            change(domain);
        }
    }

    /// Changes of what a guest has going on with the daemon.
    fn restore_guest(&mut self, change: Change) {
        match change {
            Change::Watched {
                dom,
                id,
                path,
                depth,
                token,
            } => {
                self.watches.restore(Watch {
                    id,
                    peer: PeerId::Guest(dom),
                    path,
                    depth,
                    token,
                });
            }
            Change::Unwatched { dom, path, token } => {
                let _ = self.watches.remove(PeerId::Guest(dom), &path, &token);
            }
            Change::Started { dom, id } => {
                if let Some(peer) = self.peers.get_mut(&PeerId::Guest(dom)) {
                    peer.last_transaction = id;
                    peer.transactions.insert(id, Transaction::lost(&self.tree));
                }
            }
            Change::Ended { dom, id } => {
                if let Some(peer) = self.peers.get_mut(&PeerId::Guest(dom)) {
                    peer.transactions.remove(&id);
                }
            }
            Change::Reset(dom) => {
                let id = PeerId::Guest(dom);
                self.watches.remove_all(id);
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.transactions.clear();
                }
            }
            Change::Queued { dom, item } => {
                if let Some(peer) = self.peers.get_mut(&PeerId::Guest(dom)) {
                    peer.outbox.restore(item);
                }
            }
            Change::Dropped { dom, seqs } => {
                if let Some(peer) = self.peers.get_mut(&PeerId::Guest(dom)) {
                    peer.outbox.drop_items(&seqs);
                }
            }
            Change::Staged { dom, count } => {
                let peer = self.peers.get_mut(&PeerId::Guest(dom));
                let domain = self.domains.get_mut(&dom);
                let (Some(peer), Some(domain)) = (peer, domain) else {
                    return;
                };
                for item in (0..count).map_while(|_| peer.outbox.pop()) {
                    domain.stream.restage(&item.bytes);
                }
            }
            _ => {}
        }
    }
}
