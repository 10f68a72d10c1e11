//! Grants to domid 0, from a real domain to a real client over a real socket.
//! The domain's vCPU never runs: the test writes its grant table in its place.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use domus_privcmd::{
    client::{AccessError, Client, CopyData, GrantCopy, GrantPart},
    protocol::{CreateDomain, GrantLimits, MAX_COPY_BUFFERS, MAX_GRANT_BATCH, Request},
};
use guest_abi::{
    addr::{DomId, MachineAddr, Mfn, Pfn, Port},
    errno::Errno,
    grant_table::*,
};
use hypervisor::{
    domain::Domain,
    engine::kvm::MFN_GRANTS,
    events::EventSink,
    hypervisor::{Hypervisor, RunAheadChoice},
    privcmd::{Limits, Server},
};
use uuid::Uuid;

const PAGES: u64 = 16;
const PAGE: usize = 4096;

struct Fixture {
    dir: tempfile::TempDir,
    hypervisor: Arc<Hypervisor>,
    _server: Server,
}

/// A domain of a fixture, and the frames that it has.
struct Guest {
    domain: Arc<Domain>,
    frames: Vec<Mfn>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hypervisor = Arc::new(
            Hypervisor::new(hypervisor::engine::EngineChoice::Kvm, RunAheadChoice::Off)
                .expect("/dev/kvm must work for this test"),
        );
        let calls = Arc::clone(&hypervisor) as _;
        let socket = dir.path().join("privcmd.sock");
        let server = Server::start(&socket, calls, Limits::default()).unwrap();
        Self {
            dir,
            hypervisor,
            _server: server,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("privcmd.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    fn guest(&self, dom: Option<u16>) -> Guest {
        let client = self.client();
        let wish = CreateDomain {
            dom,
            uuid: Uuid::new_v4(),
            max_vcpus: 1,
            max_pages: PAGES,
            grants: GrantLimits::default(),
        };
        let dom = client.create_domain(wish).unwrap();
        let extents = client.populate_physmap(dom, Pfn(0), PAGES).unwrap();
        let frames = extents
            .iter()
            .flat_map(|(first, count)| (first.0..first.0 + count).map(Mfn));
        Guest {
            domain: self.hypervisor.domain(dom).unwrap(),
            frames: frames.collect(),
        }
    }
}

impl Guest {
    fn id(&self) -> u16 {
        self.domain.id.0
    }

    fn entry(gref: u32) -> MachineAddr {
        MachineAddr((MFN_GRANTS.0 << 12) + u64::from(gref) * 8)
    }

    /// Grants frame `index` to `user` as `gref`.
    fn grant(&self, gref: u32, user: u16, index: usize, flags: u16) {
        let word = self.frames[index].0 << 32 | u64::from(user) << 16 | u64::from(flags);
        self.domain
            .space
            .memory
            .store(Self::entry(gref), word)
            .unwrap();
    }

    /// The marks of use on an entry.
    fn marks(&self, gref: u32) -> u64 {
        let word = self.domain.space.memory.load(Self::entry(gref)).unwrap();
        word & u64::from(GTF_READING | GTF_WRITING)
    }

    fn byte(&self, index: usize, offset: u64) -> MachineAddr {
        MachineAddr((self.frames[index].0 << 12) + offset)
    }

    fn put(&self, index: usize, offset: u64, bytes: &[u8]) {
        let at = self.byte(index, offset);
        self.domain.space.memory.write(at, bytes).unwrap();
    }

    fn get<const N: usize>(&self, index: usize, offset: u64) -> [u8; N] {
        let mut buf = [0; N];
        let at = self.byte(index, offset);
        self.domain.space.memory.read(at, &mut buf).unwrap();
        buf
    }

