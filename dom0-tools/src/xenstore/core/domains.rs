//! Domains: who is connected, who is gone.
//!
//! Law: a domid is only a name; the hypervisor's generation tells whose. The
//! daemon remembers the generation of each domid that it has met in a request.
//! When a domid has no domain any more, or another one, everything that
//! carries it is forgotten before anything new is done with it (XSA-322).

use guest_abi::{
    addr::{DomId, Mfn, Port},
    errno::Errno,
};

use super::{Core, INTRODUCE_DOMAIN, RELEASE_DOMAIN, dispatch::one};
use crate::xenstore::{
    change::Change,
    hypervisor::{DomainState, Hypervisor},
    peers::{Peer, PeerId},
    perms::{Perms, parse_decimal, parse_domid},
    ring::Stream,
    wire::strings,
};

/// A connected domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its ring's frame.
    pub mfn: Mfn,
    /// Its end of the event channel.
    pub port: Port,
    /// The domain that it acts for.
    pub target: Option<DomId>,
    /// Its shutdown has been told.
    pub shutdown_told: bool,
    /// Its ring.
    pub stream: Stream,
}

impl Core {
    /// All connected domains.
    pub fn domains(&self) -> impl Iterator<Item = (DomId, &Domain)> {
        self.domains.iter().map(|(dom, domain)| (*dom, domain))
    }

    /// Whether the domain is connected; Dom0 always is.
    pub(super) fn is_introduced(&self, dom: DomId) -> bool {
        dom == DomId::DOM0 || self.domains.contains_key(&dom)
    }

    /// Asks for the domain that has this number now, and forgets the one that
    /// had it before.
    fn meet(&mut self, hypervisor: &mut dyn Hypervisor, dom: DomId) -> Option<DomainState> {
        let known = self.generations.get(&dom).copied();
        let state = hypervisor.domain(dom).unwrap_or_else(|errno| {
            tracing::error!(%dom, %errno, "the hypervisor does not tell of the domain");
            known.map(|generation| DomainState {
                generation,
                shutdown: false,
            })
        });
        let present = state.map(|state| state.generation);
        if known == present {
            return state;
        }
        if known.is_some() {
            self.forget(hypervisor, dom);
        }
        if let Some(generation) = present {
            self.generations.insert(dom, generation);
            self.changes.push(Change::Seen { dom, generation });
        }
        state
    }

    /// The permissions without entries for domains that don't exist, which a
    /// later domain would inherit. Dom0 may name any: it prepares nodes for
    /// domains to come.
    pub(super) fn living(
        &mut self,
        hypervisor: &mut dyn Hypervisor,
        peer: PeerId,
        perms: &Perms,
    ) -> Perms {
        let named = perms.entries().iter().map(|entry| entry.dom);
        let mut missing: Vec<DomId> = named.filter(|dom| *dom != DomId::DOM0).collect();
        missing.retain(|dom| self.meet(hypervisor, *dom).is_none());
        if self.who(peer).is_privileged() {
            return perms.clone();
        }
        perms.retain(|dom| !missing.contains(&dom))
    }

