use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicUsize, Ordering},
};

use guest_abi::blkif::{
    BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_INDIRECT, BLKIF_OP_READ, BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER, BLKIF_SLOT_SIZE, BlkifRequestDiscard, BlkifRequestIndirect,
};
use nix::sys::eventfd::EventFd;
use proptest::prelude::*;
use vm_memory::Bytes;
use zerocopy::IntoBytes;

use super::*;
use crate::{
    backend::{PlainMemory, Worker, testing::FrontRing},
    blkback::{
        engine::{Choice, engine},
        pages::tests::{FakeGrants, REFUSED},
        spec::Spec,
        throttle::Limits,
    },
    config::disk::Format,
};

#[derive(Clone)]
struct FakeBell(Arc<(EventFd, AtomicUsize)>);

impl Bell for FakeBell {
    fn notify(&self) {
        self.0.1.fetch_add(1, Ordering::SeqCst);
    }
    fn nudge(&self) {
        self.notify();
    }
    fn clear(&self) {
        let _ = self.0.0.read();
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// A guest with a disk of 1 MiB.
struct Guest {
    image: tempfile::NamedTempFile,
    ring: Arc<PlainMemory>,
    front: FrontRing,
    grants: FakeGrants,
    bell: FakeBell,
    disk: Arc<Disk>,
    choice: Choice,
    persistent: bool,
}

impl Guest {
    fn new(limits: Limits, write: bool) -> Self {
        let image = tempfile::NamedTempFile::new_in(".").unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let spec = Spec {
            image: Some((Format::Raw, image.path().into())),
            write,
            shared: false,
            cdrom: false,
            removable: false,
            discard: write,
            limits,
        };
        let ring = Arc::new(PlainMemory::pages(1));
        let event = EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).unwrap();
        Self {
            front: FrontRing::new(ring.clone(), BLKIF_SLOT_SIZE),
            disk: Arc::new(Disk::open(&spec, Instant::now()).unwrap()),
            bell: FakeBell(Arc::new((event, AtomicUsize::new(0)))),
            grants: FakeGrants::default(),
            choice: Choice::Auto,
            persistent: true,
            image,
            ring,
        }
    }

    fn plain() -> Self {
        Self::new(Limits::default(), true)
    }

    /// Starts a back end on the ring.
    fn serve(&self) -> Worker {
        let (disk, bell) = (self.disk.clone(), self.bell.clone());
        let grants = self.grants.clone();
        let (choice, persistent) = (self.choice, self.persistent);
        let memory: Arc<dyn SharedMemory> = self.ring.clone();
        let ring = BackRing::attach(memory, BLKIF_SLOT_SIZE).unwrap();
        Worker::spawn("queue", move |stop| {
            let engine = engine(&disk, ring.slots(), choice).unwrap();
            let pages = Pages::new(Box::new(grants), persistent);
            let _ = Queue::new(ring, Box::new(bell), pages, engine, disk).run(stop);
        })
        .unwrap()
    }

    fn kick(&mut self) {
        if self.front.push() {
            self.bell.0.0.write(1).unwrap();
        }
    }

    fn put(&mut self, operation: u8, id: u64, sector_number: u64, segments: &[(u32, u8, u8)]) {
        let mut slot = BlkifRequest {
            operation,
            id,
            sector_number,
            nr_segments: u8::try_from(segments.len()).unwrap(),
            ..Default::default()
        };
        for (seg, (gref, first_sect, last_sect)) in slot.seg.iter_mut().zip(segments) {
            (seg.gref, seg.first_sect, seg.last_sect) = (*gref, *first_sect, *last_sect);
        }
        self.front.put(&slot);
    }

    fn response(&mut self) -> BlkifResponse {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(response) = self.front.take() {
                return response;
            }
            assert!(Instant::now() < end, "no response");
            std::thread::yield_now();
        }
    }

    /// One request; its status.
    fn ask(&mut self, operation: u8, sector: u64, segments: &[(u32, u8, u8)]) -> i16 {
        self.put(operation, 42, sector, segments);
        self.kick();
        let response = self.response();
        assert_eq!((response.id, response.operation), (42, operation));
        response.status
    }

    fn fill(&self, gref: u32, byte: u8) {
        self.grants
            .page(gref)
            .slice()
            .write_slice(&[byte; 4096], 0)
            .unwrap();
    }

    fn page(&self, gref: u32) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        self.grants
            .page(gref)
            .slice()
            .read_slice(&mut bytes, 0)
            .unwrap();
        bytes
    }

    fn file(&self) -> Vec<u8> {
        std::fs::read(self.image.path()).unwrap()
    }
}

