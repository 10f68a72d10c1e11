//! A disk: the front end of the block device protocol ([`blkif`](crate::blkif)).
//!
//! `D` requests may be under way, each of up to `S` pages that the caller
//! gives. Data is copied into and out of these pages, which stay granted: no
//! memory of the caller's is ever shared. A back end that dies and comes back,
//! with the old ring or wanting a new one, goes unnoticed but for the time it
//! takes: what it did not answer is asked again.
//!
//! ```no_run
//! # use guest_abi::kernel::{page::PagePool, xenbus::Bus, blkfront::{BlkError, Blkfront, Disk}};
//! // 8 requests of 4 pages, and the ring.
//! static PAGES: PagePool<33> = PagePool::new();
//!
//! # fn f(bus: &mut Bus) -> Result<(), BlkError> {
//! let ring = PAGES.take().expect("taken once");
//! let buffers = PAGES.take_grid().expect("taken once");
//! let mut disk: Blkfront<8, 4> = Blkfront::open(bus, 0, ring, buffers)?;
//! let Disk { sectors, .. } = disk.connect(bus, bus.store.now() + 5_000_000_000)?;
//! let mut first = [0; 512];
//! disk.read(bus, 0, &mut first)?;
//! disk.write(bus, sectors - 1, &first)?;
//! disk.flush(bus)?;
//! # Ok(())
//! # }
//! ```
//!
//! Requests of more than 11 pages need a page of list each, and a back end that takes
//! lists; several rings are served by several threads of a back end that offers them:
//!
//! ```no_run
//! # use guest_abi::kernel::{page::PagePool, xenbus::Bus, blkfront::{BlkError, Blkfront, QueuePages}};
//! // Two rings of 8 requests of 32 pages.
//! static PAGES: PagePool<{ 2 * (1 + 8 * 32 + 8) }> = PagePool::new();
//!
//! # fn f(bus: &mut Bus) -> Result<(), BlkError> {
//! let queues = [(); 2].map(|()| QueuePages {
//!     ring: PAGES.take().expect("taken once"),
//!     buffers: PAGES.take_grid().expect("taken once"),
//!     lists: PAGES.take_many(),
//! });
//! let mut disk: Blkfront<8, 32, 2> = Blkfront::open_queues(bus, 51712, queues)?;
//! # Ok(())
//! # }
//! ```
//!
//! Several requests at once go by [`submit_read`](Blkfront::submit_read) and
//! its sisters, [`poll`](Blkfront::poll) and [`finish`](Blkfront::finish).

mod error;
mod queue;

pub use error::BlkError;
use queue::Queue;
pub use queue::{SECTOR, Ticket};

use super::{
    doorbell::{Doorbell, EventBell},
    event,
    page::Page,
    text::Text,
    xenbus::{Bus, BusError, Device, Phase, Step},
    xenstore::{StoreError, Tx},
};
use crate::{
    addr::{GrantRef, Port},
    blkif::{VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE},
    xenbus::XenbusState,
};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Flush,
    /// A flush, for a back end that knows only barriers.
    Barrier,
    Discard {
        secure: bool,
    },
}

/// How long the simple calls wait for an answer, in ns: longer than a back end
/// takes to come back.
const PATIENCE: u64 = 120_000_000_000;

/// What the back end tells of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Requests must begin and end at multiples of this many bytes.
    pub sector_size: u64,
    /// No writing.
    pub read_only: bool,
    /// The medium can be taken out.
    pub removable: bool,
    /// A CD-ROM.
    pub cdrom: bool,
    /// [`Blkfront::flush`] works by a flush.
    pub flush: bool,
    /// It works by a barrier.
    pub barrier: bool,
    /// [`Blkfront::discard`] works.
    pub discard: bool,
    /// And can erase for good.
    pub secure_discard: bool,
}

