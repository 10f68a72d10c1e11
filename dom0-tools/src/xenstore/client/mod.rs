//! The client library: blocking calls over the daemon's socket.
//!
//! Law: a restart of the daemon is not the caller's business. When the
//! connection breaks, the client waits for the daemon to come back (for
//! [`RECONNECT_TIME`] at most), registers its watches again, and repeats the
//! request, which so may run twice. A transaction cannot be repeated halfway:
//! its next call fails, and [`Client::transaction`] starts it anew. The
//! socket's file descriptor keeps its number.
//!
//! ```no_run
//! use dom0_tools::xenstore::client::{Client, Nodes};
//! # fn main() -> Result<(), dom0_tools::xenstore::client::Error> {
//! let mut store = Client::connect()?;
//! store.write("/local/domain/3/name", "guest")?;
//! assert_eq!(store.find("/local/domain/3/name")?.as_deref(), Some("guest"));
//! store.transaction(|tx| {
//!     let count: u32 = tx.find("/tool/count")?.and_then(|text| text.parse().ok()).unwrap_or(0);
//!     tx.write("/tool/count", (count + 1).to_string())
//! })?;
//! # Ok(())
//! # }
//! ```

mod connection;
mod nodes;

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use guest_abi::{
    addr::{DomId, Mfn, Port},
    errno::Errno,
};

use self::connection::Connection;
use super::wire::{Message, Op, error_from_payload};
use crate::paths;

pub use nodes::Nodes;

/// How long a client waits for a daemon that has gone away.
pub const RECONNECT_TIME: Duration = Duration::from_secs(10);
/// How often a request is sent to a daemon that goes away over it.
const REQUEST_TRIES: u32 = 3;
/// How often a transaction is tried before it is given up.
pub const TRANSACTION_TRIES: u32 = 100;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the socket.
    #[error("cannot reach xenstored at {}: {source}; is it running?", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The connection broke in the middle of a transaction, or again and
    /// again.
    #[error("the connection to xenstored broke; see the log of xenstored")]
    Interrupted,
    /// The daemon said no.
    #[error("xenstore {op} {what}: {errno}")]
    Refused {
        /// The operation.
        op: &'static str,
        /// What it was about: the first string of the request.
        what: String,
        /// Why.
        errno: Errno,
    },
    /// A value that should be text is not UTF-8.
    #[error("the value of {path} is not text")]
    NotText {
        /// The node.
        path: String,
    },
    /// A request that no message can carry.
    #[error("a request of {len} bytes is over xenstore's limit of 4096")]
    TooLong {
        /// Its payload.
        len: usize,
    },
    /// The daemon sent something that makes no sense.
    #[error("xenstored sent a malformed answer to {op}")]
    Malformed {
        /// The operation.
        op: &'static str,
    },
}

impl Error {
    /// The daemon's error, if it is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    fn is_worth_another_try(&self) -> bool {
        matches!(self, Error::Interrupted) || self.errno() == Some(Errno::EAGAIN)
    }
}

/// A watch has fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The path that changed, spelt as the watch was.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    events: VecDeque<WatchEvent>,
    watches: Vec<(String, String)>,
    last_request: u32,
}

