//! I/O by `io_uring`: the kernel reads and writes the guest's pages, and the
//! ring's thread waits for it, the guest and the end in one system call.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use io_uring::{IoUring, opcode, squeue::Entry, types};
use nix::{errno::Errno, libc};
use tracing::error;

use super::{Action, Done, Engine, Job, advance};
use crate::blkback::source::{Disk, RawFile, Source};

/// Names of the two polls, which no job has.
const POLLS: [u64; 2] = [u64::MAX, u64::MAX - 1];

/// See the [module](self).
pub struct Uring {
    ring: IoUring,
    disk: Arc<Disk>,
    /// With the kernel: boxed, so that a job's address is its own.
    running: HashMap<u64, Running>,
    ended: VecDeque<Done>,
    polled: [bool; 2],
    /// A submission that waits for room.
    unsent: VecDeque<Entry>,
}

struct Running {
    job: Job,
    /// Direct I/O was refused: go through the page cache.
    buffered: bool,
}

impl Uring {
    /// A ring for so many jobs.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub fn new(disk: Arc<Disk>, jobs: u32) -> io::Result<Self> {
        let entries = (jobs + 4).next_power_of_two();
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        // Waiting with a timeout, and nothing lost when completions pile up.
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            ring,
            disk,
            running: HashMap::new(),
            ended: VecDeque::new(),
            polled: [false; 2],
            unsent: VecDeque::new(),
        })
    }

    fn raw(&self) -> &RawFile {
        match &self.disk.source {
            Some(Source::Raw(file)) => file,
            _ => unreachable!("made for raw disks only"),
        }
    }

    fn start(&mut self, tag: u64) {
        let running = &self.running[&tag];
        let entry = entry(self.raw(), running).user_data(tag);
        self.push(entry);
    }

    fn push(&mut self, entry: Entry) {
        self.unsent.push_back(entry);
        self.fill();
    }

    /// Moves what fits into the submission queue.
    fn fill(&mut self) {
        while let Some(entry) = self.unsent.pop_front() {
            // SAFETY: a job's parts and pages stay in `running` until its
            // completion was taken; the files as long as the disk, which
            // outlives the ring: `drop` waits for all jobs.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.unsent.push_front(entry);
                return;
            }
        }
    }

    fn reap(&mut self) {
        loop {
            let Some(completion) = self.ring.completion().next() else {
                return;
            };
            let (tag, result) = (completion.user_data(), completion.result());
            if let Some(poll) = POLLS.iter().position(|name| *name == tag) {
                self.polled[poll] = false;
            } else {
                self.complete(tag, result);
            }
        }
    }

    fn complete(&mut self, tag: u64, result: i32) {
        let Some(running) = self.running.get_mut(&tag) else {
            return;
        };
        let outcome = match usize::try_from(result) {
            Ok(count) => running.progress(count),
            Err(_) => running.failure(Errno::from_raw(-result)),
        };
        match outcome {
            Progress::Again => self.start(tag),
            Progress::Ended(result) => {
                if let Some(Running { job, .. }) = self.running.remove(&tag) {
                    self.ended.push_back(Done { job, result });
                }
            }
        }
    }

    fn enter(&mut self, least: usize, timeout: Option<Duration>) -> io::Result<()> {
        let outcome = match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let time = types::Timespec::from(timeout);
                let args = types::SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(least, &args)
            }
        };
        match outcome {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

enum Progress {
    Again,
    Ended(io::Result<()>),
}

impl Running {
    fn progress(&mut self, count: usize) -> Progress {
        if matches!(self.job.action, Action::Flush | Action::Discard(_)) {
            return Progress::Ended(Ok(()));
        }
        advance(&mut self.job.parts, count);
        self.job.offset += count as u64;
        if self.job.parts.is_empty() {
            return Progress::Ended(Ok(()));
        }
        if count == 0 {
            // The file has become shorter.
            return Progress::Ended(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Progress::Again
    }

    fn failure(&mut self, errno: Errno) -> Progress {
        match errno {
            Errno::EINTR | Errno::EAGAIN => Progress::Again,
            Errno::EINVAL if !self.buffered && !self.job.parts.is_empty() => {
                self.buffered = true;
                Progress::Again
            }
            errno => Progress::Ended(Err(errno.into())),
        }
    }
}

fn entry(file: &RawFile, running: &Running) -> Entry {
    let job = &running.job;
    let fd = match running.buffered {
        true => file.buffered(),
        false => file.for_transfer(job.offset, &job.parts),
    };
    let transfer = types::Fd(fd.as_raw_fd());
    let plain = types::Fd(file.buffered().as_raw_fd());
    let count = u32::try_from(job.parts.len()).unwrap_or(u32::MAX);
    match job.action {
        Action::Read => opcode::Readv::new(transfer, job.parts.as_ptr(), count)
            .offset(job.offset)
            .build(),
        Action::Write => opcode::Writev::new(transfer, job.parts.as_ptr(), count)
            .offset(job.offset)
            .build(),
        Action::Flush => opcode::Fsync::new(plain)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Action::Discard(len) => opcode::Fallocate::new(plain, len)
            .offset(job.offset)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
    }
}

impl Engine for Uring {
    fn submit(&mut self, job: Job) {
        let tag = job.tag;
        let buffered = false;
        self.running.insert(tag, Running { job, buffered });
        self.start(tag);
    }

    fn begin(&mut self) -> io::Result<()> {
        self.fill();
        self.enter(0, Some(Duration::ZERO))
    }

    fn done(&mut self) -> Option<Done> {
        if self.ended.is_empty() {
            self.reap();
        }
        self.ended.pop_front()
    }

    fn wait(
        &mut self,
        least: usize,
        fds: [BorrowedFd<'_>; 2],
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        for (poll, fd) in fds.iter().enumerate() {
            if !std::mem::replace(&mut self.polled[poll], true) {
                let events = u32::try_from(libc::POLLIN).unwrap_or(1);
                let add = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events);
                self.push(add.build().user_data(POLLS[poll]));
            }
        }
        self.fill();
        self.enter(least, timeout)?;
        self.fill();
        self.reap();
        Ok(!self.polled[0])
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while !self.running.is_empty() {
            self.fill();
            if let Err(error) = self.enter(1, None) {
                // The kernel may still use the jobs' memory: it is never freed.
                error!(%error, "io_uring failed; leaving its jobs");
                std::mem::forget(std::mem::take(&mut self.running));
                return;
            }
            self.reap();
        }
    }
}