/// The pages of one ring.
#[derive(Debug)]
pub struct QueuePages<const D: usize, const S: usize> {
    /// The ring's own.
    pub ring: Page,
    /// For the data of each request.
    pub buffers: [[Page; S]; D],
    /// For the list of each request's pages, where that is more than 11.
    pub lists: Option<[Page; D]>,
}

/// A ring and what it is known by.
#[derive(Debug)]
struct Lane<const D: usize, const S: usize> {
    queue: Queue<D, S>,
    grant: GrantRef,
    port: Option<Port>,
}

/// A disk with `Q` rings of up to `D` requests (at most 32) of up to `S` pages (at
/// most 11, with lists 512).
#[derive(Debug)]
pub struct Blkfront<const D: usize, const S: usize, const Q: usize = 1> {
    device: Device,
    lanes: [Lane<D, S>; Q],
    /// Rings that this back end takes.
    active: usize,
    /// The ring that the next request goes to, if it has room.
    next: usize,
    phase: Phase,
    disk: Disk,
}

impl<const D: usize, const S: usize> Blkfront<D, S> {
    /// The `nth` disk in xenstore's order; not connected yet.
    ///
    /// # Errors
    /// [`BusError::NoDevice`]; no grants left; xenstore's.
    pub fn open(
        bus: &mut Bus,
        nth: usize,
        ring: Page,
        buffers: [[Page; S]; D],
    ) -> Result<Self, BlkError> {
        let id = Device::find(&mut bus.store, "vbd", nth)?;
        Self::open_id(bus, id, ring, buffers)
    }

    /// The disk of a device number (51712 is `xvda`).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_id(
        bus: &mut Bus,
        id: u32,
        ring: Page,
        buffers: [[Page; S]; D],
    ) -> Result<Self, BlkError> {
        let lists = None;
        let queue = QueuePages {
            ring,
            buffers,
            lists,
        };
        Self::open_queues(bus, id, [queue])
    }

    /// The event channel, to wait for together with others. It changes when
    /// the back end is started anew.
    #[must_use]
    pub fn port(&self) -> Option<Port> {
        self.lanes[0].port
    }
}

impl<const D: usize, const S: usize, const Q: usize> Blkfront<D, S, Q> {
    const SOME: () = assert!(Q > 0, "a disk has a ring");

    /// The disk of a device number, with several rings, or with long requests.
    /// A back end that takes fewer rings leaves the others unused.
    ///
    /// # Errors
    /// As [`open`](Blkfront::open).
    pub fn open_queues(
        bus: &mut Bus,
        id: u32,
        queues: [QueuePages<D, S>; Q],
    ) -> Result<Self, BlkError> {
        let () = Self::SOME;
        let device = Device::open(&mut bus.store, "vbd", id)?;
        // The handle is the low half of the number; back ends don't look at it.
        let handle = u16::try_from(id & 0xffff).unwrap_or(0);
        let mut lanes = queues.map(|pages| Lane {
            queue: Queue::new(pages.ring, handle, pages.buffers, pages.lists),
            grant: GrantRef(0),
            port: None,
        });
        let grants = &bus.grants;
        for lane in &mut lanes {
            lane.queue.grant_all(|page, _| device.grant(grants, page))?;
            lane.grant = device.grant(grants, lane.queue.ring.page())?;
        }
        Ok(Self {
            device,
            lanes,
            active: 1,
            next: 0,
            phase: Phase::Waiting,
            disk: Disk::default(),
        })
    }

    /// Waits until the back end is connected.
    ///
    /// # Errors
    /// [`BusError::TimedOut`] at `deadline` (ns of system time); [`BlkError::Gone`].
    pub fn connect(&mut self, bus: &mut Bus, deadline: u64) -> Result<Disk, BlkError> {
        loop {
            self.poll(bus)?;
            match self.phase {
                Phase::Live => return Ok(self.disk),
                Phase::Gone => return Err(BlkError::Gone),
                _ if bus.store.now() >= deadline => {
                    let state = self.device.backend_state(&mut bus.store)?;
                    return Err(BusError::TimedOut(state).into());
                }
                _ => bus.store.wait(deadline)?,
            }
        }
    }

