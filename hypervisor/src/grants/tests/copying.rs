//! Copies: who may name what, bounds, and that nothing stays pinned.

use super::*;

fn side(u: u64, domid: u16, offset: u16) -> GnttabCopyPtr {
    GnttabCopyPtr {
        u,
        domid,
        offset,
        _pad: 0,
    }
}

fn op(source: GnttabCopyPtr, dest: GnttabCopyPtr, len: u16, flags: u16) -> GnttabCopy {
    GnttabCopy {
        source,
        dest,
        len,
        flags,
        status: 0,
        _pad: 0,
    }
}

const SELF: u16 = DomId::SELF.0;

struct Fixture {
    a: Granter,
    b: Granter,
    world: World,
}

impl Fixture {
    fn new() -> Self {
        let (a, b) = (Granter::new(3), Granter::new(4));
        for at in 0..4096 {
            let at = MachineAddr(10 * PAGE_SIZE + at);
            a.memory
                .pages
                .store_u8(at, u8::try_from(at.0 % 251).unwrap());
        }
        let world = World::of(&[&a, &b]);
        Fixture { a, b, world }
    }

    /// A copy by domain 4.
    fn copy(&self, op: GnttabCopy) -> i16 {
        let outcome = copy(&self.b.table, &self.world, &op);
        for granter in [&self.a, &self.b] {
            assert_eq!(granter.table.in_use(), 0);
            assert!((0..PAGES).all(|frame| granter.memory.refs(frame) == (0, 0)));
            assert!((0..20).all(|gref| granter.flags(gref) & (GTF_READING | GTF_WRITING) == 0));
        }
        outcome.err().map_or(GNTST_OKAY, |error| error.status())
    }

    fn byte(&self, granter: &Granter, frame: u64, offset: u64) -> u8 {
        granter
            .memory
            .pages
            .load_u8(MachineAddr(frame * PAGE_SIZE + offset))
    }
}

#[test]
fn a_copy_from_a_grant_to_an_own_frame() {
    let f = Fixture::new();
    f.a.grant(1, GTF_PERMIT_ACCESS | GTF_READONLY, 4, 10);
    let copied = op(
        side(1, 3, 100),
        side(11, SELF, 4000),
        96,
        GNTCOPY_SOURCE_GREF,
    );
    assert_eq!(f.copy(copied), GNTST_OKAY);
    for n in 0..96 {
        assert_eq!(f.byte(&f.b, 11, 4000 + n), f.byte(&f.a, 10, 100 + n));
    }
    assert_eq!(f.byte(&f.b, 11, 3999), 0);
}

#[test]
fn a_copy_between_two_grants_and_within_a_page() {
    let f = Fixture::new();
    f.a.grant(1, GTF_PERMIT_ACCESS, 4, 10);
    f.b.grant(2, GTF_PERMIT_ACCESS, 4, 12);
    let both = GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF;
    assert_eq!(
        f.copy(op(side(1, 3, 0), side(2, SELF, 0), 4096, both)),
        GNTST_OKAY
    );
    assert_eq!(f.byte(&f.b, 12, 4095), f.byte(&f.a, 10, 4095));
    // Overlapping: as memmove.
    let before: Vec<_> = (0..100).map(|n| f.byte(&f.b, 12, n)).collect();
    assert_eq!(
        f.copy(op(side(12, SELF, 0), side(12, SELF, 10), 100, 0)),
        GNTST_OKAY
    );
    let after: Vec<_> = (10..110).map(|n| f.byte(&f.b, 12, n)).collect();
    assert_eq!(before, after);
}

#[test]
fn each_refusal_has_its_status_and_copies_nothing() {
    let f = Fixture::new();
    f.a.grant(1, GTF_PERMIT_ACCESS | GTF_READONLY, 4, 10);
    f.a.grant(2, GTF_PERMIT_ACCESS, 9, 10);
    f.a.grant(3, GTF_PERMIT_ACCESS, 4, 3);
    f.b.memory.make_table(13);
    let from = |u, dom| op(side(u, dom, 0), side(11, SELF, 0), 8, GNTCOPY_SOURCE_GREF);
    let to = |u, dom, flags| op(side(14, SELF, 0), side(u, dom, 0), 8, flags);
    let cases = [
        (from(1, 8), GNTST_BAD_DOMAIN, "no such domain"),
        (from(512, 3), GNTST_BAD_GNTREF, "past the table"),
        (from(2, 3), GNTST_GENERAL_ERROR, "granted to somebody else"),
        (from(3, 3), GNTST_BAD_PAGE, "a frame of the hypervisor's"),
        (to(10, 3, 0), GNTST_PERMISSION_DENIED, "a foreign frame"),
        (
            to(10, 4, 0),
            GNTST_PERMISSION_DENIED,
            "an own frame by number",
        ),
        (
            to(1, 3, GNTCOPY_DEST_GREF),
            GNTST_GENERAL_ERROR,
            "read-only",
        ),
        (to(13, SELF, 0), GNTST_GENERAL_ERROR, "an own page table"),
        (to(2, SELF, 0), GNTST_BAD_PAGE, "an own table frame"),
        (to(u64::MAX, SELF, 0), GNTST_BAD_PAGE, "no frame"),
    ];
    for (op, expected, why) in cases {
        assert_eq!(f.copy(op), expected, "{why}");
    }
    assert!((0..4096).all(|n| f.byte(&f.b, 11, n) == 0));
}

#[test]
fn a_copy_stays_within_its_pages() {
    let f = Fixture::new();
    f.a.grant(1, GTF_PERMIT_ACCESS, 4, 10);
    let copied = |from, to, len| {
        f.copy(op(
            side(1, 3, from),
            side(11, SELF, to),
            len,
            GNTCOPY_SOURCE_GREF,
        ))
    };
    assert_eq!(copied(4095, 0, 1), GNTST_OKAY);
    assert_eq!(copied(4095, 0, 2), GNTST_BAD_COPY_ARG);
    assert_eq!(copied(0, 4000, 97), GNTST_BAD_COPY_ARG);
    assert_eq!(copied(4096, 0, 0), GNTST_OKAY);
    assert_eq!(copied(u16::MAX, u16::MAX, u16::MAX), GNTST_BAD_COPY_ARG);
    assert_eq!(copied(0, 0, u16::MAX), GNTST_BAD_COPY_ARG);
}

#[test]
fn a_mapped_grant_may_be_copied_by_its_user_only() {
    let f = Fixture::new();
    f.a.grant(1, GTF_PERMIT_ACCESS, 4, 10);
    let maps = MapTrack::new(DomId(4), 8);
    let held = maps.map(&f.a.table, host(1, 0)).unwrap();
    let copied = op(side(1, 3, 0), side(11, SELF, 0), 8, GNTCOPY_SOURCE_GREF);
    assert_eq!(copy(&f.b.table, &f.world, &copied), Ok(()));
    assert_eq!(
        f.a.memory.refs(10),
        (1, 1),
        "the mapping's reference is the one left"
    );
    assert_eq!(f.a.flags(1), GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    let c = Granter::new(5);
    assert!(copy(&c.table, &f.world, &copied).is_err());
    maps.release(held.handle).unwrap();
    assert_eq!(f.copy(copied), GNTST_OKAY);
}
