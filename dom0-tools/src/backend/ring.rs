//! The back end's half of a ring. The rules of the indices stand in
//! [`guest_abi::ring`].
//!
//! Law: the back end's own indices are private; the shared ones are only
//! written, never read back. A request is copied out of its slot once. A
//! front end that claims more requests than fit has broken its ring: every
//! further call fails, and the device is to be given up. Responses are given
//! in the order of the requests.
//!
//! ```text
//!        rsp_prod (private)        req_cons (private)      req_prod (theirs)
//!  ---------+--------------------------+-----------------------+------>
//!           | taken, not yet answered  | to be taken           |
//!           |<--------------- at most `slots` ---------------->|
//! ```
//!
//! **A back end that is killed between any two instructions loses nothing.** A
//! response overwrites its request before `rsp_prod` says so. So it is written
//! down in the header's unused bytes first, under its index; who attaches to a
//! ring where that index is the next one finishes what the other began:
//!
//! ```text
//!   1  the response -> note       2  rsp_prod + 1 -> note_index
//!   3  the response -> its slot   4  rsp_prod + 1 -> rsp_prod
//! ```

use std::sync::atomic::{Ordering, fence};

use guest_abi::ring::{self, RING_HEADER_SIZE};
use vm_memory::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::memory::SharedMemory;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
// In the padding, which front ends zero when they make the ring.
const NOTE_MAGIC: usize = 24;
const NOTE_INDEX: usize = 28;
const NOTE: usize = 32;
const NOTE_SIZE: usize = 32;
/// "DoNo": the note's index means something.
const MAGIC: u32 = 0x6f4e_6f44;

/// Why a ring can't be served (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The memory is too small for a slot.
    #[error("a ring of {bytes} bytes has no room for a slot of {slot_size}")]
    TooSmall {
        /// The memory.
        bytes: usize,
        /// The slot.
        slot_size: usize,
    },
    /// The front end's index is impossible.
    #[error(
        "the front end says that its requests reach to {req_prod}, but {rsp_prod} are answered \
         and the ring has {slots} slots"
    )]
    Overrun {
        /// What it says.
        req_prod: u32,
        /// Responses given.
        rsp_prod: u32,
        /// The ring's slots.
        slots: u32,
    },
}

/// The back half of a ring of one page or several.
#[derive(Debug)]
pub struct BackRing<M> {
    memory: M,
    slots: u32,
    slot_size: usize,
    req_cons: u32,
    rsp_prod: u32,
    /// `rsp_prod` when it was last asked whether to notify.
    rsp_told: u32,
}