impl Client {
    /// Connects to the daemon of this installation.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub fn connect() -> Result<Client, Error> {
        Client::connect_to(&paths::xenstored_socket())
    }

    /// Connects to the daemon at this socket.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub fn connect_to(path: &Path) -> Result<Client, Error> {
        Ok(Client {
            connection: Connection::open(path)?,
            events: VecDeque::new(),
            watches: Vec::new(),
            last_request: 0,
        })
    }

    /// Asks to hear of changes at or below `path`, or of `@introduceDomain`
    /// or `@releaseDomain`. The first event comes at once.
    ///
    /// # Errors
    /// As any request; `EEXIST` if this watch is there already.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.call(Op::Watch, 0, strings(&[path, token]))?;
        self.watches.push((path.to_owned(), token.to_owned()));
        Ok(())
    }

    /// Takes a watch back. Events that are here already are dropped.
    ///
    /// # Errors
    /// As any request; `ENOENT` if there is no such watch.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.watches
            .retain(|watch| (watch.0.as_str(), watch.1.as_str()) != (path, token));
        self.call(Op::Unwatch, 0, strings(&[path, token]))?;
        self.events
            .retain(|event| event.token != token || !event.path.starts_with(path));
        Ok(())
    }

    /// The next event, waiting for at most `timeout` (for ever if `None`).
    /// When the file descriptor is polled, call this with a zero timeout until
    /// it gives `None`: events may be here before the socket is readable.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when the daemon is gone for good.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<WatchEvent>, Error> {
        let deadline = timeout.and_then(|time| Instant::now().checked_add(time));
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.connection.receive(deadline) {
                Ok(Some(message)) => self.note_event(&message),
                Ok(None) => return Ok(None),
                Err(_) => self.reconnect()?,
            }
        }
    }

    /// Whether [`next_event`](Self::next_event) would give one at once. To be
    /// asked before the descriptor is waited for: an event that came with the
    /// reply to a request has been read already, and makes nothing readable.
    ///
    /// # Errors
    /// As [`next_event`](Self::next_event).
    pub fn has_event(&mut self) -> Result<bool, Error> {
        if let Some(event) = self.next_event(Some(Duration::ZERO))? {
            self.events.push_front(event);
        }
        Ok(!self.events.is_empty())
    }

    /// Runs `body` within a transaction and commits it, again and again while
    /// others are in the way. An error of `body` drops the transaction.
    ///
    /// # Errors
    /// `body`'s error, or `EAGAIN` when [`TRANSACTION_TRIES`] were in vain.
    pub fn transaction<T>(
        &mut self,
        mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut tries = 1;
        loop {
            match self.try_transaction(&mut body) {
                Err(error) if error.is_worth_another_try() && tries < TRANSACTION_TRIES => {
                    tries += 1;
                    std::thread::sleep(Duration::from_micros(50) * tries.min(40));
                }
                other => return other,
            }
        }
    }

    fn try_transaction<T>(
        &mut self,
        body: &mut impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let op = Op::TransactionStart;
        let reply = self.call(op, 0, vec![0])?;
        let id = text_of(&reply).and_then(|text| text.parse().ok());
        let id = id.ok_or(Error::Malformed { op: op.name() })?;
        let outcome = body(&mut Transaction { client: self, id });
        match outcome {
            Ok(value) => {
                self.call(Op::TransactionEnd, id, strings(&["T"]))?;
                Ok(value)
            }
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                self.call(Op::TransactionEnd, id, strings(&["F"]))?;
                Err(error)
            }
        }
    }

    /// Connects the daemon to a domain: its ring's frame and its own end of
    /// the event channel.
    ///
    /// # Errors
    /// As any request; `EINVAL` for a domain that can't be reached.
    pub fn introduce(&mut self, dom: DomId, mfn: Mfn, port: Port) -> Result<(), Error> {
        let payload = strings(&[&dom.to_string(), &mfn.to_string(), &port.to_string()]);
        self.call(Op::Introduce, 0, payload).map(drop)
    }

    /// Disconnects the daemon from a domain and forgets what the domain owns.
    ///
    /// # Errors
    /// As any request; `ENOENT` for a domain that is not connected.
    pub fn release(&mut self, dom: DomId) -> Result<(), Error> {
        self.about_domain(Op::Release, dom).map(drop)
    }

    /// Lets the daemon tell of the domain's next shutdown again.
    ///
    /// # Errors
    /// As any request; `ENOENT` for a domain that is not connected.
    pub fn resume(&mut self, dom: DomId) -> Result<(), Error> {
        self.about_domain(Op::Resume, dom).map(drop)
    }

    /// Whether the daemon is connected to the domain.
    ///
    /// # Errors
    /// As any request.
    pub fn is_introduced(&mut self, dom: DomId) -> Result<bool, Error> {
        let reply = self.about_domain(Op::IsDomainIntroduced, dom)?;
        Ok(reply.starts_with(b"T"))
    }

    /// The path of the domain's home.
    ///
    /// # Errors
    /// As any request.
    pub fn domain_path(&mut self, dom: DomId) -> Result<String, Error> {
        let op = Op::GetDomainPath;
        let reply = self.about_domain(op, dom)?;
        text_of(&reply).ok_or(Error::Malformed { op: op.name() })
    }

    /// Lets `dom` act as if it were `target`.
    ///
    /// # Errors
    /// As any request; `ENOENT` if one of them is not there.
    pub fn set_target(&mut self, dom: DomId, target: DomId) -> Result<(), Error> {
        let payload = strings(&[&dom.to_string(), &target.to_string()]);
        self.call(Op::SetTarget, 0, payload).map(drop)
    }

    /// A control command, such as `["quota"]`.
    ///
    /// # Errors
    /// As any request; `EINVAL` for an unknown command.
    pub fn control(&mut self, words: &[&str]) -> Result<String, Error> {
        let op = Op::Control;
        let reply = self.call(op, 0, strings(words))?;
        text_of(&reply).ok_or(Error::Malformed { op: op.name() })
    }

    fn about_domain(&mut self, op: Op, dom: DomId) -> Result<Vec<u8>, Error> {
        self.call(op, 0, strings(&[&dom.to_string()]))
    }

    fn call(&mut self, op: Op, tx_id: u32, payload: Vec<u8>) -> Result<Vec<u8>, Error> {
        let what = payload.split(|byte| *byte == 0).next().unwrap_or(&[]);
        let what = String::from_utf8_lossy(what).into_owned();
        self.last_request = self.last_request.wrapping_add(1).max(1);
        let len = payload.len();
        let request = Message::new(op, self.last_request, tx_id, payload);
        let request = request.map_err(|_| Error::TooLong { len })?;
        let mut tries = 0;
        let reply = loop {
            match self.exchange(&request) {
                Ok(reply) => break reply,
                Err(_) => self.reconnect()?,
            }
            tries += 1;
            if tx_id != 0 || tries == REQUEST_TRIES {
                return Err(Error::Interrupted);
            }
        };
        match Op::from_wire(reply.header.kind) {
            Some(Op::Error) => Err(Error::Refused {
                op: op.name(),
                what,
                errno: error_from_payload(&reply.payload),
            }),
            Some(answered) if answered == op => Ok(reply.payload),
            _ => Err(Error::Malformed { op: op.name() }),
        }
    }

    fn exchange(&mut self, request: &Message) -> std::io::Result<Message> {
        self.connection.send(request)?;
        loop {
            let Some(message) = self.connection.receive(None)? else {
                continue;
            };
            if message.header.kind == Op::WatchEvent.to_wire() {
                self.note_event(&message);
            } else if message.header.req_id == request.header.req_id {
                return Ok(message);
            }
        }
    }

    fn note_event(&mut self, message: &Message) {
        let mut parts = message.payload.split(|byte| *byte == 0);
        let mut next = || {
            parts
                .next()
                .map(|part| String::from_utf8_lossy(part).into_owned())
        };
        if message.header.kind != Op::WatchEvent.to_wire() {
            return;
        }
        if let (Some(path), Some(token)) = (next(), next()) {
            self.events.push_back(WatchEvent { path, token });
        }
    }

    /// Waits for the daemon and puts the watches back. Each fires at once,
    /// which makes up for events that were lost meanwhile.
    fn reconnect(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + RECONNECT_TIME;
        loop {
            self.connection.reopen(deadline)?;
            if self.watch_again().is_ok() {
                return Ok(());
            }
        }
    }

    fn watch_again(&mut self) -> std::io::Result<()> {
        for (path, token) in self.watches.clone() {
            let request = Message::new(Op::Watch, 0, 0, strings(&[&path, &token]));
            if let Ok(request) = request {
                self.exchange(&request)?;
            }
        }
        Ok(())
    }
}

impl AsFd for Client {
    /// Readable when an event may be here: see [`Client::next_event`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Nodes for Client {
    fn request(&mut self, op: Op, payload: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.call(op, 0, payload)
    }
}

/// The inside of [`Client::transaction`].
#[derive(Debug)]
pub struct Transaction<'a> {
    client: &'a mut Client,
    id: u32,
}

impl Nodes for Transaction<'_> {
    fn request(&mut self, op: Op, payload: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.client.call(op, self.id, payload)
    }
}

/// A payload of NUL-terminated strings.
fn strings(parts: &[&str]) -> Vec<u8> {
    let parts = parts.iter();
    parts.flat_map(|part| part.bytes().chain([0])).collect()
}

/// The payload's first string.
fn text_of(payload: &[u8]) -> Option<String> {
    let text = payload.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}
