//! `public/io/ring.h`: the index rules of a ring of requests and responses.
//!
//! A ring is a power of two of slots behind a header of 64 bytes. A request
//! goes into a slot, its response comes back in a slot; a response may take
//! the slot of a consumed request, so requests under way never exceed the
//! slots. Indices are 32 bits, run freely and wrap; a slot's number is
//! `index & (slots - 1)`.
//!
//! ```text
//!      rsp_cons        rsp_prod        req_cons        req_prod
//!  ------+---------------+---------------+---------------+------>
//!        | responses to  | taken by the  | requests to   |
//!        | be consumed   | back end      | be consumed   |
//!        |<------------- at most `slots` --------------->|
//! ```
//!
//! - The front end writes a slot, then `req_prod` (release); the back end
//!   reads `req_prod` (acquire), then the slot. Responses likewise.
//! - **Notifying**: who moves a `prod` past the other's `event` index sends an
//!   event ([`must_notify`]). Who is about to sleep sets its `event` to
//!   `cons + 1`, then a full barrier, then looks once more.
//! - Nothing in the shared page is to be trusted: keep private copies of the
//!   indices that you write, and check what the other half claims
//!   ([`unconsumed`]).

use crate::layout::layout;

/// Bytes in front of the first slot.
pub const RING_HEADER_SIZE: usize = 64;

layout! {
    /// The head of a ring's page (`sring` without its slots).
    struct SringHeader [64] {
        /// Written by the front end.
        0 => req_prod: u32,
        /// Written by the back end: tell me when `req_prod` gets here.
        4 => req_event: u32,
        /// Written by the back end.
        8 => rsp_prod: u32,
        /// Written by the front end: tell me when `rsp_prod` gets here.
        12 => rsp_event: u32,
        /// For the drivers' private use, and padding.
        16 => pad: [u8; 48],
    }
}

impl SringHeader {
    /// A fresh ring, as the front end sets it up.
    #[must_use]
    pub fn fresh() -> Self {
        Self {
            req_event: 1,
            rsp_event: 1,
            ..Self::default()
        }
    }
}

/// The slots of a ring of `ring_bytes` with slots of `slot_size` bytes: the
/// largest power of two that fits; 0 if not even one does.
#[must_use]
pub const fn slots(ring_bytes: usize, slot_size: usize) -> u32 {
    if slot_size == 0 || ring_bytes < RING_HEADER_SIZE {
        return 0;
    }
    let fit = (ring_bytes - RING_HEADER_SIZE) / slot_size;
    if fit == 0 || fit > 1 << 30 {
        return 0;
    }
    1 << fit.ilog2()
}

/// The byte offset of the slot of `index`.
#[must_use]
pub const fn slot_offset(index: u32, slots: u32, slot_size: usize) -> usize {
    RING_HEADER_SIZE + (index & (slots - 1)) as usize * slot_size
}

/// How many entries lie between our `cons` and the other's `prod`, or `None`
/// if the other claims more than `limit`: its index is broken.
///
/// For responses `limit` is the number of requests under way; for requests it
/// is the number of slots less the responses not yet produced.
#[must_use]
pub const fn unconsumed(prod: u32, cons: u32, limit: u32) -> Option<u32> {
    let count = prod.wrapping_sub(cons);
    if count <= limit { Some(count) } else { None }
}

/// Slots free for requests, of a front end that has produced up to
/// `req_prod_pvt` and consumed up to `rsp_cons`.
#[must_use]
pub const fn free_requests(slots: u32, req_prod_pvt: u32, rsp_cons: u32) -> u32 {
    slots.wrapping_sub(req_prod_pvt.wrapping_sub(rsp_cons))
}

/// Whether moving a `prod` from `old` to `new` passes the other's `event`.
#[must_use]
pub const fn must_notify(old: u32, new: u32, event: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_a_power_of_two() {
        assert_eq!(slots(4096, 112), 32); // blkif
        assert_eq!(slots(4096, 12), 256); // netif transmit
        assert_eq!(slots(4096, 8), 256); // netif receive
        assert_eq!(slots(64, 8), 0);
        assert_eq!(slots(63, 8), 0);
    }

    #[test]
    fn counts_survive_the_wrap() {
        assert_eq!(unconsumed(2, u32::MAX - 1, 32), Some(4));
        assert_eq!(unconsumed(u32::MAX - 1, 2, 32), None);
        assert_eq!(free_requests(32, 5, u32::MAX), 26);
        assert_eq!(slot_offset(u32::MAX, 32, 112), 64 + 31 * 112);
    }

    #[test]
    fn notify_only_when_the_event_is_passed() {
        assert!(must_notify(0, 1, 1));
        assert!(!must_notify(1, 2, 1));
        assert!(!must_notify(0, 1, 2));
        assert!(must_notify(u32::MAX, 3, 0));
        assert!(!must_notify(4, 4, 4));
    }
}
