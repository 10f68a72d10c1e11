//! Requests under way: slots, their pages, and the ring. No hypercall here.
//!
//! Law: a slot's pages hold data of its own request only. They stay granted as
//! long as the disk is used, so that a back end may keep them mapped; what it
//! does with them at a wrong time can change data of this disk only.

use zerocopy::IntoBytes;

use super::{BlkError, Operation};
use crate::{
    addr::GrantRef,
    blkif::{
        BLKIF_DISCARD_SECURE, BLKIF_MAX_SEGMENTS_PER_REQUEST, BLKIF_OP_DISCARD,
        BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_INDIRECT, BLKIF_OP_READ, BLKIF_OP_WRITE,
        BLKIF_OP_WRITE_BARRIER, BLKIF_RING_SLOTS, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_OKAY,
        BLKIF_SECTOR_SIZE, BLKIF_SLOT_SIZE, BlkifRequest, BlkifRequestDiscard,
        BlkifRequestIndirect, BlkifRequestSegment, BlkifResponse,
    },
    kernel::{
        front_ring::FrontRing,
        page::{PAGE_BYTES, Page},
    },
};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
const _: () = assert!(SECTOR as u64 == BLKIF_SECTOR_SIZE);
const SECTORS_PER_PAGE: u32 = 8;
const SEGMENT_BYTES: usize = size_of::<BlkifRequestSegment>();
/// Pages that a request with one page of list can name.
const MOST_SEGMENTS: usize = PAGE_BYTES / SEGMENT_BYTES;

/// What fits into a request without a list.
const DIRECT_SECTORS: u64 = BLKIF_MAX_SEGMENTS_PER_REQUEST as u64 * SECTORS_PER_PAGE as u64;

/// Names a request until it is finished.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a request that is not finished keeps its slot"]
pub struct Ticket {
    pub(super) queue: usize,
    slot: usize,
    serial: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    UnderWay,
    Done(Result<(), BlkError>),
}

/// A request that can be put on a ring again.
#[derive(Clone, Copy, Debug)]
struct Request {
    operation: Operation,
    sector: u64,
    sectors: u64,
}

#[derive(Debug)]
struct Slot<const S: usize> {
    pages: [Page; S],
    grants: [GrantRef; S],
    request: Request,
    state: State,
    serial: u32,
}

#[derive(Debug)]
pub(super) struct Queue<const D: usize, const S: usize> {
    pub(super) ring: FrontRing,
    slots: [Slot<S>; D],
    /// A page for each slot's list of pages, where the back end takes lists.
    lists: Option<[List; D]>,
    /// Pages that a request may have, as this back end is.
    limit: usize,
    handle: u16,
}

#[derive(Debug)]
struct List {
    page: Page,
    grant: GrantRef,
}

impl<const D: usize, const S: usize> Queue<D, S> {
    const FITS: () = assert!(
        D > 0 && D <= BLKIF_RING_SLOTS as usize && S > 0 && S <= MOST_SEGMENTS,
        "a disk has 1 to 32 requests of 1 to 512 pages"
    );

    pub(super) fn new(
        ring: Page,
        handle: u16,
        pages: [[Page; S]; D],
        lists: Option<[Page; D]>,
    ) -> Self {
        let () = Self::FITS;
        Self {
            ring: FrontRing::new(ring, BLKIF_SLOT_SIZE),
            slots: pages.map(|pages| Slot {
                pages,
                grants: [GrantRef(0); S],
                request: Request {
                    operation: Operation::Flush,
                    sector: 0,
                    sectors: 0,
                },
                state: State::Free,
                serial: 0,
            }),
            lists: lists.map(|pages| {
                pages.map(|page| List {
                    page,
                    grant: GrantRef(0),
                })
            }),
            limit: S.min(BLKIF_MAX_SEGMENTS_PER_REQUEST),
            handle,
        }
    }

    /// What the back end says of requests with a list: how many pages they may
    /// have; 0: it takes none.
    pub(super) fn allow_indirect(&mut self, pages: u64) {
        let pages = usize::try_from(pages).unwrap_or(MOST_SEGMENTS);
        self.limit = match self.lists {
            Some(_) => S.min(pages.max(BLKIF_MAX_SEGMENTS_PER_REQUEST)),
            None => S.min(BLKIF_MAX_SEGMENTS_PER_REQUEST),
        };
    }

    /// Bytes that one request can carry now.
    pub(super) fn reach(&self) -> usize {
        self.limit * PAGE_BYTES
    }