    fn in_use(&self) -> usize {
        self.domain.grants.in_use()
    }
}

fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn errno<T: std::fmt::Debug>(outcome: Result<T, domus_privcmd::client::ClientError>) -> Errno {
    let error = outcome.expect_err("must be refused");
    error.errno().unwrap_or_else(|| panic!("{error}"))
}

#[test]
fn both_sides_see_the_same_pages() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(None), fixture.client());
    guest.grant(9, 0, 5, GTF_PERMIT_ACCESS);
    guest.grant(10, 0, 2, GTF_PERMIT_ACCESS);
    guest.put(5, 100, b"from the guest");
    let pages = client.map_grants(guest.id(), &[9, 10, 9], true).unwrap();
    assert_eq!((pages.len(), pages.pages()), (3 * PAGE, 3));
    let mut seen = [0; 14];
    pages.read(100, &mut seen).unwrap();
    assert_eq!(&seen, b"from the guest");
    pages.write(PAGE + 7, b"from Dom0").unwrap();
    assert_eq!(&guest.get::<9>(2, 7), b"from Dom0");
    pages
        .store(2 * PAGE, 0xabcd_u32, Ordering::Release)
        .unwrap();
    assert_eq!(guest.get::<4>(5, 0), 0xabcd_u32.to_ne_bytes());
    assert_eq!(pages.load::<u32>(0, Ordering::Acquire), Ok(0xabcd));
}

#[test]
fn a_grant_is_marked_as_long_as_it_is_mapped() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(None), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    let reading = client.map_grants(guest.id(), &[9], false).unwrap();
    assert_eq!(guest.marks(9), u64::from(GTF_READING));
    let writing = client.map_grants(guest.id(), &[9], true).unwrap();
    assert_eq!(guest.marks(9), u64::from(GTF_READING | GTF_WRITING));
    drop(writing);
    assert_eq!(guest.marks(9), u64::from(GTF_READING));
    drop(reading);
    assert_eq!((guest.marks(9), guest.in_use()), (0, 0));
}

#[test]
fn a_read_only_mapping_cannot_be_made_writable() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(None), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS | GTF_READONLY);
    guest.put(1, 0, b"fixed");
    assert_eq!(
        errno(client.map_grants(guest.id(), &[9], true)),
        Errno::EACCES
    );
    let page = client.map_grants(guest.id(), &[9], false).unwrap();
    assert_eq!(page.write(0, b"x"), Err(AccessError::ReadOnly));
    let start = std::ptr::NonNull::new(page.as_ptr()).unwrap();
    let both = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
    // SAFETY: the page is mapped, and is accessed volatile only.
    let changed = unsafe { nix::sys::mman::mprotect(start.cast(), PAGE, both) };
    assert_eq!(changed, Err(nix::Error::EACCES));
    assert_eq!(&guest.get::<5>(1, 0), b"fixed");
}

#[test]
fn a_batch_is_mapped_or_unmapped_as_a_whole() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(None), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    guest.grant(10, 7, 2, GTF_PERMIT_ACCESS);
    for last in [10, 11, 511, 512, u32::MAX] {
        let refused = errno(client.map_grants(guest.id(), &[9, 9, last], true));
        let expected = if last < 512 {
            Errno::EACCES
        } else {
            Errno::EINVAL
        };
        assert_eq!(refused, expected, "grant {last}");
        assert_eq!((guest.marks(9), guest.in_use()), (0, 0));
    }
    let too_many = vec![9; MAX_GRANT_BATCH + 1];
    assert_eq!(
        errno(client.map_grants(guest.id(), &too_many, true)),
        Errno::E2BIG
    );
    assert_eq!(
        errno(client.map_grants(guest.id() + 1, &[9], true)),
        Errno::ESRCH
    );
    let page = client.map_grants(guest.id(), &[9, 9], true).unwrap();
    for handles in [vec![0, 1, 2], vec![1, 0, 1]] {
        let unmap = Request::GrantUnmap { handles };
        assert_eq!(errno(client.call(&unmap)), Errno::EINVAL);
        assert_ne!(guest.marks(9), 0, "none was unmapped");
    }
    drop(page);
    assert_eq!(guest.in_use(), 0);
}

