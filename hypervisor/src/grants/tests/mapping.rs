//! Mapping and unmapping: marks, references, statuses, and what is left after
//! a refusal.

use super::*;

const BOTH: u16 = GTF_READING | GTF_WRITING;

fn status<T: std::fmt::Debug>(outcome: Result<T, GrantError>) -> i16 {
    outcome.unwrap_err().status()
}

#[test]
fn a_mapping_marks_the_entry_until_its_end() {
    let (a, maps) = (Granter::new(3), dom0());
    a.grant(9, GTF_PERMIT_ACCESS, 0, 10);
    let reply = maps.map(&a.table, host(9, 0)).unwrap();
    assert_eq!((reply.frame, reply.writable), (Mfn(10), true));
    assert_eq!(a.flags(9), GTF_PERMIT_ACCESS | BOTH);
    assert_eq!(a.memory.refs(10), (1, 1));
    assert!(!a.revoke(9));
    let again = maps.map(&a.table, host(9, GNTMAP_READONLY)).unwrap();
    assert_ne!(reply.handle, again.handle);
    assert_eq!(a.memory.refs(10), (2, 1));
    maps.release(reply.handle).unwrap();
    assert_eq!(
        a.flags(9),
        GTF_PERMIT_ACCESS | GTF_READING,
        "the reader is still there"
    );
    assert_eq!(status(maps.release(reply.handle)), GNTST_BAD_HANDLE);
    maps.release(again.handle).unwrap();
    assert_eq!(a.flags(9), GTF_PERMIT_ACCESS);
    assert_eq!(a.memory.refs(10), (0, 0));
    assert!(maps.is_empty() && a.table.in_use() == 0);
    assert!(a.revoke(9));
}

#[test]
fn a_reader_that_becomes_a_writer_is_checked_again() {
    let (a, maps) = (Granter::new(3), dom0());
    a.grant(1, GTF_PERMIT_ACCESS | GTF_READONLY, 0, 10);
    let reader = maps.map(&a.table, host(1, GNTMAP_READONLY)).unwrap();
    assert_eq!(status(maps.map(&a.table, host(1, 0))), GNTST_GENERAL_ERROR);
    assert_eq!(a.flags(1), GTF_PERMIT_ACCESS | GTF_READONLY | GTF_READING);
    a.grant(1, GTF_PERMIT_ACCESS | GTF_READING, 0, 10);
    let writer = maps.map(&a.table, host(1, 0)).unwrap();
    assert_eq!(a.flags(1), GTF_PERMIT_ACCESS | BOTH);
    maps.release(reader.handle).unwrap();
    assert_eq!(a.flags(1), GTF_PERMIT_ACCESS | BOTH);
    maps.release(writer.handle).unwrap();
    assert_eq!(a.flags(1), GTF_PERMIT_ACCESS);
}

#[test]
fn refusals_leave_nothing_behind() {
    let (a, maps) = (Granter::new(3), dom0());
    a.memory.make_table(12);
    a.grant(1, GTF_PERMIT_ACCESS, 7, 10);
    a.grant(2, GTF_ACCEPT_TRANSFER, 0, 10);
    a.grant(3, GTF_PERMIT_ACCESS | GTF_SUB_PAGE, 0, 10);
    a.grant(4, GTF_PERMIT_ACCESS, 0, 2);
    a.grant(5, GTF_PERMIT_ACCESS, 0, 1 << 31);
    a.grant(6, GTF_PERMIT_ACCESS, 0, 12);
    let refused = [
        (1, GNTST_GENERAL_ERROR, "granted to somebody else"),
        (2, GNTST_GENERAL_ERROR, "not an access grant"),
        (3, GNTST_GENERAL_ERROR, "a part of a page is for copies"),
        (4, GNTST_BAD_PAGE, "a frame of the hypervisor's"),
        (5, GNTST_BAD_PAGE, "no frame"),
        (6, GNTST_GENERAL_ERROR, "a page table"),
        (7, GNTST_GENERAL_ERROR, "an empty entry"),
        (512, GNTST_BAD_GNTREF, "past the table"),
        (u32::MAX, GNTST_BAD_GNTREF, "far past the table"),
    ];
    for (gref, expected, why) in refused {
        assert_eq!(status(maps.map(&a.table, host(gref, 0))), expected, "{why}");
    }
    for gref in 1..8 {
        assert_eq!(a.flags(gref) & BOTH, 0, "grant {gref}");
    }
    assert!(maps.is_empty() && a.table.in_use() == 0);
    assert!((0..PAGES).all(|frame| a.memory.refs(frame) == (0, 0)));
    let no_mapping = MapRequest {
        flags: GNTMAP_READONLY,
        ..host(1, 0)
    };
    assert_eq!(status(maps.map(&a.table, no_mapping)), GNTST_BAD_GNTREF);
    let readable = maps.map(&a.table, host(6, GNTMAP_READONLY)).unwrap();
    assert!(
        !readable.writable,
        "a page table may be granted for reading"
    );
}