    /// Grants all pages by `grant`, or changes their grants.
    pub(super) fn grant_all<E>(
        &mut self,
        mut grant: impl FnMut(&Page, GrantRef) -> Result<GrantRef, E>,
    ) -> Result<(), E> {
        for slot in &mut self.slots {
            for (page, gref) in slot.pages.iter().zip(&mut slot.grants) {
                *gref = grant(page, *gref)?;
            }
        }
        for list in self.lists.iter_mut().flatten() {
            list.grant = grant(&list.page, list.grant)?;
        }
        Ok(())
    }

    /// Puts a request on the ring; `data` fills a write's pages.
    pub(super) fn submit(
        &mut self,
        operation: Operation,
        sector: u64,
        sectors: u64,
        data: &[u8],
    ) -> Result<Ticket, BlkError> {
        let free = |slot: &Slot<S>| slot.state == State::Free;
        let index = self.slots.iter().position(free).ok_or(BlkError::Busy)?;
        let slot = &mut self.slots[index];
        for (page, part) in slot.pages.iter().zip(data.chunks(PAGE_BYTES)) {
            page.write(0, part).ok_or(BlkError::Length(data.len()))?;
        }
        slot.request = Request {
            operation,
            sector,
            sectors,
        };
        slot.serial = slot.serial.wrapping_add(1);
        slot.state = State::UnderWay;
        let ticket = Ticket {
            queue: 0,
            slot: index,
            serial: slot.serial,
        };
        self.push(index);
        Ok(ticket)
    }

    /// A fresh ring, with all that is under way on it once more.
    pub(super) fn replay(&mut self) {
        self.ring.reset();
        for index in 0..D {
            let slot = &mut self.slots[index];
            if slot.state != State::UnderWay {
                continue;
            }
            let bytes = slot.request.bytes();
            if bytes > (self.limit * PAGE_BYTES) as u64 {
                // The new back end takes less at once than the old one.
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                slot.state = State::Done(Err(BlkError::Length(bytes)));
            } else {
                self.push(index);
            }
        }
    }

    /// There is room: the ring has a slot for each of ours.
    fn push(&mut self, index: usize) {
        let slot = &self.slots[index];
        let id = id(index, slot.serial);
        let Request {
            operation,
            sector,
            sectors,
        } = slot.request;
        let pushed = if let Operation::Discard { secure } = operation {
            self.ring.push(&BlkifRequestDiscard {
                operation: BLKIF_OP_DISCARD,
                flag: if secure { BLKIF_DISCARD_SECURE } else { 0 },
                handle: self.handle,
                id,
                sector_number: sector,
                nr_sectors: sectors,
                ..Default::default()
            })
        } else if sectors > DIRECT_SECTORS {
            self.push_indirect(index, id)
        } else {
            let (nr_segments, seg) = segments(&slot.grants, sectors);
            self.ring.push(&BlkifRequest {
                operation: operation.number(),
                nr_segments,
                handle: self.handle,
                id,
                sector_number: sector,
                seg,
                ..Default::default()
            })
        };
        debug_assert!(pushed.is_some(), "a ring smaller than our slots");
    }

    /// A request whose pages are in a list of their own.
    fn push_indirect(&mut self, index: usize, id: u64) -> Option<()> {
        let slot = &self.slots[index];
        let list = self.lists.as_ref()?.get(index)?;
        let mut count = 0u16;
        for (at, segment) in all_segments(&slot.grants, slot.request.sectors).enumerate() {
            list.page.write(at * SEGMENT_BYTES, segment.as_bytes())?;
            count += 1;
        }
        let mut indirect_grefs = [0; 8];
        indirect_grefs[0] = list.grant.0;
        self.ring.push(&BlkifRequestIndirect {
            operation: BLKIF_OP_INDIRECT,
            indirect_op: slot.request.operation.number(),
            nr_segments: count,
            id,
            sector_number: slot.request.sector,
            handle: self.handle,
            indirect_grefs,
            ..Default::default()
        })
    }

    /// Takes what the back end has answered.
    pub(super) fn take_responses(&mut self) -> Result<(), BlkError> {
        loop {
            while let Some(response) = self.ring.pop::<BlkifResponse>()? {
                self.complete(&response)?;
            }
            if !self.ring.arm() {
                return Ok(());
            }
        }
    }

