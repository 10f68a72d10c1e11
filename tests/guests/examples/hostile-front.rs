//! A guest whose front ends lie.
//!
//! **Mechanism.** A ring is the guest's memory: it may write anything there, at any
//! time, and may take back what it granted. A back end copies each request once,
//! checks the copy, compares the indices with its own, and lets the hypervisor
//! check each grant.
//!
//! **Scenario.** For a disk (whose bytes are all `0xD5`) and an interface, each time
//! over a new connection: indices that jump; slots of random bytes, also changed
//! after they are published; sectors and segments out of range; grants that are
//! none, and some that are taken back while they are used; chains that end in
//! nothing; parts without bytes, headers split over slots. Then states in any order,
//! without waiting.
//!
//! **Expected.** What is wrong is answered with an error or ends in `Closing`, and
//! the next connection is served. Of a granted page exactly the sectors that were
//! asked for change; the padding of a response is zero.
//!
//! **Limits.** That the processes of the back ends live on, as small as before, is
//! for the host to see: `tests/tests/system/hostile.rs`.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]
// Counts below 300, and random bits.
#![allow(clippy::cast_possible_truncation)]

use core::sync::atomic::Ordering;

use guest_abi::{
    addr::{GrantRef, Port},
    blkif::*,
    kernel::{
        Boot,
        doorbell::{Doorbell, EventBell},
        event,
        grant::Grants,
        page::{Page, PagePool},
        time,
        xenbus::{Bus, Device},
        xenstore::{Tx, Xenstore},
    },
    netif::*,
    ring::SringHeader,
    xenbus::XenbusState,
};
use test_guests::Report;
use zerocopy::{FromBytes, Immutable, IntoBytes};

guest_abi::pv_kernel!(main, name = "hostile-front");

static PAGES: PagePool<16> = PagePool::new();

/// For a back end to do something, in ns.
const PATIENCE: u64 = 60_000_000_000;
/// What a page holds before it is granted.
const OWN: u8 = 0x3C;
/// What the whole disk holds.
const DISK: u8 = 0xD5;
/// Where the indices are.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const HEADER: usize = 64;

fn main(boot: &'static Boot) -> ! {
    let mut report = Report::begin("hostile-front", boot);
    let store = Xenstore::connect(boot).expect("xenstore");
    let grants = Grants::set_up([page()]).expect("a grant table");
    let bus = Bus { store, grants };
    let mut world = World {
        bus,
        random: 0x9E37_79B9_7F4A_7C15,
    };
    let mut disk = Front::open(&mut world, "vbd");
    indices_that_jump(&mut world, &mut disk, &mut report);
    wrong_requests(&mut world, &mut disk, &mut report);
    only_what_was_asked(&mut world, &mut disk, &mut report);
    random_slots(&mut world, &mut disk, &mut report);
    grants_taken_back(&mut world, &mut disk, &mut report);
    let mut net = Front::open(&mut world, "vif");
    indices_that_jump(&mut world, &mut net, &mut report);
    broken_chains(&mut world, &mut net, &mut report);
    odd_packets(&mut world, &mut net, &mut report);
    random_slots(&mut world, &mut net, &mut report);
    for front in [&mut disk, &mut net] {
        any_states(&mut world, front, &mut report);
    }
    report.end()
}

fn page() -> Page {
    PAGES.take().expect("enough pages")
}

struct World {
    bus: Bus,
    random: u64,
}

impl World {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// A device, and rings that nobody keeps in order.
struct Front {
    device: Device,
    /// A disk's ring and one that is not used; an interface's two.
    rings: [Page; 2],
    grants: [GrantRef; 2],
    is_disk: bool,
    port: Option<Port>,
    /// A page for data.
    data: Page,
    gref: GrantRef,
}

impl Front {
    fn open(world: &mut World, kind: &str) -> Self {
        let bus = &mut world.bus;
        let id = Device::find(&mut bus.store, kind, 0).expect("such a device");
        let device = Device::open(&mut bus.store, kind, id).expect("such a device");
        let (rings, data) = ([page(), page()], page());
        let grant = |page: &Page| device.grant(&bus.grants, page).expect("a free entry");
        let (grants, gref) = ([grant(&rings[0]), grant(&rings[1])], grant(&data));
        Self {
            device,
            rings,
            grants,
            is_disk: kind == "vbd",
            port: None,
            data,
            gref,
        }
    }