#[test]
fn xsa_226_the_frame_is_that_of_the_first_use() {
    let (a, maps) = (Granter::new(3), dom0());
    a.grant(1, GTF_PERMIT_ACCESS, 0, 10);
    let first = maps.map(&a.table, host(1, GNTMAP_READONLY)).unwrap();
    a.grant(1, GTF_PERMIT_ACCESS | GTF_READING, 0, 11);
    let second = maps.map(&a.table, host(1, 0)).unwrap();
    assert_eq!(second.frame, Mfn(10));
    assert_eq!((a.memory.refs(10), a.memory.refs(11)), ((2, 1), (0, 0)));
    maps.release(first.handle).unwrap();
    maps.release(second.handle).unwrap();
    assert_eq!((a.memory.refs(10), a.memory.refs(11)), ((0, 0), (0, 0)));
    assert_eq!(maps.map(&a.table, host(1, 0)).unwrap().frame, Mfn(11));
}

#[test]
fn xsa_230_a_pinned_grant_is_its_users() {
    let (a, maps) = (Granter::new(3), dom0());
    let other = MapTrack::new(DomId(4), 64);
    a.grant(1, GTF_PERMIT_ACCESS, 0, 10);
    let held = maps.map(&a.table, host(1, GNTMAP_READONLY)).unwrap();
    a.grant(1, GTF_PERMIT_ACCESS | GTF_READING, 4, 11);
    assert_eq!(status(other.map(&a.table, host(1, 0))), GNTST_GENERAL_ERROR);
    assert_eq!(
        a.flags(1),
        GTF_PERMIT_ACCESS | GTF_READING,
        "the user's mark stays"
    );
    maps.release(held.handle).unwrap();
    assert_eq!(other.map(&a.table, host(1, 0)).unwrap().frame, Mfn(11));
}

#[test]
fn xsa_218_224_host_and_device_are_two_references() {
    let (a, maps) = (Granter::new(3), dom0());
    a.grant(1, GTF_PERMIT_ACCESS, 0, 10);
    let reply = maps.map(&a.table, host(1, GNTMAP_DEVICE_MAP)).unwrap();
    assert_eq!(a.memory.refs(10), (2, 2));
    let bus = 10 * PAGE_SIZE;
    let unmap = |host_addr, dev_bus_addr| {
        maps.unmap_with(
            &ProcessTarget,
            UnmapRequest {
                handle: reply.handle,
                host_addr,
                dev_bus_addr,
                new_addr: 0,
            },
        )
    };
    assert_eq!(status(unmap(0x1000, bus + 4096)), GNTST_GENERAL_ERROR);
    assert_eq!(a.memory.refs(10), (2, 2));
    drop(unmap(0x1000, 0).unwrap());
    assert_eq!(a.memory.refs(10), (1, 1));
    drop(unmap(0x1000, 0).unwrap());
    assert_eq!(a.memory.refs(10), (1, 1), "the host mapping went before");
    assert_eq!(a.flags(1), GTF_PERMIT_ACCESS | BOTH);
    drop(unmap(0, bus).unwrap());
    assert_eq!((a.memory.refs(10), a.flags(1)), ((0, 0), GTF_PERMIT_ACCESS));
    assert_eq!(status(unmap(0, bus)), GNTST_BAD_HANDLE);
}

