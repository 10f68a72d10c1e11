//! Ways in which direct paging has gone wrong before, by the number of the
//! Xen Security Advisory.

use super::*;

/// The fast path for harmless changes must not let PSE or RW through.
#[test]
fn xsa_148_l2_pse_and_rw() {
    let mut d = Domain::with_tree(8);
    let l2e = d.pte(2, 0);
    d.refuses(Errno::EINVAL, |d| {
        d.update(2, 0, Pte(l2e.0 | Pte::PSE_OR_PAT))
    });
    d.refuses(Errno::EINVAL, |d| {
        d.update(2, 0, Pte((l2e.0 | Pte::PSE_OR_PAT) ^ Pte::RW))
    });
    d.update(2, 0, Pte(l2e.0 & !Pte::RW)).unwrap();
    d.audit();
    d.update(2, 0, l2e).unwrap();
    d.audit();
}

/// Each bit of an L1 entry, flipped in place: only harmless ones pass without
/// the frame's counts changing.
#[test]
fn xsa_148_only_listed_bits_change_without_revalidation() {
    for bit in 0..64 {
        let mut d = Domain::with_tree(8);
        let flipped = Pte(d.pte(3, 0).0 ^ (1 << bit));
        let outcome = d.update(3, 0, flipped);
        d.audit();
        let harmless = matches!(bit, 2 | 5 | 6 | 8 | 9..=11 | 52..=63);
        let changes_counts = matches!(bit, 0 | 1) || outcome.is_ok() && !harmless;
        assert_eq!(
            outcome.is_ok(),
            harmless || changes_counts,
            "bit {bit}: {outcome:?}"
        );
        let still = (FrameType::Writable, 1);
        if harmless {
            assert_eq!(d.frame_type(4), still);
        }
    }
}

/// An entry that maps a table read-only never becomes writable, by any path.
#[test]
fn xsa_182_no_path_makes_a_table_writable() {
    let mut d = Domain::with_tree(8);
    for table in 0..4 {
        d.update(3, 1, maps(table, RO)).unwrap();
        d.refuses(Errno::EBUSY, |d| d.update(3, 1, maps(table, RW)));
        d.refuses(Errno::EBUSY, |d| {
            let at = entry(3, 1);
            d.paging
                .mmu_update(&d.memory, at, maps(table, RW), UpdateMode::PreserveAd)
        });
        d.refuses(Errno::EBUSY, |d| {
            d.paging
                .update_va_mapping(&d.memory, mfn(0), va(1), maps(table, RW))
        });
    }
    d.update(3, 1, maps(3, RO)).unwrap();
    for write in [
        PtWrite::Write {
            value: maps(0, RW).0,
        },
        PtWrite::CompareExchange {
            old: maps(3, RO).0,
            new: maps(3, RW).0,
        },
    ] {
        d.refuses(Errno::EBUSY, |d| {
            d.paging
                .emulate_pt_write(&d.memory, mfn(0), GuestVirt(0x1008), 8, write)
        });
    }
    d.refuses(Errno::EINVAL, |d| d.paging.get_writable(&d.memory, mfn(3)));
}

/// Entries that refer to their own level are refused at all levels, whether
/// by update or at the pin, read-only or not.
#[test]
fn xsa_185_no_self_reference() {
    for (table, level) in [(0, Level::L4), (1, Level::L3), (2, Level::L2)] {
        for flags in [RO, RW] {
            let mut d = Domain::with_tree(8);
            d.refuses(Errno::EINVAL, |d| d.update(table, 5, maps(table, flags)));
            d.poke(6, 5, maps(6, flags));
            d.refuses(Errno::EINVAL, |d| d.pin(level, 6));
        }
    }
}

/// Chains of tables of one level: each link refused, so no recursion follows.
#[test]
fn xsa_240_no_chains_of_one_level() {
    for level in [Level::L2, Level::L3, Level::L4] {
        let mut d = Domain::new(64);
        d.pin(level, 63).unwrap();
        for frame in (0..63).rev() {
            d.poke(frame, 0, maps(frame + 1, RO));
            d.refuses(Errno::EINVAL, |d| d.pin(level, frame));
            d.poke(frame, 0, Pte(0));
            d.pin(level, frame).unwrap();
            d.refuses(Errno::EINVAL, |d| d.update(frame, 0, maps(frame + 1, RO)));
        }
    }
}

