//! How a ring's thread gets its I/O done: asynchronously, in one of two ways.
//!
//! Law: an engine owns a job, and with it the mapped pages that the kernel
//! reads and writes, from [`Engine::submit`] until it gives it back as
//! [`Done`]. An engine is not dropped before all its jobs have ended.

mod threads;
mod uring;

use std::{io, os::fd::BorrowedFd, sync::Arc, time::Duration};

use nix::libc::iovec;
use tracing::debug;

pub use threads::Threads;
pub use uring::Uring;

use super::{
    pages::Page,
    source::{Disk, Source},
};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// From the disk into the parts.
    Read,
    /// From the parts to the disk.
    Write,
    /// Make durable what was written.
    Flush,
    /// Forget so many bytes.
    Discard(u64),
}

/// One I/O operation.
pub struct Job {
    /// The ring's name for it.
    pub tag: u64,
    /// What to do.
    pub action: Action,
    /// Where on the disk.
    pub offset: u64,
    /// Where in memory.
    pub parts: Vec<iovec>,
    /// Keeps what the parts point to.
    #[allow(dead_code)] // held, not read
    pub pages: Vec<Page>,
}

// SAFETY: the parts point into mappings that `pages` keeps alive, and which
// any thread may use.
unsafe impl Send for Job {}

/// A job that has ended.
pub struct Done {
    /// Which.
    pub job: Job,
    /// How.
    pub result: io::Result<()>,
}

/// Does jobs, any number at a time, in any order.
pub trait Engine {
    /// Begins a job.
    fn submit(&mut self, job: Job);

    /// Begins what was submitted, without waiting for it.
    ///
    /// # Errors
    /// What the system gives; the engine can't be used then.
    fn begin(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// A job that has ended; never waits.
    fn done(&mut self) -> Option<Done>;

    /// Begins what was submitted and waits until about `least` jobs have ended,
    /// one of the two is readable, or the time is over; whether the first is
    /// readable. With `least` over 1, which needs a time, the two may have to
    /// wait for it.
    ///
    /// # Errors
    /// What the system gives; the engine can't be used then.
    fn wait(
        &mut self,
        least: usize,
        fds: [BorrowedFd<'_>; 2],
        timeout: Option<Duration>,
    ) -> io::Result<bool>;
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// `io_uring` where the kernel allows it, threads otherwise.
    #[default]
    Auto,
    /// Threads.
    Threads,
}

/// An engine for a disk and at most so many jobs at a time. To be called on
/// the thread that uses it.
///
/// # Errors
/// When the system gives no threads.
pub fn engine(disk: &Arc<Disk>, jobs: u32, choice: Choice) -> io::Result<Box<dyn Engine>> {
    let raw = matches!(disk.source, Some(Source::Raw(_)));
    if raw && choice == Choice::Auto {
        match Uring::new(disk.clone(), jobs) {
            Ok(uring) => return Ok(Box::new(uring)),
            Err(error) => debug!(%error, "no io_uring; using threads"),
        }
    }
    Ok(Box::new(Threads::new(disk.clone())?))
}

/// Takes `count` bytes off the front of `parts`.
fn advance(parts: &mut Vec<iovec>, mut count: usize) {
    let whole = parts.iter().take_while(|part| {
        let used = part.iov_len <= count;
        if used {
            count -= part.iov_len;
        }
        used
    });
    let whole = whole.count();
    parts.drain(..whole);
    if let Some(first) = parts.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(count);
        first.iov_len -= count;
    }
}

#[cfg(test)]
mod tests;
