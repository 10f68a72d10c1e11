//! From a change of the tree to messages in outboxes and lines in the journal.

use std::{collections::BTreeSet, sync::Arc};

use guest_abi::errno::Errno;

use super::{Core, who_is};
use crate::xenstore::{
    change::Change,
    peers::{EventKey, PeerId},
    perms::{Access, Perms},
    tree::{Effect, EffectKind},
    watch::{Watch, WatchId},
    wire::{Message, Op},
};

impl Core {
    /// Tells watchers and the journal of what has happened to the tree.
    pub(super) fn publish(&mut self, effects: &[Effect]) {
        self.note_effects(effects);
        for effect in effects {
            let who = |peer| who_is(&self.domains, peer);
            for fired in self.watches.fired(effect, &self.tree, who) {
                self.send_event(&fired.watch, &fired.path);
            }
        }
    }

    /// Notes, in order, removals and the present state of what was set. A node
    /// that was set and is gone again is told by the removal alone.
    fn note_effects(&mut self, effects: &[Effect]) {
        let mut noted = BTreeSet::new();
        for effect in effects {
            if let EffectKind::Removed { .. } = effect.kind {
                noted.clear();
                self.changes.push(Change::Removed(effect.path.clone()));
                continue;
            }
            let Some(node) = self.tree.find(&effect.path) else {
                continue;
            };
            if noted.insert(&effect.path) {
                self.changes.push(Change::Node {
                    path: effect.path.clone(),
                    value: node.value.clone(),
                    perms: node.perms.clone(),
                });
            }
        }
    }

    /// Fires the watches on one of the daemon's own events.
    pub(super) fn fire_special(&mut self, special: &str) {
        let Some(perms) = self.specials.get(special).cloned() else {
            return;
        };
        let watches: Vec<Arc<Watch>> = self.watches.on_special(special).cloned().collect();
        for watch in watches {
            if perms.allows(&self.who(watch.peer), Access::Read) {
                self.send_event(&watch, special);
            }
        }
    }

    /// Puts an event into the outbox of the watch's owner.
    pub(super) fn send_event(&mut self, watch: &Watch, path: &str) {
        if !self.queue_event(watch, path) {
            // The path is too long to tell; the watch's own path fits, as it
            // came in a message that had room for both strings.
            self.queue_event(watch, &watch.path.full);
        }
        self.shrink_outbox(watch.peer);
    }

    fn queue_event(&mut self, watch: &Watch, path: &str) -> bool {
        let told = watch.path.spell(path, watch.peer.dom());
        let payload = [told.as_bytes(), &watch.token].join(&0);
        let payload = [&payload[..], &[0]].concat();
        let Ok(message) = Message::new(Op::WatchEvent, 0, 0, payload) else {
            return false;
        };
        let Some(peer) = self.peers.get_mut(&watch.peer) else {
            return true;
        };
        let key = EventKey {
            watch: watch.id,
            path: path.into(),
        };
        if let Some(item) = peer.outbox.push_event(message.to_bytes(), key) {
            let item = item.clone();
            self.note_for(watch.peer, |dom| Change::Queued { dom, item });
        }
        true
    }

    /// Melts events until the outbox is within its limit again.
    fn shrink_outbox(&mut self, peer: PeerId) {
        while let Some(watch) = self.overflowing_watch(peer) {
            let found = self.watches.of(peer).find(|other| other.id == watch);
            let found = found.cloned();
            tracing::debug!(
                ?peer,
                path = found.as_ref().map_or("?", |watch| &watch.path.full),
                "events that the client does not read are melted into one"
            );
            self.drop_events(peer, watch);
            if let Some(watch) = found {
                self.queue_event(&watch, &watch.path.full);
            }
        }
    }

    fn overflowing_watch(&self, peer: PeerId) -> Option<WatchId> {
        let outbox = &self.peers.get(&peer)?.outbox;
        if outbox.event_bytes() <= self.limits.event_bytes {
            return None;
        }
        outbox.noisiest_watch()
    }

    /// Takes back events of a watch that its owner has not seen yet.
    pub(super) fn drop_events(&mut self, peer: PeerId, watch: WatchId) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let seqs = state.outbox.events_of(watch);
        if !seqs.is_empty() {
            state.outbox.drop_items(&seqs);
            self.note_for(peer, |dom| Change::Dropped { dom, seqs });
        }
    }

    pub(super) fn special_perms(&self, peer: PeerId, name: &str) -> Result<Perms, Errno> {
        let perms = self.specials.get(name).ok_or(Errno::ENOENT)?;
        if perms.allows(&self.who(peer), Access::Read) {
            Ok(perms.clone())
        } else {
            Err(Errno::EACCES)
        }
    }

    pub(super) fn set_special_perms(
        &mut self,
        peer: PeerId,
        name: &str,
        perms: Perms,
    ) -> Result<(), Errno> {
        if !self.who(peer).is_privileged() {
            return Err(Errno::EACCES);
        }
        let slot = self.specials.get_mut(name).ok_or(Errno::ENOENT)?;
        *slot = perms.clone();
        self.changes.push(Change::Special {
            name: name.into(),
            perms,
        });
        Ok(())
    }
}
