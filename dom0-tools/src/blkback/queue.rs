//! One ring at work: requests in, jobs to the engine, responses out in order.
//!
//! ```text
//!   take -> understand -> map pages -> throttle -> engine -> answer -> respond
//!           (request)     (pages)      (disk)                (slot)    (in order)
//! ```
//!
//! **Notifications.** While jobs run, the ring is looked at again after each
//! completion, and at least as often as [`Pace::glance`] says; so no event is
//! asked for, and a busy guest does not trap to send one. Only when nothing runs
//! and a look-out ([`Pace::look_out`]) brought nothing, the ring asks for an
//! event.
//!
//! In the other direction a notification costs the guest an upcall and mostly a
//! change of tasks. So it waits until as many responses have gathered as jobs
//! still run, or some more of a deep queue: what ends while the guest wakes up
//! is there when it looks. It does not wait longer than [`Pace::gather`]. With
//! nothing else running it goes out at once: a single request waits for nobody.
//! It wakes a guest that waits; one that runs is not interrupted, because it
//! will trap soon and take the event with it; if it does not, it is after
//! [`PATIENCE`].

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use guest_abi::blkif::{
    BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifRequest, BlkifRequestSegment,
    BlkifResponse,
};
use nix::libc::iovec;
use tracing::warn;
use zerocopy::FromBytes;

use super::{
    engine::{Action, Done, Engine, Job},
    pages::{Page, Pages},
    request::{Request, SEGMENTS_PER_PAGE, Transfer, Work},
    source::Disk,
};
use crate::backend::{BackRing, Heard, Nudges, RingError, SharedMemory, Stop};

/// So many requests under way are a deep queue.
const DEEP: usize = 16;
/// Requests that are begun before a look at what has ended: a guest that puts
/// many at once shall have the first back while the last are begun, so that it
/// and the disk work at the same time.
const AT_ONCE: usize = 8;
/// After the last response the ring is watched so long without a pause.
const WATCH: Duration = Duration::from_micros(50);
/// A guest that runs may look for its responses by itself for so long.
const PATIENCE: Duration = Duration::from_millis(1);
/// A disk that fails shall not fill the log.
const WARN_EVERY: Duration = Duration::from_secs(5);

/// How long a ring's thread waits for what.
///
/// A guest that keeps many requests under way puts the next ones all at once,
/// when it has looked at the last responses; until they are seen the disk has
/// nothing to do, and then the guest. So such a ring is looked at often, and
/// on for a while when it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    /// Between two looks at the ring, at most.
    glance: Duration,
    /// Between a response and its notification, at most.
    gather: Duration,
    /// After the last response, before an event is asked for.
    look_out: Duration,
}

impl Pace {
    const SHALLOW: Self = Self {
        glance: Duration::from_micros(500),
        gather: Duration::from_micros(500),
        look_out: WATCH,
    };
    const DEEP: Self = Self {
        glance: Duration::from_micros(50),
        gather: Duration::from_millis(1),
        look_out: Duration::from_millis(1),
    };
}

/// The guest's bell.
pub trait Bell: Send {
    /// Notifies the guest.
    fn notify(&self);
    /// Notifies the guest without interrupting it, if it runs.
    fn nudge(&self);
    /// Forgets its notifications.
    fn clear(&self);
    /// Readable when it has notified us.
    fn fd(&self) -> BorrowedFd<'_>;
}

impl Bell for crate::backend::Port {
    fn notify(&self) {
        self.notify();
    }
    fn nudge(&self) {
        self.nudge();
    }
    fn clear(&self) {
        self.clear();
    }
    fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(self)
    }
}

/// Why a queue ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The front end's ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Waiting for I/O.
    #[error("waiting for I/O: {0}")]
    Engine(#[from] std::io::Error),
}

/// A ring and all that serves it.
pub struct Queue {
    /// The ring.
    pub ring: BackRing<Arc<dyn SharedMemory>>,
    /// Its port.
    pub bell: Box<dyn Bell>,
    /// The guest's pages.
    pub pages: Pages,
    /// Who does the I/O.
    pub engine: Box<dyn Engine>,
    /// The disk.
    pub disk: Arc<Disk>,
    nudges: Nudges,
    state: State,
}