    fn wait(&self, world: &mut World, state: XenbusState) -> bool {
        let deadline = time::system_time() + PATIENCE;
        let store = &mut world.bus.store;
        self.device.wait_for(store, &[state], deadline).is_ok()
    }

    fn say(&self, world: &mut World, state: XenbusState) {
        let said = self.device.set_state(&mut world.bus.store, state);
        said.expect("our own node");
    }

    /// Fresh rings, served.
    fn connect(&mut self, world: &mut World) -> bool {
        if !self.wait(world, XenbusState::InitWait) {
            return false;
        }
        for ring in &self.rings {
            ring.clear();
            ring.write(0, SringHeader::fresh().as_bytes())
                .expect("a page");
        }
        self.data.write(0, &[OWN; 4096]).expect("a page");
        let port = self.device.open_port().expect("a port");
        self.port = Some(port);
        let (device, [one, two]) = (&self.device, &self.grants);
        let store = &mut world.bus.store;
        let mut tell = |node: &str, value: &dyn core::fmt::Display| {
            device.tell(store, Tx::NONE, node, value).expect("our node");
        };
        tell("event-channel", &port);
        if self.is_disk {
            tell("ring-ref", one);
            tell("protocol", &"x86_64-abi");
        } else {
            tell("tx-ring-ref", one);
            tell("rx-ring-ref", two);
            tell("request-rx-copy", &1);
            tell("feature-sg", &1);
        }
        self.say(
            world,
            match self.is_disk {
                true => XenbusState::Initialised,
                false => XenbusState::Connected,
            },
        );
        let connected = self.wait(world, XenbusState::Connected);
        self.say(world, XenbusState::Connected);
        connected
    }

    /// Lets go, and begins anew.
    fn close(&mut self, world: &mut World) -> bool {
        self.say(world, XenbusState::Closed);
        let closed = self.wait(world, XenbusState::Closed);
        if let Some(port) = self.port.take() {
            let _ = event::close(port);
        }
        self.say(world, XenbusState::Initialising);
        closed
    }

    fn slot_bytes(&self) -> usize {
        match self.is_disk {
            true => BLKIF_SLOT_SIZE,
            false => NETIF_TX_SLOT_SIZE,
        }
    }

    fn put<T: IntoBytes + Immutable>(&self, slot: usize, request: &T) {
        let at = HEADER + slot * self.slot_bytes();
        self.rings[0].write(at, request.as_bytes()).expect("a slot");
    }

    /// Shows so many requests.
    fn publish(&self, count: u32) {
        let word = self.rings[0].word(REQ_PROD).expect("a page");
        word.store(count, Ordering::SeqCst);
        if let Some(port) = self.port {
            EventBell(port).ring();
        }
    }

    fn answered(&self) -> u32 {
        let word = self.rings[0].word(RSP_PROD).expect("a page");
        word.load(Ordering::SeqCst)
    }

    /// Until so many are answered; `false`: the device was closed before, or
    /// nothing comes.
    fn wait_for_answers(&self, world: &mut World, count: u32) -> bool {
        let deadline = time::system_time() + PATIENCE;
        while self.answered() != count && time::system_time() < deadline {
            let state = self.device.backend_state(&mut world.bus.store);
            if state.is_ok_and(|state| state == XenbusState::Closing) {
                return false;
            }
            let soon = time::system_time() + 2_000_000;
            let _ = world.bus.wait(&[self.port], soon);
        }
        self.answered() == count
    }

    fn response<T: FromBytes + IntoBytes>(&self, slot: usize) -> T {
        let mut response = T::new_zeroed();
        let at = HEADER + slot * self.slot_bytes();
        let read = self.rings[0].read(at, response.as_mut_bytes());
        read.expect("a slot");
        response
    }

    /// Bytes of the data page that are not what they should be.
    fn unlike(&self, expected: impl Fn(usize) -> u8) -> usize {
        let mut bytes = [0; 512];
        (0..8)
            .map(|sector| {
                self.data.read(sector * 512, &mut bytes).expect("a page");
                let wrong = |(at, byte): (usize, &u8)| *byte != expected(sector * 512 + at);
                bytes.iter().enumerate().filter(|&pair| wrong(pair)).count()
            })
            .sum()
    }
}

fn kind(front: &Front) -> &'static str {
    match front.is_disk {
        true => "disk",
        false => "interface",
    }
}

