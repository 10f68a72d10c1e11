//! Foreign frames in page tables: made and taken away by grant operations only.

use super::*;

/// The numbers of foreign frames.
const FIRST: u64 = 0x9000;
const FOREIGN: usize = 4;

fn foreign(index: u64) -> Mfn {
    Mfn(FIRST + index)
}

fn granted(index: u64, flags: u64) -> Pte {
    Pte::new(foreign(index), flags | Pte::ACCESSED_DIRTY)
}

/// A tree as [`Domain::with_tree`], of 8 frames, on vCPU 0.
fn domain() -> Domain {
    let mut d = Domain::with_tree(8);
    d.paging.add_foreign_frames(Mfn(FIRST), FOREIGN).unwrap();
    d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
    d
}

fn at(index: usize) -> GrantSlot {
    GrantSlot::Entry(entry(3, index))
}

impl Domain {
    fn map_grant(&mut self, at: GrantSlot, pte: Pte) -> Result<(), Errno> {
        self.paging.map_grant(&self.memory, at, pte)
    }

    fn unmap_grant(&mut self, at: GrantSlot, index: u64, writable: bool) -> Result<(), Errno> {
        self.paging
            .unmap_grant(&self.memory, at, foreign(index), writable, None)
    }

    fn replace_grant(&mut self, at: usize, instead: usize) -> Result<(), Errno> {
        let page = |index| GrantSlot::Virtual(mfn(0), va(index));
        let (at, instead) = (page(at), Some(page(instead)));
        self.paging
            .unmap_grant(&self.memory, at, foreign(0), true, instead)
    }
}

#[test]
fn a_grant_is_mapped_and_unmapped_by_entry_and_by_address() {
    let mut d = domain();
    for slot in [at(5), GrantSlot::Virtual(mfn(0), va(5))] {
        d.map_grant(slot, granted(2, RW)).unwrap();
        assert_eq!(d.pte(3, 5), granted(2, RW));
        d.audit();
        let seen = d.paging.translate(&d.memory, mfn(0), va(5)).unwrap();
        assert_eq!((seen.mfn, seen.writable), (foreign(2), true));
        d.unmap_grant(slot, 2, true).unwrap();
        assert_eq!(d.pte(3, 5), Pte(0));
        d.audit();
    }
}

#[test]
fn what_a_grant_replaces_is_returned() {
    let mut d = domain();
    assert_eq!(d.frame_type(4), (FrameType::Writable, 1));
    d.map_grant(at(0), granted(0, RO)).unwrap();
    assert_eq!(d.frame_type(4).1, 0);
    d.audit();
}

#[test]
fn no_other_request_names_a_foreign_frame() {
    let mut d = domain();
    for flags in [RO, RW] {
        d.refuses(Errno::EBUSY, |d| d.update(3, 5, granted(1, flags)));
    }
    d.map_grant(at(5), granted(1, RO)).unwrap();
    // Not even one that is mapped already, nor with one more right.
    d.refuses(Errno::EBUSY, |d| d.update(3, 6, granted(1, RO)));
    d.refuses(Errno::EBUSY, |d| d.update(3, 5, granted(1, RW)));
    // Bits that are the guest's own may change.
    d.update(3, 5, granted(1, RO | Pte::NX | 1 << 9)).unwrap();
    d.audit();
    // A table that names one cannot come into use.
    d.poke(5, 0, granted(1, RO));
    d.refuses(Errno::EBUSY, |d| d.pin(Level::L1, 5));
    // Nor is a foreign frame a table.
    d.refuses(Errno::EINVAL, |d| d.update(2, 5, Pte::new(foreign(1), RW)));
    d.refuses(Errno::EINVAL, |d| d.paging.get_frame_ref(foreign(1)));
    d.refuses(Errno::EINVAL, |d| {
        d.paging.get_writable(&d.memory, foreign(1))
    });
}

#[test]
fn xsa_227_an_entry_is_aligned_and_in_an_l1_table_of_the_guest() {
    let mut d = domain();
    let bad = [
        GrantSlot::Entry(MachineAddr(entry(3, 5).0 + 4)),
        GrantSlot::Entry(MachineAddr(entry(3, 511).0 + 7)),
        // A root, a table that is none, a data page, no RAM, another's frame.
        GrantSlot::Entry(entry(0, 5)),
        GrantSlot::Entry(entry(2, 5)),
        GrantSlot::Entry(entry(5, 0)),
        GrantSlot::Entry(entry(4, 0)),
        GrantSlot::Entry(MachineAddr(SHARED.0 << 12)),
        GrantSlot::Entry(MachineAddr(FIRST << 12)),
        GrantSlot::Entry(MachineAddr(u64::MAX - 7)),
        // Without an L1 table, and the hypervisor's.
        GrantSlot::Virtual(mfn(0), GuestVirt(1 << 30)),
        GrantSlot::Virtual(mfn(0), GuestVirt(0xffff_8000_0000_0000)),
        GrantSlot::Virtual(mfn(0), GuestVirt(1 << 60)),
    ];
    for slot in bad {
        d.refuses(Errno::EINVAL, |d| d.map_grant(slot, granted(0, RW)));
        d.refuses(Errno::EINVAL, |d| d.unmap_grant(slot, 0, true));
    }
    for frame in [Mfn(FIRST + 4), Mfn(FIRST - 1), mfn(4)] {
        d.refuses(Errno::EINVAL, |d| d.map_grant(at(5), Pte::new(frame, RW)));
    }
}

