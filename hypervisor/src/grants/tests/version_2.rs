//! Tables of version 2: entries of 16 bytes, marks in frames of their own.

use super::*;

/// Where the table of a [`Granter`] that went to version 2 at once has its marks: its second frame.
const STATUS: u64 = PAGE_SIZE;

fn granter() -> Granter {
    let a = Granter::new(3);
    a.table.set_version(true).unwrap();
    assert_eq!(a.table.version(), 2);
    assert_eq!(a.table.status_frames(1).unwrap(), [Mfn(1)]);
    a
}

/// Writes an entry as the guest does.
fn grant(a: &Granter, gref: u32, flags: u16, frame: u64, part: (u16, u16)) {
    let at = u64::from(gref) * 16;
    let bounds = u64::from(part.0) | u64::from(part.1) << 16;
    a.memory.pages.store_u64(MachineAddr(at + 8), frame);
    let word = bounds << 32 | u64::from(flags);
    a.memory.pages.store_u64(MachineAddr(at), word);
}

fn marks(a: &Granter, gref: u32) -> u16 {
    let at = MachineAddr(STATUS + u64::from(gref) * 2);
    a.memory.pages.load_u16(at)
}

/// The guest's way to take a grant back: `false` while it is in use.
fn revoke(a: &Granter, gref: u32) -> bool {
    let at = MachineAddr(u64::from(gref) * 16);
    a.memory.pages.store_u16(at, 0);
    std::sync::atomic::fence(Ordering::SeqCst);
    marks(a, gref) & (GTF_READING | GTF_WRITING) == 0
}

#[test]
fn marks_are_in_the_status_frame_and_not_in_the_entry() {
    let a = granter();
    grant(&a, 5, GTF_PERMIT_ACCESS, 10, (0, 0));
    let maps = dom0();
    let read = maps.map(&a.table, host(5, GNTMAP_READONLY)).unwrap();
    assert_eq!((read.frame, marks(&a, 5)), (Mfn(10), GTF_READING));
    let write = maps.map(&a.table, host(5, 0)).unwrap();
    assert_eq!(marks(&a, 5), GTF_READING | GTF_WRITING);
    assert_eq!(a.memory.pages.load_u16(MachineAddr(80)), GTF_PERMIT_ACCESS);
    maps.release(write.handle).unwrap();
    assert_eq!(marks(&a, 5), GTF_READING);
    assert!(!revoke(&a, 5));
    maps.release(read.handle).unwrap();
    assert_eq!((marks(&a, 5), a.memory.refs(10)), (0, (0, 0)));
    assert!(maps.map(&a.table, host(5, 0)).is_err(), "taken back");
}

#[test]
fn a_refused_use_leaves_no_mark() {
    let a = granter();
    let maps = dom0();
    for (flags, dom) in [
        (GTF_PERMIT_ACCESS | GTF_READONLY, 0),
        (GTF_TRANSITIVE, 0),
        (GTF_ACCEPT_TRANSFER, 0),
        (GTF_INVALID, 0),
        (GTF_PERMIT_ACCESS, 9),
        (GTF_PERMIT_ACCESS | GTF_SUB_PAGE, 0),
    ] {
        grant(&a, 7, flags, 10, (0, 4096));
        let at = MachineAddr(7 * 16 + 2);
        a.memory.pages.store_u16(at, dom);
        assert!(maps.map(&a.table, host(7, 0)).is_err(), "{flags:#x} {dom}");
        assert_eq!((marks(&a, 7), a.table.in_use()), (0, 0));
    }
    // A frame that is none of the domain's, with bits that version 1 has not.
    grant(&a, 7, GTF_PERMIT_ACCESS, 1 << 40 | 10, (0, 0));
    let refused = maps.map(&a.table, host(7, 0));
    assert_eq!(refused.unwrap_err(), GrantError::NotRam(Mfn(1 << 40 | 10)));
    assert_eq!((marks(&a, 7), a.table.in_use()), (0, 0));
}

