//! The listener: accepts, checks who it is, and gives each its thread.

use std::{
    collections::BTreeMap,
    io,
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tracing::{info, warn};

use super::{Dom0Calls, connection, endpoint::Endpoint};

/// How much the server lets its callers have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time. Each costs a thread and a few descriptors.
    pub connections: usize,
    /// How long a caller may take for its first message.
    pub hello: Duration,
    /// How long a message may take from its first byte to its last, either way.
    pub message: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            hello: Duration::from_secs(10),
            message: Duration::from_secs(10),
        }
    }
}

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another hypervisor has this directory.
    #[error(
        "a hypervisor (process {holder}) is already running in {dir}; \
         use it, stop it, or set DOMUS_RUN_DIR to another directory"
    )]
    AlreadyRunning {
        /// The directory of the socket.
        dir: PathBuf,
        /// Its process id, where known.
        holder: String,
    },
    /// Somebody else could put another socket into our place.
    #[error(
        "{dir} belongs to uid {uid} with mode {mode:o}: others could replace the socket in it; \
         use a directory of your own that only you can write"
    )]
    OpenDirectory {
        /// The directory of the socket.
        dir: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file in question.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The running server. [`stop`](Server::stop) it, or drop it.
pub struct Server {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    endpoint: Option<Endpoint>,
}

impl Server {
    /// Opens the socket at `path` and serves `calls` on it.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn start(
        path: &Path,
        calls: Arc<dyn Dom0Calls>,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Io {
            path: path.into(),
            source,
        };
        let (endpoint, listener) = Endpoint::open(path)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        let shared = Arc::new(Shared {
            calls,
            limits,
            stopping: AtomicBool::new(false),
            wake,
            open: Mutex::default(),
            closed: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        let accepting = thread::Builder::new()
            .name("privcmd".into())
            .spawn(move || for_thread.accept_all(&listener))
            .map_err(failed)?;
        info!(socket = %path.display(), "privcmd socket open");
        Ok(Self {
            shared,
            accepting: Some(accepting),
            endpoint: Some(endpoint),
        })
    }

    /// Connections now open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.open().streams.len()
    }

    /// Ends the listener and all connections, and waits until every session
    /// has been released. A call that is being served is finished first.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(accepting) = self.accepting.take() else {
            return;
        };
        self.shared.stopping.store(true, Ordering::Release);
        let _ = self.shared.wake.write(1);
        let _ = accepting.join();
        // No new name or connection from here on.
        self.shared.hang_up();
        drop(self.endpoint.take());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// What the threads of a server share. Lock order: `open` is held for moments
/// and nothing is called under it.
pub(super) struct Shared {
    pub calls: Arc<dyn Dom0Calls>,
    pub limits: Limits,
    stopping: AtomicBool,
    wake: EventFd,
    open: Mutex<Open>,
    closed: Condvar,
}

#[derive(Default)]
struct Open {
    next_id: u64,
    streams: BTreeMap<u64, Arc<UnixStream>>,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(self: &Arc<Self>, listener: &UnixListener) {
        while !self.stopping.load(Ordering::Acquire) {
            let mut fds = [
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            ];
            let _ = poll(&mut fds, PollTimeout::NONE);
            match listener.accept() {
                Ok((stream, _)) => self.welcome(stream),
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    warn!(%error, "cannot accept a privcmd connection");
                    // Out of descriptors, most likely: don't spin on it.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Gives a new connection its thread, or turns it away.
    fn welcome(self: &Arc<Self>, stream: UnixStream) {
        let peer = match connection::admit(&stream) {
            Ok(peer) => peer,
            Err(refusal) => return connection::refuse(&stream, &refusal),
        };
        let (id, stream) = match self.enter(stream) {
            Ok(entered) => entered,
            Err(stream) => return connection::refuse_full(&stream, self.limits.connections),
        };
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name(format!("privcmd-{id}"))
            .spawn(move || {
                let _leave = Leave {
                    shared: &shared,
                    id,
                };
                connection::serve(&shared, &stream, id, peer);
            });
        if let Err(error) = spawned {
            warn!(%error, "no thread for a privcmd connection");
            self.leave(id);
        }
    }

    fn enter(&self, stream: UnixStream) -> Result<(u64, Arc<UnixStream>), UnixStream> {
        let mut open = self.open();
        if open.streams.len() >= self.limits.connections {
            return Err(stream);
        }
        let id = open.next_id;
        open.next_id += 1;
        let stream = Arc::new(stream);
        open.streams.insert(id, Arc::clone(&stream));
        Ok((id, stream))
    }

    fn leave(&self, id: u64) {
        self.open().streams.remove(&id);
        self.closed.notify_all();
    }

    /// Ends all connections and waits for their threads.
    fn hang_up(&self) {
        let mut open = self.open();
        for stream in open.streams.values() {
            let _ = stream.shutdown(Shutdown::Read);
        }
        while !open.streams.is_empty() {
            open = self
                .closed
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Takes a connection off the list, also when its thread panics.
struct Leave<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.shared.leave(self.id);
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}