impl<M: SharedMemory> BackRing<M> {
    /// Takes up a ring: a fresh one, or one whose back end has died. Both
    /// begin at the first request that has no response.
    ///
    /// `slot_size` is the larger of the request's and the response's size.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn attach(memory: M, slot_size: usize) -> Result<Self, RingError> {
        let bytes = memory.len();
        let slots = ring::slots(bytes, slot_size);
        if slots == 0 {
            return Err(RingError::TooSmall { bytes, slot_size });
        }
        let mut ring = Self {
            memory,
            slots,
            slot_size,
            req_cons: 0,
            rsp_prod: 0,
            rsp_told: 0,
        };
        let shown = ring.load(RSP_PROD);
        (ring.req_cons, ring.rsp_prod, ring.rsp_told) = (shown, shown, shown);
        if ring.unconsumed()? > 0 {
            ring.finish_noted_response();
        }
        ring.store(NOTE_INDEX, ring.rsp_prod);
        ring.store(NOTE_MAGIC, MAGIC);
        Ok(ring)
    }

    /// Gives the response that a killed back end was about to give.
    fn finish_noted_response(&mut self) {
        let next = self.rsp_prod.wrapping_add(1);
        if self.load(NOTE_MAGIC) != MAGIC || self.load(NOTE_INDEX) != next {
            return;
        }
        let mut note = [0; NOTE_SIZE];
        let note = &mut note[..NOTE_SIZE.min(self.slot_size)];
        let slice = self.memory.slice();
        slice.read_slice(note, NOTE).expect("the header");
        self.req_cons = next;
        self.show_response(note);
    }

    /// Slots of the ring.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// Requests taken and not answered yet.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// The index of the request that [`take`](Self::take) gives next: for
    /// those who keep something for each slot.
    #[must_use]
    pub const fn next_request(&self) -> u32 {
        self.req_cons
    }

    /// How many requests wait to be taken.
    ///
    /// # Errors
    /// [`RingError::Overrun`].
    pub fn unconsumed(&self) -> Result<u32, RingError> {
        let req_prod = self.load(REQ_PROD);
        // No request is looked at before the index that announces it.
        fence(Ordering::SeqCst);
        let room = self.slots.wrapping_sub(self.in_flight());
        ring::unconsumed(req_prod, self.req_cons, room).ok_or(RingError::Overrun {
            req_prod,
            rsp_prod: self.rsp_prod,
            slots: self.slots,
        })
    }

    /// A copy of the next request, if there is one. `R` may be smaller than a
    /// slot.
    ///
    /// # Errors
    /// [`RingError::Overrun`].
    ///
    /// # Panics
    /// When `R` is larger than a slot, which is a mistake of the caller's.
    pub fn take<R: FromBytes>(&mut self) -> Result<Option<R>, RingError> {
        assert!(size_of::<R>() <= self.slot_size, "a request fills a slot");
        if self.unconsumed()? == 0 {
            return Ok(None);
        }
        let request = self.copy_slot(self.req_cons);
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(request))
    }

    /// Takes back the last [`take`](Self::take), so that it gives the same
    /// slot again: for a packet whose other slots are not there yet.
    pub const fn untake(&mut self, count: u32) {
        self.req_cons = self.req_cons.wrapping_sub(count);
    }

    /// Gives the response to the oldest request that has none. The front end
    /// sees it at once, but may not look before it is notified: see
    /// [`push`](Self::push).
    ///
    /// # Panics
    /// When every taken request has its response already, or `R` is larger
    /// than a slot or 32 bytes: mistakes of the caller's.
    pub fn respond<R: IntoBytes + Immutable>(&mut self, response: &R) {
        assert!(self.in_flight() > 0, "no request without response is left");
        let bytes = response.as_bytes();
        let limit = self.slot_size.min(NOTE_SIZE);
        assert!(bytes.len() <= limit, "a response fits a slot and the note");
        let slice = self.memory.slice();
        slice.write_slice(bytes, NOTE).expect("the header");
        fence(Ordering::Release);
        self.store(NOTE_INDEX, self.rsp_prod.wrapping_add(1));
        self.show_response(bytes);
    }

    /// Gives the responses to the oldest requests that have none, so that the
    /// front end sees all of them or none: for one that could take the first
    /// ones alone for a whole. There is no note of them: a back end killed
    /// here leaves requests that are partly overwritten.
    ///
    /// # Panics
    /// As [`respond`](Self::respond).
    pub fn respond_together<R: IntoBytes + Immutable>(&mut self, responses: &[R]) {
        let slice = self.memory.slice();
        for response in responses {
            assert!(self.in_flight() > 0, "no request without response is left");
            let bytes = response.as_bytes();
            assert!(bytes.len() <= self.slot_size, "a response fits a slot");
            let at = ring::slot_offset(self.rsp_prod, self.slots, self.slot_size);
            slice.write_slice(bytes, at).expect("a slot of the ring");
            self.rsp_prod = self.rsp_prod.wrapping_add(1);
        }
        fence(Ordering::Release);
        self.store(RSP_PROD, self.rsp_prod);
    }

    fn show_response(&mut self, bytes: &[u8]) {
        let at = ring::slot_offset(self.rsp_prod, self.slots, self.slot_size);
        fence(Ordering::Release);
        let slice = self.memory.slice();
        slice.write_slice(bytes, at).expect("a slot of the ring");
        fence(Ordering::Release);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
        self.store(RSP_PROD, self.rsp_prod);
    }

    /// Whether the front end wants to be notified of the responses that were
    /// given since the last call.
    #[must_use = "the front end may be waiting for a notification"]
    pub fn push(&mut self) -> bool {
        let old = std::mem::replace(&mut self.rsp_told, self.rsp_prod);
        // The index before the look at what the front end waits for.
        fence(Ordering::SeqCst);
        ring::must_notify(old, self.rsp_prod, self.load(RSP_EVENT))
    }

    /// Whether the front end has looked at all responses that
    /// [`push`](Self::push) was called for: it waits for later ones. (What a
    /// hostile one makes of this costs it notifications.)
    #[must_use]
    pub fn is_seen(&self) -> bool {
        let ahead = self.load(RSP_EVENT).wrapping_sub(self.rsp_told);
        (1..=1 << 31).contains(&ahead)
    }

    /// Asks to be notified of the next request, then looks once more:
    /// whether there is one already. To be called before waiting for the
    /// port.
    ///
    /// # Errors
    /// [`RingError::Overrun`].
    pub fn final_check(&mut self) -> Result<bool, RingError> {
        if self.unconsumed()? > 0 {
            return Ok(true);
        }
        self.ask_for_event_after(1);
        Ok(self.unconsumed()? > 0)
    }

    /// Asks to be notified when `count` more requests than were taken are
    /// there.
    pub fn ask_for_event_after(&mut self, count: u32) {
        self.store(REQ_EVENT, self.req_cons.wrapping_add(count));
        fence(Ordering::SeqCst);
    }

    fn copy_slot<R: FromBytes>(&self, index: u32) -> R {
        let at = ring::slot_offset(index, self.slots, self.slot_size);
        let mut bytes = [0; 256];
        let bytes = &mut bytes[..size_of::<R>()];
        let slice = self.memory.slice();
        slice.read_slice(bytes, at).expect("a slot of the ring");
        R::read_from_bytes(bytes).expect("as many bytes as R has")
    }

    fn load(&self, offset: usize) -> u32 {
        let slice = self.memory.slice();
        slice
            .load(offset, Ordering::Acquire)
            .expect("the header is aligned and in the ring")
    }

    fn store(&self, offset: usize, value: u32) {
        let slice = self.memory.slice();
        slice
            .store(value, offset, Ordering::Release)
            .expect("the header is aligned and in the ring");
    }
}

