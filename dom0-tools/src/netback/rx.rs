//! What the guest receives: packets from the wire go into the pages that the
//! front end has posted in the receive ring.
//!
//! ```text
//!   slot   response
//!   n      first 4096 bytes; flags: checksum, MORE_DATA, EXTRA_INFO
//!   n+1    extra information (segmentation), if EXTRA_INFO
//!   n+2    next 4096 bytes; MORE_DATA
//!   n+3    the rest
//! ```
//!
//! Law: a packet's responses are shown together, for a front end takes a packet
//! whole. A packet is taken from the wire only while none waits for slots: so
//! one packet waits here at most, the others on the host's side, where the
//! host drops them when they are too many.

use guest_abi::netif::{
    NETIF_RSP_ERROR, NETRXF_EXTRA_INFO, NETRXF_MORE_DATA, NetifExtraInfo, NetifRxRequest,
    NetifRxResponse, XEN_NETIF_EXTRA_TYPE_GSO,
};
use zerocopy::IntoBytes;

use super::{
    grants::Piece,
    offload::{Gso, Offload},
    tx::is_reserved,
};
use crate::backend::{BackRing, RingError, SharedMemory};

const PAGE: usize = 4096;

/// How many slots a packet takes.
#[must_use]
pub fn slots_for(len: usize, offload: &Offload) -> u32 {
    let pages = u32::try_from(len.div_ceil(PAGE)).unwrap_or(u32::MAX);
    pages.saturating_add(u32::from(offload.gso.is_some()))
}

/// A response, of either kind.
type Response = [u8; 8];

/// Packets that have got their slots.
#[derive(Debug, Default)]
pub struct Batch {
    /// Where their bytes go, in the order in which they lie.
    pub pieces: Vec<Piece>,
    responses: Vec<Response>,
    packets: u64,
    /// For each piece, its response.
    answers: Vec<usize>,
}

impl Batch {
    /// Whether there is no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.responses.is_empty()
    }

    /// How many packets there are.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// How many slots its packets take.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.responses.len()
    }

    /// Takes the slots for a packet of `len` bytes. The caller has made sure
    /// that there are [`slots_for`] it.
    ///
    /// # Errors
    /// [`RingError`], also when there are fewer slots now.
    pub fn place<M: SharedMemory>(
        &mut self,
        ring: &mut BackRing<M>,
        len: usize,
        offload: &Offload,
    ) -> Result<(), RingError> {
        self.packets += 1;
        let mut flags = offload.rx_flags();
        let mut left = len;
        while left > 0 {
            let part = left.min(PAGE);
            left -= part;
            if left > 0 {
                flags |= NETRXF_MORE_DATA;
            }
            let extra = offload.gso.filter(|_| left + part == len);
            if extra.is_some() {
                flags |= NETRXF_EXTRA_INFO;
            }
            self.place_part(ring, part, flags)?;
            if let Some(gso) = extra {
                let _ = ring.take::<NetifRxRequest>()?;
                self.responses.push(extra_info(gso));
            }
            flags = 0;
        }
        Ok(())
    }

    fn place_part<M: SharedMemory>(
        &mut self,
        ring: &mut BackRing<M>,
        len: usize,
        flags: u16,
    ) -> Result<(), RingError> {
        let request = ring.take::<NetifRxRequest>()?.unwrap_or_default();
        let len = u16::try_from(len).unwrap_or(0);
        self.answers.push(self.responses.len());
        self.pieces.push(Piece {
            gref: request.gref,
            offset: 0,
            len,
        });
        let response = NetifRxResponse {
            id: request.id,
            offset: 0,
            flags,
            // At most a page.
            status: i16::try_from(len).unwrap_or(NETIF_RSP_ERROR),
        };
        let bytes = response.as_bytes().try_into();
        self.responses.push(bytes.expect("both have 8 bytes"));
        Ok(())
    }

    /// Answers all; `done` says for each piece whether it was copied.
    pub fn respond<M: SharedMemory>(&mut self, ring: &mut BackRing<M>, done: &[bool]) {
        let pieces = self.pieces.iter().zip(&self.answers);
        for (n, (piece, answer)) in pieces.enumerate() {
            if !done.get(n).is_some_and(|done| *done) || is_reserved(piece) {
                self.responses[*answer][6..].copy_from_slice(&NETIF_RSP_ERROR.to_le_bytes());
            }
        }
        ring.respond_together(&self.responses);
        self.packets = 0;
        self.pieces.clear();
        self.responses.clear();
        self.answers.clear();
    }
}