/// A loop through several levels ends where the type contradicts.
#[test]
fn xsa_240_no_loops() {
    let mut d = Domain::new(8);
    for table in 0..4 {
        d.poke(table, 0, maps((table + 1) % 4, RO));
    }
    d.poke(3, 1, maps(3, RW));
    d.refuses(Errno::EBUSY, |d| d.pin(Level::L4, 0));
    d.poke(3, 1, Pte(0));
    d.pin(Level::L4, 0).unwrap(); // the L1 maps the L4 read-only: no loop
    d.audit();
    d.unpin(0).unwrap();
    d.audit();
}

/// Validation that stops at each possible entry leaves no count behind.
#[test]
fn xsa_299_stopping_at_each_entry_leaves_the_counts() {
    let mut d = Domain::new(16);
    for index in 0..ENTRIES {
        d.poke(3, index, maps(4 + (index as u64 % 8), [RO, RW][index % 2]));
        d.poke(2, index, maps(3, RW));
        d.poke(1, index, maps(2, RW));
    }
    for stop in (0..ENTRIES).step_by(37).chain([511]) {
        for table in 1..4 {
            let good = d.pte(table, stop);
            d.poke(table, stop, Pte::new(mfn(99), RW));
            assert!(d.pin(Level::L3, 1).is_err());
            d.audit();
            d.poke(table, stop, good);
        }
    }
    d.pin(Level::L3, 1).unwrap();
    d.audit();
}

/// Validation that loses a race at each possible entry, too.
#[test]
fn xsa_299_losing_a_race_leaves_the_counts() {
    let mut d = Domain::new(8);
    for index in [0, 77, 511] {
        d.poke(1, index, maps(4, Pte::PRESENT | Pte::RW)); // to be adjusted
        d.poke(0, 9, maps(1, RW));
        d.memory.replace_before_exchange.set(Some(0x42));
        d.refuses(Errno::EBUSY, |d| d.pin(Level::L2, 0));
        d.poke(1, index, Pte(0));
    }
}

/// An update of an upper level that fails after its tree was validated lets
/// the tree go again.
#[test]
fn xsa_309_310_failed_update_releases_the_new_tree() {
    let mut d = Domain::with_tree(12);
    d.poke(6, 0, maps(7, RW));
    d.poke(7, 0, maps(8, RW));
    let before = d.pte(1, 5);
    d.memory.replace_before_exchange.set(Some(0x42));
    assert_eq!(d.update(1, 5, maps(6, RW)), Err(Errno::EBUSY));
    d.poke(1, 5, before);
    for frame in 6..9 {
        assert_eq!(d.frame_type(frame).1, 0);
    }
    d.audit();
}

/// The type is taken, then flushed, then validated; the memory of these tests
/// panics when a frame is validated that a vCPU might still write.
#[test]
fn xsa_401_flush_between_type_and_validation() {
    let mut d = Domain::with_tree(8);
    d.memory.cached_writable.borrow_mut().insert(mfn(4).0);
    d.update(3, 0, Pte(0)).unwrap();
    d.pin(Level::L1, 4).unwrap();
    assert_eq!(d.memory.flushes.get(), 1);
    d.audit();
}

/// A frame that was freed and allocated anew in between is no exception.
#[test]
fn xsa_401_also_after_the_frame_was_freed() {
    let mut d = Domain::with_tree(8);
    d.memory.cached_writable.borrow_mut().insert(mfn(4).0);
    d.update(3, 0, Pte(0)).unwrap();
    assert_eq!(d.paging.release(mfn(4)), Ok(Released::Freed));
    assert_eq!(d.paging.allocate(0), Ok(mfn(4)));
    d.pin(Level::L1, 4).unwrap();
    assert_eq!(d.memory.flushes.get(), 1);
}

/// A walk through a former table is as bad as a write to a later one.
#[test]
fn xsa_286_a_former_table_is_flushed_before_it_is_writable() {
    let mut d = Domain::with_tree(8);
    d.memory.cached_tables.borrow_mut().insert(mfn(3).0);
    d.update(2, 0, Pte(0)).unwrap();
    d.paging.get_writable(&d.memory, mfn(3)).unwrap();
    assert!(d.memory.cached_tables.borrow().is_empty());
}

