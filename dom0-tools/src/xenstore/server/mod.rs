//! The daemon's loop: one thread, one round after the other.
//!
//! Law: a round takes a few messages of each client that has some, then writes
//! what they changed into the journal, and only then lets anybody see that it
//! happened: replies, events, and the progress of the rings. No client gets
//! more than [`BATCH`] messages in a round, and the rounds begin with a
//! different client each time; so nobody can keep the others waiting.

mod guests;
mod privcmd;
mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use guest_abi::addr::DomId;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use self::{
    privcmd::Privcmd,
    sockets::{Closed, Socket},
};
use super::{
    core::{Core, Gate},
    journal::{Journal, JournalError},
    peers::PeerId,
};

/// Messages of one client in one round.
const BATCH: usize = 8;
/// New clients in one round.
const ACCEPT_BATCH: usize = 16;
/// Clients on the socket at once.
const SOCKETS_MAX: usize = 1000;
/// How often the domains are looked at without being asked to.
const REVIEW_EVERY: Duration = Duration::from_secs(5);

/// Where the daemon lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// The socket for clients.
    pub socket: PathBuf,
    /// The journal.
    pub journal: PathBuf,
    /// The hypervisor's socket.
    pub privcmd: PathBuf,
}

/// Why the daemon can't run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The journal can't be used.
    #[error("the journal of the previous xenstored: {0}")]
    Journal(#[from] JournalError),
    /// The socket can't be made.
    #[error("cannot listen at {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system refuses something elementary.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// The daemon.
#[derive(Debug)]
pub struct Server {
    core: Core,
    privcmd: Privcmd,
    journal: Journal,
    listener: UnixListener,
    signals: SignalFd,
    sockets: BTreeMap<PeerId, Socket>,
    awake: BTreeSet<DomId>,
    welcome: BTreeSet<DomId>,
    first: usize,
    last_noise: BTreeMap<DomId, Instant>,
    last_review: Instant,
}

/// What a round waits for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Signal,
    Listener,
    Exceptions,
    Peer(PeerId),
}

/// What a round has to do.
#[derive(Debug, Default)]
struct Ready {
    stop: bool,
    accept: bool,
    review: bool,
    peers: BTreeSet<PeerId>,
}

/// When the next round begins.
enum Next {
    AtOnce,
    After(Duration),
}

