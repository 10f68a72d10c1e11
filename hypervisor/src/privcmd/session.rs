//! What one connection holds of domid 0's resources.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
};

use domus_privcmd::protocol::{MAX_CONNECTION_GRANTS, MAX_COPY_BUFFERS};
use guest_abi::addr::{DomId, Port};

use crate::{domain::Domain, events::DomainKey, grants::MapTrack, memory::Area, trace::Tracer};

/// The process at the other end, as the kernel vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process id when it connected.
    pub pid: i32,
    /// Its user id when it connected.
    pub uid: u32,
}

/// The resources of one connection.
///
/// Law: a port of domid 0 is in at most one session, and in one as long as it
/// is bound. Whoever binds or closes it keeps that true.
pub struct Session {
    id: u64,
    peer: Peer,
    ports: BTreeSet<Port>,
    maps: MapTrack,
    restricted: Option<DomainKey>,
    trace: Option<Arc<Tracer>>,
    debugged: Option<(u16, Weak<Domain>)>,
    buffers: BTreeMap<u32, Area>,
}

impl Session {
    /// An empty session. `id` is never used for another one.
    #[must_use]
    pub fn new(id: u64, peer: Peer) -> Self {
        Self {
            id,
            peer,
            ports: BTreeSet::new(),
            maps: MapTrack::new(DomId::DOM0, MAX_CONNECTION_GRANTS),
            restricted: None,
            trace: None,
            debugged: None,
            buffers: BTreeMap::new(),
        }
    }

    /// Its number, unique in the life of the process.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Who called.
    #[must_use]
    pub const fn peer(&self) -> Peer {
        self.peer
    }

    /// Enters a port that was bound for this connection.
    pub fn hold_port(&mut self, port: Port) {
        self.ports.insert(port);
    }

    /// Whether the port was bound for this connection.
    #[must_use]
    pub fn holds_port(&self, port: Port) -> bool {
        self.ports.contains(&port)
    }

    /// Removes a port that is about to be closed; whether it was there.
    pub fn forget_port(&mut self, port: Port) -> bool {
        self.ports.remove(&port)
    }

    /// The ports that it holds.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = Port> + '_ {
        self.ports.iter().copied()
    }

    /// The grants that it has mapped.
    #[must_use]
    pub const fn maps(&self) -> &MapTrack {
        &self.maps
    }

    /// Keeps a buffer for the connection: its number, or `None` if it has as
    /// many as it may have.
    pub fn hold_buffer(&mut self, buffer: Area) -> Option<u32> {
        let free = |id: &u32| !self.buffers.contains_key(id);
        let id = (0..MAX_COPY_BUFFERS).find(free)?;
        self.buffers.insert(id, buffer);
        Some(id)
    }

    /// A buffer of the connection's.
    #[must_use]
    pub fn buffer(&self, id: u32) -> Option<&Area> {
        self.buffers.get(&id)
    }

    /// Gives a buffer up.
    pub fn forget_buffer(&mut self, id: u32) -> Option<()> {
        self.buffers.remove(&id).map(drop)
    }

    /// The only domain that it may get at, if it asked for that.
    #[must_use]
    pub const fn restricted(&self) -> Option<DomainKey> {
        self.restricted
    }

    /// From here on it gets at nothing but `domain`. The first call stands.
    pub fn restrict(&mut self, domain: DomainKey) {
        self.restricted.get_or_insert(domain);
    }

    /// The trace that it listens to.
    #[must_use]
    pub const fn trace(&self) -> Option<&Arc<Tracer>> {
        self.trace.as_ref()
    }

    /// Enters the trace that was started for this connection.
    pub fn hold_trace(&mut self, trace: Arc<Tracer>) {
        self.trace = Some(trace);
    }

    /// The domain that it debugs.
    #[must_use]
    pub fn debugged(&self) -> Option<(u16, &Weak<Domain>)> {
        self.debugged.as_ref().map(|(dom, domain)| (*dom, domain))
    }

    /// Enters the domain that it debugs from now on.
    pub fn hold_debugged(&mut self, dom: u16, domain: Weak<Domain>) {
        self.debugged = Some((dom, domain));
    }

    /// It debugs none any more.
    pub fn forget_debugged(&mut self) {
        self.debugged = None;
    }
}