/// As one with a read-only mapping asks for more, after the entry has become read-only.
#[test]
fn a_refused_write_keeps_the_readers_mark() {
    let a = granter();
    grant(&a, 1, GTF_PERMIT_ACCESS, 10, (0, 0));
    let maps = dom0();
    let read = maps.map(&a.table, host(1, GNTMAP_READONLY)).unwrap();
    grant(&a, 1, GTF_PERMIT_ACCESS | GTF_READONLY, 11, (0, 0));
    let refused = maps.map(&a.table, host(1, 0));
    assert_eq!(refused.unwrap_err(), GrantError::ReadOnly(GrantRef(1)));
    assert_eq!(marks(&a, 1), GTF_READING);
    // XSA-226: the frame is that of the first use.
    let again = maps.map(&a.table, host(1, GNTMAP_READONLY)).unwrap();
    assert_eq!(again.frame, Mfn(10));
    maps.release(again.handle).unwrap();
    maps.release(read.handle).unwrap();
    assert_eq!(marks(&a, 1), 0);
}

#[test]
fn a_part_of_a_page_is_copied_and_not_mapped() {
    let a = granter();
    grant(&a, 2, GTF_PERMIT_ACCESS | GTF_SUB_PAGE, 10, (100, 50));
    let dom = DomId(0);
    let copy = |offset, len| {
        let mut bytes = vec![0; len];
        read_grant(&a.table, dom, GrantRef(2), offset, &mut bytes)
    };
    assert_eq!(
        (copy(100, 50), copy(149, 1), copy(120, 0)),
        (Ok(()), Ok(()), Ok(()))
    );
    for (offset, len) in [(99, 1), (99, 51), (100, 51), (150, 1), (0, 4096)] {
        let refused = copy(offset, len).unwrap_err();
        let gref = GrantRef(2);
        assert_eq!(refused, GrantError::OutsidePart { gref, offset, len });
        assert_eq!(refused.status(), GNTST_GENERAL_ERROR);
    }
    assert!(write_grant(&a.table, dom, GrantRef(2), 98, b"abc").is_err());
    assert!(write_grant(&a.table, dom, GrantRef(2), 147, b"abc").is_ok());
    assert!(dom0().map(&a.table, host(2, 0)).is_err());
    // Also while a copy is under way, and whatever the entry says by now.
    let how = Use::Copy;
    let write = false;
    let held = a
        .table
        .acquire(GrantRef(2), dom, Access { how, write })
        .unwrap();
    grant(&a, 2, GTF_PERMIT_ACCESS, 10, (0, 0));
    let refused = dom0().map(&a.table, host(2, 0)).unwrap_err();
    assert_eq!(refused, GrantError::PartOnly(GrantRef(2)));
    assert!(held.at(100, 50).is_ok() && held.at(0, 4096).is_err());
    drop(held);
    // Past the page's end there is nothing, whatever the guest says.
    grant(&a, 2, GTF_PERMIT_ACCESS | GTF_SUB_PAGE, 10, (4000, 60000));
    assert!(copy(4000, 96).is_ok() && copy(4000, 97).is_err());
    assert_eq!((marks(&a, 2), a.memory.refs(10)), (0, (0, 0)));
}

#[test]
fn a_grant_is_either_revoked_or_used() {
    let a = granter();
    for _ in 0..2000 {
        grant(&a, 1, GTF_PERMIT_ACCESS, 10, (0, 0));
        let maps = dom0();
        let (mapped, revoked) = std::thread::scope(|scope| {
            let map = scope.spawn(|| maps.map(&a.table, host(1, 0)).is_ok());
            let revoke = scope.spawn(|| revoke(&a, 1));
            (map.join().unwrap(), revoke.join().unwrap())
        });
        assert!(!(mapped && revoked), "in use and taken back");
        drop(maps);
        assert_eq!((marks(&a, 1), a.table.in_use()), (0, 0));
    }
}

