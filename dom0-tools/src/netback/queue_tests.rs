//! A queue between a front end over plain memory and a wire of vectors.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::BorrowedFd,
    sync::Arc,
};

use guest_abi::netif::{
    NETIF_RX_SLOT_SIZE, NETIF_TX_SLOT_SIZE, NETTXF_MORE_DATA, NetifRxRequest, NetifRxResponse,
    NetifTxRequest, NetifTxResponse,
};

use super::*;
use crate::{
    backend::{PlainMemory, testing::FrontRing},
    netback::grants::{GrantsError, Piece},
};

/// The guest's pages by grant; a page that is missing is not granted.
#[derive(Default, Debug)]
struct Pages(HashMap<u32, Vec<u8>>);

impl Grants for Pages {
    type Buffer = Vec<u8>;

    fn buffer(&mut self, bytes: usize) -> Result<Vec<u8>, GrantsError> {
        Ok(vec![0; bytes])
    }

    fn read(
        &mut self,
        pieces: &[Piece],
        into: &mut Vec<u8>,
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError> {
        done.clear();
        let mut at = 0;
        for piece in pieces {
            let len = usize::from(piece.len);
            let start = usize::from(piece.offset);
            let page = self.0.get(&piece.gref);
            if let Some(page) = page {
                into[at..at + len].copy_from_slice(&page[start..start + len]);
            }
            done.push(page.is_some());
            at += len;
        }
        assert!(at <= into.len());
        Ok(())
    }

    fn write(
        &mut self,
        pieces: &[Piece],
        from: &mut Vec<u8>,
        done: &mut Vec<bool>,
    ) -> Result<(), GrantsError> {
        done.clear();
        let mut at = 0;
        for piece in pieces {
            let len = usize::from(piece.len);
            let page = self.0.get_mut(&piece.gref);
            done.push(page.is_some());
            if let Some(page) = page {
                page[..len].copy_from_slice(&from[at..at + len]);
            }
            at += len;
        }
        assert!(at <= from.len());
        Ok(())
    }
}

/// A wire that takes so many packets.
#[derive(Default, Debug)]
struct Cable {
    room: usize,
    sent: Vec<Vec<u8>>,
    coming: VecDeque<Vec<u8>>,
    carrier: Vec<bool>,
}

impl Wire for Cable {
    fn send(&mut self, packet: &mut [u8], _: Offload) -> io::Result<Sent> {
        if self.room == 0 {
            return Ok(Sent::Full);
        }
        self.room -= 1;
        self.sent.push(packet.to_vec());
        Ok(Sent::Done)
    }
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<(usize, Offload)>> {
        assert!(buf.len() >= LARGEST_PACKET, "no room for any packet");
        Ok(self.coming.pop_front().map(|packet| {
            buf[..packet.len()].copy_from_slice(&packet);
            (packet.len(), Offload::default())
        }))
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn set_carrier(&mut self, on: bool) {
        self.carrier.push(on);
    }
}

struct Bench {
    queue: Queue<Arc<PlainMemory>, Pages, Cable>,
    tx: FrontRing,
    rx: FrontRing,
    now: Instant,
}

fn bench(takes_chains: bool) -> Bench {
    let ring = |slot_size| {
        let memory = Arc::new(PlainMemory::pages(1));
        let front = FrontRing::new(memory.clone(), slot_size);
        (BackRing::attach(memory, slot_size).unwrap(), front)
    };
    let (tx_back, tx) = ring(NETIF_TX_SLOT_SIZE);
    let (rx_back, rx) = ring(NETIF_RX_SLOT_SIZE);
    let cable = Cable {
        room: usize::MAX,
        ..Cable::default()
    };
    let (pages, credit) = (Pages::default(), Credit::unlimited());
    Bench {
        queue: Queue::new(tx_back, rx_back, pages, cable, credit, takes_chains).unwrap(),
        tx,
        rx,
        now: Instant::now(),
    }
}

impl Bench {
    /// Sends a packet that lies in pages of its own.
    fn send(&mut self, id: u16, parts: &[&[u8]]) {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        for (n, part) in (0..).zip(parts) {
            let gref = 1000 + u32::from(id) * 20 + n;
            let mut page = vec![0xee; PAGE];
            page[10..10 + part.len()].copy_from_slice(part);
            self.queue.grants.0.insert(gref, page);
            let is_last = n as usize + 1 == parts.len();
            let size = if n == 0 { total } else { part.len() };
            self.tx.put(&NetifTxRequest {
                gref,
                offset: 10,
                flags: if is_last { 0 } else { NETTXF_MORE_DATA },
                id: id + u16::try_from(n).unwrap(),
                size: u16::try_from(size).unwrap(),
            });
        }
        let _ = self.tx.push();
    }

