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
    wire::strings,
};

/// A connected domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its ring's frame.
    pub mfn: Mfn,
    /// Its end of the event channel.
    pub port: Port,
    /// The domain that it acts for.
    pub target: Option<DomId>,
    /// Its shutdown has been told.
    pub shutdown_told: bool,
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
        let state = hypervisor.domain(dom);
        let known = self.generations.get(&dom).copied();
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
        if let Err(errno) = attached {
            self.changes.push(Change::Disconnected(dom));
            return Err(errno);
        }
        self.connect_guest(dom, mfn, port);
        self.changes.push(Change::Introduced { dom, mfn, port });
        if let Some(target) = target {
            self.retarget(dom, target);
        }
        Ok(Some(INTRODUCE_DOMAIN))
    }

    fn connect_guest(&mut self, dom: DomId, mfn: Mfn, port: Port) {
        let domain = Domain {
            mfn,
            port,
            target: None,
            shutdown_told: false,
        };
        self.domains.insert(dom, domain);
        self.peers.insert(PeerId::Guest(dom), Peer::default());
    }

    fn disconnect_guest(&mut self, dom: DomId) {
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
        self.changes.push(Change::Gone(dom));
        let effects = self.tree.scrub(dom);
        self.publish(&effects);
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
        self.retarget(dom, target);
        Ok(())
    }

    fn retarget(&mut self, dom: DomId, target: DomId) {
        if let Some(domain) = self.domains.get_mut(&dom) {
            domain.target = Some(target);
            self.changes.push(Change::Target { dom, target });
        }
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

fn real_domain(text: &[u8]) -> Result<DomId, Errno> {
    let dom = parse_domid(text)?;
    if dom == DomId::DOM0 || dom >= DomId::FIRST_RESERVED {
        return Err(Errno::EINVAL);
    }
    Ok(dom)
}