#[test]
fn a_change_of_versions_keeps_the_reserved_entries_only() {
    let a = Granter::new(3);
    let xenstore = GrantRef(GNTTAB_RESERVED_XENSTORE);
    a.table.seed(xenstore, DomId(0), Mfn(10)).unwrap();
    a.grant(9, GTF_PERMIT_ACCESS, 0, 11);
    a.grant(2, GTF_ACCEPT_TRANSFER, 0, 11);
    let maps = dom0();
    let mapped = maps.map(&a.table, host(1, 0)).unwrap();
    assert_eq!(a.table.set_version(true), Err(GrantError::TableInUse(1)));
    assert_eq!((a.table.version(), maps.len()), (1, 1));
    maps.release(mapped.handle).unwrap();

    a.table.set_version(true).unwrap();
    let frame = |gref| {
        let mapped = maps.map(&a.table, host(gref, 0)).ok()?;
        maps.release(mapped.handle).unwrap();
        Some(mapped.frame)
    };
    assert_eq!(
        [1, 2, 9, 4, 255].map(frame),
        [Some(Mfn(10)), None, None, None, None]
    );
    assert!(matches!(
        maps.map(&a.table, host(256, 0)),
        Err(GrantError::NoSuchGrant { entries: 256, .. })
    ));
    grant(&a, 0, GTF_PERMIT_ACCESS, 1 << 32, (0, 0));
    grant(&a, 3, GTF_PERMIT_ACCESS | GTF_READONLY, 12, (0, 0));
    grant(&a, 4, GTF_PERMIT_ACCESS | GTF_SUB_PAGE, 12, (0, 9));
    // What a guest scribbled there is no mark of version 1.
    a.memory.pages.store_u16(MachineAddr(STATUS + 6), u16::MAX);
    a.table.set_version(false).unwrap();
    assert_eq!(a.flags(3), GTF_PERMIT_ACCESS | GTF_READONLY);
    assert_eq!([1, 0, 4].map(frame), [Some(Mfn(10)), None, None]);
    assert_eq!(
        a.table.status_frames(1).unwrap_err().status(),
        GNTST_GENERAL_ERROR
    );
    // And back: the frame of the marks is the same, and empty.
    a.table.set_version(true).unwrap();
    assert_eq!(a.table.status_frames(1).unwrap(), [Mfn(1)]);
    assert_eq!(marks(&a, 3), 0);
}

#[test]
fn a_table_grows_with_its_marks() {
    let a = granter();
    assert_eq!(a.table.setup(4).unwrap().len(), 4);
    assert_eq!(a.table.size(), (4, 4));
    assert_eq!(a.table.status_frames(1).unwrap(), [Mfn(1)]);
    assert!(
        a.table.status_frames(2).is_err(),
        "2048 marks are enough for 1024 entries"
    );
    // The last entry: frame 3 of the table is machine frame 4.
    let at = 4 * PAGE_SIZE + 255 * 16;
    a.memory.pages.store_u64(MachineAddr(at + 8), 10);
    a.memory
        .pages
        .store_u64(MachineAddr(at), u64::from(GTF_PERMIT_ACCESS));
    let maps = dom0();
    let mapped = maps.map(&a.table, host(1023, 0)).unwrap();
    assert_eq!(
        (mapped.frame, marks(&a, 1023)),
        (Mfn(10), GTF_READING | GTF_WRITING)
    );
    maps.release(mapped.handle).unwrap();
    assert!(maps.map(&a.table, host(1024, 0)).is_err());
}

#[test]
fn two_entries_are_swapped() {
    let a = granter();
    grant(&a, 10, GTF_PERMIT_ACCESS, 10, (0, 0));
    grant(&a, 20, GTF_PERMIT_ACCESS | GTF_SUB_PAGE, 12, (8, 16));
    a.table.swap(GrantRef(10), GrantRef(20)).unwrap();
    let maps = dom0();
    assert!(maps.map(&a.table, host(10, 0)).is_err());
    let mapped = maps.map(&a.table, host(20, 0)).unwrap();
    assert_eq!(mapped.frame, Mfn(10));
    assert_eq!(
        a.table.swap(GrantRef(10), GrantRef(20)),
        Err(GrantError::Busy(GrantRef(20)))
    );
    maps.release(mapped.handle).unwrap();
}