#[derive(Default)]
struct State {
    /// Requests taken and not answered, the oldest first.
    slots: VecDeque<Slot>,
    /// The tag of the first of them.
    first: u64,
    /// Jobs with the engine.
    running: usize,
    /// Responses that the guest was not told of, and since when.
    untold: usize,
    untold_since: Option<Instant>,
    /// The last notification was of many responses.
    told_many: bool,
    /// Taken, but not begun: it has to wait for its turn.
    held: Option<Transfer>,
    /// A barrier runs: nothing else may begin.
    barrier: bool,
    warned: Option<Instant>,
}

impl State {
    /// Requests whose responses the guest has not been told of.
    fn under_way(&self) -> usize {
        self.running + self.untold
    }

    fn pace(&self) -> Pace {
        if self.under_way() >= DEEP || self.told_many {
            Pace::DEEP
        } else {
            Pace::SHALLOW
        }
    }

    /// Whether so many responses have gathered that the guest is told of them.
    fn has_gathered(&self) -> bool {
        // Of a deep queue five of eight.
        let share = if self.under_way() >= DEEP { 5 } else { 4 };
        self.untold * 8 >= self.under_way() * share
    }
}

struct Slot {
    id: u64,
    operation: u8,
    /// Of a barrier: the flush is still to come.
    then_flush: bool,
    status: Option<i16>,
}

impl Queue {
    /// A queue at rest.
    pub fn new(
        ring: BackRing<Arc<dyn SharedMemory>>,
        bell: Box<dyn Bell>,
        pages: Pages,
        engine: Box<dyn Engine>,
        disk: Arc<Disk>,
    ) -> Self {
        Self {
            ring,
            bell,
            pages,
            engine,
            disk,
            nudges: Nudges::new(PATIENCE),
            state: State::default(),
        }
    }

    /// Serves until it has to stop; then what was begun is finished and
    /// answered.
    ///
    /// # Errors
    /// See [`QueueError`].
    pub fn run(mut self, stop: &Stop) -> Result<(), QueueError> {
        let mut idle_since = None;
        // Whoever served the ring before may have been killed before it
        // notified the guest of its last responses.
        self.bell.notify();
        loop {
            let stopping = stop.is_wanted();
            let (progress, pause) = self.round(stopping)?;
            if stopping && self.state.running == 0 {
                if self.nudges.is_open() {
                    self.bell.notify();
                }
                return Ok(());
            }
            if progress {
                idle_since = None;
                continue;
            }
            let patience = self.insist();
            let pace = self.state.pace();
            let timeout = if self.state.running > 0 {
                let untold = self.state.untold_since.map(|since| since.elapsed());
                let gather = pace.gather.saturating_sub(untold.unwrap_or_default());
                Some(pause.unwrap_or(pace.glance).min(pace.glance).min(gather))
            } else if pause.is_some() {
                pause
            } else {
                let idle = idle_since.get_or_insert_with(Instant::now).elapsed();
                if idle < WATCH {
                    std::thread::yield_now();
                    continue;
                }
                if idle < pace.look_out {
                    Some(pace.glance)
                } else if self.ring.final_check()? {
                    continue;
                } else {
                    None
                }
            };
            let timeout = [timeout, patience].into_iter().flatten().min();
            let fds = [self.bell.fd(), std::os::fd::AsFd::as_fd(stop)];
            // Fewer and larger steps while much is under way.
            let least = (self.state.running / DEEP).clamp(1, DEEP);
            if self.engine.wait(least, fds, timeout)? {
                self.bell.clear();
            }
        }
    }

    /// Takes, begins, finishes and answers what there is; whether there was
    /// anything, and how long the rate limits want to wait.
    pub fn round(&mut self, stopping: bool) -> Result<(bool, Option<Duration>), QueueError> {
        let mut progress = false;
        let mut pause = None;
        while let Some(done) = self.engine.done() {
            self.finish(done);
            progress = true;
        }
        if !stopping {
            let mut begun = 0;
            while begun < AT_ONCE && pause.is_none() && !self.state.barrier {
                let Some(outcome) = self.next()? else { break };
                pause = outcome.err();
                begun += usize::from(pause.is_none());
            }
            progress |= begun > 0;
            if begun == AT_ONCE {
                self.engine.begin()?;
            }
        }
        self.respond();
        self.tell();
        Ok((progress, pause))
    }