    /// Posts empty pages.
    fn post(&mut self, ids: std::ops::Range<u16>) {
        for id in ids {
            self.queue
                .grants
                .0
                .insert(500 + u32::from(id), vec![0; PAGE]);
            self.rx.put(&NetifRxRequest {
                id,
                gref: 500 + u32::from(id),
                ..Default::default()
            });
        }
        let _ = self.rx.push();
    }

    fn turn_tx(&mut self) -> Turn {
        self.queue.turn_tx(self.now).unwrap()
    }

    fn turn_rx(&mut self) -> Turn {
        self.queue.turn_rx(self.now).unwrap()
    }

    fn sent(&mut self) -> Vec<(u16, i16)> {
        std::iter::from_fn(|| self.tx.take::<NetifTxResponse>())
            .map(|r| (r.id, r.status))
            .collect()
    }

    fn received(&mut self) -> Vec<NetifRxResponse> {
        std::iter::from_fn(|| self.rx.take()).collect()
    }
}

#[test]
fn headers_split_over_slots_come_out_whole() {
    let mut bench = bench(true);
    bench.send(0, &[b"ETHERNET HEADE", b"", b"R, ", b"data"]);
    bench.send(9, &[&[7; 60]]);
    assert_eq!(
        bench.turn_tx(),
        Turn {
            worked: true,
            notify: true
        }
    );
    let sent = &bench.queue.wire.sent;
    assert_eq!(sent[0], b"ETHERNET HEADER, data");
    assert_eq!(sent[1], [7; 60]);
    assert_eq!(bench.sent(), [(0, 0), (1, 0), (2, 0), (3, 0), (9, 0)]);
    assert_eq!(bench.turn_tx(), Turn::default());
}

#[test]
fn a_revoked_grant_costs_its_packet_only() {
    let mut bench = bench(true);
    bench.send(0, &[&[1; 60]]);
    bench.send(1, &[&[2; 60], &[2; 60]]);
    bench.send(3, &[&[3; 60]]);
    bench.queue.grants.0.remove(&(1000 + 20 + 1));
    bench.turn_tx();
    assert_eq!(bench.queue.wire.sent, [[1; 60], [3; 60]]);
    assert_eq!(bench.sent(), [(0, 0), (1, -1), (2, -1), (3, 0)]);
}

#[test]
fn a_full_wire_makes_the_guest_wait() {
    let mut bench = bench(true);
    bench.queue.wire.room = 2;
    for id in 0..5 {
        bench.send(id, &[&[u8::try_from(id).unwrap(); 60]]);
    }
    bench.turn_tx();
    assert!(bench.queue.waits_to_send());
    assert_eq!(bench.sent().len(), 2);
    assert_eq!(bench.turn_tx(), Turn::default());
    // The front end can change what was read: nobody looks again.
    bench.queue.grants.0.clear();
    bench.queue.wire.room = 9;
    assert!(bench.turn_tx().worked && !bench.queue.waits_to_send());
    let firsts: Vec<u8> = bench
        .queue
        .wire
        .sent
        .iter()
        .map(|packet| packet[0])
        .collect();
    assert_eq!(firsts, [0, 1, 2, 3, 4]);
}

#[test]
fn a_rate_is_kept() {
    let mut bench = bench(true);
    bench.queue.credit = Credit::parse("120,1000", bench.now).unwrap();
    for id in 0..6 {
        bench.send(id, &[&[0; 60]]);
    }
    for expected in [2, 4, 6] {
        while bench.turn_tx().worked {}
        assert_eq!(bench.queue.wire.sent.len(), expected);
        bench.now = bench.queue.wake_at().unwrap_or(bench.now);
    }
}

#[test]
fn a_storm_of_packets_goes_through_in_bounded_batches() {
    let mut bench = bench(true);
    let capacity = bench.queue.tx_buffer.capacity();
    for round in 0..40_u16 {
        for id in 0..15 {
            let part = vec![u8::try_from(round).unwrap(); 4000];
            let parts = vec![&part[..]; 16];
            bench.send(id * 16, &parts);
        }
        let mut turns = 0;
        while bench.turn_tx().worked {
            turns += 1;
        }
        assert!(turns >= 2);
        assert_eq!(bench.sent().len(), 240);
    }
    assert_eq!(bench.queue.counts.sent, 600);
    assert_eq!(bench.queue.tx_buffer.capacity(), capacity);
}

#[test]
fn packets_fill_pages_in_order() {
    let mut bench = bench(true);
    bench.post(0..4);
    bench.queue.wire.coming.push_back(vec![1; 60]);
    bench.queue.wire.coming.push_back(vec![2; 5000]);
    assert_eq!(
        bench.turn_rx(),
        Turn {
            worked: true,
            notify: true
        }
    );
    let statuses: Vec<i16> = bench.received().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [60, 4096, 904]);
    let pages = &bench.queue.grants.0;
    assert_eq!(pages[&500][..60], [1; 60]);
    assert_eq!(pages[&501][..], [2; 4096]);
    assert_eq!(pages[&502][..904], [2; 904]);
    // Nothing behind the packet's bytes: no leak of what was there before.
    assert_eq!(pages[&502][904..], [0; 4096 - 904]);
    assert_eq!(bench.queue.counts.received, 2);
}

#[test]
fn a_packet_waits_for_pages_and_no_other_is_taken() {
    let mut bench = bench(true);
    bench.post(0..1);
    for len in [60, 9000, 61] {
        bench.queue.wire.coming.push_back(vec![len_byte(len); len]);
    }
    assert!(bench.turn_rx().worked);
    assert!(bench.queue.waits_for_pages() && bench.queue.wire.coming.len() == 1);
    assert!(!bench.queue.rest_rx().unwrap());
    bench.post(1..3);
    assert!(!bench.turn_rx().worked && !bench.queue.rest_rx().unwrap());
    bench.post(3..10);
    assert!(bench.queue.rest_rx().unwrap());
    assert!(bench.turn_rx().worked);
    let statuses: Vec<i16> = bench.received().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [60, 4096, 4096, 808, 61]);
    assert_eq!(bench.queue.grants.0[&503][..808], [len_byte(9000); 808]);
}

