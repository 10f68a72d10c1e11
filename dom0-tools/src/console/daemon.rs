//! All consoles: what `xenconsoled` does.
//!
//! Law: one thread, one poll. The hypervisor says which domains exist, the
//! store says where their rings are; what the daemon itself knows can be lost
//! at any time (`kill -9`) and is found again by the next one.

mod ending;
mod table;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use domus_privcmd::client::{Client, ClientError};
use guest_abi::addr::{DomId, Port};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use tracing::{debug, info, warn};

use super::{domain::Bell, sayings::Sayings, store::Store};
use table::Table;

const RECONNECT: Duration = Duration::from_millis(500);

/// Why the daemon ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The hypervisor's socket.
    #[error(transparent)]
    Hypervisor(#[from] ClientError),
    /// The store's socket.
    #[error("{0}; start xenstored first")]
    Store(io::Error),
    /// The system said no.
    #[error("xenconsoled: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for DaemonError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// The running daemon.
pub struct Daemon {
    client: Client,
    hypervisor: OwnedFd,
    store: Option<Store>,
    retry_store: Instant,
    signals: SignalFd,
    table: Table,
}

/// What a poll found.
#[derive(Default)]
struct Ready {
    signal: bool,
    hypervisor_gone: bool,
    store: bool,
    sayings: bool,
    events: Vec<DomId>,
    keys: Vec<DomId>,
}

impl Daemon {
    /// Takes up all consoles that there are.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub fn start(client: Client, log_dir: PathBuf) -> Result<Self, DaemonError> {
        let signals = catch_signals()?;
        let store = Store::connect().map_err(DaemonError::Store)?;
        let hypervisor = client.hang_up_fd()?;
        let sayings = Sayings::listen(&client)?;
        let mut daemon = Self {
            client,
            hypervisor,
            store: None,
            retry_store: Instant::now(),
            signals,
            table: Table::new(log_dir, sayings),
        };
        daemon.use_store(store).map_err(DaemonError::Store)?;
        Ok(daemon)
    }

    /// Serves until a signal or the hypervisor's end.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub fn run(&mut self) -> Result<(), DaemonError> {
        loop {
            let ready = self.wait()?;
            if ready.signal && self.serve_signal() {
                return Ok(());
            }
            if ready.hypervisor_gone {
                info!("the hypervisor has ended");
                self.table.end_all(Instant::now());
                return Ok(());
            }
            if ready.sayings || ready.store {
                // Before the store: it may tell of the domain's end.
                self.table.hear(&self.client);
            }
            self.serve_store(ready.store);
            for dom in ready.events {
                self.table.serve_guest(dom, &self.client);
            }
            for dom in ready.keys {
                self.table.serve_keys(dom, &self.client);
            }
            self.table.serve_screens(Instant::now());
        }
    }

    fn wait(&mut self) -> Result<Ready, DaemonError> {
        let now = Instant::now();
        let (interests, mut again) = self.table.interests(now);
        if self.store.is_none() {
            let left = self.retry_store.saturating_duration_since(now);
            again = Some(again.map_or(left, |again| again.min(left)));
        }
        let mut set = PollSet::default();
        set.add(Source::Signal, self.signals.as_fd(), PollFlags::POLLIN);
        set.add(
            Source::Hypervisor,
            self.hypervisor.as_fd(),
            PollFlags::empty(),
        );
        set.add(Source::Sayings, self.table.sayings_fd(), PollFlags::POLLIN);
        if let Some(store) = &self.store {
            set.add(Source::Store, store.as_fd(), PollFlags::POLLIN);
        }
        for (dom, interest) in interests {
            let (event, tty) = self.table.fds(dom);
            if interest.event {
                set.add(Source::Event(dom), event, PollFlags::POLLIN);
            }
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, interest.keys);
            flags.set(PollFlags::POLLOUT, interest.screen);
            if !flags.is_empty() {
                set.add(Source::Tty(dom), tty, flags);
            }
        }
        set.poll(again)
    }

    /// Whether to end.
    fn serve_signal(&mut self) -> bool {
        match self.signals.read_signal() {
            Ok(Some(info)) if i32::try_from(info.ssi_signo) == Ok(Signal::SIGHUP as i32) => {
                self.table.reopen_logs();
                false
            }
            Ok(Some(info)) => {
                info!(signal = info.ssi_signo, "ending");
                true
            }
            _ => false,
        }
    }

    /// Takes in what the store has to tell, and finds it again when it is lost.
    fn serve_store(&mut self, ready: bool) {
        let now = Instant::now();
        let outcome = match &mut self.store {
            Some(store) if ready => self.table.serve_store(&self.client, store, now),
            Some(_) => Ok(()),
            None if now < self.retry_store => Ok(()),
            None => Store::connect().and_then(|store| self.use_store(store)),
        };
        if let Err(error) = outcome {
            if self.store.take().is_some() {
                warn!(%error, "the store's connection broke; trying to get it back");
            }
            self.retry_store = now + RECONNECT;
        }
    }

    /// Watches a fresh connection and catches up.
    fn use_store(&mut self, mut store: Store) -> io::Result<()> {
        self.table.forget_watches();
        self.table.watch_domains(&mut store)?;
        // The first events come at once and make the table scan.
        let now = Instant::now();
        self.table.serve_store(&self.client, &mut store, now)?;
        self.table.scan(&self.client, &mut store, now)?;
        self.table.serve_store(&self.client, &mut store, now)?;
        self.store = Some(store);
        Ok(())
    }
}

impl Bell for Client {
    fn ring(&self, port: Port) {
        if let Err(error) = self.evtchn_notify(port) {
            debug!(%port, %error, "cannot notify");
        }
    }
}

fn catch_signals() -> nix::Result<SignalFd> {
    let mut ours = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        ours.add(signal);
    }
    ours.thread_block()?;
    SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

#[derive(Clone, Copy)]
enum Source {
    Signal,
    Hypervisor,
    Store,
    Sayings,
    Event(DomId),
    Tty(DomId),
}

#[derive(Default)]
struct PollSet<'fd> {
    sources: Vec<Source>,
    fds: Vec<PollFd<'fd>>,
}

impl<'fd> PollSet<'fd> {
    fn add(&mut self, source: Source, fd: BorrowedFd<'fd>, flags: PollFlags) {
        self.sources.push(source);
        self.fds.push(PollFd::new(fd, flags));
    }

    fn poll(mut self, timeout: Option<Duration>) -> Result<Ready, DaemonError> {
        let timeout = match timeout {
            None => PollTimeout::NONE,
            Some(wait) => {
                PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut self.fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = Ready::default();
        for (source, fd) in self.sources.iter().zip(&self.fds) {
            if fd.any() != Some(true) {
                continue;
            }
            match *source {
                Source::Signal => ready.signal = true,
                Source::Hypervisor => ready.hypervisor_gone = true,
                Source::Store => ready.store = true,
                Source::Sayings => ready.sayings = true,
                Source::Event(dom) => ready.events.push(dom),
                Source::Tty(dom) => ready.keys.push(dom),
            }
        }
        Ok(ready)
    }
}