#[test]
fn a_connection_cannot_end_the_mapping_of_another() {
    let fixture = Fixture::new();
    let (guest, client, other) = (fixture.guest(None), fixture.client(), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    let _page = client.map_grants(guest.id(), &[9], true).unwrap();
    let unmap = Request::GrantUnmap { handles: vec![0] };
    assert_eq!(errno(other.call(&unmap)), Errno::EINVAL);
    assert_eq!(guest.in_use(), 1);
}

#[test]
fn the_end_of_a_connection_gives_its_grants_back() {
    let fixture = Fixture::new();
    let guest = fixture.guest(None);
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    let client = fixture.client();
    // The mapping is leaked, as by a process that is killed.
    std::mem::forget(client.map_grants(guest.id(), &[9], true).unwrap());
    let socket = client.hang_up_fd().unwrap();
    nix::sys::socket::shutdown(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        nix::sys::socket::Shutdown::Both,
    )
    .unwrap();
    assert!(eventually(|| guest.in_use() == 0), "{}", guest.in_use());
    assert_eq!(guest.marks(9), 0);
}

#[test]
fn mapped_pages_outlive_their_domain() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(Some(5)), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    guest.put(1, 0, b"old");
    let page = client.map_grants(5, &[9], true).unwrap();
    client.destroy_domain(DomId(5)).unwrap();
    assert_eq!(errno(client.map_grants(5, &[9], true)), Errno::ESRCH);
    drop(guest);
    // Another domain of the number is another file.
    let next = fixture.guest(Some(5));
    next.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    next.put(1, 0, b"new");
    let newer = client.map_grants(5, &[9], true).unwrap();
    assert_ne!(page.domain(), newer.domain());
    let mut seen = [0; 3];
    page.read(0, &mut seen).unwrap();
    assert_eq!(&seen, b"old");
    newer.read(0, &mut seen).unwrap();
    assert_eq!(&seen, b"new");
    page.write(0, b"bad").unwrap();
    drop(page);
    assert_eq!(&next.get::<3>(1, 0), b"new");
    assert_eq!(next.in_use(), 1);
}

#[test]
fn a_frame_given_back_while_mapped_stays_until_unmapped() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(None), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    let page = client.map_grants(guest.id(), &[9], true).unwrap();
    page.write(0, b"still here").unwrap();
    let frame = guest.frames[1];
    guest.domain.space.lock_mm().release(frame).unwrap();
    assert!(guest.domain.space.lock_mm().owns(frame));
    let mut seen = [0; 10];
    page.read(0, &mut seen).unwrap();
    assert_eq!(&seen, b"still here");
    drop(page);
    assert!(!guest.domain.space.lock_mm().owns(frame));
}

#[test]
fn copies_have_a_status_each() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(None), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    guest.grant(10, 0, 2, GTF_PERMIT_ACCESS | GTF_READONLY);
    guest.grant(11, 3, 3, GTF_PERMIT_ACCESS);
    guest.put(2, 4090, b"at end");
    let (mut all, mut end, mut none) = (vec![1; PAGE], [0; 6], [7; 4]);
    let copy = |gref, offset, data| GrantCopy { gref, offset, data };
    let mut copies = [
        copy(9, 4091, CopyData::Write(b"five!")),
        copy(9, 4092, CopyData::Write(b"five!")),
        copy(10, 0, CopyData::Write(b"no")),
        copy(10, 4090, CopyData::Read(&mut end)),
        copy(11, 0, CopyData::Read(&mut none)),
        copy(9, 0, CopyData::Read(&mut all)),
        copy(99_999, 0, CopyData::Write(b"")),
    ];
    let statuses = client.copy_grants(guest.id(), &mut copies).unwrap();
    let expected = [
        GNTST_OKAY,
        GNTST_BAD_COPY_ARG,
        GNTST_GENERAL_ERROR,
        GNTST_OKAY,
        GNTST_GENERAL_ERROR,
        GNTST_OKAY,
        GNTST_BAD_GNTREF,
    ];
    assert_eq!(statuses, expected);
    assert_eq!((&end, &none), (b"at end", &[7; 4]));
    assert_eq!((&all[..2], &all[4091..]), (&[0; 2][..], &b"five!"[..]));
    assert_eq!(&guest.get::<5>(1, 4091), b"five!");
    assert_eq!((guest.in_use(), guest.marks(9)), (0, 0));
}