const _: () = assert!(RSP_EVENT + 4 <= RING_HEADER_SIZE);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use guest_abi::blkif::{BLKIF_SLOT_SIZE, BlkifRequest, BlkifResponse};
    use proptest::prelude::*;

    use super::*;
    use crate::backend::{memory::PlainMemory, testing::FrontRing};

    fn pair(pages: usize) -> (BackRing<Arc<PlainMemory>>, FrontRing) {
        let memory = Arc::new(PlainMemory::pages(pages));
        let front = FrontRing::new(memory.clone(), BLKIF_SLOT_SIZE);
        (BackRing::attach(memory, BLKIF_SLOT_SIZE).unwrap(), front)
    }

    fn request(id: u64) -> BlkifRequest {
        BlkifRequest {
            id,
            ..Default::default()
        }
    }

    fn response(id: u64) -> BlkifResponse {
        BlkifResponse {
            id,
            ..Default::default()
        }
    }

    #[test]
    fn requests_and_responses_pass_for_many_rounds() {
        for (pages, slots) in [(1, 32), (2, 64), (16, 512)] {
            let (mut back, mut front) = pair(pages);
            assert_eq!(back.slots(), slots);
            for id in 0..3000 {
                front.put(&request(id));
                assert!(front.push(), "the back end waits");
                let taken: BlkifRequest = back.take().unwrap().unwrap();
                assert_eq!((taken.id, back.in_flight()), (id, 1));
                assert_eq!(back.take::<BlkifRequest>(), Ok(None));
                back.respond(&response(id));
                assert!(back.push(), "the front end waits");
                assert_eq!(front.take::<BlkifResponse>().unwrap().id, id);
                assert!(!front.final_check() && !back.final_check().unwrap());
            }
        }
    }

    #[test]
    fn a_batch_notifies_once() {
        let (mut back, mut front) = pair(1);
        for id in 0..32 {
            front.put(&request(id));
        }
        assert!(front.push());
        while let Some(taken) = back.take::<BlkifRequest>().unwrap() {
            back.respond(&response(taken.id));
        }
        assert!(back.push());
        assert!(!back.push());
    }

    #[test]
    fn a_new_back_end_begins_at_the_first_request_without_response() {
        let memory = Arc::new(PlainMemory::pages(1));
        let mut front = FrontRing::new(memory.clone(), BLKIF_SLOT_SIZE);
        let mut back = BackRing::attach(memory.clone(), BLKIF_SLOT_SIZE).unwrap();
        for id in 0..10 {
            front.put(&request(id));
        }
        let _ = front.push();
        for _ in 0..6 {
            back.take::<BlkifRequest>().unwrap().unwrap();
        }
        for id in 0..4 {
            back.respond(&response(id));
        }
        drop(back);
        let mut back = BackRing::attach(memory, BLKIF_SLOT_SIZE).unwrap();
        assert_eq!(back.unconsumed(), Ok(6));
        for id in 4..10 {
            assert_eq!(back.take::<BlkifRequest>().unwrap().unwrap().id, id);
        }
        for id in 0..4 {
            assert_eq!(front.take::<BlkifResponse>().unwrap().id, id);
        }
    }

    /// Killed with the response in its note, or half in its slot, or in its
    /// slot with `rsp_prod` still old: it is given exactly once.
    #[test]
    fn a_response_that_was_begun_is_finished_by_the_next_back_end() {
        for clobbered in [0, 5, 16] {
            let memory = Arc::new(PlainMemory::pages(1));
            let mut front = FrontRing::new(memory.clone(), BLKIF_SLOT_SIZE);
            let mut back = BackRing::attach(memory.clone(), BLKIF_SLOT_SIZE).unwrap();
            for id in 0..3 {
                front.put(&request(id));
            }
            let _ = front.push();
            back.take::<BlkifRequest>().unwrap().unwrap();
            back.respond(&response(7));
            // Undo as much of it as the killed one had not done.
            back.store(RSP_PROD, 0);
            let slot = memory.slice().subslice(RING_HEADER_SIZE, 112).unwrap();
            let whole = request(0);
            slot.write_slice(&whole.as_bytes()[clobbered..], clobbered)
                .unwrap();
            let mut back = BackRing::attach(memory, BLKIF_SLOT_SIZE).unwrap();
            assert_eq!(front.take::<BlkifResponse>(), Some(response(7)));
            assert_eq!(front.take::<BlkifResponse>(), None);
            assert_eq!(back.take::<BlkifRequest>().unwrap().unwrap().id, 1);
        }
    }

    #[test]
    fn memory_without_room_is_refused() {
        let memory = PlainMemory::pages(1);
        let error = BackRing::attach(memory, 5000).unwrap_err();
        assert_eq!(
            error,
            RingError::TooSmall {
                bytes: 4096,
                slot_size: 5000
            }
        );
    }

    #[test]
    #[should_panic(expected = "no request without response")]
    fn a_response_needs_a_request() {
        pair(1).0.respond(&response(0));
    }

    proptest! {
        /// Whatever the front end writes into its indices, at most a ring of
        /// requests is taken, and an impossible index is an error.
        #[test]
        fn jumping_indices_are_detected(jumps in prop::collection::vec(any::<u32>(), 1..20)) {
            let (mut back, mut front) = pair(1);
            for jump in jumps {
                front.set_req_prod(jump);
                let fits = jump.wrapping_sub(back.next_request()) <= 32 - back.in_flight();
                let before = back.next_request();
                let outcome = loop {
                    match back.take::<BlkifRequest>() {
                        Ok(Some(_)) => back.respond(&response(1)),
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                };
                prop_assert_eq!(outcome.is_ok(), fits);
                prop_assert!(back.next_request().wrapping_sub(before) <= 32);
                let _ = back.push();
            }
        }
    }
}
