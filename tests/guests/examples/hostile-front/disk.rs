//! Attacks on blkback.

use core::mem::offset_of;

use guest_abi::blkif::*;
use test_guests::Report;
use zerocopy::IntoBytes;

use crate::{
    World,
    front::{Front, HEADER, OWN},
};

/// What the whole disk holds.
const DISK: u8 = 0xD5;
const SLOTS: u32 = 32;

pub fn attack(world: &mut World, front: &mut Front, report: &mut Report) {
    wrong_requests(world, front, report);
    only_what_was_asked(world, front, report);
    changing_requests(world, front, report);
    changing_lists(world, front, report);
    grants_taken_back(world, front, report);
}

pub fn read(front: &Front, id: u64, sector: u64, first: u8, last: u8) -> BlkifRequest {
    let mut request = BlkifRequest {
        operation: BLKIF_OP_READ,
        nr_segments: 1,
        id,
        sector_number: sector,
        ..Default::default()
    };
    request.seg[0] = segment(front.gref.0, first, last);
    request
}

fn segment(gref: u32, first_sect: u8, last_sect: u8) -> BlkifRequestSegment {
    BlkifRequestSegment {
        gref,
        first_sect,
        last_sect,
        ..Default::default()
    }
}

fn indirect(front: &Front, id: u64, count: u16) -> BlkifRequestIndirect {
    let mut request = BlkifRequestIndirect {
        operation: BLKIF_OP_INDIRECT,
        indirect_op: BLKIF_OP_READ,
        nr_segments: count,
        id,
        ..Default::default()
    };
    request.indirect_grefs[0] = front.list_gref.0;
    request
}

fn wrong_requests(world: &mut World, front: &mut Front, report: &mut Report) {
    let connected = front.connect(world);
    let good = read(front, 7, 0, 0, 7);
    let with = |change: &dyn Fn(&mut BlkifRequest)| {
        let mut request = good;
        change(&mut request);
        request
    };
    let wrong = [
        with(&|r| r.sector_number = u64::MAX),
        with(&|r| r.sector_number = 1 << 40),
        with(&|r| r.seg[0].last_sect = 8),
        with(&|r| r.seg[0].first_sect = 200),
        with(&|r| (r.seg[0].first_sect, r.seg[0].last_sect) = (5, 4)),
        with(&|r| r.nr_segments = 12),
        with(&|r| r.nr_segments = 0),
        with(&|r| r.seg[0].gref = 500),
        with(&|r| r.seg[0].gref = u32::MAX),
        with(&|r| r.operation = 200),
        with(&|r| r.operation = BLKIF_OP_INDIRECT),
    ];
    for (slot, request) in wrong.iter().enumerate() {
        front.put(slot, request);
    }
    front.put(wrong.len(), &good);
    let all = wrong.len() as u32 + 1;
    front.publish(all);
    let answered = front.wait_for_answers(world, all);
    report.check(connected && answered, &"wrong requests are all answered");
    for slot in 0..wrong.len() {
        let response: BlkifResponse = front.response(slot);
        report.check(
            response.status != BLKIF_RSP_OKAY,
            &format_args!("wrong request {slot}: status {}", response.status),
        );
    }
    let response: BlkifResponse = front.response(wrong.len());
    report.check(
        response.status == BLKIF_RSP_OKAY && front.count(|_, byte| byte != DISK) == 0,
        &"and the right one among them is done",
    );
    report.check(front.close(world), &"the device closes");
}

fn only_what_was_asked(world: &mut World, front: &mut Front, report: &mut Report) {
    let connected = front.connect(world);
    front.put(0, &read(front, 1, 3, 2, 3));
    front.put(1, &read(front, 2, u64::MAX, 0, 7));
    front.publish(2);
    let answered = front.wait_for_answers(world, 2);
    let expected = |at: usize| match at / 512 {
        2 | 3 => DISK,
        _ => OWN,
    };
    let wrong = front.count(|at, byte| byte != expected(at));
    report.check(
        connected && answered && wrong == 0,
        &format_args!("two sectors change and nothing beside them: {wrong} bytes wrong"),
    );
    for slot in 0..2 {
        let bytes: [u8; 16] = front.response(slot);
        report.check(
            bytes[9] == 0 && bytes[12..16] == [0; 4],
            &"a response's padding is zero",
        );
    }
    report.check(front.close(world), &"the device closes");
}