#[test]
fn data_go_to_the_file_and_come_back() {
    for choice in [Choice::Auto, Choice::Threads] {
        for persistent in [true, false] {
            let mut guest = Guest::plain();
            (guest.choice, guest.persistent) = (choice, persistent);
            let _worker = guest.serve();
            guest.fill(1, 0xa1);
            guest.fill(2, 0xa2);
            let status = guest.ask(BLKIF_OP_WRITE, 8, &[(1, 0, 7), (2, 1, 2)]);
            assert_eq!(status, BLKIF_RSP_OKAY);
            assert_eq!(guest.ask(BLKIF_OP_FLUSH_DISKCACHE, 0, &[]), 0);
            let file = guest.file();
            assert_eq!(file[4096..8192], [0xa1; 4096]);
            assert_eq!(file[8192..10240], [[0xa2; 1024], [0; 1024]].concat());
            assert_eq!(guest.ask(BLKIF_OP_READ, 8, &[(3, 0, 7)]), 0);
            assert_eq!(guest.page(3), [0xa1; 4096]);
            guest.fill(4, 0xa4);
            assert_eq!(guest.ask(BLKIF_OP_WRITE_BARRIER, 0, &[(4, 0, 7)]), 0);
            assert_eq!(guest.ask(BLKIF_OP_WRITE_BARRIER, 0, &[]), 0);
            assert_eq!(guest.file()[..4096], [0xa4; 4096]);
            let discard = BlkifRequestDiscard {
                operation: BLKIF_OP_DISCARD,
                id: 9,
                sector_number: 8,
                nr_sectors: 8,
                ..Default::default()
            };
            guest.front.put(&discard);
            guest.kick();
            assert_eq!(guest.response().status, 0);
            assert_eq!(guest.file()[4096..8192], [0; 4096]);
        }
    }
}

#[test]
fn an_indirect_request_moves_many_pages() {
    let mut guest = Guest::plain();
    let _worker = guest.serve();
    let list: Vec<_> = (0..200_u32)
        .map(|n| BlkifRequestSegment {
            gref: 100 + n,
            first_sect: 0,
            last_sect: 7,
            _pad: 0,
        })
        .collect();
    let page = guest.grants.page(1);
    page.slice().write_slice(list.as_bytes(), 0).unwrap();
    for n in 0..200_u32 {
        guest.fill(100 + n, u8::try_from(n).unwrap());
    }
    let mut raw = BlkifRequestIndirect {
        operation: BLKIF_OP_INDIRECT,
        indirect_op: BLKIF_OP_WRITE,
        nr_segments: 200,
        id: 3,
        ..Default::default()
    };
    raw.indirect_grefs[0] = 1;
    guest.front.put(&raw);
    guest.kick();
    let response = guest.response();
    assert_eq!((response.status, response.operation), (0, BLKIF_OP_WRITE));
    let file = guest.file();
    for n in 0..200_usize {
        assert_eq!(usize::from(file[n * 4096 + 77]), n);
    }
    // A list that names a sector after the page's end.
    page.slice().write_obj(9_u8, 8 * 150 + 5).unwrap();
    guest.front.put(&raw);
    guest.kick();
    assert_eq!(guest.response().status, BLKIF_RSP_ERROR);
}

#[test]
fn responses_come_in_order_and_a_busy_ring_needs_few_notifications() {
    let mut guest = Guest::plain();
    let _worker = guest.serve();
    let (mut sent, mut got, mut kicks) = (0_u64, 0_u64, 0_u64);
    while got < 20_000 {
        while guest.front.has_room() && sent < 20_000 {
            let sector = sent * 8 % 2048;
            let gref = u32::try_from(sent % 64).unwrap();
            guest.put(BLKIF_OP_READ, sent, sector, &[(gref, 0, 7)]);
            sent += 1;
        }
        if guest.front.push() {
            kicks += 1;
            guest.bell.0.0.write(1).unwrap();
        }
        let response = guest.response();
        assert_eq!((response.id, response.status), (got, 0));
        got += 1;
    }
    assert!(
        kicks * 5 <= sent,
        "{kicks} notifications for {sent} requests"
    );
}

#[test]
fn a_bad_grant_fails_its_request_only() {
    let mut guest = Guest::plain();
    let _worker = guest.serve();
    assert_eq!(guest.ask(BLKIF_OP_READ, 0, &[(REFUSED, 0, 7)]), -1);
    assert_eq!(
        guest.ask(BLKIF_OP_WRITE, 0, &[(1, 0, 7), (REFUSED, 0, 7)]),
        -1
    );
    assert_eq!(guest.ask(BLKIF_OP_READ, 0, &[(1, 0, 7)]), 0);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut guest = Guest::new(Limits::default(), false);
    let _worker = guest.serve();
    guest.fill(1, 0xff);
    assert_eq!(guest.ask(BLKIF_OP_WRITE, 0, &[(1, 0, 7)]), -1);
    assert_eq!(guest.ask(BLKIF_OP_WRITE_BARRIER, 0, &[(1, 0, 7)]), -1);
    assert_eq!(guest.ask(BLKIF_OP_READ, 0, &[(1, 0, 7)]), 0);
    assert!(guest.file().iter().all(|byte| *byte == 0));
}

