//! Chains of slots, made well and badly.

use std::sync::Arc;

use guest_abi::netif::{NETIF_TX_SLOT_SIZE, NETTXF_CSUM_BLANK, XEN_NETIF_EXTRA_TYPE_HASH};
use proptest::prelude::*;

use super::*;
use crate::{
    backend::{PlainMemory, testing::FrontRing},
    netback::offload::Checksum,
};

struct Pair {
    back: BackRing<Arc<PlainMemory>>,
    front: FrontRing,
    batch: Batch,
}

fn pair() -> Pair {
    let memory = Arc::new(PlainMemory::pages(1));
    let front = FrontRing::new(memory.clone(), NETIF_TX_SLOT_SIZE);
    Pair {
        back: BackRing::attach(memory, NETIF_TX_SLOT_SIZE).unwrap(),
        front,
        batch: Batch::default(),
    }
}

fn request(id: u16, offset: u16, size: u16, flags: u16) -> NetifTxRequest {
    NetifTxRequest {
        gref: 100 + u32::from(id),
        offset,
        flags,
        id,
        size,
    }
}

/// Extra information in a slot of the ring.
fn extra(kind: u8, flags: u8, u: [u8; 6]) -> NetifTxRequest {
    let mut slot = NetifTxRequest::default();
    let info = NetifExtraInfo { kind, flags, u };
    slot.as_mut_bytes()[..8].copy_from_slice(info.as_bytes());
    slot
}

fn gso_1448() -> NetifTxRequest {
    extra(XEN_NETIF_EXTRA_TYPE_GSO, 0, [0xa8, 5, 1, 0, 0, 0])
}

impl Pair {
    fn send(&mut self, slots: &[NetifTxRequest]) -> Result<bool, TxError> {
        slots.iter().for_each(|slot| self.front.put(slot));
        let _ = self.front.push();
        self.batch.take(&mut self.back, |_| true)
    }

    /// A packet that is taken, alone in the batch.
    fn packet(&mut self, slots: &[NetifTxRequest]) -> Packet {
        self.batch.clear();
        assert_eq!(self.send(slots), Ok(true));
        self.batch.packets[0]
    }

    fn responses(&mut self, packet: &Packet, is_ok: bool) -> Vec<(u16, i16)> {
        self.batch.respond(&mut self.back, packet, is_ok);
        let take = || self.front.take::<NetifTxResponse>();
        std::iter::from_fn(take).map(|r| (r.id, r.status)).collect()
    }
}

#[test]
fn a_packet_of_one_slot() {
    let mut pair = pair();
    let packet = pair.packet(&[request(7, 100, 60, NETTXF_CSUM_BLANK)]);
    assert_eq!((packet.len, packet.count, packet.is_wrong), (60, 1, false));
    assert_eq!(packet.offload.checksum, Checksum::Blank);
    let expected = Piece {
        gref: 107,
        offset: 100,
        len: 60,
    };
    assert_eq!(pair.batch.pieces, [expected]);
    assert_eq!(pair.responses(&packet, true), [(7, NETIF_RSP_OKAY)]);
}

#[test]
fn a_large_packet_with_extra_information_and_an_empty_slot() {
    let mut pair = pair();
    let more = NETTXF_MORE_DATA;
    let packet = pair.packet(&[
        request(1, 0, 8266, more | NETTXF_EXTRA_INFO),
        extra(XEN_NETIF_EXTRA_TYPE_HASH, XEN_NETIF_EXTRA_FLAG_MORE, [9; 6]),
        gso_1448(),
        request(2, 0, 4096, more),
        request(3, 9, 0, more),
        request(4, 4092, 4, more),
        request(5, 0, 4096, 0),
    ]);
    assert_eq!((packet.len, packet.is_wrong), (8266, false));
    assert_eq!(packet.offload.gso.unwrap().size, 1448);
    let lens: Vec<u16> = pair.batch.pieces.iter().map(|piece| piece.len).collect();
    assert_eq!(lens, [70, 4096, 0, 4, 4096]);
    let answers = pair.responses(&packet, true);
    assert_eq!(
        answers.iter().map(|a| a.0).collect::<Vec<_>>(),
        [1, 0, 0, 2, 3, 4, 5]
    );
    assert_eq!(answers[1].1, NETIF_RSP_NULL);
    assert_eq!(answers[3].1, NETIF_RSP_OKAY);
}

#[test]
fn wrong_packets_are_answered_with_errors_and_not_read() {
    let more = NETTXF_MORE_DATA;
    let long: Vec<_> = (0..20)
        .map(|id| {
            request(
                id,
                0,
                if id == 0 { 2000 } else { 100 },
                if id < 19 { more } else { 0 },
            )
        })
        .collect();
    let cases: [Vec<NetifTxRequest>; 7] = [
        vec![request(1, 0, 13, 0)],
        vec![request(1, 0, 0, 0)],
        // The first slot's own size is what the others leave.
        vec![request(1, 0, 100, more), request(2, 0, 90, 0)],
        // 64 KiB and more: the first size has overflowed.
        vec![request(1, 0, 100, more), request(2, 0, 101, 0)],
        long,
        vec![
            request(1, 0, 60, NETTXF_EXTRA_INFO),
            extra(XEN_NETIF_EXTRA_TYPE_MCAST_ADD, 0, [1, 0, 0x5e, 0, 0, 1]),
        ],
        vec![NetifTxRequest {
            gref: 1,
            ..request(1, 0, 60, 0)
        }],
    ];
    for slots in cases {
        let mut pair = pair();
        let packet = pair.packet(&slots);
        assert!(packet.is_wrong && packet.len == 0, "{slots:?}");
        assert!(pair.batch.pieces.iter().all(|piece| piece.len == 0));
        let answers = pair.responses(&packet, !packet.is_wrong);
        assert_eq!(answers.len(), slots.len(), "every slot is answered");
        assert!(
            answers
                .iter()
                .all(|a| a.1 == NETIF_RSP_ERROR || a == &(0, NETIF_RSP_NULL))
        );
    }
}

