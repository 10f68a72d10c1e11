//! The hypervisor, through the privcmd socket.
//!
//! Law: the daemon outlives the hypervisor and starts before it if need be. A
//! connection that breaks takes all rings with it ([`Privcmd::take_lost`]
//! tells); the next call tries to connect again.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use domus_privcmd::client::{Client, ClientError};
use guest_abi::{
    addr::{DomId, Mfn, Port},
    errno::Errno,
    xen::VIRQ_DOM_EXC,
};

use crate::xenstore::{
    hypervisor::{DomainState, Hypervisor},
    ring::{RingPage, Stream},
};

/// A guest's ring and event channel.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) page: RingPage,
    port: Port,
    event: OwnedFd,
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Privcmd {
    socket: PathBuf,
    client: Option<Client>,
    exceptions: Option<OwnedFd>,
    pub(super) links: BTreeMap<DomId, Link>,
    /// Rings that may hold requests from before they were bound.
    pub(super) fresh: Vec<DomId>,
    lost: bool,
}

impl Privcmd {
    pub(super) fn new(socket: &Path) -> Privcmd {
        Privcmd {
            socket: socket.to_owned(),
            client: None,
            exceptions: None,
            links: BTreeMap::new(),
            fresh: Vec::new(),
            lost: false,
        }
    }

    /// Readable when a domain has shut down or is gone.
    pub(super) fn exceptions(&self) -> Option<BorrowedFd<'_>> {
        self.exceptions.as_ref().map(AsFd::as_fd)
    }

    /// Whether the connection broke since the last call.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// Tells a guest that its ring has changed.
    pub(super) fn notify(&mut self, dom: DomId) {
        let Some(port) = self.links.get(&dom).map(|link| link.port) else {
            return;
        };
        let sent = self
            .client
            .as_ref()
            .map(|client| client.evtchn_notify(port));
        if let Some(Err(error)) = sent {
            tracing::warn!(%dom, %error, "cannot notify the domain");
            self.drop_if_broken(&error);
        }
    }

    /// Maps a ring and binds its channel without a change to the ring.
    pub(super) fn link(&mut self, dom: DomId, mfn: Mfn, port: Port) -> Result<(), ClientError> {
        self.detach(dom);
        let memory = self.ask(|client| client.map_memory(dom))?;
        let offset = memory
            .offset_of(mfn)
            .ok_or_else(|| refused("the frame is not the domain's"))?;
        let page = RingPage::map(memory.fd, offset).map_err(|error| refused(&error.to_string()))?;
        let (port, event) = self.ask(|client| client.evtchn_bind_interdomain(dom, port))?;
        self.links.insert(dom, Link { page, port, event });
        self.fresh.push(dom);
        Ok(())
    }

    /// Asks the hypervisor, over a new connection if the present one is broken.
    fn ask<T>(
        &mut self,
        question: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let answer = question(self.connected()?);
        match answer {
            Err(error) if self.drop_if_broken(&error) => question(self.connected()?),
            answer => answer,
        }
    }

    fn connected(&mut self) -> Result<&Client, ClientError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.connect()?,
        };
        Ok(self.client.insert(client))
    }

    fn connect(&mut self) -> Result<Client, ClientError> {
        let client = Client::connect(&self.socket)?;
        self.exceptions = match client.evtchn_bind_virq(VIRQ_DOM_EXC) {
            Ok((_, event)) => Some(event),
            Err(error) => {
                tracing::warn!(%error, "ends of domains will be noticed late");
                None
            }
        };
        tracing::info!(socket = %self.socket.display(), "connected to the hypervisor");
        Ok(client)
    }

    fn drop_if_broken(&mut self, error: &ClientError) -> bool {
        if matches!(error, ClientError::Failed(_)) {
            return false;
        }
        tracing::warn!(%error, "the connection to the hypervisor broke");
        self.client = None;
        self.exceptions = None;
        self.lost |= !self.links.is_empty();
        self.links.clear();
        true
    }
}

impl Hypervisor for Privcmd {
    fn domain(&mut self, dom: DomId) -> Result<Option<DomainState>, Errno> {
        match self.ask(|client| client.domain_info(dom)) {
            Ok(info) if info.dying => Ok(None),
            Ok(info) => Ok(Some(DomainState {
                generation: info.generation,
                shutdown: info.shutdown.is_some(),
            })),
            Err(error) if error.is_no_such_domain() => Ok(None),
            // Domains live in the hypervisor's process: none of them is left.
            Err(ClientError::NoHypervisor { .. }) => Ok(None),
            Err(error) => {
                tracing::error!(%dom, %error, "cannot ask for the domain");
                Err(error.errno().unwrap_or(Errno::EIO))
            }
        }
    }

    fn attach(&mut self, dom: DomId, mfn: Mfn, port: Port) -> Result<Stream, Errno> {
        if let Err(error) = self.link(dom, mfn, port) {
            tracing::warn!(%dom, %mfn, %port, %error, "cannot connect to the domain");
            return Err(error.errno().unwrap_or(Errno::EIO));
        }
        let page = self.links.get(&dom).map(|link| &link.page);
        let page = page.ok_or(Errno::EIO)?;
        page.welcome();
        Ok(Stream::starting_at(page))
    }

    fn detach(&mut self, dom: DomId) {
        let Some(link) = self.links.remove(&dom) else {
            return;
        };
        if let Some(client) = &self.client {
            // The port of a domain that is gone is gone as well.
            let _ = client.evtchn_close(link.port);
        }
    }
}

fn refused(why: &str) -> ClientError {
    ClientError::Failed(domus_privcmd::protocol::Failure::new(Errno::EINVAL, why))
}
