//! One caller: who it is, its hello, its requests, its end.

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use domus_privcmd::{
    protocol::{Failure, PROTOCOL_VERSION, Reply, Request, Response},
    wire::{Channel, Patience, WireError},
};
use guest_abi::errno::Errno;
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};
use tracing::{debug, error, warn};

use super::{Answer, Dom0Calls, Peer, Session, server::Shared};

/// Whether the process at the other end may call: the hypervisor's own user
/// and root may.
pub(super) fn admit(stream: &UnixStream) -> Result<Peer, Failure> {
    let peer = getsockopt(stream, PeerCredentials)
        .map(|them| Peer {
            pid: them.pid(),
            uid: them.uid(),
        })
        .map_err(|errno| Failure::new(Errno::EPERM, format!("who are you? {errno}")))?;
    admit_uid(peer.uid, geteuid().as_raw())?;
    Ok(peer)
}

fn admit_uid(theirs: u32, ours: u32) -> Result<(), Failure> {
    if theirs == ours || theirs == 0 {
        return Ok(());
    }
    let why = format!("this hypervisor serves uid {ours} and root only, and you are uid {theirs}");
    Err(Failure::new(Errno::EPERM, why))
}

/// Says no and hangs up. The message fits into the empty socket, so this does
/// not wait for the caller.
pub(super) fn refuse(stream: &UnixStream, refusal: &Failure) {
    debug!(%refusal, "privcmd connection refused");
    let patience = Patience {
        idle: None,
        message: Some(Duration::from_millis(100)),
    };
    let response: Response = Err(refusal.clone());
    let _ = Channel::over(stream, patience).send(&response, &[]);
}

pub(super) fn refuse_full(stream: &UnixStream, limit: usize) {
    let why = format!("all {limit} privcmd connections are in use");
    refuse(stream, &Failure::new(Errno::EBUSY, why));
}

/// Serves one caller until it or the server ends the connection.
pub(super) fn serve(shared: &Shared, stream: &UnixStream, id: u64, peer: Peer) {
    let mut holder = Holder {
        calls: &*shared.calls,
        session: Some(Session::new(id, peer)),
    };
    debug!(id, pid = peer.pid, "privcmd connection opened");
    match converse(shared, stream, &mut holder) {
        Ok(()) => debug!(id, "privcmd connection closed"),
        Err(error) => warn!(id, pid = peer.pid, %error, "privcmd connection dropped"),
    }
}

fn converse(shared: &Shared, stream: &UnixStream, to: &mut Holder<'_>) -> Result<(), WireError> {
    let patience = Patience {
        idle: Some(shared.limits.hello),
        message: Some(shared.limits.message),
    };
    if !greet(&Channel::over(stream, patience))? {
        return Ok(());
    }
    // After the hello a caller may be silent for as long as it likes.
    let patience = Patience {
        idle: None,
        ..patience
    };
    let channel = Channel::over(stream, patience);
    while let Some(request) = receive(&channel)? {
        let is_one_way = request.is_one_way();
        let (outcome, go_on) = to.serve(request);
        if !is_one_way {
            respond(&channel, outcome)?;
        }
        if !go_on {
            break;
        }
    }
    Ok(())
}

/// The first exchange; whether to go on.
fn greet(channel: &Channel<&UnixStream>) -> Result<bool, WireError> {
    let response = match receive(channel)? {
        None => return Ok(false),
        Some(hello @ Request::Hello { .. }) => answer_hello(&hello),
        Some(_) => Err(Failure::new(
            Errno::EINVAL,
            "the first message must be a hello",
        )),
    };
    let go_on = response.is_ok();
    channel.send(&response, &[])?;
    Ok(go_on)
}

/// `EACCES` is Xen's answer to a domctl of another interface version.
fn answer_hello(request: &Request) -> Response {
    match request {
        Request::Hello {
            version: PROTOCOL_VERSION,
        } => Ok(Reply::Done),
        other => Err(Failure::new(
            Errno::EACCES,
            format!(
                "the hypervisor speaks privcmd version {PROTOCOL_VERSION} and got {other:?}: \
                 install tools and hypervisor of one release and restart the hypervisor"
            ),
        )),
    }
}

/// One request. A caller that does not speak the protocol is told so before
/// it is dropped.
fn receive(channel: &Channel<&UnixStream>) -> Result<Option<Request>, WireError> {
    match channel.receive::<Request>(0) {
        Ok(message) => Ok(message.map(|(request, _)| request)),
        Err(error @ (WireError::Garbage(_) | WireError::TooLong { .. })) => {
            let response: Response = Err(Failure::new(Errno::EBADMSG, error.to_string()));
            let _ = channel.send(&response, &[]);
            Err(error)
        }
        Err(error) => Err(error),
    }
}

fn respond(
    channel: &Channel<&UnixStream>,
    outcome: Result<Answer, Failure>,
) -> Result<(), WireError> {
    let (response, fds) = match outcome {
        Ok(answer) => (Ok(answer.reply), answer.fds),
        Err(failure) => (Err(failure), Vec::new()),
    };
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    match channel.send::<Response>(&response, &borrowed) {
        Err(error @ WireError::TooLong { .. }) => {
            let why = format!("{error}: ask for less at a time");
            channel.send::<Response>(&Err(Failure::new(Errno::E2BIG, why)), &[])
        }
        sent => sent,
    }
}

/// A session on its way back to whom it came from.
struct Holder<'a> {
    calls: &'a dyn Dom0Calls,
    session: Option<Session>,
}

impl Holder<'_> {
    /// Serves one request; the outcome, and whether the session goes on. A
    /// panic ends the session, and nothing but the session.
    fn serve(&mut self, request: Request) -> (Result<Answer, Failure>, bool) {
        if let hello @ Request::Hello { .. } = &request {
            return (answer_hello(hello).map(Answer::from), true);
        }
        let Some(session) = &mut self.session else {
            let why = "the session has ended";
            return (Err(Failure::new(Errno::ENOTCONN, why)), false);
        };
        let name = request.name();
        let served = catch_unwind(AssertUnwindSafe(|| self.calls.handle(session, request)));
        let Ok(outcome) = served else {
            error!(id = session.id(), name, "panic in a call");
            let why = format!("{name}: internal error; see the hypervisor's log");
            return (Err(Failure::new(Errno::EIO, why)), false);
        };
        if let Err(failure) = &outcome {
            debug!(id = session.id(), name, %failure, "call failed");
        }
        (outcome, true)
    }
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.calls.release(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_may_call() {
        assert!(admit_uid(1000, 1000).is_ok());
        assert!(admit_uid(0, 1000).is_ok());
        let refused = admit_uid(1001, 1000).unwrap_err();
        assert_eq!(refused.errno(), Errno::EPERM);
        assert!(refused.why.contains("1001"), "{refused}");
        assert!(admit_uid(1000, 0).is_err());
    }
}