fn len_byte(len: usize) -> u8 {
    u8::try_from(len % 251).unwrap()
}

#[test]
fn a_guest_that_takes_nothing_loses_its_carrier_and_gets_it_back() {
    let mut bench = bench(true);
    bench.queue.wire.coming.extend(vec![vec![1; 60]; 300]);
    bench.turn_rx();
    assert_eq!(bench.queue.wire.coming.len(), 299);
    assert_eq!(bench.queue.wake_at(), Some(bench.now + DRAIN));
    bench.now += DRAIN;
    bench.turn_rx();
    bench.turn_rx();
    bench.turn_rx();
    assert_eq!(bench.queue.wire.coming.len(), 0);
    assert_eq!(bench.queue.counts.dropped, 300);
    assert_eq!(bench.queue.wire.carrier, [false]);
    // A few pages are not enough.
    bench.post(0..4);
    bench.turn_rx();
    assert_eq!(bench.queue.wire.carrier, [false]);
    bench.post(4..40);
    bench.queue.wire.coming.push_back(vec![1; 60]);
    assert!(bench.turn_rx().worked);
    assert_eq!(bench.queue.wire.carrier, [false, true]);
}

#[test]
fn a_guest_without_chains_gets_small_packets_only() {
    let mut bench = bench(false);
    bench.post(0..10);
    for len in [4097, 4096, 60] {
        bench.queue.wire.coming.push_back(vec![0; len]);
    }
    bench.turn_rx();
    let statuses: Vec<i16> = bench.received().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [4096, 60]);
    assert_eq!(bench.queue.counts.dropped, 1);
}

#[test]
fn jumping_indices_end_the_queue() {
    for (tx, rx) in [(300, 0), (0, u32::MAX)] {
        let mut bench = bench(true);
        bench.tx.set_req_prod(tx);
        bench.rx.set_req_prod(rx);
        let now = bench.now;
        let ended = bench
            .queue
            .turn_tx(now)
            .and_then(|_| bench.queue.turn_rx(now));
        assert!(ended.is_err());
    }
}
