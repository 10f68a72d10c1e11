//! Attacks that any device knows.

use guest_abi::xenbus::XenbusState;
use test_guests::Report;

use crate::{
    World, disk,
    front::{Front, HEADER},
    net,
};

pub fn indices_that_jump(world: &mut World, front: &mut Front, report: &mut Report) {
    let rings = if front.is_disk { 1 } else { 2 };
    for (ring, index) in (0..rings).flat_map(|ring| [1000, u32::MAX, 1 << 31].map(|i| (ring, i))) {
        let connected = front.connect(world);
        front.publish_in(ring, index);
        let closing = front.wait(world, XenbusState::Closing);
        report.check(
            connected && closing,
            &format_args!(
                "{}, ring {ring}: an index of {index} ends the connection",
                front.name()
            ),
        );
        report.check(front.close(world), &"and the device closes");
    }
}

/// Slots in a ring of one page.
fn slots(front: &Front) -> usize {
    match front.is_disk {
        true => 32,
        false => 256,
    }
}

/// Anything in all slots, and changed while the back end reads them.
pub fn random_slots(world: &mut World, front: &mut Front, report: &mut Report) {
    let slots = slots(front);
    let mut served = true;
    for _ in 0..12 {
        served &= front.connect(world);
        for slot in 0..slots {
            write_random_slot(world, front, slot);
        }
        front.publish(slots as u32);
        for _ in 0..2000 {
            let at = HEADER + world.random() as usize % (slots * front.slot_bytes() - 8);
            let word = world.random().to_le_bytes();
            front.rings[0].write(at, &word).expect("a slot");
        }
        front.wait_for_answers(world, slots as u32);
        served &= front.close(world);
    }
    report.check(
        served,
        &format_args!("{}: served again after random slots", front.name()),
    );
}

/// What is nearly right gets further.
fn write_random_slot(world: &mut World, front: &Front, slot: usize) {
    let mut bytes = [0_u8; 112];
    for chunk in bytes.chunks_mut(8) {
        let word = world.random().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    let gref = front.gref.0.to_le_bytes();
    if front.is_disk {
        bytes[0] %= 7;
        bytes[1] %= 13;
        if slot.is_multiple_of(2) {
            // On the disk, or just behind its end.
            bytes[18..24].fill(0);
            bytes[17] &= 0x3f;
        }
        bytes[24..28].copy_from_slice(&gref);
    } else {
        bytes[0..4].copy_from_slice(&gref);
        bytes[6] &= 0x1f;
        bytes[7] = 0;
    }
    let size = front.slot_bytes();
    let at = HEADER + slot * size;
    front.rings[0].write(at, &bytes[..size]).expect("a slot");
}

/// Good requests, as many as fit.
fn fill(front: &Front) {
    for slot in 0..slots(front) {
        match front.is_disk {
            true => front.put(slot, &disk::read(front, slot as u64, 0, 0, 7)),
            false => front.put(slot, &net::part(front, 60, 0)),
        }
    }
    front.publish(slots(front) as u32);
}

/// The connection ends while all requests are under way.
pub fn closed_under_way(world: &mut World, front: &mut Front, report: &mut Report) {
    let mut served = true;
    for _ in 0..12 {
        served &= front.connect(world);
        fill(front);
        served &= front.close(world);
        // Nobody uses the page any more.
        served &= front.take_back(world);
        front.grant_again(world);
    }
    let again = front.connect(world);
    fill(front);
    let answered = front.wait_for_answers(world, slots(front) as u32);
    report.check(
        served && again && answered && front.close(world),
        &format_args!(
            "{}: closed with requests under way, pages back, served again",
            front.name()
        ),
    );
}

pub fn connections(world: &mut World, front: &mut Front, report: &mut Report) {
    let served = (0..40).all(|_| front.connect(world) && front.close(world));
    report.check(
        served,
        &format_args!("{}: forty connections, one after the other", front.name()),
    );
}

/// In any order, without waiting for anything.
pub fn states(world: &mut World, front: &mut Front, report: &mut Report) {
    for _ in 0..150 {
        let state = XenbusState::from_number((world.random() % 9) as u32);
        front.say(world, state.expect("a number below nine"));
    }
    let again = front.close(world) && front.connect(world);
    report.check(
        again,
        &format_args!("{}: served after states in any order", front.name()),
    );
}