    pub(super) fn introduce(
        &mut self,
        hypervisor: &mut dyn Hypervisor,
        payload: &[u8],
    ) -> Result<Option<&'static str>, Errno> {
        let parts = strings(payload)?;
        let [dom, mfn, port, ..] = parts[..] else {
            return Err(Errno::EINVAL);
        };
        let dom = real_domain(dom)?;
        let (mfn, port) = (Mfn(parse_decimal(mfn)?), Port(parse_decimal(port)?));
        self.meet(hypervisor, dom).ok_or(Errno::EINVAL)?;
        let attached = hypervisor.attach(dom, mfn, port);
        let target = self.domains.get(&dom).and_then(|domain| domain.target);
        self.disconnect_guest(dom);
        let stream = attached.inspect_err(|_| self.changes.push(Change::Disconnected(dom)))?;
        let domain = Domain {
            mfn,
            port,
            target,
            shutdown_told: false,
            stream,
        };
        self.connect_guest(dom, domain.clone());
        self.changes.extend(connection_changes(dom, &domain));
        Ok(Some(INTRODUCE_DOMAIN))
    }

    /// Puts in a domain without watches, transactions and messages.
    pub(super) fn connect_guest(&mut self, dom: DomId, domain: Domain) {
        self.domains.insert(dom, domain);
        self.peers.insert(PeerId::Guest(dom), Peer::default());
    }

    /// The guest's side starts anew, as a rebooted kernel does: what was on
    /// its way in either direction is void.
    pub fn reconnect(&mut self, dom: DomId, stream: Stream) {
        let Some(mut domain) = self.domains.get(&dom).cloned() else {
            return;
        };
        domain.stream = stream;
        self.disconnect_guest(dom);
        self.connect_guest(dom, domain.clone());
        self.changes.extend(connection_changes(dom, &domain));
    }

    /// The guest broke the protocol: it is not served any more, until it
    /// reconnects or is introduced again.
    pub fn shut(&mut self, dom: DomId) {
        let broken = Stream {
            broken: true,
            ..Stream::default()
        };
        self.reconnect(dom, broken);
    }

    /// A connected domain's ring.
    pub fn stream_mut(&mut self, dom: DomId) -> Option<&mut Stream> {
        self.domains.get_mut(&dom).map(|domain| &mut domain.stream)
    }

    /// Notes how far the guest's requests have been taken.
    pub fn note_progress(&mut self, dom: DomId) {
        if let Some(domain) = self.domains.get(&dom) {
            self.changes.push(Change::Progress {
                dom,
                req_cons: domain.stream.req_cons,
                input: domain.stream.input.clone(),
            });
        }
    }

    /// Moves waiting messages to where they go into the ring from.
    pub fn stage(&mut self, dom: DomId) {
        let peer = self.peers.get_mut(&PeerId::Guest(dom));
        let domain = self.domains.get_mut(&dom);
        let (Some(peer), Some(domain)) = (peer, domain) else {
            return;
        };
        let mut count = 0;
        while domain.stream.wants_more() {
            let Some(item) = peer.outbox.pop() else {
                break;
            };
            domain.stream.restage(&item.bytes);
            count += 1;
        }
        if count > 0 {
            self.changes.push(Change::Staged { dom, count });
        }
    }

    pub(super) fn disconnect_guest(&mut self, dom: DomId) {
        self.domains.remove(&dom);
        self.disconnect(PeerId::Guest(dom));
    }

    pub(super) fn release(
        &mut self,
        hypervisor: &mut dyn Hypervisor,
        payload: &[u8],
    ) -> Result<Option<&'static str>, Errno> {
        let dom = real_domain(one(payload)?)?;
        if !self.domains.contains_key(&dom) {
            return Err(Errno::ENOENT);
        }
        self.forget(hypervisor, dom);
        Ok(Some(RELEASE_DOMAIN))
    }

    /// Forgets all that carries this domid.
    fn forget(&mut self, hypervisor: &mut dyn Hypervisor, dom: DomId) {
        hypervisor.detach(dom);
        self.forget_number(dom);
        self.changes.push(Change::Gone(dom));
        let effects = self.tree.scrub(dom);
        self.publish(&effects);
    }

    /// Forgets all that carries this domid, except in the tree.
    pub(super) fn forget_number(&mut self, dom: DomId) {
        self.disconnect_guest(dom);
        self.generations.remove(&dom);
        self.credits.forget(dom);
        for domain in self.domains.values_mut() {
            domain.target = domain.target.filter(|target| *target != dom);
        }
        for perms in self.specials.values_mut() {
            *perms = perms.retain(|named| named != dom);
        }
        for peer in self.peers.values_mut() {
            peer.transactions
                .values_mut()
                .for_each(|transaction| transaction.doom_if_naming(dom));
        }
    }

    pub(super) fn resume(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let dom = real_domain(one(payload)?)?;
        let domain = self.domains.get_mut(&dom).ok_or(Errno::ENOENT)?;
        domain.shutdown_told = false;
        self.changes.push(Change::Shutdown { dom, told: false });
        Ok(())
    }

    pub(super) fn set_target(
        &mut self,
        hypervisor: &mut dyn Hypervisor,
        payload: &[u8],
    ) -> Result<(), Errno> {
        let [dom, target] = strings(payload)?[..] else {
            return Err(Errno::EINVAL);
        };
        let (dom, target) = (real_domain(dom)?, real_domain(target)?);
        self.meet(hypervisor, target).ok_or(Errno::ENOENT)?;
        if !self.domains.contains_key(&dom) {
            return Err(Errno::ENOENT);
        }
        if let Some(domain) = self.domains.get_mut(&dom) {
            domain.target = Some(target);
            self.changes.push(Change::Target { dom, target });
        }
        Ok(())
    }

    /// Looks which domains are gone or have shut down, and tells of it once.
    pub fn review_domains(&mut self, hypervisor: &mut dyn Hypervisor) {
        let known: Vec<DomId> = self.generations.keys().copied().collect();
        let mut news = false;
        for dom in known {
            let introduced = self.domains.contains_key(&dom);
            match self.meet_again(hypervisor, dom) {
                None => news |= introduced,
                Some(state) => news |= state.shutdown && self.tell_shutdown(dom),
            }
        }
        if news {
            self.fire_special(RELEASE_DOMAIN);
        }
    }

    /// The domain that the daemon knows by this number, if it still exists.
    fn meet_again(&mut self, hypervisor: &mut dyn Hypervisor, dom: DomId) -> Option<DomainState> {
        let known = self.generations.get(&dom).copied();
        let state = self.meet(hypervisor, dom)?;
        (known == Some(state.generation)).then_some(state)
    }

    fn tell_shutdown(&mut self, dom: DomId) -> bool {
        let Some(domain) = self.domains.get_mut(&dom) else {
            return false;
        };
        if domain.shutdown_told {
            return false;
        }
        domain.shutdown_told = true;
        self.changes.push(Change::Shutdown { dom, told: true });
        true
    }
}

/// What the journal keeps of a connection that has just begun.
pub(super) fn connection_changes(dom: DomId, domain: &Domain) -> Vec<Change> {
    let mut changes = vec![
        Change::Introduced {
            dom,
            mfn: domain.mfn,
            port: domain.port,
        },
        Change::Ring {
            dom,
            stream: domain.stream.clone(),
        },
    ];
    changes.extend(domain.target.map(|target| Change::Target { dom, target }));
    if domain.shutdown_told {
        changes.push(Change::Shutdown { dom, told: true });
    }
    changes
}

fn real_domain(text: &[u8]) -> Result<DomId, Errno> {
    let dom = parse_domid(text)?;
    if dom == DomId::DOM0 || dom >= DomId::FIRST_RESERVED {
        return Err(Errno::EINVAL);
    }
    Ok(dom)
}
