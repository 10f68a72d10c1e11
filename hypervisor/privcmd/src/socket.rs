//! Bytes and file descriptors over a stream socket, with a deadline.
//!
//! Law: descriptors arrive with close-on-exec set; those that the caller did
//! not ask for are closed before it sees the bytes. No call here waits past
//! its deadline, however slowly the peer drips.

use std::{
    io::{self, IoSlice, IoSliceMut, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::Instant,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

/// The most descriptors that Linux puts in one message (`SCM_MAX_FD`). With
/// room for all of them no message is ever truncated.
const SCM_MAX_FD: usize = 253;

/// Sends all of `bytes`; `fds` travel with the first of them.
pub fn send_all(
    stream: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut rest = bytes;
    while !rest.is_empty() {
        wait(stream, PollFlags::POLLOUT, deadline)?;
        match send_some(stream, rest, &raw) {
            Ok(sent) => {
                raw.clear();
                rest = &rest[sent..];
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn send_some(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let iov = [IoSlice::new(bytes)];
    sendmsg::<()>(stream.as_raw_fd(), &iov, control, flags, None)
}

/// Reads bytes from a stream and gathers the descriptors that come with them.
pub struct Receiver<'a> {
    stream: &'a UnixStream,
    max_fds: usize,
    /// When to give up; `None` waits for ever.
    pub deadline: Option<Instant>,
    /// What has come so far, at most `max_fds`.
    pub fds: Vec<OwnedFd>,
}

impl<'a> Receiver<'a> {
    pub fn new(stream: &'a UnixStream, max_fds: usize, deadline: Option<Instant>) -> Self {
        Self {
            stream,
            max_fds,
            deadline,
            fds: Vec::new(),
        }
    }

    /// With no room for control messages: the kernel closes what comes along.
    fn read_plain(&self, buf: &mut [u8]) -> nix::Result<usize> {
        let mut iov = [IoSliceMut::new(buf)];
        recvmsg::<()>(self.fd(), &mut iov, None, MsgFlags::MSG_DONTWAIT).map(|got| got.bytes)
    }

    fn read_with_fds(&mut self, buf: &mut [u8]) -> nix::Result<usize> {
        let mut control = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
        let mut iov = [IoSliceMut::new(buf)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<()>(self.stream.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
        let mut arrived = Vec::new();
        for message in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just made these descriptors for us,
                // and nobody else knows their numbers.
                arrived.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        let room = self.max_fds.saturating_sub(self.fds.len());
        self.fds.extend(arrived.into_iter().take(room));
        Ok(got.bytes)
    }

    fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl Read for Receiver<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            wait(self.stream, PollFlags::POLLIN, self.deadline)?;
            let got = if self.max_fds == 0 {
                self.read_plain(buf)
            } else {
                self.read_with_fds(buf)
            };
            match got {
                Ok(bytes) => return Ok(bytes),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Waits until the stream is ready for `events` (or broken).
fn wait(stream: &UnixStream, events: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(at) => remaining(at)?,
        };
        match poll(&mut [PollFd::new(stream.as_fd(), events)], timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn remaining(deadline: Instant) -> io::Result<PollTimeout> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    // Rounded up, so that the last millisecond is slept and not spun away.
    let millis = left.as_millis().saturating_add(1);
    Ok(PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX))
}