fn extra_info(gso: Gso) -> Response {
    let [low, high] = gso.size.to_le_bytes();
    let extra = NetifExtraInfo {
        kind: XEN_NETIF_EXTRA_TYPE_GSO,
        flags: 0,
        u: [low, high, gso.family.gso_type(), 0, 0, 0],
    };
    extra.as_bytes().try_into().expect("both have 8 bytes")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use guest_abi::netif::NETIF_RX_SLOT_SIZE;
    use zerocopy::FromBytes;

    use super::*;
    use crate::{
        backend::{PlainMemory, testing::FrontRing},
        netback::offload::{Checksum, Family},
    };

    fn ring(buffers: u16) -> (BackRing<Arc<PlainMemory>>, FrontRing) {
        let memory = Arc::new(PlainMemory::pages(1));
        let mut front = FrontRing::new(memory.clone(), NETIF_RX_SLOT_SIZE);
        for id in 0..buffers {
            front.put(&NetifRxRequest {
                id,
                gref: 100 + u32::from(id),
                ..Default::default()
            });
        }
        let _ = front.push();
        (BackRing::attach(memory, NETIF_RX_SLOT_SIZE).unwrap(), front)
    }

    fn large() -> Offload {
        Offload {
            checksum: Checksum::Blank,
            gso: Some(Gso {
                family: Family::V6,
                size: 1428,
            }),
        }
    }

    #[test]
    fn a_small_packet_takes_one_slot() {
        let (mut back, mut front) = ring(4);
        let mut batch = Batch::default();
        let plain = Offload::default();
        assert_eq!(slots_for(60, &plain), 1);
        batch.place(&mut back, 60, &plain).unwrap();
        assert_eq!(batch.pieces[0].len, 60);
        batch.respond(&mut back, &[true]);
        let response: NetifRxResponse = front.take().unwrap();
        assert_eq!((response.id, response.flags, response.status), (0, 0, 60));
        assert!(front.take::<NetifRxResponse>().is_none());
    }

    #[test]
    fn a_large_packet_has_its_extra_information_second() {
        let (mut back, mut front) = ring(10);
        let mut batch = Batch::default();
        assert_eq!(slots_for(9000, &large()), 4);
        batch.place(&mut back, 9000, &large()).unwrap();
        assert!(front.take::<NetifRxResponse>().is_none(), "shown too early");
        let lens: Vec<u16> = batch.pieces.iter().map(|piece| piece.len).collect();
        let grefs: Vec<u32> = batch.pieces.iter().map(|piece| piece.gref).collect();
        assert_eq!((lens, grefs), (vec![4096, 4096, 808], vec![100, 102, 103]));
        batch.respond(&mut back, &[true; 3]);
        let first: NetifRxResponse = front.take().unwrap();
        assert_eq!(first.flags, 0b1111);
        let extra: NetifExtraInfo = front.take().unwrap();
        assert_eq!((extra.kind, extra.flags), (XEN_NETIF_EXTRA_TYPE_GSO, 0));
        assert_eq!(extra.u, [0x94, 0x05, 2, 0, 0, 0]);
        let rest: [NetifRxResponse; 2] = [front.take().unwrap(), front.take().unwrap()];
        assert_eq!(
            rest.map(|r| (r.id, r.flags, r.status)),
            [(2, NETRXF_MORE_DATA, 4096), (3, 0, 808)]
        );
    }

    #[test]
    fn a_page_that_can_not_be_written_is_an_error_of_its_slot() {
        let (mut back, mut front) = ring(3);
        let mut batch = Batch::default();
        batch.place(&mut back, 5000, &Offload::default()).unwrap();
        batch.respond(&mut back, &[true, false]);
        let first: NetifRxResponse = front.take().unwrap();
        let second: NetifRxResponse = front.take().unwrap();
        assert_eq!((first.status, second.status), (4096, NETIF_RSP_ERROR));
    }

    /// What a killed back end leaves in slots that it had written and not
    /// shown names no page of the guest's: not its rings, not its buffers.
    #[test]
    fn responses_read_as_requests_name_no_page() {
        let (mut back, _) = ring(10);
        let mut batch = Batch::default();
        for len in [1, 60, 4096, 9000] {
            for offload in [Offload::default(), large()] {
                batch.place(&mut back, len, &offload).unwrap();
                for response in &batch.responses {
                    let request = NetifRxRequest::read_from_bytes(response).unwrap();
                    let left = Piece {
                        gref: request.gref,
                        offset: 0,
                        len: 0,
                    };
                    assert!(is_reserved(&left) || left.gref >= 1 << 16, "{left:?}");
                }
                let done = vec![true; batch.pieces.len()];
                batch.respond(&mut back, &done);
                (back, _) = ring(10);
            }
        }
    }
}