#[test]
fn a_hostile_front_end_loses_its_device() {
    let more = NETTXF_MORE_DATA;
    let endless: Vec<_> = (0..40).map(|id| request(id, 0, 10, more)).collect();
    let info = NETTXF_EXTRA_INFO;
    let cases = [
        (vec![request(1, 0, 99, more)], TxError::MissingSlot),
        (vec![request(1, 0, 99, info)], TxError::MissingExtra),
        (endless, TxError::TooManySlots),
        (
            vec![request(1, 4000, 97, 0)],
            TxError::CrossesPage {
                offset: 4000,
                size: 97,
            },
        ),
        (
            vec![request(1, 0, 9000, more), request(2, 65535, 1, 0)],
            TxError::CrossesPage {
                offset: 65535,
                size: 1,
            },
        ),
        (
            vec![request(1, 0, 99, info), extra(0, 0, [0; 6])],
            TxError::ExtraKind(0),
        ),
        (
            vec![request(1, 0, 99, info), extra(5, 0, [0; 6])],
            TxError::ExtraKind(5),
        ),
        (
            vec![request(1, 0, 99, info), extra(1, 0, [0; 6])],
            TxError::SegmentSize,
        ),
        (
            vec![request(1, 0, 99, info), extra(1, 0, [1, 0, 3, 0, 0, 0])],
            TxError::SegmentKind(3),
        ),
        (
            vec![request(1, 0, 99, info), extra(1, 1, [1, 0, 1, 0, 0, 0])],
            TxError::MissingExtra,
        ),
    ];
    for (slots, expected) in cases {
        assert_eq!(pair().send(&slots), Err(expected), "{slots:?}");
    }
    let mut pair = pair();
    pair.front.set_req_prod(1000);
    let taken = pair.batch.take(&mut pair.back, |_| true);
    assert!(matches!(taken, Err(TxError::Ring(_))));
}

#[test]
fn without_credit_a_packet_stays_in_the_ring() {
    let mut pair = pair();
    pair.front.put(&request(1, 0, 60, 0));
    let _ = pair.front.push();
    assert_eq!(pair.batch.take(&mut pair.back, |_| false), Ok(false));
    assert_eq!(pair.back.unconsumed(), Ok(1));
    assert_eq!(pair.batch.take(&mut pair.back, |size| size == 60), Ok(true));
}

#[test]
fn a_packet_that_lacks_a_piece_is_wrong() {
    let mut pair = pair();
    let more = NETTXF_MORE_DATA;
    pair.packet(&[request(1, 0, 200, more), request(2, 0, 100, 0)]);
    assert_eq!(pair.send(&[request(3, 0, 60, 0)]), Ok(true));
    pair.batch.note_read(&[true, false, true]);
    let wrong: Vec<bool> = pair
        .batch
        .packets
        .iter()
        .map(|packet| packet.is_wrong)
        .collect();
    assert_eq!(wrong, [true, false]);
}

proptest! {
    /// Any slots at all: what is taken lies in pages, fits the buffer, and
    /// every slot taken is answered once.
    #[test]
    fn any_slots_are_survived(
        slots in prop::collection::vec((0..120_u32, 0..5000_u16, 0..16_u16, 0..9000_u16), 0..60)
    ) {
        let mut pair = pair();
        for (id, slot) in (0..).zip(&slots) {
            let (gref, offset, flags, size) = *slot;
            // Half of them small enough to be fine.
            let size = if size > 4500 { size - 4500 } else { size / 8 };
            pair.front.put(&NetifTxRequest { gref, offset: offset / 2, flags, id, size });
        }
        let _ = pair.front.push();
        let broken = loop {
            match pair.batch.take(&mut pair.back, |_| true) {
                Ok(true) => {}
                Ok(false) => break false,
                Err(_) => break true,
            }
        };
        let batch = &pair.batch;
        for packet in &batch.packets {
            let pieces = &batch.pieces[packet.first..packet.first + packet.count];
            prop_assert!(pieces.iter().all(|p| usize::from(p.offset) + usize::from(p.len) <= PAGE || p.len == 0));
            prop_assert_eq!(packet.len, pieces.iter().map(|p| usize::from(p.len)).sum::<usize>());
            prop_assert!(packet.len <= 65535 && (packet.is_wrong || packet.len >= ETH_HLEN));
        }
        for packet in &batch.packets {
            batch.respond(&mut pair.back, packet, true);
        }
        prop_assert!(broken || pair.back.in_flight() == 0);
    }
}
