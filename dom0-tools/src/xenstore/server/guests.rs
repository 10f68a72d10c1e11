//! The rounds' part that concerns guests.

use std::{
    collections::BTreeSet,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use domus_privcmd::client::ClientError;
use guest_abi::addr::DomId;

use super::{BATCH, Server};
use crate::xenstore::{
    core::{Domain, Gate},
    peers::PeerId,
    ring::{RingError, Stream},
};

/// How long a port may stay bound to a daemon that is dead.
const LINK_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between attempts to bind it.
const LINK_PAUSE: Duration = Duration::from_millis(10);
/// The least time between two lines in the log about the same guest.
const NOISE_EVERY: Duration = Duration::from_secs(10);

impl Server {
    /// Connects again to all domains that should be connected: after a start,
    /// and after the hypervisor was away.
    pub(super) fn resume_guests(&mut self) {
        self.core.review_domains(&mut self.privcmd);
        let domains: Vec<(DomId, Domain)> = self
            .core
            .domains()
            .map(|(dom, domain)| (dom, domain.clone()))
            .collect();
        for (dom, domain) in domains {
            if let Err(error) = self.link_again(dom, &domain) {
                tracing::error!(%dom, %error, "cannot connect to the domain again");
                self.core.shut(dom);
                continue;
            }
            let page = self.privcmd.links.get(&dom).map(|link| &link.page);
            let (Some(page), Some(stream)) = (page, self.core.stream_mut(dom)) else {
                continue;
            };
            match stream.resume(page) {
                Ok(()) => {
                    tracing::info!(%dom, "connected to the domain again");
                    // The last event may have died with the previous daemon.
                    self.privcmd.notify(dom);
                }
                Err(error) => self.break_off(dom, error),
            }
        }
        self.privcmd.take_lost();
    }

    /// Binds a domain's port again. The hypervisor may not have noticed yet
    /// that the previous daemon, which had it bound, is dead.
    fn link_again(&mut self, dom: DomId, domain: &Domain) -> Result<(), ClientError> {
        let deadline = Instant::now() + LINK_PATIENCE;
        loop {
            let linked = self.privcmd.link(dom, domain.mfn, domain.port);
            match linked {
                Err(ClientError::Failed(_)) if Instant::now() < deadline => {
                    std::thread::sleep(LINK_PAUSE);
                }
                done => return done,
            }
        }
    }

    /// The guest's event channel has fired.
    pub(super) fn wake(&mut self, dom: DomId) {
        if let Some(link) = self.privcmd.links.get(&dom) {
            clear_event(std::os::fd::AsFd::as_fd(link));
            self.awake.insert(dom);
        }
    }

    pub(super) fn serve_guest(&mut self, dom: DomId) {
        if !self.awake.contains(&dom) {
            return;
        }
        self.reconnect_if_asked(dom);
        let before = self.core.stream_mut(dom).map(|stream| stream.req_cons);
        for _ in 0..BATCH {
            let now = Instant::now();
            if self.core.gate(PeerId::Guest(dom), now) != Gate::Open {
                break;
            }
            if !self.serve_request(dom, now) {
                self.awake.remove(&dom);
                break;
            }
        }
        let after = self.core.stream_mut(dom).map(|stream| stream.req_cons);
        if before != after {
            self.core.note_progress(dom);
        }
    }

    /// Serves one request; `false` if there is none.
    fn serve_request(&mut self, dom: DomId, now: Instant) -> bool {
        let link = self.privcmd.links.get(&dom);
        let stream = self.core.stream_mut(dom).filter(|stream| !stream.broken);
        let (Some(link), Some(stream)) = (link, stream) else {
            return false;
        };
        match stream.receive(&link.page) {
            Ok(Some(message)) => {
                let peer = PeerId::Guest(dom);
                self.core.handle(&mut self.privcmd, now, peer, &message);
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.break_off(dom, error);
                false
            }
        }
    }

    fn reconnect_if_asked(&mut self, dom: DomId) {
        let Some(link) = self.privcmd.links.get(&dom) else {
            return;
        };
        if link.page.wants_reconnect() && !self.welcome.contains(&dom) {
            tracing::debug!(%dom, "the guest starts its connection anew");
            link.page.clear();
            self.core.reconnect(dom, Stream::default());
            self.welcome.insert(dom);
        }
    }

    /// Stops serving a guest that broke the protocol, and tells it why.
    fn break_off(&mut self, dom: DomId, error: RingError) {
        if self.may_log_about(dom) {
            tracing::warn!(%dom, %error, "the guest broke the protocol and is not served any more");
        }
        self.core.shut(dom);
        if let Some(link) = self.privcmd.links.get(&dom) {
            link.page.set_error(error.code());
            self.privcmd.notify(dom);
        }
    }

    /// Whether a line about the guest may go into the log: a guest that breaks
    /// off and reconnects all the time must not fill the disk.
    fn may_log_about(&mut self, dom: DomId) -> bool {
        let now = Instant::now();
        let last = self.last_noise.get(&dom);
        let may = last.is_none_or(|last| now.duration_since(*last) >= NOISE_EVERY);
        if may {
            self.last_noise.insert(dom, now);
        }
        may
    }

    pub(super) fn stage_guests(&mut self) {
        self.awake.extend(self.privcmd.fresh.drain(..));
        let doms: Vec<DomId> = self.core.domains().map(|(dom, _)| dom).collect();
        for dom in doms {
            self.core.stage(dom);
        }
    }

    /// Whether replies wait that could go into the ring in another round.
    pub(super) fn guest_can_be_shown_more(&mut self, peer: PeerId) -> bool {
        let waiting = self
            .core
            .peer(peer)
            .is_some_and(|state| !state.outbox.is_empty());
        let PeerId::Guest(dom) = peer else {
            return false;
        };
        waiting
            && self
                .core
                .stream_mut(dom)
                .is_some_and(|stream| stream.wants_more())
    }

    /// Lets the guests see what the journal knows.
    pub(super) fn show_guests(&mut self) {
        let welcome: BTreeSet<DomId> = std::mem::take(&mut self.welcome);
        let doms: Vec<DomId> = self.privcmd.links.keys().copied().collect();
        for dom in doms {
            let stream = self.core.stream_mut(dom).filter(|stream| !stream.broken);
            let (Some(link), Some(stream)) = (self.privcmd.links.get(&dom), stream) else {
                continue;
            };
            let greeted = welcome.contains(&dom);
            if greeted {
                link.page.welcome();
            }
            match stream.show(&link.page) {
                Ok(changed) if changed || greeted => {
                    self.privcmd.notify(dom);
                    // The guest may have put in more without an event.
                    self.awake.insert(dom);
                }
                Ok(_) => {}
                Err(error) => self.break_off(dom, error),
            }
        }
    }
}

/// Takes the count out of an event's descriptor.
pub(super) fn clear_event(fd: BorrowedFd<'_>) {
    let mut count = [0; 8];
    let _ = nix::unistd::read(fd, &mut count);
}