#[test]
fn xsa_234_an_unmap_finds_the_very_entry() {
    let mut d = domain();
    d.map_grant(at(5), granted(0, RW)).unwrap();
    d.map_grant(at(6), granted(1, RO)).unwrap();
    d.refuses(Errno::EINVAL, |d| d.unmap_grant(at(6), 0, true));
    d.refuses(Errno::EINVAL, |d| d.unmap_grant(at(5), 0, false));
    d.refuses(Errno::EINVAL, |d| d.unmap_grant(at(6), 1, true));
    d.refuses(Errno::EINVAL, |d| d.unmap_grant(at(7), 0, true));
    d.refuses(Errno::EINVAL, |d| d.unmap_grant(at(0), 0, true));
    d.unmap_grant(at(6), 1, false).unwrap();
    d.refuses(Errno::EINVAL, |d| d.unmap_grant(at(6), 1, false));
    d.audit();
}

#[test]
fn an_overwritten_grant_is_no_longer_there_to_unmap() {
    let mut d = domain();
    d.map_grant(at(5), granted(0, RW)).unwrap();
    d.update(3, 5, maps(4, RO)).unwrap();
    d.audit();
    d.refuses(Errno::EINVAL, |d| d.unmap_grant(at(5), 0, true));
    // A whole table goes with what it maps.
    d.map_grant(at(6), granted(0, RW)).unwrap();
    d.update(2, 0, Pte(0)).unwrap();
    d.audit();
    assert_eq!(d.paging.frames.foreign.named().count(), 0);
}

#[test]
fn an_unmap_may_move_another_entry_there() {
    let mut d = domain();
    d.map_grant(at(5), granted(0, RW)).unwrap();
    d.map_grant(at(7), granted(1, RO)).unwrap();
    // Not the entry itself, nor one without a table.
    d.refuses(Errno::EINVAL, |d| d.replace_grant(5, 5));
    d.refuses(Errno::EINVAL, |d| d.replace_grant(5, 512));
    d.refuses(Errno::EINVAL, |d| d.replace_grant(7, 0));
    d.replace_grant(5, 0).unwrap();
    assert_eq!((d.pte(3, 0), d.pte(3, 5)), (Pte(0), maps(4, RW)));
    assert_eq!(d.frame_type(4), (FrameType::Writable, 1));
    d.audit();
    // Another grant can move, and nothing at all.
    d.map_grant(at(0), granted(0, RW)).unwrap();
    d.replace_grant(0, 7).unwrap();
    assert_eq!((d.pte(3, 0), d.pte(3, 7)), (granted(1, RO), Pte(0)));
    d.audit();
    d.map_grant(at(8), granted(0, RW)).unwrap();
    d.replace_grant(8, 9).unwrap();
    assert_eq!(d.pte(3, 8), Pte(0));
    d.audit();
}

#[test]
fn an_entry_that_changes_meanwhile_costs_nothing() {
    let mut d = domain();
    d.memory.replace_before_exchange.set(Some(0));
    assert_eq!(d.map_grant(at(0), granted(0, RW)), Err(Errno::EBUSY));
    assert_eq!(d.paging.frames.foreign.named().count(), 0);
    d.poke(3, 0, maps(4, RW));
    d.audit();
    // The processor's own bits don't count as a change.
    d.memory.touch_before_exchange.set(1);
    d.map_grant(at(0), granted(0, RW)).unwrap();
    d.memory.touch_before_exchange.set(1);
    d.unmap_grant(at(0), 0, true).unwrap();
    d.audit();
}

#[test]
fn a_dying_domain_lets_go_of_foreign_frames() {
    let mut d = domain();
    d.map_grant(at(5), granted(0, RW)).unwrap();
    while !d.paging.relinquish_step(&d.memory, 7) {}
    assert_eq!(d.paging.frames.foreign.named().count(), 0);
    assert_eq!(d.map_grant(at(5), granted(0, RW)), Err(Errno::EINVAL));
}

#[test]
fn foreign_frames_have_numbers_of_their_own() {
    let mut d = Domain::new(4);
    for taken in [Mfn(BASE), Mfn(BASE + 3), SHARED, Mfn(u64::MAX)] {
        assert_eq!(d.paging.add_foreign_frames(taken, 4), Err(Errno::EINVAL));
    }
    d.paging.add_foreign_frames(Mfn(FIRST), 4).unwrap();
    let again = d.paging.add_foreign_frames(Mfn(FIRST), 4);
    assert_eq!(again, Err(Errno::EINVAL));
}