/// Translation is done anew each time: a change above shows at once.
#[test]
fn xsa_286_no_cached_walk_survives_a_structural_change() {
    let mut d = Domain::with_tree(8);
    assert!(d.paging.translate(&d.memory, mfn(0), va(0)).is_some());
    d.update(0, 0, Pte(0)).unwrap();
    assert!(d.paging.translate(&d.memory, mfn(0), va(0)).is_none());
    let outcome = d
        .paging
        .update_va_mapping(&d.memory, mfn(0), va(0), maps(5, RW));
    assert_eq!(outcome, Err(Errno::EINVAL));
}

/// A domain killed halfway through its own teardown, or with a tree half
/// built, leaks nothing.
#[test]
fn xsa_45_58_264_teardown_in_steps_of_one() {
    let mut d = Domain::with_tree(8);
    d.pin(Level::L2, 2).unwrap();
    let mut steps = 0;
    while !d.paging.relinquish_step(&d.memory, 1) {
        steps += 1;
    }
    assert!(steps <= 3 + 3 + 8 + 4 * 513 + 9, "bounded: {steps}");
    assert_eq!(d.paging.owned_frames(), 0);
}

/// Every operation that takes something is refused in a dying domain.
#[test]
fn xsa_158_159_operations_on_a_dying_domain() {
    let mut d = Domain::with_tree(8);
    d.paging.relinquish_step(&d.memory, 1);
    let (p, m) = (&mut d.paging, &d.memory);
    let write = PtWrite::Write { value: 0 };
    let outcomes = [
        p.mmu_update(m, entry(3, 0), Pte(0), UpdateMode::Normal),
        p.update_va_mapping(m, mfn(0), va(0), Pte(0)),
        p.pin_table(m, Level::L1, mfn(5)),
        p.unpin_table(m, mfn(0)),
        p.new_baseptr(m, V0, mfn(0)),
        p.new_user_baseptr(m, V0, mfn(0)),
        p.set_gdt(m, V0, &[], 0),
        p.set_ldt(m, V0, va(0), 0),
        p.update_descriptor(m, entry(5, 0), 0),
        p.get_frame_ref(mfn(5)),
        p.get_writable(m, mfn(5)),
        p.check_machphys(mfn(5)),
        p.allocate(0).map(|_| ()),
        p.release(mfn(5)).map(|_| ()),
        p.ldt_frame(m, V0, 0).map(|_| ()),
        p.emulate_pt_write(m, mfn(0), GuestVirt(0x1000), 8, write)
            .map(|_| ()),
    ];
    assert_eq!(outcomes, [Err(Errno::EINVAL); 16]);
}

/// An extent's order is limited, and a shift by it can't overflow.
#[test]
fn xsa_31_order_is_limited() {
    let mut p = Paging::new(Mfn(BASE), 4096, 1).unwrap();
    for order in [10, 31, 32, 63, 64, u32::MAX] {
        assert_eq!(p.allocate(order), Err(Errno::ENOMEM));
    }
    assert!(p.allocate(9).is_ok());
}

/// A frame that changes hands carries no type over.
#[test]
fn xsa_214_a_freed_frame_has_no_type() {
    let mut d = Domain::with_tree(8);
    d.update(3, 0, Pte(0)).unwrap();
    d.paging.release(mfn(4)).unwrap();
    assert_eq!(d.frame_type(4), (FrameType::None, 0));
    assert_eq!(d.paging.allocate(0), Ok(mfn(4)));
    assert_eq!(d.frame_type(4), (FrameType::None, 0));
    d.audit();
}

/// Counts stop at their limit instead of wrapping.
#[test]
fn xsa_242_287_counts_do_not_wrap() {
    let mut d = Domain::with_tree(8);
    let index = d.paging.frames.index(mfn(5)).unwrap();
    let frame = d.paging.frames.at(index);
    let full = frame.with_refs(frame::Frame::MAX_REFS);
    d.paging.frames.set(index, full);
    assert_eq!(d.paging.get_frame_ref(mfn(5)), Err(Errno::EINVAL));
    assert_eq!(d.update(3, 9, maps(5, RO)), Err(Errno::EINVAL));
    assert_eq!(d.paging.frames.at(index), full);
    d.paging.frames.set(index, frame);
    d.paging.get_writable(&d.memory, mfn(5)).unwrap();
    let typed = d.paging.frames.at(index);
    let full = typed.with_type_count(frame::Frame::MAX_TYPE_COUNT);
    d.paging.frames.set(index, full);
    assert_eq!(d.update(3, 9, maps(5, RW)), Err(Errno::EINVAL));
    assert_eq!(d.paging.frames.at(index), full);
    d.paging.frames.set(index, typed);
    d.held.push(HeldRef::Writable(mfn(5)));
    d.audit();
}

