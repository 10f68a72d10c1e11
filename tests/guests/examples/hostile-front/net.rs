//! Attacks on netback.

use guest_abi::{netif::*, xenbus::XenbusState};
use test_guests::Report;
use zerocopy::{FromZeros, IntoBytes};

use crate::{
    World,
    front::{Front, HEADER, OWN},
};

/// What the host sends to everybody is made of this.
const BROADCAST: u8 = 0xB7;

pub fn attack(world: &mut World, front: &mut Front, report: &mut Report) {
    broken_chains(world, front, report);
    odd_packets(world, front, report);
    changing_packets(world, front, report);
    grants_taken_back(world, front, report);
    received(world, front, report);
}

pub fn part(front: &Front, size: u16, flags: u16) -> NetifTxRequest {
    NetifTxRequest {
        gref: front.gref.0,
        offset: 0,
        flags,
        id: 1,
        size,
    }
}

/// What can't be taken apart any more ends the connection.
fn broken_chains(world: &mut World, front: &mut Front, report: &mut Report) {
    let more = NETTXF_MORE_DATA;
    let extra = [part(front, 60, NETTXF_EXTRA_INFO); 1];
    let past = NetifTxRequest {
        offset: 4000,
        ..part(front, 200, 0)
    };
    let chains: [&[NetifTxRequest]; 4] = [
        &[part(front, 200, more), part(front, 60, more)],
        &extra,
        &[past],
        &[part(front, 2000, more); 30],
    ];
    for chain in chains {
        let connected = front.connect(world);
        for (slot, request) in chain.iter().enumerate() {
            front.put(slot, request);
        }
        front.publish(chain.len() as u32);
        let closing = front.wait(world, XenbusState::Closing);
        let length = chain.len();
        report.check(
            connected && closing,
            &format_args!("a broken chain of {length} slots ends the connection"),
        );
        report.check(front.close(world), &"and the device closes");
    }
}

/// What is odd, but can be taken apart, is answered slot by slot.
fn odd_packets(world: &mut World, front: &mut Front, report: &mut Report) {
    let connected = front.connect(world);
    let more = NETTXF_MORE_DATA;
    let none = NetifTxRequest {
        gref: 500,
        ..part(front, 60, 0)
    };
    let requests = [
        // A header in three slots: 60 bytes in all, 16 + 20 + 24.
        part(front, 60, more),
        part(front, 20, more),
        part(front, 24, 0),
        // Parts without bytes.
        part(front, 60, more),
        part(front, 0, more),
        part(front, 0, 0),
        // Parts that are more than the whole.
        part(front, 60, more),
        part(front, 100, 0),
        // Nothing, less than a header, and a page that was not granted.
        part(front, 0, 0),
        part(front, 5, 0),
        none,
    ];
    for (slot, request) in requests.iter().enumerate() {
        front.put(slot, request);
    }
    let all = requests.len() as u32;
    front.publish(all);
    let answered = front.wait_for_answers(world, all);
    report.check(connected && answered, &"odd packets are all answered");
    for (slot, expected) in [0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1].iter().enumerate() {
        let response: NetifTxResponse = front.response(slot);
        let status = response.status;
        report.check(
            status == *expected,
            &format_args!("odd slot {slot}: status {status}, expected {expected}"),
        );
    }
    report.check(front.close(world), &"the device closes");
}

/// Right when they are published, then changed: a grant, an offset, a size.
fn changing_packets(world: &mut World, front: &mut Front, report: &mut Report) {
    const SLOTS: u32 = 256;
    let (mut served, mut lost) = (true, 0);
    for _ in 0..12 {
        served &= front.connect(world);
        for slot in 0..SLOTS {
            front.put(slot as usize, &part(front, 60, 0));
        }
        front.publish(SLOTS);
        for _ in 0..2000 {
            let round = world.random();
            let slot = (round >> 8) as usize % SLOTS as usize;
            let wrong = match round % 4 {
                0 => NetifTxRequest {
                    gref: 500,
                    ..part(front, 60, 0)
                },
                1 => part(front, 5, 0),
                // One that reaches past its page costs the connection.
                2 if round & 0xff0 == 0 => NetifTxRequest {
                    offset: 4090,
                    ..part(front, 60, 0)
                },
                _ => part(front, 60, 0),
            };
            front.put(slot, &wrong);
        }
        lost += u32::from(!front.wait_for_answers(world, SLOTS));
        served &= front.close(world);
    }
    report.check(
        served,
        &format_args!("packets that change are served; {lost} connections were lost"),
    );
}

/// The page is taken back while it is sent.
fn grants_taken_back(world: &mut World, front: &mut Front, report: &mut Report) {
    let mut served = true;
    for _ in 0..12 {
        served &= front.connect(world);
        for slot in 0..128 {
            front.put(slot, &part(front, 60, 0));
        }
        front.publish(128);
        served &= front.take_back(world) && front.wait_for_answers(world, 128);
        served &= front.close(world);
        front.grant_again(world);
    }
    report.check(
        served,
        &"a grant that is taken back while it is sent costs packets only",
    );
}

fn post(front: &Front, slot: usize, gref: u32) {
    let request = NetifRxRequest {
        id: slot as u16,
        gref,
        ..Default::default()
    };
    let at = HEADER + slot * NETIF_RX_SLOT_SIZE;
    let written = front.rings[1].write(at, request.as_bytes());
    written.expect("a slot");
}

/// Pages to receive into: one that is none, one that is a page, and one that is
/// taken back before anything comes.
fn received(world: &mut World, front: &mut Front, report: &mut Report) {
    let connected = front.connect(world);
    post(front, 0, 500);
    post(front, 1, front.gref.0);
    front.publish_in(1, 2);
    let answered = front.wait_for_answers_in(1, world, 2);
    let [none, page] = [0, 1].map(|slot| {
        let mut response = NetifRxResponse::new_zeroed();
        let at = HEADER + slot * NETIF_RX_SLOT_SIZE;
        let read = front.rings[1].read(at, response.as_mut_bytes());
        read.expect("a slot");
        response
    });
    report.check(
        connected && answered && none.status == NETIF_RSP_ERROR,
        &format_args!("a page that is none gets an error: {}", none.status),
    );
    let length = usize::try_from(page.status).unwrap_or(0);
    let beyond = front.count(|at, byte| at >= length && byte != OWN);
    let payload = front.count(|at, byte| at < length && byte == BROADCAST);
    report.check(
        page.offset == 0 && (42..4096).contains(&length) && beyond == 0,
        &format_args!("a packet of {length} bytes ({payload} of the host's) and {beyond} more"),
    );
    let taken = front.take_back(world);
    post(front, 2, front.gref.0);
    front.publish_in(1, 3);
    let answered = front.wait_for_answers_in(1, world, 3);
    report.check(
        taken && answered && front.close(world),
        &"a page that was taken back is answered",
    );
    front.grant_again(world);
}