#[test]
fn copies_beyond_one_message_are_done_in_several() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(None), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    guest.put(1, 0, &[0x5a; PAGE]);
    let mut pages = vec![[0; PAGE]; 300];
    let mut copies: Vec<_> = pages
        .iter_mut()
        .map(|page| GrantCopy {
            gref: 9,
            offset: 0,
            data: CopyData::Read(page),
        })
        .collect();
    let statuses = client.copy_grants(guest.id(), &mut copies).unwrap();
    assert_eq!(statuses, vec![GNTST_OKAY; 300]);
    assert!(pages.iter().flatten().all(|byte| *byte == 0x5a));
}

#[test]
fn a_batch_is_copied_by_a_shared_buffer() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(None), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    guest.grant(10, 0, 2, GTF_PERMIT_ACCESS | GTF_READONLY);
    guest.grant(11, 3, 3, GTF_PERMIT_ACCESS);
    guest.put(2, 4090, b"at end");
    let mut buffer = client.copy_buffer(PAGE + 1).unwrap();
    assert_eq!(buffer.len(), 2 * PAGE, "whole pages, zeroed");
    assert!(buffer.iter().all(|byte| *byte == 0));
    let part = |gref, offset, len| GrantPart { gref, offset, len };
    buffer[..11].copy_from_slice(b"five!no-six");
    let parts = [part(9, 4091, 5), part(10, 0, 2), part(9, 4094, 4)];
    let statuses = client.copy_to_grants(guest.id(), &parts, &mut buffer);
    let expected = [GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_BAD_COPY_ARG];
    assert_eq!(statuses.unwrap(), expected);
    assert_eq!(&guest.get::<5>(1, 4091), b"five!");
    let parts = [part(10, 4090, 6), part(11, 0, 2), part(9, 4091, 3)];
    let statuses = client.copy_from_grants(guest.id(), &parts, &mut buffer);
    let expected = [GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_OKAY];
    assert_eq!(statuses.unwrap(), expected);
    assert_eq!(&buffer[..11], b"at endo-fiv", "what failed stays");
    assert_eq!((guest.in_use(), guest.marks(9)), (0, 0));
}

#[test]
fn buffers_are_bounded_and_their_connections_own() {
    let fixture = Fixture::new();
    let (guest, client, other) = (fixture.guest(None), fixture.client(), fixture.client());
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    let part = GrantPart {
        gref: 9,
        offset: 0,
        len: 4096,
    };
    let mut buffer = client.copy_buffer(PAGE).unwrap();
    let too_much = client.copy_from_grants(guest.id(), &[part; 2], &mut buffer);
    assert_eq!(errno(too_much), Errno::EINVAL);
    // Another connection has no such buffer.
    let request = Request::GrantCopyBuffer {
        dom: guest.id(),
        buffer: 0,
        at: 0,
        write: false,
        parts: vec![part],
    };
    assert_eq!(errno(other.call(&request)), Errno::EINVAL);
    assert!(client.call(&request).is_ok());
    assert_eq!(errno(client.copy_buffer(1 << 30)), Errno::E2BIG);
    let many: Vec<_> = (1..MAX_COPY_BUFFERS)
        .map(|_| client.copy_buffer(1).unwrap())
        .collect();
    assert_eq!(errno(client.copy_buffer(1)), Errno::ENOSPC);
    drop(many);
    drop(buffer);
    assert_eq!(errno(client.call(&request)), Errno::EINVAL, "given back");
}