/// Right when they are published, then wrong and right in turns.
fn changing_requests(world: &mut World, front: &mut Front, report: &mut Report) {
    let (mut served, mut bad, mut errors) = (true, 0, 0);
    for _ in 0..12 {
        served &= front.connect(world);
        for slot in 0..SLOTS {
            front.put(slot as usize, &read(front, slot.into(), 0, 0, 7));
        }
        front.publish(SLOTS);
        served &= front.until_answered(world, SLOTS, |round| {
            let slot = (round >> 8) as u32 % SLOTS;
            // A slot with its response is ours again, and is looked at below.
            if front.answered(0) <= slot {
                change(front, slot as usize, round);
            }
        });
        for slot in 0..SLOTS {
            let response: BlkifResponse = front.response(slot as usize);
            errors += u32::from(response.status != BLKIF_RSP_OKAY);
        }
        bad += front.count(|_, byte| byte != DISK && byte != OWN);
        served &= front.close(world);
    }
    report.check(
        served && bad == 0,
        &format_args!("requests that change are served: {errors} errors, {bad} foreign bytes"),
    );
}

/// Makes one field of a request wrong, or right again.
fn change(front: &Front, slot: usize, round: u64) {
    let at = HEADER + slot * BLKIF_SLOT_SIZE;
    let in_segment = offset_of!(BlkifRequest, seg);
    let sector = offset_of!(BlkifRequest, sector_number);
    let gref = front.gref.0.to_le_bytes();
    let write = |offset: usize, bytes: &[u8]| {
        front.rings[0].write(at + offset, bytes).expect("a slot");
    };
    match round % 8 {
        0 => write(sector, &u64::MAX.to_le_bytes()),
        1 => write(sector, &0_u64.to_le_bytes()),
        2 => write(in_segment, &500_u32.to_le_bytes()),
        3 => write(in_segment, &gref),
        4 => write(in_segment + 4, &[0, 255]),
        5 => write(in_segment + 4, &[0, 7]),
        6 => write(1, &[255]),
        _ => write(1, &[1]),
    }
}

/// The list of an indirect request lies in a page of ours, too.
fn changing_lists(world: &mut World, front: &mut Front, report: &mut Report) {
    const SEGMENTS: usize = 64;
    let (mut served, mut bad, mut right) = (true, 0, 0);
    let (good, wrong) = (segment(front.gref.0, 0, 7), segment(front.gref.0, 7, 200));
    let set = |front: &Front, n: usize, to: &BlkifRequestSegment| {
        front.list.write(n * 8, to.as_bytes()).expect("a list");
    };
    for _ in 0..12 {
        served &= front.connect(world);
        (0..SEGMENTS).for_each(|n| set(front, n, &good));
        for slot in 0..SLOTS {
            front.put(
                slot as usize,
                &indirect(front, slot.into(), SEGMENTS as u16),
            );
        }
        front.publish(SLOTS);
        served &= front.until_answered(world, SLOTS, |round| {
            let n = round as usize % SEGMENTS;
            set(front, n, &wrong);
            set(front, n, &good);
        });
        for slot in 0..SLOTS {
            let response: BlkifResponse = front.response(slot as usize);
            right += u32::from(response.status == BLKIF_RSP_OKAY);
        }
        bad += front.count(|_, byte| byte != DISK && byte != OWN);
        served &= front.close(world);
    }
    report.check(
        served && bad == 0,
        &format_args!("lists that change are served: {right} done, {bad} foreign bytes"),
    );
}

/// The page is taken back while the back end uses it.
fn grants_taken_back(world: &mut World, front: &mut Front, report: &mut Report) {
    let mut served = true;
    for _ in 0..12 {
        served &= front.connect(world);
        for slot in 0..SLOTS {
            front.put(slot as usize, &read(front, slot.into(), 0, 0, 7));
        }
        front.publish(SLOTS);
        served &= front.take_back(world) && front.wait_for_answers(world, SLOTS);
        served &= front.close(world);
        front.grant_again(world);
    }
    report.check(
        served,
        &"a grant that is taken back in use costs requests only",
    );
}
