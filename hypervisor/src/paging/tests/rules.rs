//! One test a rule: what an entry may hold, and what types do to each other.

use super::*;

#[test]
fn a_pinned_tree_has_types_all_the_way_down() {
    let d = Domain::with_tree(8);
    assert_eq!(d.frame_type(0), (FrameType::L4, 1));
    assert_eq!(d.frame_type(1), (FrameType::L3, 1));
    assert_eq!(d.frame_type(2), (FrameType::L2, 1));
    assert_eq!(d.frame_type(3), (FrameType::L1, 1));
    assert_eq!(d.frame_type(4), (FrameType::Writable, 1));
    d.audit();
}

#[test]
fn unpinning_drops_the_types_recursively() {
    let mut d = Domain::with_tree(8);
    d.unpin(0).unwrap();
    for frame in 0..5 {
        assert_eq!(d.frame_type(frame).1, 0, "frame {frame}");
    }
    d.audit();
    // A recycled L2 is data, then a table of another level.
    d.paging.get_writable(&d.memory, mfn(2)).unwrap();
    d.paging.put_writable(&d.memory, mfn(2));
    d.poke(2, 0, Pte(0));
    d.pin(Level::L1, 2).unwrap();
    d.audit();
}

#[test]
fn unpinning_keeps_what_somebody_else_uses() {
    let mut d = Domain::with_tree(8);
    d.pin(Level::L2, 2).unwrap();
    d.unpin(0).unwrap();
    assert_eq!(d.frame_type(1).1, 0);
    assert_eq!(d.frame_type(2), (FrameType::L2, 1));
    assert_eq!(d.frame_type(3), (FrameType::L1, 1));
    d.audit();
}

#[test]
fn user_bit_is_forced_and_global_bit_cleared_at_the_pin_and_at_updates() {
    let mut d = Domain::new(8);
    d.poke(
        0,
        7,
        maps(1, Pte::PRESENT | Pte::RW | Pte::GLOBAL | Pte::NX),
    );
    d.poke(0, 8, Pte(0xdead_0000)); // not present: a guest's swap entry
    d.pin(Level::L1, 0).unwrap();
    assert_eq!(d.pte(0, 7), maps(1, RW | Pte::NX));
    assert_eq!(d.pte(0, 8), Pte(0xdead_0000));
    d.update(0, 9, maps(1, Pte::PRESENT | Pte::GLOBAL)).unwrap();
    assert_eq!(d.pte(0, 9), maps(1, RO));
    d.poke(2, 0, maps(0, Pte::PRESENT));
    d.pin(Level::L2, 2).unwrap();
    assert_eq!(d.pte(2, 0), maps(0, RO));
    d.audit();
}

#[test]
fn software_bits_are_the_guests() {
    let mut d = Domain::with_tree(8);
    let pte = maps(5, RW | Pte::AVAILABLE | Pte::NX | Pte::ACCESSED_DIRTY);
    d.update(3, 9, pte).unwrap();
    assert_eq!(d.pte(3, 9), pte);
    d.audit();
}

#[test]
fn cache_attributes_and_large_pages_are_refused_at_every_level() {
    let mut d = Domain::with_tree(8);
    for flag in [Pte::PWT, Pte::PCD, Pte::PSE_OR_PAT] {
        for table in 0..4 {
            d.refuses(Errno::EINVAL, |d| d.update(table, 9, maps(4, RW | flag)));
            d.refuses(Errno::EINVAL, |d| {
                d.update(table, 0, Pte(d.pte(table, 0).0 | flag))
            });
        }
    }
    for table in 0..3 {
        let global = Pte(d.pte(table, 0).0 | Pte::GLOBAL);
        d.refuses(Errno::EINVAL, |d| d.update(table, 0, global));
    }
}

#[test]
fn a_forbidden_bit_is_refused_at_the_pin() {
    for (level, table) in [
        (Level::L1, 6),
        (Level::L2, 6),
        (Level::L3, 6),
        (Level::L4, 6),
    ] {
        let mut d = Domain::with_tree(8);
        d.poke(table, 511, maps(4, RO | Pte::PCD));
        d.refuses(Errno::EINVAL, |d| d.pin(level, table));
    }
}

#[test]
fn frames_outside_ram_are_refused() {
    let mut d = Domain::with_tree(8);
    for flags in [RO, RW] {
        let beyond = Pte::new(mfn(8), flags);
        d.refuses(Errno::EPERM, |d| d.update(3, 9, beyond));
        let nothing = Pte::new(Mfn::INVALID, flags);
        d.refuses(Errno::EINVAL, |d| d.update(3, 9, nothing));
        let private = Pte::new(Mfn(0x12), flags);
        d.refuses(Errno::EBUSY, |d| d.update(3, 9, private));
        let zero = Pte::new(Mfn(0), flags);
        d.refuses(Errno::EBUSY, |d| d.update(3, 9, zero));
        for table in 0..3 {
            for foreign in [beyond, private, zero, Pte::new(SHARED, flags)] {
                d.refuses(Errno::EINVAL, |d| d.update(table, 9, foreign));
            }
        }
    }
}