    /// What the back end tells; all 0 before it is connected.
    #[must_use]
    pub fn disk(&self) -> Disk {
        self.disk
    }

    /// Whether the back end is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Live
    }

    /// The event channel of each ring, to wait for together with others. They
    /// change when the back end is started anew.
    #[must_use]
    pub fn ports(&self) -> [Option<Port>; Q] {
        core::array::from_fn(|n| self.lanes[n].port)
    }

    /// Rings that are used.
    #[must_use]
    pub fn rings(&self) -> usize {
        self.active
    }

    /// The most bytes of one request.
    #[must_use]
    pub fn reach(&self) -> usize {
        self.lanes[0].queue.reach()
    }

    /// Asks to read whole sectors, at most [`reach`](Self::reach) bytes. Goes out with the
    /// next [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`BlkError::Busy`], [`BlkError::OutOfRange`], [`BlkError::Length`],
    /// [`BlkError::NotConnected`].
    pub fn submit_read(&mut self, sector: u64, length: usize) -> Result<Ticket, BlkError> {
        let sectors = self.check(sector, length)?;
        self.submit(Operation::Read, sector, sectors, &[])
    }

    /// Asks to write whole sectors, at most [`reach`](Self::reach) bytes.
    ///
    /// # Errors
    /// As [`submit_read`](Self::submit_read); [`BlkError::ReadOnly`].
    pub fn submit_write(&mut self, sector: u64, data: &[u8]) -> Result<Ticket, BlkError> {
        let sectors = self.check(sector, data.len())?;
        self.check_writable()?;
        self.submit(Operation::Write, sector, sectors, data)
    }

    /// Asks to make durable what was written and answered before.
    ///
    /// # Errors
    /// [`BlkError::Unsupported`] by a back end that promises nothing;
    /// [`BlkError::Busy`], [`BlkError::NotConnected`].
    pub fn submit_flush(&mut self) -> Result<Ticket, BlkError> {
        self.check_live()?;
        let operation = match self.disk {
            Disk { flush: true, .. } => Operation::Flush,
            Disk { barrier: true, .. } => Operation::Barrier,
            _ => return Err(BlkError::Unsupported),
        };
        self.submit(operation, 0, 0, &[])
    }

    /// Asks to forget sectors, `secure` for good.
    ///
    /// # Errors
    /// [`BlkError::Unsupported`]; as [`submit_write`](Self::submit_write).
    pub fn submit_discard(
        &mut self,
        sector: u64,
        count: u64,
        secure: bool,
    ) -> Result<Ticket, BlkError> {
        self.check_live()?;
        self.check_range(sector, count)?;
        self.check_writable()?;
        if !self.disk.discard || (secure && !self.disk.secure_discard) {
            return Err(BlkError::Unsupported);
        }
        let operation = Operation::Discard { secure };
        self.submit(operation, sector, count, &[])
    }

    /// Puts a request on the next ring that has room.
    fn submit(
        &mut self,
        operation: Operation,
        sector: u64,
        sectors: u64,
        data: &[u8],
    ) -> Result<Ticket, BlkError> {
        for step in 0..self.active {
            let at = (self.next + step) % self.active;
            let queue = &mut self.lanes[at].queue;
            match queue.submit(operation, sector, sectors, data) {
                Err(BlkError::Busy) => {}
                Ok(mut ticket) => {
                    ticket.queue = at;
                    self.next = (at + 1) % self.active;
                    return Ok(ticket);
                }
                other => return other,
            }
        }
        Err(BlkError::Busy)
    }

    /// Sends what was submitted, takes what was answered, follows the back
    /// end's state.
    ///
    /// # Errors
    /// [`BlkError::Ring`] and [`BlkError::Response`]: the back end is broken,
    /// and all requests fail. Xenstore's.
    pub fn poll(&mut self, bus: &mut Bus) -> Result<(), BlkError> {
        match self.device.next_step(&mut bus.store, self.phase)? {
            Step::Nothing => {}
            Step::SetUp => self.set_up(bus)?,
            Step::GoLive => self.go_live(bus)?,
            Step::Refresh => self.disk = self.read_disk(bus)?,
            Step::Close => self.wait_again(bus, XenbusState::Closed)?,
            Step::Ask => self.wait_again(bus, XenbusState::Initialising)?,
            Step::GiveUp => self.give_up(BlkError::Gone),
        }
        if self.phase != Phase::Live {
            return Ok(());
        }
        for lane in &mut self.lanes[..self.active] {
            if let (true, Some(port)) = (lane.queue.ring.publish(), lane.port) {
                EventBell(port).ring();
            }
        }
        let mut lanes = self.lanes[..self.active].iter_mut();
        let taken = lanes.try_for_each(|lane| lane.queue.take_responses());
        taken.inspect_err(|&error| self.give_up(error))
    }

    /// Ends a request that was answered; `None`: not yet. A read's data goes
    /// to `data`, which must be as long as was asked for.
    pub fn finish(&mut self, ticket: &Ticket, data: &mut [u8]) -> Option<Result<(), BlkError>> {
        let Some(lane) = self.lanes.get_mut(ticket.queue) else {
            return Some(Err(BlkError::Ticket));
        };
        lane.queue.finish(ticket, data)
    }

    /// Reads whole sectors, as many as `data` holds.
    ///
    /// # Errors
    /// The first request's that fails; those under way are waited for.
    pub fn read(&mut self, bus: &mut Bus, sector: u64, data: &mut [u8]) -> Result<(), BlkError> {
        self.check_live()?;
        let reach = self.reach();
        self.check_range(sector, (data.len() / SECTOR) as u64)?;
        for (group, part) in data.chunks_mut(reach * D).enumerate() {
            let first = sector + (group * reach * D / SECTOR) as u64;
            let mut tickets = [const { None }; D];
            let mut result = Ok(());
            for (index, piece) in part.chunks(reach).enumerate() {
                let at = first + (index * reach / SECTOR) as u64;
                match self.submit_read(at, piece.len()) {
                    Ok(ticket) => tickets[index] = Some(ticket),
                    Err(error) => result = Err(error),
                }
            }
            for (ticket, piece) in tickets.iter().zip(part.chunks_mut(reach)) {
                if let Some(ticket) = ticket {
                    result = result.and(self.wait(bus, ticket, piece));
                }
            }
            result?;
        }
        Ok(())
    }

    /// Writes whole sectors. They are durable after a [`flush`](Self::flush).
    ///
    /// # Errors
    /// As [`read`](Self::read); [`BlkError::ReadOnly`].
    pub fn write(&mut self, bus: &mut Bus, sector: u64, data: &[u8]) -> Result<(), BlkError> {
        self.check_live()?;
        let reach = self.reach();
        self.check_range(sector, (data.len() / SECTOR) as u64)?;
        for (group, part) in data.chunks(reach * D).enumerate() {
            let first = sector + (group * reach * D / SECTOR) as u64;
            let mut tickets = [const { None }; D];
            let mut result = Ok(());
            for (index, piece) in part.chunks(reach).enumerate() {
                let at = first + (index * reach / SECTOR) as u64;
                match self.submit_write(at, piece) {
                    Ok(ticket) => tickets[index] = Some(ticket),
                    Err(error) => result = Err(error),
                }
            }
            for ticket in tickets.iter().flatten() {
                result = result.and(self.wait(bus, ticket, &mut []));
            }
            result?;
        }
        Ok(())
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// As [`submit_flush`](Self::submit_flush); [`BlkError::Failed`].
    pub fn flush(&mut self, bus: &mut Bus) -> Result<(), BlkError> {
        let ticket = self.submit_flush()?;
        self.wait(bus, &ticket, &mut [])
    }

    /// Forgets sectors.
    ///
    /// # Errors
    /// As [`submit_discard`](Self::submit_discard); [`BlkError::Failed`].
    pub fn discard(&mut self, bus: &mut Bus, sector: u64, count: u64) -> Result<(), BlkError> {
        let ticket = self.submit_discard(sector, count, false)?;
        self.wait(bus, &ticket, &mut [])
    }

    /// Waits for one request, through restarts of the back end.
    ///
    /// # Errors
    /// The request's; [`BlkError::TimedOut`] after two minutes: it is still
    /// under way then.
    pub fn wait(
        &mut self,
        bus: &mut Bus,
        ticket: &Ticket,
        data: &mut [u8],
    ) -> Result<(), BlkError> {
        let deadline = bus.store.now().saturating_add(PATIENCE);
        loop {
            self.poll(bus)?;
            if let Some(result) = self.finish(ticket, data) {
                return result;
            }
            if bus.store.now() >= deadline {
                return Err(BlkError::TimedOut);
            }
            bus.wait(&self.ports(), deadline)?;
        }
    }

    /// Lets the back end go. The pages are the caller's again only by way of
    /// the pool that they came from: a back end that is not trusted may keep
    /// them mapped.
    ///
    /// # Errors
    /// Xenstore's. Grants still in use by the back end stay.
    pub fn close(mut self, bus: &mut Bus) -> Result<(), BlkError> {
        let device = &self.device;
        device.set_state(&mut bus.store, XenbusState::Closing)?;
        let deadline = bus.store.now().saturating_add(5_000_000_000);
        let ended = [
            XenbusState::Closing,
            XenbusState::Closed,
            XenbusState::Unknown,
        ];
        // One that does not follow is left behind.
        let _ = device.wait_for(&mut bus.store, &ended, deadline);
        device.set_state(&mut bus.store, XenbusState::Closed)?;
        let grants = &bus.grants;
        for lane in &mut self.lanes {
            close_port(&mut lane.port);
            let _ = grants.take_back(lane.grant);
            let taken: Result<(), BlkError> = lane.queue.grant_all(|_, gref| {
                let _ = grants.take_back(gref);
                Ok(gref)
            });
            taken?;
        }
        Ok(self.device.close(&mut bus.store)?)
    }

    /// Fresh rings for a back end that starts.
    fn set_up(&mut self, bus: &mut Bus) -> Result<(), BlkError> {
        let device = &self.device;
        let rings = device.told(&mut bus.store, "multi-queue-max-queues", 1)?;
        let indirect = device.told(&mut bus.store, "feature-max-indirect-segments", 0)?;
        self.active = usize::try_from(rings).unwrap_or(Q).clamp(1, Q);
        self.next = 0;
        for (n, lane) in self.lanes.iter_mut().enumerate() {
            close_port(&mut lane.port);
            lane.queue.allow_indirect(indirect);
            if n < self.active {
                lane.queue.replay();
                lane.port = Some(device.open_port()?);
            } else {
                // It took more rings before. What was on this one is lost.
                lane.queue.fail_all(BlkError::Failed);
            }
        }
        let lanes = &self.lanes[..self.active];
        bus.store.transaction(|store, tx: Tx| {
            if Q > 1 {
                device.tell(store, tx, "multi-queue-num-queues", &lanes.len())?;
            }
            for (n, lane) in lanes.iter().enumerate() {
                let node = |name| queue_node(lanes.len(), n, name);
                device.tell(store, tx, &node("ring-ref")?, &lane.grant)?;
                let port = lane.port.unwrap_or(Port(0));
                device.tell(store, tx, &node("event-channel")?, &port)?;
            }
            device.tell(store, tx, "protocol", &"x86_64-abi")?;
            device.tell(store, tx, "feature-persistent", &1)
        })?;
        device.set_state(&mut bus.store, XenbusState::Initialised)?;
        self.phase = Phase::Told;
        Ok(())
    }

    fn go_live(&mut self, bus: &mut Bus) -> Result<(), BlkError> {
        self.disk = self.read_disk(bus)?;
        self.device
            .set_state(&mut bus.store, XenbusState::Connected)?;
        self.phase = Phase::Live;
        Ok(())
    }

    fn read_disk(&self, bus: &mut Bus) -> Result<Disk, BlkError> {
        let mut told = |node, default| self.device.told(&mut bus.store, node, default);
        let info = told("info", 0)?;
        let has = |bit: u32| info & u64::from(bit) != 0;
        Ok(Disk {
            sectors: told("sectors", 0)?,
            // A size that is no multiple of a sector can't be meant.
            sector_size: match told("sector-size", 512)? {
                size if size > 0 && size.is_multiple_of(SECTOR as u64) => size,
                _ => SECTOR as u64,
            },
            read_only: has(VDISK_READONLY),
            removable: has(VDISK_REMOVABLE),
            cdrom: has(VDISK_CDROM),
            flush: told("feature-flush-cache", 0)? != 0,
            barrier: told("feature-barrier", 0)? != 0,
            discard: told("feature-discard", 0)? != 0,
            secure_discard: told("discard-secure", 0)? != 0,
        })
    }

    fn wait_again(&mut self, bus: &mut Bus, say: XenbusState) -> Result<(), BlkError> {
        self.phase = Phase::Waiting;
        self.device.set_state(&mut bus.store, say)?;
        Ok(())
    }

    fn give_up(&mut self, why: BlkError) {
        self.phase = Phase::Gone;
        for lane in &mut self.lanes {
            close_port(&mut lane.port);
            lane.queue.fail_all(why);
        }
    }

    fn check_live(&self) -> Result<(), BlkError> {
        match self.phase {
            Phase::Gone => Err(BlkError::Gone),
            // While a back end comes back its disk is as it was.
            _ if self.disk.sector_size != 0 => Ok(()),
            _ => Err(BlkError::NotConnected),
        }
    }

    fn check_writable(&self) -> Result<(), BlkError> {
        if self.disk.read_only {
            return Err(BlkError::ReadOnly);
        }
        Ok(())
    }

    fn check_range(&self, sector: u64, count: u64) -> Result<(), BlkError> {
        let end = sector.checked_add(count);
        if end.is_some_and(|end| end <= self.disk.sectors) {
            return Ok(());
        }
        Err(BlkError::OutOfRange {
            sector,
            count,
            sectors: self.disk.sectors,
        })
    }

    /// The sectors of a request, if it can be made.
    fn check(&self, sector: u64, length: usize) -> Result<u64, BlkError> {
        self.check_live()?;
        let (bytes, unit) = (length as u64, self.disk.sector_size);
        let whole = bytes.is_multiple_of(unit) && sector.is_multiple_of(unit / SECTOR as u64);
        if length == 0 || length > self.reach() || !whole {
            return Err(BlkError::Length(length));
        }
        let count = bytes / SECTOR as u64;
        self.check_range(sector, count)?;
        Ok(count)
    }
}

/// Where a queue's node lies: of several, in a directory of its own.
pub(super) fn queue_node(queues: usize, n: usize, name: &str) -> Result<Text<48>, StoreError> {
    let node = match queues {
        1 => Text::format(&name),
        _ => Text::format(&format_args!("queue-{n}/{name}")),
    };
    node.ok_or(StoreError::TooLong)
}

pub(super) fn close_port(port: &mut Option<Port>) {
    if let Some(port) = port.take() {
        // It is ours; a refusal could only mean that it is closed already.
        let _ = event::close(port);
    }
}