    /// Notifies the guest of its responses, if it is time and it wants to be.
    fn tell(&mut self) {
        let state = &mut self.state;
        let Some(since) = state.untold_since else {
            return;
        };
        if state.has_gathered() || since.elapsed() >= state.pace().gather {
            state.told_many = state.untold >= DEEP / 2;
            (state.untold, state.untold_since) = (0, None);
            if self.ring.push() {
                self.bell.nudge();
                self.nudges.sent(Instant::now());
            }
        }
    }

    /// Notifies a guest in earnest that was nudged and has not looked; how long
    /// it still has time to.
    fn insist(&mut self) -> Option<Duration> {
        match self.nudges.look(Instant::now(), || self.ring.is_seen()) {
            Heard::Yes => None,
            Heard::NotYet(left) => Some(left),
            Heard::No => {
                self.bell.notify();
                None
            }
        }
    }

    /// Begins the next request, or says how long it has to wait; `None` if
    /// there is none, or a barrier waits for those before it.
    #[allow(clippy::type_complexity)]
    fn next(&mut self) -> Result<Option<Result<(), Duration>>, QueueError> {
        if let Some(transfer) = self.state.held.take() {
            return Ok(self.begin_transfer(transfer));
        }
        let Some(slot) = self.ring.take::<BlkifRequest>()? else {
            return Ok(None);
        };
        let request = Request::of(&slot, &self.disk.rules);
        self.state.slots.push_back(Slot {
            id: request.id,
            operation: request.operation,
            then_flush: false,
            status: None,
        });
        let work = request.work.and_then(|work| self.resolve(work));
        Ok(match work {
            Err(status) => {
                self.last_slot().status = Some(status);
                Some(Ok(()))
            }
            Ok(Work::Flush) => {
                self.submit(Action::Flush, 0, Vec::new(), Vec::new());
                Some(Ok(()))
            }
            Ok(Work::Discard { offset, len }) => {
                self.submit(Action::Discard(len), offset, Vec::new(), Vec::new());
                Some(Ok(()))
            }
            Ok(Work::Transfer(transfer)) => self.begin_transfer(transfer),
            Ok(Work::Indirect { .. }) => unreachable!("resolved above"),
        })
    }

    /// Reads an indirect request's list, once.
    fn resolve(&mut self, work: Work) -> Result<Work, i16> {
        let Work::Indirect {
            transfer,
            count,
            pages,
        } = work
        else {
            return Ok(work);
        };
        let pages = self.map(&pages, false)?;
        let mut list = Vec::with_capacity(count);
        for (page, start) in pages.iter().zip((0..count).step_by(SEGMENTS_PER_PAGE)) {
            let len = (count - start).min(SEGMENTS_PER_PAGE);
            let mut bytes = vec![0; len * size_of::<BlkifRequestSegment>()];
            page.read(0, &mut bytes);
            let parts = bytes.chunks_exact(size_of::<BlkifRequestSegment>());
            list.extend(parts.map(|part| {
                BlkifRequestSegment::read_from_bytes(part).expect("as long as a segment")
            }));
        }
        let transfer = transfer.with_segments(&list, &self.disk.rules)?;
        Ok(Work::Transfer(transfer))
    }

    fn begin_transfer(&mut self, transfer: Transfer) -> Option<Result<(), Duration>> {
        if transfer.barrier && self.state.running > 0 {
            self.state.held = Some(transfer);
            return None;
        }
        let admitted = {
            let throttle = &self.disk.throttle;
            let mut throttle = throttle.lock().unwrap_or_else(PoisonError::into_inner);
            throttle.admit(transfer.len(), Instant::now())
        };
        if let Err(wait) = admitted {
            self.state.held = Some(transfer);
            return Some(Err(wait));
        }
        let refs: Vec<u32> = transfer.segments.iter().map(|part| part.gref).collect();
        // Data of a write only flow out of the pages.
        let pages = match refs.is_empty() {
            true => Ok(Vec::new()),
            false => self.map(&refs, !transfer.write),
        };
        match pages {
            Err(status) => self.last_slot().status = Some(status),
            Ok(pages) => {
                self.state.barrier = transfer.barrier;
                self.last_slot().then_flush = transfer.barrier;
                let parts = parts(&transfer, &pages);
                let action = match (parts.is_empty(), transfer.write) {
                    (true, _) => Action::Flush,
                    (false, true) => Action::Write,
                    (false, false) => Action::Read,
                };
                self.submit(action, transfer.offset, parts, pages);
            }
        }
        Some(Ok(()))
    }