#[test]
fn shared_hypervisor_frames_are_mapped_with_the_rights_that_were_shared() {
    let mut d = Domain::with_tree(8);
    d.update(3, 9, Pte::new(SHARED, RW)).unwrap();
    d.update(3, 10, Pte::new(SHARED, RO)).unwrap();
    d.update(3, 11, Pte::new(SHARED_RO, RO)).unwrap();
    d.audit();
    d.refuses(Errno::EBUSY, |d| d.update(3, 12, Pte::new(SHARED_RO, RW)));
    d.refuses(Errno::EBUSY, |d| d.update(3, 11, Pte::new(SHARED_RO, RW)));
    d.refuses(Errno::EBUSY, |d| {
        d.paging.share_low_frame(SHARED, LowAccess::Private)
    });
    assert_eq!(d.pte(3, 11), Pte::new(SHARED_RO, RO));
    for index in 9..12 {
        d.update(3, index, Pte(0)).unwrap();
    }
    d.paging
        .share_low_frame(SHARED, LowAccess::Private)
        .unwrap();
    d.refuses(Errno::EBUSY, |d| d.update(3, 9, Pte::new(SHARED, RO)));
    d.refuses(Errno::EINVAL, |d| {
        d.paging.share_low_frame(mfn(1), LowAccess::ReadWrite)
    });
    d.refuses(Errno::EINVAL, |d| {
        d.paging.pin_table(&d.memory, Level::L1, SHARED)
    });
    d.refuses(Errno::EINVAL, |d| d.paging.get_writable(&d.memory, SHARED));
}

#[test]
fn a_table_is_mapped_read_only_or_not_at_all() {
    let mut d = Domain::with_tree(8);
    for table in 0..4 {
        d.refuses(Errno::EBUSY, |d| d.update(3, 9, maps(table, RW)));
        d.update(3, 9, maps(table, RO)).unwrap();
        d.refuses(Errno::EBUSY, |d| d.update(3, 9, maps(table, RW)));
        d.audit();
    }
}

#[test]
fn a_writable_frame_becomes_no_table() {
    let mut d = Domain::with_tree(8);
    d.refuses(Errno::EINVAL, |d| d.pin(Level::L1, 4));
    d.refuses(Errno::EINVAL, |d| d.update(2, 9, maps(4, RW)));
    d.update(3, 0, maps(4, RO)).unwrap();
    d.pin(Level::L1, 4).unwrap();
    d.audit();
}

#[test]
fn a_table_is_of_one_level() {
    let mut d = Domain::with_tree(8);
    for (frame, level) in [
        (0, Level::L3),
        (1, Level::L4),
        (2, Level::L1),
        (3, Level::L2),
    ] {
        d.refuses(Errno::EINVAL, |d| d.pin(level, frame));
    }
    d.refuses(Errno::EINVAL, |d| d.update(2, 9, maps(1, RW)));
    d.refuses(Errno::EINVAL, |d| d.update(1, 9, maps(3, RW)));
}

#[test]
fn one_pin_a_frame() {
    let mut d = Domain::with_tree(8);
    d.refuses(Errno::EINVAL, |d| d.pin(Level::L4, 0));
    d.refuses(Errno::EINVAL, |d| d.unpin(1));
    d.unpin(0).unwrap();
    d.refuses(Errno::EINVAL, |d| d.unpin(0));
}

#[test]
fn hypervisor_slots_are_ignored_at_the_pin_and_filled_then() {
    let mut d = Domain::new(8);
    d.poke(0, 256, Pte(u64::MAX));
    d.poke(0, 271, maps(0, RW));
    d.pin(Level::L4, 0).unwrap();
    assert_eq!(*d.memory.slots_installed.borrow(), [mfn(0)]);
    d.audit();
    for index in 256..=271 {
        d.refuses(Errno::EINVAL, |d| d.update(0, index, Pte(0)));
    }
    d.update(0, 255, Pte(2)).unwrap();
    d.update(0, 272, Pte(2)).unwrap();
    d.unpin(0).unwrap();
    d.audit();
}

#[test]
fn an_l4_that_is_in_use_is_not_installed_again() {
    let mut d = Domain::with_tree(8);
    d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
    d.paging.new_user_baseptr(&d.memory, V0, mfn(0)).unwrap();
    assert_eq!(d.memory.slots_installed.borrow().len(), 1);
    d.audit();
}

#[test]
fn failing_at_any_entry_restores_everything() {
    for bad in [0, 1, 255, 511] {
        let mut d = Domain::new(12);
        for index in 0..ENTRIES {
            d.poke(3, index, maps(4, if index % 2 == 0 { RW } else { RO }));
        }
        d.poke(3, bad, Pte::new(mfn(99), RW));
        for table in 0..3 {
            d.poke(table, 200, maps(table + 1, RW));
        }
        d.poke(2, 100, maps(5, RW)); // a good one before it
        d.refuses(Errno::EPERM, |d| d.pin(Level::L4, 0));
        d.poke(3, bad, Pte(0));
        d.pin(Level::L4, 0).unwrap();
        d.audit();
    }
}

