//! The front end's half of a ring of requests and responses: the rules of
//! [`crate::ring`], with a back end that is not trusted.
//!
//! Law: the indices that this half writes are private, and only ever copied
//! out to the page. What the back end claims is an entry more than requests
//! are under way, or it is [`BrokenRing`], and then nothing more is read.
//! A response is copied once.
//!
//! ```no_run
//! use guest_abi::{
//!     kernel::{front_ring::{BrokenRing, FrontRing}, page::Page},
//!     netif::{NetifRxRequest, NetifRxResponse},
//! };
//!
//! /// Posts a buffer; `true` if the back end wants an event for it.
//! fn post(ring: &mut FrontRing, request: &NetifRxRequest) -> bool {
//!     ring.push(request).expect("room for one more");
//!     ring.publish()
//! }
//!
//! /// Takes all that has come, until it is time to sleep.
//! fn drain(ring: &mut FrontRing) -> Result<(), BrokenRing> {
//!     loop {
//!         while let Some(response) = ring.pop::<NetifRxResponse>()? {
//!             let _length = response.status; // A claim, to be checked.
//!         }
//!         if !ring.arm() {
//!             return Ok(());
//!         }
//!     }
//! }
//! ```

use core::{
    fmt,
    mem::offset_of,
    sync::atomic::{AtomicU32, Ordering, fence},
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::page::{PAGE_BYTES, Page};
use crate::ring::{self, SringHeader, must_notify, slot_offset, unconsumed};

/// The back end moved an index where no index can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenRing {
    /// Where its index is.
    pub produced: u32,
    /// Where ours is.
    pub consumed: u32,
    /// How many responses it may have produced since.
    pub under_way: u32,
}

impl fmt::Display for BrokenRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            produced,
            consumed,
            under_way,
        } = self;
        write!(
            f,
            "the back end claims responses up to {produced}; {consumed} are taken and only \
             {under_way} requests are under way: close the device"
        )
    }
}

impl core::error::Error for BrokenRing {}

/// A ring of one page.
#[derive(Debug)]
pub struct FrontRing {
    page: Page,
    slots: u32,
    slot_size: usize,
    /// Requests put into slots; the back end sees those published.
    produced: u32,
    published: u32,
    /// Responses taken.
    consumed: u32,
}

impl FrontRing {
    /// A fresh ring of slots of `slot_size` bytes.
    #[must_use]
    pub fn new(page: Page, slot_size: usize) -> Self {
        let mut ring = Self {
            page,
            slots: ring::slots(PAGE_BYTES, slot_size),
            slot_size,
            produced: 0,
            published: 0,
            consumed: 0,
        };
        ring.reset();
        ring
    }

    /// Makes it fresh again, for another back end.
    pub fn reset(&mut self) {
        self.page.clear();
        let _ = self.page.write(0, SringHeader::fresh().as_bytes());
        (self.produced, self.published, self.consumed) = (0, 0, 0);
    }

    /// The page, to be granted.
    #[must_use]
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// Requests that there is room for.
    #[must_use]
    pub fn free(&self) -> u32 {
        ring::free_requests(self.slots, self.produced, self.consumed)
    }

    /// Requests without a response.
    #[must_use]
    pub fn under_way(&self) -> u32 {
        self.produced.wrapping_sub(self.consumed)
    }

    /// Puts a request into the next slot; the back end sees it after
    /// [`publish`](Self::publish). `None` if there is no room, or if a
    /// request is larger than a slot.
    #[must_use]
    pub fn push<T: IntoBytes + Immutable>(&mut self, request: &T) -> Option<()> {
        if self.free() == 0 || size_of::<T>() > self.slot_size {
            return None;
        }
        let slot = slot_offset(self.produced, self.slots, self.slot_size);
        self.page.write(slot, request.as_bytes())?;
        self.produced = self.produced.wrapping_add(1);
        Some(())
    }