#[test]
fn the_reference_goes_before_the_mark() {
    let (a, maps) = (Granter::new(3), dom0());
    a.grant(1, GTF_PERMIT_ACCESS, 0, 10);
    let held = maps.map(&a.table, host(1, 0)).unwrap();
    maps.release(held.handle).unwrap();
    let seen = a.memory.flags_at_put.lock().unwrap().clone();
    assert_eq!(
        seen,
        [GTF_PERMIT_ACCESS | BOTH],
        "else the guest reuses a frame still in use"
    );
}

#[test]
fn the_end_of_a_connection_ends_its_mappings() {
    let (a, other) = (Granter::new(3), dom0());
    for gref in 1..5 {
        a.grant(gref, GTF_PERMIT_ACCESS, 0, 10);
    }
    let kept = other.map(&a.table, host(1, 0)).unwrap();
    {
        let dies = dom0();
        for gref in 1..5 {
            dies.map(&a.table, host(gref, 0)).unwrap();
        }
        assert_eq!(a.memory.refs(10), (5, 5));
    }
    assert_eq!(a.memory.refs(10), (1, 1));
    assert!(!a.revoke(1) && a.revoke(2));
    other.release_all();
    assert_eq!(a.memory.refs(10), (0, 0));
    assert_eq!(status(other.release(kept.handle)), GNTST_BAD_HANDLE);
    assert_eq!(status(other.map(&a.table, host(1, 0))), GNTST_NO_SPACE);
}

#[test]
fn handles_are_limited_and_used_again() {
    let a = Granter::new(3);
    a.grant(1, GTF_PERMIT_ACCESS, 5, 10);
    let maps = MapTrack::new(DomId(5), 2);
    let one = maps.map(&a.table, host(1, 0)).unwrap();
    maps.map(&a.table, host(1, 0)).unwrap();
    assert_eq!(status(maps.map(&a.table, host(1, 0))), GNTST_NO_SPACE);
    assert_eq!(a.memory.refs(10), (2, 2));
    maps.release(one.handle).unwrap();
    assert_eq!(maps.map(&a.table, host(1, 0)).unwrap().handle, one.handle);
    let none = MapTrack::new(DomId(5), 0);
    assert_eq!(status(none.map(&a.table, host(1, 0))), GNTST_NO_SPACE);
    assert_eq!(status(none.release(0)), GNTST_BAD_HANDLE);
}

/// Page tables that refuse odd addresses.
struct Stubborn;

impl MapTarget for Stubborn {
    fn install(&self, request: &MapRequest, granted: &Arc<Granted>) -> Result<Installed, i16> {
        if request.host_addr & 1 == 0 {
            ProcessTarget.install(request, granted)
        } else {
            Err(GNTST_BAD_VIRT_ADDR)
        }
    }
    fn remove(&self, request: &MapRequest, unmap: &UnmapRequest, _: Mfn) -> Result<(), i16> {
        let same = request.host_addr == unmap.host_addr;
        if same {
            Ok(())
        } else {
            Err(GNTST_GENERAL_ERROR)
        }
    }
}

#[test]
fn xsa_227_234_page_tables_have_the_last_word() {
    let a = Granter::new(3);
    a.grant(1, GTF_PERMIT_ACCESS, 5, 10);
    let maps = MapTrack::new(DomId(5), 8);
    let odd = MapRequest {
        host_addr: 0x1001,
        ..host(1, GNTMAP_DEVICE_MAP)
    };
    assert_eq!(
        status(maps.map_with(&Stubborn, &a.table, odd)),
        GNTST_BAD_VIRT_ADDR
    );
    assert_eq!(
        (a.memory.refs(10), a.flags(1), maps.len()),
        ((0, 0), GTF_PERMIT_ACCESS, 0)
    );
    let handle = maps
        .map_with(&Stubborn, &a.table, host(1, 0))
        .unwrap()
        .handle;
    let unmap = |host_addr| {
        maps.unmap_with(
            &Stubborn,
            UnmapRequest {
                handle,
                host_addr,
                dev_bus_addr: 0,
                new_addr: 0,
            },
        )
    };
    assert_eq!(status(unmap(0x2000)), GNTST_GENERAL_ERROR);
    assert_eq!(a.memory.refs(10), (1, 1));
    assert!(unmap(0x1000).is_ok());
    assert_eq!(a.memory.refs(10), (0, 0));
}