    fn complete(&mut self, response: &BlkifResponse) -> Result<(), BlkError> {
        let wrong = BlkError::Response { id: response.id };
        let index = usize::try_from(response.id & 0xffff_ffff).map_err(|_| wrong)?;
        let slot = self.slots.get_mut(index).ok_or(wrong)?;
        let asked = id(index, slot.serial);
        if slot.state != State::UnderWay || asked != response.id {
            return Err(wrong);
        }
        slot.state = State::Done(match response.status {
            BLKIF_RSP_OKAY => Ok(()),
            BLKIF_RSP_EOPNOTSUPP => Err(BlkError::Unsupported),
            _ => Err(BlkError::Failed),
        });
        Ok(())
    }

    /// Ends a request that is done, freeing its slot; `None`: still under way.
    /// A read's data goes to `data`.
    pub(super) fn finish(
        &mut self,
        ticket: &Ticket,
        data: &mut [u8],
    ) -> Option<Result<(), BlkError>> {
        let slot = self.slots.get_mut(ticket.slot);
        let Some(slot) = slot.filter(|slot| slot.serial == ticket.serial) else {
            return Some(Err(BlkError::Ticket));
        };
        let result = match slot.state {
            State::Free => return Some(Err(BlkError::Ticket)),
            State::UnderWay => return None,
            State::Done(result) => result,
        };
        slot.state = State::Free;
        if slot.request.operation == Operation::Read && result.is_ok() {
            return Some(read_out(slot, data));
        }
        Some(result)
    }

    /// Fails all that is under way.
    pub(super) fn fail_all(&mut self, error: BlkError) {
        for slot in &mut self.slots {
            if slot.state == State::UnderWay {
                slot.state = State::Done(Err(error));
            }
        }
    }
}

fn read_out<const S: usize>(slot: &Slot<S>, data: &mut [u8]) -> Result<(), BlkError> {
    let length = data.len();
    if length as u64 != slot.request.sectors * BLKIF_SECTOR_SIZE {
        return Err(BlkError::Length(length));
    }
    for (page, part) in slot.pages.iter().zip(data.chunks_mut(PAGE_BYTES)) {
        page.read(0, part).ok_or(BlkError::Length(length))?;
    }
    Ok(())
}

/// A request's number on the ring: no two within 2^32 of a slot's are equal.
fn id(slot: usize, serial: u32) -> u64 {
    u64::from(serial) << 32 | slot as u64
}

/// The list of pages for so many sectors.
fn segments(
    grants: &[GrantRef],
    sectors: u64,
) -> (u8, [BlkifRequestSegment; BLKIF_MAX_SEGMENTS_PER_REQUEST]) {
    let mut list = [BlkifRequestSegment::default(); BLKIF_MAX_SEGMENTS_PER_REQUEST];
    let mut count = 0u8;
    for (place, segment) in list.iter_mut().zip(all_segments(grants, sectors)) {
        *place = segment;
        count += 1;
    }
    (count, list)
}

/// The pages for so many sectors, one after the other.
fn all_segments(grants: &[GrantRef], sectors: u64) -> impl Iterator<Item = BlkifRequestSegment> {
    let mut rest = sectors;
    grants.iter().map_while(move |gref| {
        let here = rest.min(u64::from(SECTORS_PER_PAGE));
        rest -= here;
        let last = here.checked_sub(1)?;
        Some(BlkifRequestSegment {
            gref: gref.0,
            last_sect: u8::try_from(last).unwrap_or(7),
            ..Default::default()
        })
    })
}

impl Request {
    /// Bytes of data that go with it.
    fn bytes(&self) -> u64 {
        match self.operation {
            Operation::Read | Operation::Write => self.sectors.saturating_mul(BLKIF_SECTOR_SIZE),
            _ => 0,
        }
    }
}