#[test]
fn accessed_and_dirty_bits_may_change_under_an_update() {
    let mut d = Domain::with_tree(8);
    d.memory.touch_before_exchange.set(5);
    d.update(3, 0, maps(5, RW)).unwrap();
    assert_eq!(d.frame_type(4).1, 0);
    assert_eq!(d.frame_type(5), (FrameType::Writable, 1));
    d.audit();
    d.memory.touch_before_exchange.set(1000);
    d.refuses(Errno::EBUSY, |d| d.update(3, 0, maps(6, RW)));
    d.memory.touch_before_exchange.set(0);
    d.update(3, 0, maps(6, RW)).unwrap();
    d.audit();
}

#[test]
fn preserve_ad_keeps_what_the_processor_set() {
    let mut d = Domain::with_tree(8);
    let old = d.pte(3, 0);
    d.poke(3, 0, Pte(old.0 | Pte::DIRTY));
    d.memory.touch_before_exchange.set(2);
    let at = entry(3, 0);
    d.paging
        .mmu_update(&d.memory, at, maps(4, RO), UpdateMode::PreserveAd)
        .unwrap();
    assert!(d.pte(3, 0).has(Pte::ACCESSED));
    assert!(!d.pte(3, 0).is_writable());
    d.audit();
}

#[test]
fn an_entry_replaced_behind_our_back_is_reported_busy_and_costs_nothing() {
    let mut d = Domain::with_tree(8);
    let before = d.pte(3, 0);
    d.memory.replace_before_exchange.set(Some(0x1234));
    assert_eq!(d.update(3, 0, maps(5, RW)), Err(Errno::EBUSY));
    assert_eq!(d.frame_type(5).1, 0);
    d.poke(3, 0, before);
    d.audit();
}

#[test]
fn impossible_counts_are_survived() {
    let mut d = Domain::with_tree(8);
    // An attacker replaces entries that hold references by others.
    d.poke(3, 0, maps(6, RW));
    d.poke(2, 0, maps(7, RW));
    d.poke(2, 1, Pte::new(Mfn((1 << 40) - 1), RW));
    d.unpin(0).unwrap();
    assert!(d.paging.translate(&d.memory, mfn(0), va(0)).is_none());
}

#[test]
fn identical_entries_are_not_written_again() {
    let mut d = Domain::with_tree(8);
    let stores = d.memory.stores.get();
    d.update(3, 0, maps(4, RW)).unwrap();
    d.update(3, 9, Pte(0)).unwrap();
    assert_eq!(d.memory.stores.get(), stores);
}

#[test]
fn one_flush_serves_many_frames_and_none_is_needed_for_fresh_ones() {
    let mut d = Domain::with_tree(16);
    assert_eq!(d.memory.flushes.get(), 0, "fresh frames");
    for frame in 8..12u64 {
        let index = usize::try_from(frame).unwrap();
        d.update(3, index, maps(frame, RW)).unwrap();
        d.update(3, index, maps(frame, RO)).unwrap();
    }
    for frame in 8..12 {
        d.pin(Level::L1, frame).unwrap();
    }
    assert_eq!(d.memory.flushes.get(), 1, "to tables");
    for frame in 8..12 {
        d.unpin(frame).unwrap();
    }
    for frame in 8..12u64 {
        let index = usize::try_from(frame).unwrap();
        d.update(3, index, maps(frame, RW)).unwrap();
    }
    assert_eq!(d.memory.flushes.get(), 2, "to data");
    d.update(3, 8, maps(8, RO)).unwrap();
    d.paging.note_full_flush();
    d.pin(Level::L1, 8).unwrap();
    assert_eq!(d.memory.flushes.get(), 2, "flushed for another reason");
}

#[test]
fn a_frame_holds_still_while_it_has_no_use() {
    let mut d = Domain::with_tree(16);
    let holds = |d: &Domain, frame| d.paging.holds_still(mfn(frame));
    d.update(3, 8, maps(8, RO)).unwrap();
    assert!(
        holds(&d, 8) && !holds(&d, 3),
        "a page that is read, and a table"
    );
    d.update(3, 9, maps(8, RW)).unwrap();
    assert_eq!(d.memory.used.borrow().last(), Some(&mfn(8)));
    assert!(!holds(&d, 8));
    d.update(3, 9, maps(8, RO)).unwrap();
    assert!(
        !holds(&d, 8),
        "somebody may still write by an old translation"
    );
    d.paging.note_full_flush();
    assert!(holds(&d, 8));
    assert!(!d.paging.holds_still(SHARED), "it is not the domain's");
}
