//! Moves bytes between a person and a console.

use std::{io, os::fd::BorrowedFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{isatty, read, write},
};

use super::DETACH;
use crate::console::backlog::Backlog;

/// Keys that wait for the guest. A pipe is read no further then; a person's
/// oldest keys are forgotten, so that the detaching key is still seen.
const TYPED_LIMIT: usize = 64 << 10;
/// At once; small enough that a writable pipe takes it without blocking.
const CHUNK: usize = 4096;

/// Why the pump stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    Detached,
    HungUp,
    Signal,
}

/// The person's side, and what is on its way.
pub struct Pump<'a> {
    keys: Option<BorrowedFd<'a>>,
    keys_are_a_terminal: bool,
    screen: BorrowedFd<'a>,
    signals: BorrowedFd<'a>,
    typed: Backlog,
    shown: Backlog,
}

impl<'a> Pump<'a> {
    pub fn new(keys: BorrowedFd<'a>, screen: BorrowedFd<'a>, signals: BorrowedFd<'a>) -> Self {
        Self {
            keys: Some(keys),
            keys_are_a_terminal: isatty(keys).unwrap_or(false),
            screen,
            signals,
            typed: Backlog::new(TYPED_LIMIT),
            shown: Backlog::new(CHUNK),
        }
    }

    /// Until the person leaves, `tty` (non-blocking) hangs up, or a signal.
    pub fn run(&mut self, tty: BorrowedFd<'_>) -> io::Result<Stop> {
        loop {
            let ready = self.wait(tty)?;
            if ready.signal {
                return Ok(Stop::Signal);
            }
            if ready.keys && self.read_keys()? {
                let _ = self.write_typed(tty);
                return Ok(Stop::Detached);
            }
            if ready.screen {
                self.write_shown()?;
            }
            let alive = self.write_typed(tty)?;
            if (ready.tty && !self.read_tty(tty)?) || !alive {
                self.show_the_rest(tty)?;
                return Ok(Stop::HungUp);
            }
        }
    }

    /// Waits for something to do. What is not wanted now is left out, since a
    /// poll would report its hang-up again and again.
    fn wait(&self, tty: BorrowedFd<'_>) -> io::Result<Ready> {
        let nothing = (self.signals, PollFlags::empty());
        let room = self.typed.len() < TYPED_LIMIT || self.keys_are_a_terminal;
        let keys = self.keys.filter(|_| room);
        let mut tty_events = PollFlags::empty();
        tty_events.set(PollFlags::POLLIN, self.shown.is_empty());
        tty_events.set(PollFlags::POLLOUT, !self.typed.is_empty());
        let wanted = [
            (self.signals, PollFlags::POLLIN),
            keys.map_or(nothing, |fd| (fd, PollFlags::POLLIN)),
            match tty_events.is_empty() {
                true => nothing,
                false => (tty, tty_events),
            },
            match self.shown.is_empty() {
                true => nothing,
                false => (self.screen, PollFlags::POLLOUT),
            },
        ];
        let mut fds = wanted.map(|(fd, events)| PollFd::new(fd, events));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [signal, keys, tty, screen] = fds.map(|fd| fd.any().unwrap_or(false));
        Ok(Ready {
            signal,
            keys,
            tty: tty && self.shown.is_empty(),
            screen,
        })
    }

    /// Whether the detaching key was among what was typed.
    fn read_keys(&mut self) -> io::Result<bool> {
        let Some(keys) = self.keys else {
            return Ok(false);
        };
        let mut buf = [0; CHUNK];
        let count = match read(keys, &mut buf) {
            Ok(0) | Err(Errno::EIO) => {
                self.keys = None;
                return Ok(false);
            }
            Ok(count) => count,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        let detach = buf[..count].iter().position(|byte| *byte == DETACH);
        self.typed.push(&buf[..detach.unwrap_or(count)]);
        Ok(detach.is_some())
    }

    /// Whether the console still takes bytes.
    fn write_typed(&mut self, tty: BorrowedFd<'_>) -> io::Result<bool> {
        while !self.typed.is_empty() {
            match write(tty, self.typed.front()) {
                Ok(count) => self.typed.consume(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(true),
                Err(Errno::EIO) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Whether the console is still there.
    fn read_tty(&mut self, tty: BorrowedFd<'_>) -> io::Result<bool> {
        let mut buf = [0; CHUNK];
        match read(tty, &mut buf) {
            Ok(0) | Err(Errno::EIO) => Ok(false),
            Ok(count) => {
                self.shown.push(&buf[..count]);
                Ok(true)
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write_shown(&mut self) -> io::Result<()> {
        match write(self.screen, self.shown.front()) {
            Ok(count) => self.shown.consume(count),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// After the hang-up: what is still on its way to the screen.
    fn show_the_rest(&mut self, tty: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            while !self.shown.is_empty() {
                let mut fds = [PollFd::new(self.screen, PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::NONE);
                self.write_shown()?;
            }
            if !self.read_tty(tty)? || self.shown.is_empty() {
                return Ok(());
            }
        }
    }
}

struct Ready {
    signal: bool,
    keys: bool,
    tty: bool,
    screen: bool,
}