#[test]
fn a_dying_domain_grants_nothing_new_and_takes_back_what_ends() {
    let (a, maps) = (Granter::new(3), dom0());
    a.grant(1, GTF_PERMIT_ACCESS, 0, 10);
    let held = maps.map(&a.table, host(1, 0)).unwrap();
    a.table.destroy();
    assert_eq!(status(maps.map(&a.table, host(1, 0))), GNTST_GENERAL_ERROR);
    maps.release(held.handle).unwrap();
    assert_eq!((a.memory.refs(10), a.flags(1)), ((0, 0), GTF_PERMIT_ACCESS));
}

#[test]
fn a_table_grows_to_its_limit_and_keeps_its_frames() {
    let a = Granter::new(3);
    assert_eq!(a.table.size(), (1, 4));
    assert_eq!(a.table.setup(0), Ok(vec![]));
    assert_eq!(a.table.setup(3), Ok(vec![Mfn(0), Mfn(1), Mfn(2)]));
    assert_eq!(a.table.setup(2), Ok(vec![Mfn(0), Mfn(1)]));
    assert_eq!(a.table.setup(5).unwrap_err().status(), GNTST_GENERAL_ERROR);
    assert_eq!(a.table.size(), (3, 4));
    a.grant(2 * 512, GTF_PERMIT_ACCESS, 0, 10);
    let maps = dom0();
    assert_eq!(maps.map(&a.table, host(2 * 512, 0)).unwrap().frame, Mfn(10));
    assert_eq!(
        status(maps.map(&a.table, host(3 * 512, 0))),
        GNTST_BAD_GNTREF
    );
}

#[test]
fn a_table_without_memory_keeps_what_it_got() {
    let memory = Arc::new(FakeMemory::new());
    let words = Arc::new(Shared(memory.clone()));
    let key = DomainKey {
        dom: DomId(3),
        generation: 1,
    };
    let table = GrantTable::new(key, 100, words, memory).unwrap();
    assert_eq!(
        table.setup(u32::try_from(RAM).unwrap() + 1),
        Err(GrantError::NoMemory)
    );
    assert_eq!(table.size(), (8, 100));
}

#[test]
fn swapped_grants_change_places_unless_in_use() {
    let (a, maps) = (Granter::new(3), dom0());
    a.grant(1, GTF_PERMIT_ACCESS, 0, 10);
    a.grant(2, GTF_PERMIT_ACCESS | GTF_READONLY, 0, 11);
    let swap = |one, other| a.table.swap(GrantRef(one), GrantRef(other));
    swap(1, 2).unwrap();
    assert_eq!(a.flags(1), GTF_PERMIT_ACCESS | GTF_READONLY);
    let held = maps.map(&a.table, host(2, 0)).unwrap();
    assert_eq!(held.frame, Mfn(10));
    assert_eq!(swap(1, 2).unwrap_err().status(), GNTST_EAGAIN);
    assert_eq!(swap(1, 512).unwrap_err().status(), GNTST_BAD_GNTREF);
    assert_eq!(swap(1, 1), Ok(()));
}

#[test]
fn seeded_grants_are_grants() {
    let (a, maps) = (Granter::new(3), dom0());
    a.table
        .seed(GrantRef(GNTTAB_RESERVED_XENSTORE), DomId(0), Mfn(10))
        .unwrap();
    let held = maps
        .map(&a.table, host(GNTTAB_RESERVED_XENSTORE, 0))
        .unwrap();
    assert_eq!(held.frame, Mfn(10));
    let busy = a
        .table
        .seed(GrantRef(GNTTAB_RESERVED_XENSTORE), DomId(0), Mfn(11));
    assert_eq!(busy.unwrap_err().status(), GNTST_EAGAIN);
    assert!(a.table.seed(GrantRef(0), DomId(0), Mfn(1 << 32)).is_err());
}