    fn map(&mut self, refs: &[u32], write: bool) -> Result<Vec<Page>, i16> {
        self.pages.get(refs, write).map_err(|error| {
            self.warn(&error);
            BLKIF_RSP_ERROR
        })
    }

    /// Hands the newest request to the engine.
    fn submit(&mut self, action: Action, offset: u64, parts: Vec<iovec>, pages: Vec<Page>) {
        let tag = self.state.first + self.state.slots.len() as u64 - 1;
        if self.disk.source.is_none() {
            self.last_slot().status = Some(BLKIF_RSP_ERROR);
            self.state.barrier = false;
            return;
        }
        self.state.running += 1;
        self.engine.submit(Job {
            tag,
            action,
            offset,
            parts,
            pages,
        });
    }

    fn last_slot(&mut self) -> &mut Slot {
        self.state.slots.back_mut().expect("a request was taken")
    }

    /// A job has ended. Its pages are let go here, before the response.
    fn finish(&mut self, done: Done) {
        self.state.running -= 1;
        let index = done.job.tag - self.state.first;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let slot = &mut self.state.slots[index];
        if done.result.is_ok() && slot.then_flush && done.job.action != Action::Flush {
            slot.then_flush = false;
            let tag = done.job.tag;
            self.state.running += 1;
            self.engine.submit(Job {
                tag,
                action: Action::Flush,
                offset: 0,
                parts: Vec::new(),
                pages: Vec::new(),
            });
            return;
        }
        slot.status = Some(status_of(&done));
        // Only the barrier itself runs while there is one.
        self.state.barrier = false;
        if let Err(error) = &done.result {
            self.warn(error);
        }
    }

    /// Answers the oldest requests that are done.
    fn respond(&mut self) {
        let state = &mut self.state;
        while let Some(status) = state.slots.front().and_then(|slot| slot.status) {
            if let Some(slot) = state.slots.pop_front() {
                state.first += 1;
                state.untold += 1;
                state.untold_since.get_or_insert_with(Instant::now);
                self.ring.respond(&BlkifResponse {
                    id: slot.id,
                    operation: slot.operation,
                    status,
                    ..Default::default()
                });
            }
        }
    }

    fn warn(&mut self, error: &dyn std::fmt::Display) {
        let now = Instant::now();
        let due = |last: Instant| now.duration_since(last) >= WARN_EVERY;
        if self.state.warned.is_none_or(due) {
            self.state.warned = Some(now);
            let queue = std::thread::current().name().unwrap_or("").to_owned();
            warn!(queue, %error, "a request failed");
        }
    }
}

fn status_of(done: &Done) -> i16 {
    match &done.result {
        Ok(()) => BLKIF_RSP_OKAY,
        Err(error) if matches!(done.job.action, Action::Discard(_)) => {
            let unsupported = error.kind() == std::io::ErrorKind::Unsupported
                || error.raw_os_error() == Some(nix::libc::EOPNOTSUPP);
            if unsupported {
                BLKIF_RSP_EOPNOTSUPP
            } else {
                BLKIF_RSP_ERROR
            }
        }
        Err(_) => BLKIF_RSP_ERROR,
    }
}

/// The transfer's memory; neighbours are put together.
fn parts(transfer: &Transfer, pages: &[Page]) -> Vec<iovec> {
    let mut parts: Vec<iovec> = Vec::with_capacity(pages.len());
    for (segment, page) in transfer.segments.iter().zip(pages) {
        let start = page.part(segment.offset, segment.len);
        match parts.last_mut() {
            Some(last) if last.iov_base.addr() + last.iov_len == start.addr() => {
                last.iov_len += segment.len;
            }
            _ => parts.push(iovec {
                iov_base: start.cast(),
                iov_len: segment.len,
            }),
        }
    }
    parts
}

#[cfg(test)]
mod tests;