#[test]
fn a_signal_of_another_connections_port_does_nothing() {
    let fixture = Fixture::new();
    let guest = fixture.guest(Some(5));
    let (client, other) = (fixture.client(), fixture.client());
    let port = client.evtchn_alloc_unbound(DomId(5), DomId::DOM0).unwrap();
    let (bound, _fd) = client.evtchn_bind_interdomain(DomId(5), port).unwrap();
    let pending = || guest.domain.delivery.is_pending(port);
    for soon in [false, true] {
        guest.domain.delivery.clear_pending(port);
        other.evtchn_signal(bound, soon).unwrap();
        // In its turn: the signal has been dealt with, and nobody hung up.
        other.host_info().unwrap();
        assert!(!pending());
        client.evtchn_signal(bound, soon).unwrap();
        client.host_info().unwrap();
        assert!(pending());
    }
}

#[test]
fn a_restricted_connection_gets_at_its_domain_only() {
    let fixture = Fixture::new();
    let (guest, other) = (fixture.guest(Some(5)), fixture.guest(Some(6)));
    guest.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    other.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    let (client, free) = (fixture.client(), fixture.client());
    let (ours, theirs) = (DomId(5), DomId(6));
    let port = |dom| free.evtchn_alloc_unbound(dom, DomId::DOM0).unwrap();
    let (our_port, their_port) = (port(ours), port(theirs));
    client.restrict(ours).unwrap();
    // What is left.
    let mut buffer = client.copy_buffer(PAGE).unwrap();
    let _page = client.map_grants(5, &[9], true).unwrap();
    let (bound, _fd) = client.evtchn_bind_interdomain(ours, our_port).unwrap();
    client.evtchn_notify(bound).unwrap();
    assert_eq!(client.domain_info(ours).unwrap().dom, 5);
    client.restrict(ours).unwrap();
    // What is not.
    let part = GrantPart {
        gref: 9,
        offset: 0,
        len: 1,
    };
    let refused = [
        errno(client.map_grants(6, &[9], true)),
        errno(client.copy_grants(6, &mut [copy_nothing()])),
        errno(client.copy_from_grants(6, &[part], &mut buffer)),
        errno(client.evtchn_bind_interdomain(theirs, their_port)),
        errno(client.evtchn_status(theirs, Port(1))),
        errno(client.evtchn_alloc_unbound(theirs, DomId::DOM0)),
        errno(client.evtchn_bind_virq(3)),
        errno(client.domain_info(theirs)),
        errno(client.list_domains(DomId(0), 10)),
        errno(client.map_memory(ours)),
        errno(client.pause_domain(ours)),
        errno(client.destroy_domain(ours)),
        errno(client.restrict(theirs)),
        errno(client.read_console(0, true)),
        errno(client.host_info()),
    ];
    assert_eq!(refused, [Errno::EPERM; 15]);
    // A later domain of the number is not the one.
    free.destroy_domain(ours).unwrap();
    let next = fixture.guest(Some(5));
    next.grant(9, 0, 1, GTF_PERMIT_ACCESS);
    assert_eq!(errno(client.map_grants(5, &[9], true)), Errno::ESRCH);
    assert_eq!(errno(client.domain_info(ours)), Errno::ESRCH);
    drop(free.map_grants(5, &[9], true).unwrap());
}

fn copy_nothing() -> GrantCopy<'static> {
    GrantCopy {
        gref: 9,
        offset: 0,
        data: CopyData::Write(b""),
    }
}

#[test]
fn counters_of_a_domain_that_never_ran_are_none() {
    let fixture = Fixture::new();
    let (guest, client) = (fixture.guest(None), fixture.client());
    assert_eq!(client.domain_counters(guest.domain.id).unwrap(), []);
    let gone = errno(client.domain_counters(DomId(guest.id() + 1)));
    assert_eq!(gone, Errno::ESRCH);
}