    /// Shows the back end what was pushed. `true`: it wants an event.
    #[must_use = "a back end that sleeps is woken by an event only"]
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        self.published = self.produced;
        self.store(offset_of!(SringHeader, req_prod), self.produced);
        // The index must be out before the other's wish is read.
        fence(Ordering::SeqCst);
        let event = self.load(offset_of!(SringHeader, req_event));
        must_notify(old, self.published, event)
    }

    /// The next response, copied.
    ///
    /// # Errors
    /// [`BrokenRing`]: what the back end claims can't be.
    pub fn pop<T: FromBytes + IntoBytes>(&mut self) -> Result<Option<T>, BrokenRing> {
        let produced = self.load(offset_of!(SringHeader, rsp_prod));
        let under_way = self.published.wrapping_sub(self.consumed);
        match unconsumed(produced, self.consumed, under_way) {
            Some(0) => Ok(None),
            Some(_) if size_of::<T>() <= self.slot_size => {
                let mut response = T::new_zeroed();
                let slot = slot_offset(self.consumed, self.slots, self.slot_size);
                let _ = self.page.read(slot, response.as_mut_bytes());
                self.consumed = self.consumed.wrapping_add(1);
                Ok(Some(response))
            }
            _ => Err(BrokenRing {
                produced,
                consumed: self.consumed,
                under_way,
            }),
        }
    }

    /// The index of the next request that will be pushed.
    #[must_use]
    pub fn next_request(&self) -> u32 {
        self.produced
    }

    /// The index of the next response that will be taken.
    #[must_use]
    pub fn next_response(&self) -> u32 {
        self.consumed
    }

    /// Before sleeping: asks for an event at the next response. `true`: one is
    /// there already, don't sleep.
    #[must_use]
    pub fn arm(&self) -> bool {
        let next = self.consumed.wrapping_add(1);
        self.store(offset_of!(SringHeader, rsp_event), next);
        fence(Ordering::SeqCst);
        self.load(offset_of!(SringHeader, rsp_prod)) != self.consumed
    }

    fn load(&self, offset: usize) -> u32 {
        self.index(offset)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, offset: usize, value: u32) {
        if let Some(word) = self.index(offset) {
            word.store(value, Ordering::Release);
        }
    }

    fn index(&self, offset: usize) -> Option<&AtomicU32> {
        self.page.word(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::page::tests::{alias, host_page},
        *,
    };

    const SLOT: usize = 8;

    fn ring() -> (FrontRing, Page) {
        let ring = FrontRing::new(host_page(), SLOT);
        let other = alias(ring.page());
        (ring, other)
    }

    fn set(page: &Page, offset: usize, value: u32) {
        page.word(offset)
            .expect("aligned")
            .store(value, Ordering::SeqCst);
    }

    #[test]
    fn a_request_goes_out_and_its_response_comes_back() {
        let (mut ring, other) = ring();
        assert_eq!(ring.free(), 256);
        ring.push(&7u64).expect("room");
        assert!(ring.publish(), "a fresh ring wants an event");
        let mut seen = [0; 8];
        other.read(64, &mut seen).expect("in the page");
        assert_eq!(u64::from_ne_bytes(seen), 7);
        assert_eq!(ring.pop::<u64>(), Ok(None));
        other.write(64, &9u64.to_ne_bytes()).expect("in the page");
        set(&other, 8, 1);
        assert!(ring.arm());
        assert_eq!(ring.pop::<u64>(), Ok(Some(9)));
        assert!(!ring.arm());
        assert_eq!(ring.under_way(), 0);
    }

    #[test]
    fn a_full_ring_takes_no_more() {
        let (mut ring, _) = ring();
        for n in 0..256u64 {
            ring.push(&n).expect("room");
        }
        assert_eq!(ring.push(&0u64), None);
        assert_eq!(ring.push(&[0u64; 2]), None, "larger than a slot");
    }

    #[test]
    fn a_back_end_that_claims_too_much_is_found_out() {
        let (mut ring, other) = ring();
        ring.push(&1u64).expect("room");
        // Not published yet: the back end can't have answered it.
        set(&other, 8, 1);
        assert!(ring.pop::<u64>().is_err());
        let _ = ring.publish();
        for lie in [2, 257, u32::MAX, 1 << 31] {
            set(&other, 8, lie);
            let broken = ring.pop::<u64>().expect_err("a lie");
            assert_eq!((broken.produced, broken.under_way), (lie, 1));
        }
        set(&other, 8, 1);
        assert!(ring.pop::<u64>().expect("the truth").is_some());
    }

    #[test]
    fn our_indices_are_not_the_pages() {
        let (mut ring, other) = ring();
        ring.push(&1u64).expect("room");
        let _ = ring.publish();
        set(&other, 0, 1000);
        assert_eq!(ring.under_way(), 1);
        ring.push(&2u64).expect("room");
        let _ = ring.publish();
        assert_eq!(other.word(0).expect("aligned").load(Ordering::SeqCst), 2);
    }

    #[test]
    fn events_are_asked_for_over_the_wrap() {
        let (mut ring, other) = ring();
        let near = u32::MAX - 1;
        (ring.produced, ring.published, ring.consumed) = (near, near, near);
        set(&other, 8, near);
        set(&other, 4, near.wrapping_add(3));
        for _ in 0..2 {
            ring.push(&0u64).expect("room");
        }
        assert!(!ring.publish());
        ring.push(&0u64).expect("room");
        assert!(ring.publish());
        set(&other, 8, 1);
        for _ in 0..3 {
            assert!(ring.pop::<u64>().expect("three").is_some());
        }
        assert_eq!(ring.pop::<u64>(), Ok(None));
    }

    /// A back end that writes all over the page while it is used: each answer
    /// is a response or [`BrokenRing`], and our own count stays right.
    #[test]
    fn a_back_end_that_scribbles_meanwhile() {
        use core::sync::atomic::AtomicBool;
        extern crate std;
        let (mut ring, other) = ring();
        let (stop, broken) = (AtomicBool::new(false), &mut 0u32);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let other = other;
                let mut noise = 0x2545_f491u32;
                while !stop.load(Ordering::Relaxed) {
                    noise ^= noise << 13;
                    noise ^= noise >> 17;
                    noise ^= noise << 5;
                    let index = |word| set(&other, word, noise & 3);
                    [0, 4, 8, 12].into_iter().for_each(index);
                    let _ = other.write(64 + (noise as usize % 4000), &noise.to_ne_bytes());
                }
            });
            let begin = std::time::Instant::now();
            let mut rounds = 0u64;
            // Until both have run beside each other, also on a single processor.
            while rounds < 20_000 || *broken == 0 && begin.elapsed().as_secs() < 10 {
                rounds += 1;
                let _ = ring.push(&rounds);
                let _ = (ring.publish(), ring.arm());
                match ring.pop::<u64>() {
                    Ok(_) => {}
                    Err(lie) => {
                        assert!(lie.produced.wrapping_sub(lie.consumed) > lie.under_way);
                        *broken += 1;
                    }
                }
                assert_eq!(ring.free() + ring.under_way(), 256);
                if ring.free() == 0 {
                    ring.reset();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(*broken > 0, "nothing was scribbled");
    }
}