#[test]
fn a_limited_disk_takes_its_time() {
    let limits = Limits {
        bytes: None,
        operations: Some(100),
    };
    let mut guest = Guest::new(limits, true);
    let _worker = guest.serve();
    let start = Instant::now();
    for _ in 0..60 {
        assert_eq!(guest.ask(BLKIF_OP_READ, 0, &[(1, 0, 7)]), 0);
    }
    // Ten at once, the others 10 ms apart.
    assert!(start.elapsed() >= Duration::from_millis(400));
}

/// Stopped at any time and started again: every request has exactly one
/// response, in order.
#[test]
fn a_ring_changes_hands_in_the_middle() {
    let mut guest = Guest::plain();
    let (mut sent, mut got) = (0_u64, 0_u64);
    for _ in 0..200 {
        let worker = guest.serve();
        while guest.front.has_room() {
            guest.put(BLKIF_OP_WRITE, sent, sent * 8 % 2048, &[(1, 0, 7)]);
            sent += 1;
        }
        guest.kick();
        drop(worker);
        while let Some(response) = guest.front.take::<BlkifResponse>() {
            assert_eq!((response.id, response.status), (got, 0));
            got += 1;
        }
    }
    let _worker = guest.serve();
    while got < sent {
        assert_eq!(guest.response().id, got);
        got += 1;
    }
}

#[test]
fn a_jumping_index_ends_the_queue() {
    let mut guest = Guest::plain();
    let worker = guest.serve();
    guest.front.set_req_prod(1000);
    guest.bell.0.0.write(1).unwrap();
    while !worker.has_ended() {
        std::thread::yield_now();
    }
    assert!(guest.file().iter().all(|byte| *byte == 0));
}

/// The guest rewrites its slots and lists while they are served.
#[test]
fn a_request_that_changes_after_it_was_read_stays_in_the_disk() {
    let mut guest = Guest::plain();
    let _worker = guest.serve();
    let ring = guest.ring.clone();
    let stop = Stop::new().unwrap();
    let theirs = stop.clone();
    let liar = std::thread::spawn(move || {
        let mut noise = 1_u32;
        while !theirs.is_wanted() {
            for at in (64..3648_usize).step_by(4) {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let _ = ring.slice().write_obj(noise >> 8, at);
            }
        }
    });
    for round in 0..300 {
        for id in 0..32 {
            guest.put(BLKIF_OP_WRITE, id, round % 200, &[(1, 0, 7)]);
        }
        guest.kick();
        for _ in 0..32 {
            guest.response();
        }
    }
    stop.pull();
    liar.join().unwrap();
    assert_eq!(guest.file().len(), 1 << 20);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Whatever bytes stand in the ring: as many responses as requests, padding
    /// zero, the file's length as it was, and the queue goes on.
    #[test]
    fn any_bytes_get_an_answer(slots in prop::collection::vec(prop::collection::vec(any::<u8>(), 112), 1..32)) {
        let mut guest = Guest::plain();
        let _worker = guest.serve();
        let count = slots.len();
        for mut bytes in slots {
            bytes[0] %= 8;
            guest.front.put(&BlkifRequest::read_from_bytes(&bytes).unwrap());
        }
        guest.kick();
        for _ in 0..count {
            let response = guest.response();
            prop_assert!((-2..=0).contains(&response.status));
            prop_assert_eq!((response._pad0, response._pad1), (0, 0));
        }
        prop_assert_eq!(guest.ask(BLKIF_OP_READ, 0, &[(1, 0, 7)]), 0);
        prop_assert_eq!(guest.file().len(), 1 << 20);
    }
}

#[test]
fn a_deep_queue_gathers_more_and_is_watched_longer() {
    let state = |running, untold| State {
        running,
        untold,
        ..State::default()
    };
    for (running, untold, told) in [
        (0, 1, true),
        (2, 1, false),
        (2, 2, true),
        (8, 7, false),
        (16, 16, false),
        (13, 19, false),
        (12, 20, true),
    ] {
        let is_told = state(running, untold).has_gathered();
        assert_eq!(is_told, told, "{untold} have ended, {running} run");
    }
    assert_eq!(state(10, 5).pace(), Pace::SHALLOW);
    assert_eq!(state(10, 6).pace(), Pace::DEEP);
    let emptied = State {
        told_many: true,
        ..State::default()
    };
    assert_eq!(emptied.pace(), Pace::DEEP);
}
