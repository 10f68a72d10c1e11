//! A thread that serves a ring.
//!
//! Law: whoever starts a worker ends it: dropping a [`Worker`] asks the thread
//! to stop and waits until it has. A worker that panics takes its device down,
//! not the process ([`Worker::has_ended`]).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Builder, JoinHandle},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

/// How a worker hears that it has to stop.
#[derive(Debug, Clone)]
pub struct Stop(Arc<Signal>);

#[derive(Debug)]
struct Signal {
    wanted: AtomicBool,
    event: EventFd,
}

impl Stop {
    /// One that nobody has pulled.
    ///
    /// # Errors
    /// When the system has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let wanted = AtomicBool::new(false);
        Ok(Self(Arc::new(Signal { wanted, event })))
    }

    /// Whether to stop.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.wanted.load(Ordering::Acquire)
    }

    /// Asks the worker to stop.
    pub fn pull(&self) {
        self.0.wanted.store(true, Ordering::Release);
        // Can only fail when it is readable already.
        let _ = self.0.event.write(1);
    }

    /// Waits until one of these is readable or the worker has to stop.
    ///
    /// # Errors
    /// What `poll` gives.
    pub fn wait(&self, fds: &[BorrowedFd<'_>], timeout: PollTimeout) -> io::Result<()> {
        let mut set = vec![PollFd::new(self.0.event.as_fd(), PollFlags::POLLIN)];
        set.extend(fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)));
        match poll(&mut set, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Stop {
    /// Readable from [`pull`](Self::pull) on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

/// A running thread.
#[derive(Debug)]
pub struct Worker {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread of that name (15 bytes are shown).
    ///
    /// # Errors
    /// When the system gives no thread or descriptor.
    pub fn spawn(name: &str, body: impl FnOnce(&Stop) + Send + 'static) -> io::Result<Self> {
        let stop = Stop::new()?;
        let theirs = stop.clone();
        let thread = Builder::new()
            .name(name.into())
            .spawn(move || body(&theirs))?;
        let thread = Some(thread);
        Ok(Self { stop, thread })
    }

    /// Whether the thread has ended by itself.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Asks the thread to stop, without waiting: to stop several at once.
    pub fn ask_to_stop(&self) {
        self.stop.pull();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.pull();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by then.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn dropping_a_worker_stops_it() {
        let (say, heard) = mpsc::channel();
        let worker = Worker::spawn("test", move |stop| {
            while !stop.is_wanted() {
                stop.wait(&[], PollTimeout::NONE).unwrap();
            }
            say.send(()).unwrap();
        });
        drop(worker.unwrap());
        heard.try_recv().unwrap();
    }

    #[test]
    fn a_panic_ends_only_the_worker() {
        let worker = Worker::spawn("test", |_| panic!("on purpose")).unwrap();
        while !worker.has_ended() {
            std::thread::yield_now();
        }
    }
}
