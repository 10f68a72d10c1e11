//! Requests under way: slots, their pages, and the ring. No hypercall here.
//!
//! Law: a slot's pages hold data of its own request only. They stay granted as
//! long as the disk is used, so that a back end may keep them mapped; what it
//! does with them at a wrong time can change data of this disk only.

use super::{BlkError, Operation};
use crate::{
    addr::GrantRef,
    blkif::{
        BLKIF_DISCARD_SECURE, BLKIF_MAX_SEGMENTS_PER_REQUEST, BLKIF_OP_DISCARD,
        BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER,
        BLKIF_RING_SLOTS, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_OKAY, BLKIF_SECTOR_SIZE, BLKIF_SLOT_SIZE,
        BlkifRequest, BlkifRequestDiscard, BlkifRequestSegment, BlkifResponse,
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

/// Names a request until it is finished.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a request that is not finished keeps its slot"]
pub struct Ticket {
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
    handle: u16,
}

impl<const D: usize, const S: usize> Queue<D, S> {
    const FITS: () = assert!(
        D > 0 && D <= BLKIF_RING_SLOTS as usize && S > 0 && S <= BLKIF_MAX_SEGMENTS_PER_REQUEST,
        "a disk has 1 to 32 requests of 1 to 11 pages"
    );

    /// Bytes that one request can carry.
    pub(super) const REACH: usize = S * PAGE_BYTES;

    pub(super) fn new(ring: Page, handle: u16, pages: [[Page; S]; D]) -> Self {
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
            handle,
        }
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
            if self.slots[index].state == State::UnderWay {
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
    let (mut rest, mut count) = (sectors, 0u8);
    for (segment, gref) in list.iter_mut().zip(grants) {
        if rest == 0 {
            break;
        }
        let here = rest.min(u64::from(SECTORS_PER_PAGE));
        segment.gref = gref.0;
        segment.last_sect = u8::try_from(here - 1).unwrap_or(7);
        rest -= here;
        count += 1;
    }
    (count, list)
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
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;
    use crate::kernel::page::tests::{alias, host_page};

    /// A queue, its ring page, and the pages of its first slot.
    fn queue() -> (Queue<4, 2>, Page, [Page; 2]) {
        let ring = host_page();
        let back = alias(&ring);
        let pages: [[Page; 2]; 4] = core::array::from_fn(|_| core::array::from_fn(|_| host_page()));
        let first = core::array::from_fn(|page| alias(&pages[0][page]));
        let mut queue = Queue::new(ring, 0, pages);
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
