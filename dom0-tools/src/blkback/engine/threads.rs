//! I/O by threads: for qcow2 images, and where the kernel gives no `io_uring`.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    libc,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
};

use super::{Action, Done, Engine, Job, advance};
use crate::{
    blkback::source::{Disk, Qcow2, RawFile, Source},
    contained::contained,
};

/// Threads of a ring.
const THREADS: usize = 4;

/// See the [module](self).
pub struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    disk: Arc<Disk>,
    work: Mutex<Work>,
    more: Condvar,
    ended: Mutex<VecDeque<Done>>,
    event: EventFd,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    over: bool,
}

impl Threads {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn new(disk: Arc<Disk>) -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            disk,
            work: Mutex::default(),
            more: Condvar::new(),
            ended: Mutex::default(),
            event,
        });
        let mut engine = Self {
            shared,
            threads: Vec::new(),
        };
        for _ in 0..THREADS {
            let shared = engine.shared.clone();
            let thread = Builder::new().name("blk-io".into());
            engine.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(engine)
    }
}

impl Engine for Threads {
    fn submit(&mut self, job: Job) {
        lock(&self.shared.work).jobs.push_back(job);
        self.shared.more.notify_one();
    }

    fn done(&mut self) -> Option<Done> {
        lock(&self.shared.ended).pop_front()
    }

    fn wait(
        &mut self,
        _least: usize,
        fds: [BorrowedFd<'_>; 2],
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        let [a, b] = fds;
        let fds = [self.shared.event.as_fd(), a, b];
        let mut set = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match ppoll(&mut set, timeout.map(TimeSpec::from_duration), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Before the ended jobs are looked at: each that comes later rings
        // again.
        let _ = self.shared.event.read();
        Ok(set[1].any() == Some(true))
    }
}

impl Drop for Threads {
    /// What was submitted is done first.
    fn drop(&mut self) {
        lock(&self.shared.work).over = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(mut job) = self.next() {
            let result = match &self.disk.source {
                Some(Source::Raw(file)) => raw(file, &mut job),
                Some(Source::Qcow2(image)) => qcow2(image, &job),
                None => Err(Errno::ENOMEDIUM.into()),
            };
            lock(&self.ended).push_back(Done { job, result });
            let _ = self.event.write(1);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut work = lock(&self.work);
        loop {
            if let Some(job) = work.jobs.pop_front() {
                return Some(job);
            }
            if work.over {
                return None;
            }
            work = self.more.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn raw(file: &RawFile, job: &mut Job) -> io::Result<()> {
    match job.action {
        Action::Flush => Ok(nix::unistd::fdatasync(file.buffered())?),
        Action::Discard(len) => {
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            Ok(fallocate(
                file.buffered(),
                mode,
                signed(job.offset)?,
                signed(len)?,
            )?)
        }
        Action::Read | Action::Write => transfer(file, job),
    }
}

fn transfer(file: &RawFile, job: &mut Job) -> io::Result<()> {
    let mut buffered = false;
    while !job.parts.is_empty() {
        let fd = match buffered {
            true => file.buffered(),
            false => file.for_transfer(job.offset, &job.parts),
        };
        match transfer_once(fd, job) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                advance(&mut job.parts, count);
                job.offset += count as u64;
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EINVAL) if !buffered => buffered = true,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn transfer_once(fd: BorrowedFd<'_>, job: &Job) -> nix::Result<usize> {
    let offset = signed(job.offset).map_err(|_| Errno::EFBIG)?;
    let count = i32::try_from(job.parts.len()).map_err(|_| Errno::EINVAL)?;
    let (fd, parts) = (fd.as_raw_fd(), job.parts.as_ptr());
    // SAFETY: the descriptor is open, and the parts point into pages that the
    // job keeps mapped. Others may change them meanwhile; only the kernel
    // looks.
    let moved = unsafe {
        match job.action {
            Action::Write => libc::pwritev(fd, parts, count, offset),
            _ => libc::preadv(fd, parts, count, offset),
        }
    };
    usize::try_from(Errno::result(moved)?).map_err(|_| Errno::EIO)
}

fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// One request of a qcow2 image. Its code is not ours, and the image may hold
/// anything.
fn qcow2(image: &Qcow2, job: &Job) -> io::Result<()> {
    contained(|| through_a_buffer(image, job))
        .unwrap_or_else(|what| Err(io::Error::other(format!("the image is damaged: {what}"))))
}

/// The image's code works on Rust slices, which the guest's pages must not be.
fn through_a_buffer(image: &Qcow2, job: &Job) -> io::Result<()> {
    let len = job.parts.iter().map(|part| part.iov_len).sum();
    match job.action {
        Action::Read => {
            let mut buf = vec![0; len];
            image.read(&mut buf, job.offset)?;
            copy(job, |part, at| part.copy_from(&buf[at..at + part.len()]));
            Ok(())
        }
        Action::Write => {
            let mut buf = vec![0; len];
            copy(job, |part, at| {
                part.copy_to(&mut buf[at..at + part.len()]);
            });
            image.write(&buf, job.offset)
        }
        Action::Flush => image.sync(),
        Action::Discard(len) => image.discard(job.offset, len),
    }
}

/// Calls for each part with where it begins in the whole.
fn copy(job: &Job, mut each: impl FnMut(vm_memory::VolatileSlice<'_>, usize)) {
    let mut at = 0;
    for part in &job.parts {
        // SAFETY: the job keeps the page mapped, and the slice's accesses are
        // volatile.
        let slice =
            unsafe { vm_memory::VolatileSlice::new(part.iov_base.cast::<u8>(), part.iov_len) };
        each(slice, at);
        at += part.iov_len;
    }
}