impl Operation {
    fn number(self) -> u8 {
        match self {
            Self::Read => BLKIF_OP_READ,
            Self::Write => BLKIF_OP_WRITE,
            Self::Flush => BLKIF_OP_FLUSH_DISKCACHE,
            Self::Barrier => BLKIF_OP_WRITE_BARRIER,
            Self::Discard { .. } => BLKIF_OP_DISCARD,
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;
    extern crate std;

    use proptest::prelude::*;
    use zerocopy::FromBytes;

    use super::*;
    use crate::kernel::page::tests::{alias, host_page};

    /// A queue, its ring page, and the pages of its first slot.
    fn queue() -> (Queue<4, 2>, Page, [Page; 2]) {
        let ring = host_page();
        let back = alias(&ring);
        let pages: [[Page; 2]; 4] = core::array::from_fn(|_| core::array::from_fn(|_| host_page()));
        let first = core::array::from_fn(|page| alias(&pages[0][page]));
        let mut queue = Queue::new(ring, 0, pages, None);
        let mut next = 100;
        let granted: Result<(), ()> = queue.grant_all(|_, _| {
            next += 1;
            Ok(GrantRef(next))
        });
        granted.expect("counted");
        (queue, back, first)
    }

    fn request(back: &Page, index: usize) -> BlkifRequest {
        let mut bytes = [0; 112];
        back.read(64 + index * 112, &mut bytes)
            .expect("in the page");
        BlkifRequest::read_from_bytes(&bytes).expect("its size")
    }

    fn answer(back: &Page, index: usize, id: u64, status: i16) {
        let response = BlkifResponse {
            id,
            status,
            ..Default::default()
        };
        let written = back.write(64 + index * 112, response.as_bytes());
        written.expect("in the page");
        let produced = u32::try_from(index).expect("small") + 1;
        let word = back.word(8).expect("in the page");
        word.store(produced, Ordering::SeqCst);
    }

    #[test]
    fn a_read_and_its_data() {
        let (mut queue, back, pages) = queue();
        let ticket = queue.submit(Operation::Read, 5, 9, &[]).expect("room");
        let _ = queue.ring.publish();
        let seen = request(&back, 0);
        assert_eq!(
            (seen.operation, seen.nr_segments, seen.sector_number),
            (0, 2, 5)
        );
        assert_eq!((seen.seg[0].gref, seen.seg[0].last_sect), (101, 7));
        assert_eq!((seen.seg[1].gref, seen.seg[1].last_sect), (102, 0));
        pages[1].write(0, &[7; 512]).expect("in the page");
        let mut data = [0; 9 * 512];
        assert_eq!(queue.finish(&ticket, &mut data), None);
        answer(&back, 0, seen.id, BLKIF_RSP_OKAY);
        queue.take_responses().expect("as asked");
        assert_eq!(queue.finish(&ticket, &mut data), Some(Ok(())));
        assert_eq!((data[4095], data[4096], data[4607]), (0, 7, 7));
        assert_eq!(
            queue.finish(&ticket, &mut data),
            Some(Err(BlkError::Ticket))
        );
    }

    #[test]
    fn a_write_takes_its_data_along_and_is_done_again_by_a_new_back_end() {
        let (mut queue, back, pages) = queue();
        let data = [9; 1024];
        let ticket = queue.submit(Operation::Write, 1, 2, &data).expect("room");
        let _ = queue.ring.publish();
        let first = request(&back, 0);
        queue.replay();
        assert_eq!(queue.ring.under_way(), 1);
        let _ = queue.ring.publish();
        assert_eq!(request(&back, 0), first);
        let mut byte = [0];
        pages[0].read(1023, &mut byte).expect("in the page");
        assert_eq!(byte, [9]);
        answer(&back, 0, first.id, BLKIF_RSP_ERROR);
        queue.take_responses().expect("as asked");
        assert_eq!(queue.finish(&ticket, &mut []), Some(Err(BlkError::Failed)));
    }

    const BLKIF_RSP_ERROR: i16 = crate::blkif::BLKIF_RSP_ERROR;

    /// A queue of requests of up to 20 pages, its ring page, its first list.
    fn long_queue() -> (Queue<2, 20>, Page, Page) {
        let ring = host_page();
        let back = alias(&ring);
        let pages: [[Page; 20]; 2] =
            core::array::from_fn(|_| core::array::from_fn(|_| host_page()));
        let lists = [host_page(), host_page()];
        let list = alias(&lists[0]);
        let mut queue = Queue::new(ring, 3, pages, Some(lists));
        let mut next = 100;
        let granted: Result<(), ()> = queue.grant_all(|_, _| {
            next += 1;
            Ok(GrantRef(next))
        });
        granted.expect("counted");
        (queue, back, list)
    }

    #[test]
    fn a_long_request_has_its_pages_in_a_list() {
        let (mut queue, back, list) = long_queue();
        assert_eq!(queue.reach(), 11 * 4096, "nothing is known of the back end");
        queue.allow_indirect(256);
        assert_eq!(queue.reach(), 20 * 4096);
        let data = [7; 12 * 4096 + 512];
        let _ticket = queue.submit(Operation::Write, 9, 97, &data).expect("room");
        let _ = queue.ring.publish();
        let mut bytes = [0; 64];
        back.read(64, &mut bytes).expect("in the page");
        let seen = BlkifRequestIndirect::read_from_bytes(&bytes).expect("its size");
        assert_eq!(
            (seen.operation, seen.indirect_op),
            (BLKIF_OP_INDIRECT, BLKIF_OP_WRITE)
        );
        assert_eq!(
            (seen.nr_segments, seen.sector_number, seen.handle),
            (13, 9, 3)
        );
        // 40 pages of data are granted before the lists.
        assert_eq!(seen.indirect_grefs, [141, 0, 0, 0, 0, 0, 0, 0]);
        for (index, gref, last) in [(0, 101, 7), (11, 112, 7), (12, 113, 0)] {
            let mut bytes = [0; 8];
            list.read(index * 8, &mut bytes).expect("in the page");
            let segment = BlkifRequestSegment::read_from_bytes(&bytes).expect("its size");
            assert_eq!((segment.gref, segment.last_sect), (gref, last));
        }
        // A short one needs no list.
        let _ticket = queue.submit(Operation::Read, 0, 88, &[]).expect("room");
        let _ = queue.ring.publish();
        assert_eq!(request(&back, 1).operation, BLKIF_OP_READ);
    }

    #[test]
    fn a_back_end_that_takes_less_than_the_one_before() {
        let (mut queue, ..) = long_queue();
        queue.allow_indirect(20);
        let long = queue.submit(Operation::Read, 0, 160, &[]).expect("room");
        let flush = queue.submit(Operation::Flush, 0, 0, &[]).expect("room");
        queue.allow_indirect(0);
        queue.replay();
        let failed = Some(Err(BlkError::Length(160 * 512)));
        assert_eq!(queue.finish(&long, &mut []), failed);
        assert_eq!(queue.finish(&flush, &mut []), None);
        assert_eq!(queue.ring.under_way(), 1);
    }

    #[test]
    fn no_more_than_there_are_slots() {
        let (mut queue, ..) = queue();
        let all = [(); 4].map(|()| queue.submit(Operation::Flush, 0, 0, &[]));
        assert!(all.iter().all(Result::is_ok));
        let more = queue.submit(Operation::Flush, 0, 0, &[]);
        assert_eq!(more, Err(BlkError::Busy));
        queue.fail_all(BlkError::Gone);
        for ticket in all.into_iter().flatten() {
            assert_eq!(queue.finish(&ticket, &mut []), Some(Err(BlkError::Gone)));
        }
    }

    #[test]
    fn answers_to_nothing_are_found_out() {
        let (mut queue, back, _) = queue();
        let ticket = queue.submit(Operation::Flush, 0, 0, &[]).expect("room");
        let _ = queue.ring.publish();
        let right = request(&back, 0).id;
        for id in [right + 1, right + (1 << 32), u64::MAX, 77] {
            let (mut queue, back, _) = self::queue();
            let _ticket = queue.submit(Operation::Flush, 0, 0, &[]).expect("room");
            let _ = queue.ring.publish();
            answer(&back, 0, id, 0);
            assert_eq!(queue.take_responses(), Err(BlkError::Response { id }));
        }
        answer(&back, 0, right, 0);
        queue.take_responses().expect("as asked");
        assert_eq!(queue.finish(&ticket, &mut []), Some(Ok(())));
        let more = queue.submit(Operation::Flush, 0, 0, &[]).expect("room");
        let _ = queue.ring.publish();
        // The same answer once more.
        answer(&back, 1, right, 0);
        assert!(queue.take_responses().is_err());
        assert_eq!(queue.finish(&more, &mut []), None);
    }

    proptest! {
        /// A back end that writes anything anywhere in the ring.
        #[test]
        fn a_hostile_ring(
            noise in proptest::collection::vec((0usize..4096, any::<u8>()), 0..200),
            produced in prop_oneof![0u32..6, any::<u32>()],
        ) {
            let (mut queue, back, _) = queue();
            let tickets = [(); 3].map(|()| queue.submit(Operation::Read, 0, 1, &[]));
            let _ = queue.ring.publish();
            for (at, byte) in noise {
                back.write(at, &[byte]).expect("in the page");
            }
            back.word(8).expect("in the page").store(produced, Ordering::SeqCst);
            let _ = queue.take_responses();
            for ticket in tickets.into_iter().flatten() {
                let _ = queue.finish(&ticket, &mut [0; 512]);
            }
        }
    }
}
