//! The person's terminal and the signals that end the visit.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, Signal, pthread_sigmask},
        signalfd::{SfdFlags, SignalFd},
        termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
    },
    unistd::isatty,
};

/// Raw mode for as long as this lives.
pub struct RawTerminal<'a> {
    fd: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> RawTerminal<'a> {
    /// Makes `fd` raw; `None` when it is not a terminal.
    pub fn enter(fd: BorrowedFd<'a>) -> io::Result<Option<Self>> {
        if !isatty(fd).unwrap_or(false) {
            return Ok(None);
        }
        let before = tcgetattr(fd)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(fd, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self { fd, before }))
    }
}

impl Drop for RawTerminal<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.fd, SetArg::TCSADRAIN, &self.before);
    }
}

/// Signals that would end the process, taken as an event for as long as this
/// lives.
pub struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    pub fn catch() -> io::Result<Self> {
        let mut ending = SigSet::empty();
        for signal in [
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
        ] {
            ending.add(signal);
        }
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&ending), Some(&mut before))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        match SignalFd::with_flags(&ending, flags) {
            Ok(fd) => Ok(Self { fd, before }),
            Err(errno) => {
                let _ = before.thread_set_mask();
                Err(errno.into())
            }
        }
    }

    /// The number of the signal that came, 0 if none did.
    pub fn taken(&self) -> i32 {
        match self.fd.read_signal() {
            Ok(Some(info)) => i32::try_from(info.ssi_signo).unwrap_or(0),
            _ => 0,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}