fn indices_that_jump(world: &mut World, front: &mut Front, report: &mut Report) {
    for index in [1000, u32::MAX, 1 << 31] {
        let connected = front.connect(world);
        front.publish(index);
        let closing = front.wait(world, XenbusState::Closing);
        report.check(
            connected && closing,
            &format_args!("{}: an index of {index} ends the connection", kind(front)),
        );
        report.check(front.close(world), &"and the device closes");
    }
}

fn read(front: &Front, id: u64, sector: u64, first: u8, last: u8) -> BlkifRequest {
    let mut request = BlkifRequest {
        operation: BLKIF_OP_READ,
        nr_segments: 1,
        id,
        sector_number: sector,
        ..Default::default()
    };
    request.seg[0] = BlkifRequestSegment {
        gref: front.gref.0,
        first_sect: first,
        last_sect: last,
        ..Default::default()
    };
    request
}

fn wrong_requests(world: &mut World, front: &mut Front, report: &mut Report) {
    let connected = front.connect(world);
    let good = read(front, 7, 0, 0, 7);
    let with = |change: &dyn Fn(&mut BlkifRequest)| {
        let mut request = read(front, 7, 0, 0, 7);
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
            &format_args!("wrong request {slot}: status {}", { response.status }),
        );
    }
    let response: BlkifResponse = front.response(wrong.len());
    report.check(
        response.status == BLKIF_RSP_OKAY && front.unlike(|_| DISK) == 0,
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
    let wrong = front.unlike(expected);
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

/// Anything in all slots, and changed while the back end reads them.
fn random_slots(world: &mut World, front: &mut Front, report: &mut Report) {
    let (slots, rounds) = match front.is_disk {
        true => (32, 12),
        false => (256, 12),
    };
    let mut served = true;
    for _ in 0..rounds {
        served &= front.connect(world);
        for slot in 0..slots {
            let mut bytes = [0_u8; 112];
            for chunk in bytes.chunks_mut(8) {
                let word = world.random().to_le_bytes();
                chunk.copy_from_slice(&word[..chunk.len()]);
            }
            // Often what is nearly right gets further.
            if front.is_disk {
                bytes[0] %= 7;
                bytes[1] %= 13;
                bytes[24..28].copy_from_slice(&front.gref.0.to_le_bytes());
            } else {
                bytes[0..4].copy_from_slice(&front.gref.0.to_le_bytes());
                bytes[6] &= 0x1f;
                bytes[7] = 0;
            }
            let size = front.slot_bytes();
            let at = HEADER + slot * size;
            front.rings[0].write(at, &bytes[..size]).expect("a slot");
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
        &format_args!("{}: served again after random slots", kind(front)),
    );
}

/// Pages are taken back while the back end uses them; none is lost.
fn grants_taken_back(world: &mut World, front: &mut Front, report: &mut Report) {
    let mut served = true;
    for _ in 0..12 {
        served &= front.connect(world);
        for slot in 0..32 {
            front.put(slot, &read(front, slot as u64, 0, 0, 7));
        }
        front.publish(32);
        let mut taken = false;
        let deadline = time::system_time() + PATIENCE;
        while !taken && time::system_time() < deadline {
            taken = world.bus.grants.take_back(front.gref).is_ok();
        }
        served &= taken && front.wait_for_answers(world, 32);
        served &= front.close(world);
        let again = front.device.grant(&world.bus.grants, &front.data);
        front.gref = again.expect("a free entry");
    }
    report.check(
        served,
        &"a grant that is taken back in use costs requests only",
    );
}

fn part(front: &Front, size: u16, flags: u16) -> NetifTxRequest {
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

/// Without waiting for anything.
fn any_states(world: &mut World, front: &mut Front, report: &mut Report) {
    for _ in 0..150 {
        let state = XenbusState::from_number((world.random() % 9) as u32);
        if let Some(state) = state {
            front.say(world, state);
        }
    }
    let again = front.close(world) && front.connect(world);
    report.check(
        again,
        &format_args!("{}: served after states in any order", kind(front)),
    );
}
