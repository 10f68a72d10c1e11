//! The server side of the privcmd socket: Dom0's calls into this process.
//!
//! Law: one connection, one thread, one [`Session`]. What a caller does or
//! fails to do (a half-sent message, garbage, an unread reply, sudden death)
//! costs its own thread alone, and what its session held goes back through
//! [`Dom0Calls::release`], exactly once, however the connection ended.
//!
//! This module decides who may call; [`Dom0Calls`] decides what a call does.
//! No lock of this module is held while it is called.

mod connection;
mod endpoint;
mod server;
mod session;

use std::os::fd::OwnedFd;

use domus_privcmd::protocol::{Failure, Reply, Request};

pub use endpoint::PID_FILE;
pub use server::{Limits, Server, ServerError};
pub use session::{Peer, Session};

/// What the hypervisor does for a Dom0 process.
pub trait Dom0Calls: Send + Sync {
    /// Serves one request. Resources that the reply names (ports) are to be
    /// entered in `session` before this returns. `Hello` never gets here.
    ///
    /// # Errors
    /// What the caller is told.
    fn handle(&self, session: &mut Session, request: Request) -> Result<Answer, Failure>;

    /// Takes back all that `session` holds. Called once for each session, also
    /// after a panic in [`handle`](Self::handle).
    fn release(&self, session: Session);
}

/// A reply and the descriptors that travel with it.
#[derive(Debug)]
pub struct Answer {
    /// The reply.
    pub reply: Reply,
    /// Sent to the caller; our copies are closed afterwards.
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    /// [`Reply::Done`].
    pub const DONE: Answer = Answer {
        reply: Reply::Done,
        fds: Vec::new(),
    };

    /// A reply with one descriptor.
    #[must_use]
    pub fn with_fd(reply: Reply, fd: OwnedFd) -> Self {
        Self {
            reply,
            fds: vec![fd],
        }
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            fds: Vec::new(),
        }
    }
}