impl Server {
    /// Takes up the state that the previous daemon left, and listens.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn open(config: &Config) -> Result<Server, ServerError> {
        let (journal, contents) = Journal::open(&config.journal)?;
        if contents.torn > 0 {
            tracing::warn!(
                bytes = contents.torn,
                "the journal's last record is torn: that request was not done"
            );
        }
        let mut server = Server {
            core: Core::restored(contents.changes),
            privcmd: Privcmd::new(&config.privcmd),
            journal,
            signals: stop_signals()?,
            listener: listen(&config.socket)?,
            sockets: BTreeMap::new(),
            awake: BTreeSet::new(),
            welcome: BTreeSet::new(),
            first: 0,
            last_noise: BTreeMap::new(),
            last_review: Instant::now(),
        };
        server.resume_guests();
        server.core.take_changes();
        server.journal.rewrite(&server.core.snapshot())?;
        Ok(server)
    }

    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// [`ServerError::System`].
    pub fn run(&mut self) -> Result<(), ServerError> {
        loop {
            let next = self.next_round();
            let ready = self.wait(next)?;
            if ready.stop {
                return Ok(());
            }
            self.round(&ready);
        }
    }

    fn next_round(&mut self) -> Next {
        let now = Instant::now();
        let mut pause = REVIEW_EVERY;
        let peers: Vec<PeerId> = self.core.peers().map(|(id, _)| id).collect();
        for peer in peers {
            let Some(wait) = self.wait_of(peer, now) else {
                continue;
            };
            if wait.is_zero() {
                return Next::AtOnce;
            }
            pause = pause.min(wait);
        }
        Next::After(pause)
    }

    /// How long to wait for the client's next turn; `None` if its turn comes
    /// with an event.
    fn wait_of(&mut self, peer: PeerId, now: Instant) -> Option<Duration> {
        let has_work = match peer {
            PeerId::Guest(dom) => self.awake.contains(&dom),
            PeerId::Socket(_) => self.sockets.get(&peer).is_some_and(Socket::has_message),
        };
        if self.guest_can_be_shown_more(peer) {
            return Some(Duration::ZERO);
        }
        match self.core.gate(peer, now) {
            Gate::Open if has_work => Some(Duration::ZERO),
            Gate::After(time) if has_work => Some(time),
            _ => None,
        }
    }

    fn wait(&self, next: Next) -> Result<Ready, ServerError> {
        let timeout = match next {
            Next::AtOnce => PollTimeout::ZERO,
            // Rounded up: a wait of 0 ms would spin.
            Next::After(time) => {
                PollTimeout::try_from(time.as_millis() + 1).unwrap_or(PollTimeout::MAX)
            }
        };
        let sources = self.sources();
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(_, fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(system("poll", errno.into())),
        }
        let mut ready = Ready::default();
        for ((source, ..), fd) in sources.iter().zip(&fds) {
            if fd.any().unwrap_or(true) {
                ready.note(*source);
            }
        }
        Ok(ready)
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = vec![(Source::Signal, self.signals.as_fd(), PollFlags::POLLIN)];
        if self.sockets.len() < SOCKETS_MAX {
            sources.push((Source::Listener, self.listener.as_fd(), PollFlags::POLLIN));
        }
        let exceptions = self.privcmd.exceptions();
        sources.extend(exceptions.map(|fd| (Source::Exceptions, fd, PollFlags::POLLIN)));
        for (peer, socket) in &self.sockets {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, socket.wants_input());
            flags.set(PollFlags::POLLOUT, socket.has_output());
            sources.push((Source::Peer(*peer), socket.as_fd(), flags));
        }
        for (dom, link) in &self.privcmd.links {
            let peer = Source::Peer(PeerId::Guest(*dom));
            sources.push((peer, link.as_fd(), PollFlags::POLLIN));
        }
        sources
    }

    fn round(&mut self, ready: &Ready) {
        if ready.review || self.last_review.elapsed() >= REVIEW_EVERY {
            self.review();
        }
        if ready.accept {
            self.accept();
        }
        for peer in &ready.peers {
            match peer {
                PeerId::Guest(dom) => self.wake(*dom),
                PeerId::Socket(_) => self.take_in(*peer),
            }
        }
        for peer in self.order() {
            match peer {
                PeerId::Guest(dom) => self.serve_guest(dom),
                PeerId::Socket(_) => self.serve_socket(peer),
            }
        }
        self.stage_guests();
        self.commit();
        self.show_guests();
        self.flush_sockets();
    }

    /// All clients, beginning with another one each time.
    fn order(&mut self) -> Vec<PeerId> {
        let mut peers: Vec<PeerId> = self.core.peers().map(|(id, _)| id).collect();
        if !peers.is_empty() {
            self.first = (self.first + 1) % peers.len();
            peers.rotate_left(self.first);
        }
        peers
    }

    fn review(&mut self) {
        self.last_review = Instant::now();
        if let Some(fd) = self.privcmd.exceptions() {
            guests::clear_event(fd);
        }
        self.core.review_domains(&mut self.privcmd);
        if self.privcmd.take_lost() {
            self.resume_guests();
        }
    }

    /// Writes the journal. If that fails the daemon goes on: what is lost is
    /// only what a later daemon would know.
    fn commit(&mut self) {
        let changes = self.core.take_changes();
        if !changes.is_empty()
            && let Err(error) = self.journal.append(&changes)
        {
            tracing::error!(%error, "a restart would lose what happens now");
        }
        if self.journal.is_due()
            && let Err(error) = self.journal.rewrite(&self.core.snapshot())
        {
            tracing::error!(%error, "the journal cannot be written anew");
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPT_BATCH {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    break;
                }
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        match Socket::new(stream) {
            Ok(socket) => {
                let peer = self.core.connect();
                self.sockets.insert(peer, socket);
            }
            Err(error) => tracing::warn!(%error, "cannot serve a client"),
        }
    }

    fn take_in(&mut self, peer: PeerId) {
        let Some(socket) = self.sockets.get_mut(&peer) else {
            return;
        };
        if socket.wants_input()
            && let Err(why) = socket.read()
        {
            self.close(peer, &why);
        }
    }

    fn serve_socket(&mut self, peer: PeerId) {
        for _ in 0..BATCH {
            let now = Instant::now();
            if self.core.gate(peer, now) != Gate::Open {
                return;
            }
            let Some(socket) = self.sockets.get_mut(&peer) else {
                return;
            };
            match socket.message() {
                Ok(Some(message)) => self.core.handle(&mut self.privcmd, now, peer, &message),
                Ok(None) => return,
                Err(why) => return self.close(peer, &why),
            }
        }
    }

    fn flush_sockets(&mut self) {
        let peers: Vec<PeerId> = self.sockets.keys().copied().collect();
        for peer in peers {
            let (Some(socket), Some(state)) =
                (self.sockets.get_mut(&peer), self.core.peer_mut(peer))
            else {
                continue;
            };
            if let Err(why) = socket.write(&mut state.outbox) {
                self.close(peer, &why);
            }
        }
    }

    fn close(&mut self, peer: PeerId, why: &Closed) {
        tracing::debug!(?peer, %why, "a client is gone");
        self.sockets.remove(&peer);
        self.core.disconnect(peer);
    }
}

impl Ready {
    fn note(&mut self, source: Source) {
        match source {
            Source::Signal => self.stop = true,
            Source::Listener => self.accept = true,
            Source::Exceptions => self.review = true,
            Source::Peer(peer) => drop(self.peers.insert(peer)),
        }
    }
}

/// A descriptor that becomes readable when the daemon shall stop.
fn stop_signals() -> Result<SignalFd, ServerError> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    let blocked = mask.thread_block();
    let signals = blocked.and_then(|()| SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC));
    signals.map_err(|errno| system("signalfd", errno.into()))
}

/// Listens at `path`. The caller holds the installation's lock, so whatever
/// stands there was left by a daemon that is dead.
fn listen(path: &Path) -> Result<UnixListener, ServerError> {
    try_listen(path).map_err(|source| ServerError::Listen {
        path: path.to_owned(),
        source,
    })
}

fn try_listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Bound under another name and renamed when its mode is right, so that
    // there is no moment in which others could connect.
    let beside = path.with_extension("new");
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
    fs::rename(&beside, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn system(what: &'static str, source: io::Error) -> ServerError {
    ServerError::System { what, source }
}