/// Giving a frame back does not unpin it, and drops only what was taken.
#[test]
fn xsa_252_291_release_drops_only_the_allocated_reference() {
    let mut d = Domain::with_tree(8);
    for frame in 0..4 {
        assert_eq!(d.paging.release(mfn(frame)), Ok(Released::Deferred));
        d.refuses(Errno::EINVAL, |d| d.paging.release(mfn(frame)));
    }
    assert_eq!(d.frame_type(0), (FrameType::L4, 1));
    d.audit();
    d.unpin(0).unwrap();
    assert_eq!(d.paging.owned_frames(), 4);
    d.audit();
}

/// A frame that is traded must be nobody's: not mapped, not a table, not given
/// back before.
#[test]
fn xsa_214_287_only_an_unused_frame_changes_hands() {
    let mut d = Domain::with_tree(8);
    for frame in 0..4 {
        d.refuses(Errno::EBUSY, |d| d.paging.release_unused(mfn(frame)));
    }
    let owned = d.paging.owned_frames();
    d.update(3, 6, maps(5, RO)).unwrap();
    d.refuses(Errno::EBUSY, |d| d.paging.release_unused(mfn(5)));
    d.update(3, 6, Pte(0)).unwrap();
    d.paging.release_unused(mfn(5)).unwrap();
    d.refuses(Errno::EINVAL, |d| d.paging.release_unused(mfn(5)));
    assert_eq!(d.paging.owned_frames(), owned - 1);
    assert_eq!(d.paging.allocate(0), Ok(mfn(5)), "last in, first out");
    d.audit();
}

/// Every selector is checked against the current limits, empty tables
/// included.
#[test]
fn xsa_298_selectors_are_checked_against_the_limits() {
    let mut d = Domain::with_tree(8);
    d.poke(5, 3, Pte(0x00cf_f300_0000_ffff));
    for selector in [0, 4, 8, 12, 0x1b, 0x1f, u16::MAX] {
        assert_eq!(d.paging.read_descriptor(&d.memory, V0, selector), None);
    }
    d.paging.set_gdt(&d.memory, V0, &[mfn(5)], 4).unwrap();
    let read = |d: &mut Domain, s| d.paging.read_descriptor(&d.memory, V0, s);
    assert_eq!(read(&mut d, 0x1b), Some(0x00cf_f300_0000_ffff));
    assert_eq!(read(&mut d, 0x03), None, "null");
    assert_eq!(read(&mut d, 0x23), None, "beyond the limit");
    assert_eq!(read(&mut d, 0xe033), None, "the hypervisor's");
    assert_eq!(read(&mut d, 0x1f), None, "no LDT");
    d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
    d.update(3, 6, maps(5, RO)).unwrap();
    d.paging.set_ldt(&d.memory, V0, va(6), 4).unwrap();
    assert_eq!(read(&mut d, 0x1f), Some(0x00cf_f300_0000_ffff));
    assert_eq!(read(&mut d, 0x27), None);
    d.paging.set_ldt(&d.memory, V0, va(6), 0).unwrap();
    assert_eq!(read(&mut d, 0x1f), None);
    assert_eq!(read(&mut d, 0x07), None);
    d.audit();
}

/// Memory is mapped write-back by everybody.
#[test]
fn xsa_402_cache_attributes() {
    let mut d = Domain::with_tree(8);
    for flags in [Pte::PWT, Pte::PCD, Pte::PCD | Pte::PWT, Pte::PSE_OR_PAT] {
        d.refuses(Errno::EINVAL, |d| d.update(3, 0, maps(4, RW | flags)));
        d.refuses(Errno::EINVAL, |d| {
            d.update(3, 9, Pte::new(SHARED, RW | flags))
        });
    }
}
