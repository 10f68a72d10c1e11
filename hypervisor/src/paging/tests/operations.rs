//! The operations that are not about one entry.

use super::*;

#[test]
fn mmu_update_writes_plain_data_raw() {
    let mut d = Domain::with_tree(8);
    d.update(4, 3, Pte(u64::MAX)).unwrap(); // mapped writable
    d.update(6, 3, Pte(u64::MAX)).unwrap(); // not used at all
    assert_eq!(d.pte(4, 3), Pte(u64::MAX));
    assert_eq!(d.frame_type(6), (FrameType::Writable, 0));
    d.audit();
    d.paging.set_gdt(&d.memory, V0, &[mfn(7)], 512).unwrap();
    d.refuses(Errno::EINVAL, |d| d.update(7, 3, Pte(0)));
}

#[test]
fn mmu_update_wants_an_aligned_address_in_ram() {
    let mut d = Domain::with_tree(8);
    for at in [
        entry(8, 0),
        MachineAddr(0x10_000),
        MachineAddr(u64::MAX - 7),
        MachineAddr(entry(3, 0).0 + 4),
    ] {
        d.refuses(Errno::EINVAL, |d| {
            d.paging
                .mmu_update(&d.memory, at, Pte(0), UpdateMode::Normal)
        });
    }
}

#[test]
fn update_va_mapping_finds_the_l1() {
    let mut d = Domain::with_tree(8);
    d.paging
        .update_va_mapping(&d.memory, mfn(0), va(5), maps(6, RW))
        .unwrap();
    assert_eq!(d.pte(3, 5), maps(6, RW));
    d.audit();
    for bad in [
        1 << 21,
        1 << 30,
        1 << 39,
        0xffff_8000_0000_0000,
        0x8000_0000_0000,
    ] {
        d.refuses(Errno::EINVAL, |d| {
            d.paging
                .update_va_mapping(&d.memory, mfn(0), GuestVirt(bad), maps(6, RW))
        });
    }
    d.refuses(Errno::EINVAL, |d| {
        d.paging
            .update_va_mapping(&d.memory, Mfn(0), va(5), maps(6, RW))
    });
}

#[test]
fn base_pointers_hold_their_tables() {
    let mut d = Domain::with_tree(8);
    d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
    d.unpin(0).unwrap();
    assert_eq!(d.frame_type(0), (FrameType::L4, 1));
    d.audit();
    // Another root, unpinned: validated now, and the old tree is gone.
    d.paging.new_baseptr(&d.memory, V0, mfn(5)).unwrap();
    assert_eq!(d.frame_type(0).1, 0);
    assert_eq!(d.frame_type(3).1, 0);
    d.paging.new_user_baseptr(&d.memory, V0, mfn(5)).unwrap();
    assert_eq!(d.frame_type(5), (FrameType::L4, 2));
    d.audit();
    let roots = d.paging.roots(V0).unwrap();
    assert_eq!((roots.kernel, roots.user), (Some(mfn(5)), Some(mfn(5))));
    d.paging.new_user_baseptr(&d.memory, V0, Mfn(0)).unwrap();
    assert_eq!(d.paging.roots(V0).unwrap().user, None);
    d.refuses(Errno::EINVAL, |d| {
        d.paging.new_baseptr(&d.memory, V0, Mfn(0))
    });
    d.refuses(Errno::ENOENT, |d| {
        d.paging.new_baseptr(&d.memory, VcpuId(2), mfn(5))
    });
    d.paging.release_vcpu(&d.memory, V0).unwrap();
    assert_eq!(d.frame_type(5).1, 0);
    d.audit();
}

#[test]
fn a_bad_root_leaves_the_old_one() {
    let mut d = Domain::with_tree(8);
    d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
    d.poke(5, 511, maps(3, RW));
    d.refuses(Errno::EINVAL, |d| {
        d.paging.new_baseptr(&d.memory, V0, mfn(5))
    });
    d.refuses(Errno::EINVAL, |d| {
        d.paging.new_user_baseptr(&d.memory, V0, mfn(4))
    });
    assert_eq!(d.paging.roots(V0).unwrap().kernel, Some(mfn(0)));
}

#[test]
fn superpages_are_not_offered() {
    let mut d = Domain::new(1);
    d.refuses(Errno::EOPNOTSUPP, |d| d.paging.mark_super());
}

#[test]
fn translate_follows_the_tables() {
    let d = Domain::with_tree(8);
    let t = d
        .paging
        .translate(&d.memory, mfn(0), GuestVirt(0x123))
        .unwrap();
    assert_eq!((t.mfn, t.offset), (mfn(4), 0x123));
    assert!(t.writable && t.user && !t.nx);
    assert_eq!((t.slot.table, t.slot.index), (mfn(3), 0));
    let t = d.paging.translate(&d.memory, mfn(0), va(1)).unwrap();
    assert!(!t.writable);
    assert!(d.paging.translate(&d.memory, mfn(0), va(2)).is_none());
}

#[test]
fn translate_combines_the_rights_of_all_levels() {
    let mut d = Domain::with_tree(8);
    d.update(1, 0, maps(2, RO | Pte::NX)).unwrap();
    let t = d.paging.translate(&d.memory, mfn(0), va(0)).unwrap();
    assert!(!t.writable && t.nx && t.pte.is_writable());
    d.audit();
}

#[test]
fn translate_survives_any_table() {
    let d = Domain::with_tree(8);
    let everywhere = [
        Pte(u64::MAX),
        Pte(0x83),
        Pte::new(Mfn(0), RW),
        Pte::new(mfn(8), RW),
        Pte::new(Mfn(0x12), RW),
        Pte::new(SHARED, RW),
    ];
    for table in 0..3 {
        let large = Pte(d.pte(table, 0).0 | Pte::PSE_OR_PAT);
        let good = d.pte(table, 0);
        d.poke(table, 0, large);
        assert!(d.paging.translate(&d.memory, mfn(0), va(0)).is_none());
        d.poke(table, 0, good);
    }
    for table in 0..4 {
        for pte in everywhere {
            let good = d.pte(table, 0);
            d.poke(table, 0, pte);
            let found = d.paging.translate(&d.memory, mfn(0), va(0));
            assert_eq!(
                found.map(|t| t.mfn),
                (table == 3 && pte.mfn() == SHARED).then_some(SHARED)
            );
            d.poke(table, 0, good);
        }
    }
    d.poke(0, 0, maps(0, RW)); // every level is the root
    assert!(d.paging.translate(&d.memory, mfn(0), va(0)).is_some());
    assert!(
        d.paging
            .translate(&d.memory, Mfn(u64::MAX), va(0))
            .is_none()
    );
}

#[test]
fn translate_refuses_the_hypervisors_range() {
    let d = Domain::with_tree(8);
    for index in FIRST_HYPERVISOR_SLOT..=LAST_HYPERVISOR_SLOT {
        d.poke(0, index, maps(1, RW));
    }
    for at in [
        0xffff_8000_0000_0000,
        0xffff_87ff_ffff_ffff,
        0xffff_8080_0000_0000,
    ] {
        assert!(
            d.paging
                .translate(&d.memory, mfn(0), GuestVirt(at))
                .is_none()
        );
    }
    d.poke(0, 272, maps(1, RW));
    let above = GuestVirt(0xffff_8800_0000_0000);
    assert!(d.paging.translate(&d.memory, mfn(0), above).is_some());
    let not_canonical = GuestVirt(0x0001_0000_0000_0000);
    assert!(
        d.paging
            .translate(&d.memory, mfn(0), not_canonical)
            .is_none()
    );
}

fn ptwr(d: &mut Domain, at: u64, bytes: usize, write: PtWrite) -> Result<PtWriteOutcome, Errno> {
    d.paging
        .emulate_pt_write(&d.memory, mfn(0), GuestVirt(at), bytes, write)
}

/// L1 slot 1 maps the L1 itself, so its entries are at 0x1000.
#[test]
fn a_guests_own_write_to_its_l1_is_done_for_it() {
    let mut d = Domain::with_tree(8);
    let write = PtWrite::Write {
        value: maps(5, Pte::PRESENT | Pte::RW).0,
    };
    assert_eq!(ptwr(&mut d, 0x1000, 8, write), Ok(PtWriteOutcome::Written));
    assert_eq!(d.pte(3, 0), maps(5, RW));
    d.audit();
    let clear = PtWrite::CompareExchange {
        old: maps(5, RW).0,
        new: 0,
    };
    assert_eq!(ptwr(&mut d, 0x1000, 8, clear), Ok(PtWriteOutcome::Written));
    assert_eq!(
        ptwr(&mut d, 0x1000, 8, clear),
        Ok(PtWriteOutcome::Differs(0))
    );
    d.audit();
}

#[test]
fn a_part_of_an_entry_can_be_written() {
    let mut d = Domain::with_tree(8);
    let low = maps(4, RW).0 & 0xff;
    let read_only = PtWrite::CompareExchange {
        old: low,
        new: low & !Pte::RW,
    };
    assert_eq!(
        ptwr(&mut d, 0x1000, 1, read_only),
        Ok(PtWriteOutcome::Written)
    );
    assert_eq!(d.pte(3, 0), maps(4, RO));
    assert_eq!(
        ptwr(&mut d, 0x1000, 1, read_only),
        Ok(PtWriteOutcome::Differs(low & !Pte::RW))
    );
    d.audit();
    let nx = PtWrite::Write { value: 0x8000 };
    assert_eq!(ptwr(&mut d, 0x1006, 2, nx), Ok(PtWriteOutcome::Written));
    assert_eq!(d.pte(3, 0), maps(4, RO | Pte::NX));
    d.audit();
}

#[test]
fn an_emulated_write_obeys_the_rules() {
    let mut d = Domain::with_tree(8);
    let own_table = PtWrite::Write {
        value: maps(3, RW).0,
    };
    d.refuses(Errno::EBUSY, |d| ptwr(d, 0x1000, 8, own_table));
    let large = PtWrite::Write {
        value: maps(4, RW | Pte::PSE_OR_PAT).0,
    };
    d.refuses(Errno::EINVAL, |d| ptwr(d, 0x1000, 8, large));
    d.refuses(Errno::EINVAL, |d| ptwr(d, 0x1001, 8, own_table));
    d.refuses(Errno::EINVAL, |d| ptwr(d, 0x1000, 3, own_table));
    d.refuses(Errno::EINVAL, |d| ptwr(d, 0x1000, 16, own_table));
}

#[test]
fn only_read_only_mappings_of_l1_tables_are_emulated() {
    let mut d = Domain::with_tree(8);
    d.update(3, 2, maps(2, RO)).unwrap();
    d.update(3, 5, maps(5, RO)).unwrap();
    let write = PtWrite::Write { value: 0 };
    for at in [0x0, 0x2000, 0x5000, 0x7000, 0xffff_8000_0000_0000] {
        let outcome = ptwr(&mut d, at, 8, write);
        assert_eq!(outcome, Ok(PtWriteOutcome::NotATable), "{at:#x}");
    }
}

#[test]
fn an_emulated_write_survives_the_processors_bits() {
    let mut d = Domain::with_tree(8);
    d.memory.touch_before_exchange.set(3);
    let write = PtWrite::Write { value: 0 };
    assert_eq!(ptwr(&mut d, 0x1000, 8, write), Ok(PtWriteOutcome::Written));
    d.audit();
    d.update(3, 0, maps(4, RW)).unwrap();
    d.memory.touch_before_exchange.set(1);
    let exchange = PtWrite::CompareExchange {
        old: maps(4, RW).0,
        new: 0,
    };
    let touched = maps(4, RW | Pte::DIRTY).0;
    assert_eq!(
        ptwr(&mut d, 0x1000, 8, exchange),
        Ok(PtWriteOutcome::Differs(touched))
    );
    d.audit();
}

#[test]
fn frames_are_given_and_taken_back() {
    let mut p = Paging::new(Mfn(BASE), 8, 1).unwrap();
    assert_eq!(p.allocate(0), Ok(mfn(0)));
    assert_eq!(p.allocate(1), Ok(mfn(2)), "aligned");
    assert_eq!(p.allocate(0), Ok(mfn(1)), "the one skipped");
    assert_eq!(p.allocate(2), Ok(mfn(4)));
    assert_eq!((p.owned_frames(), p.free_frames()), (8, 0));
    assert_eq!(p.allocate(0), Err(Errno::ENOMEM));
    assert_eq!(p.release(mfn(5)), Ok(Released::Freed));
    assert_eq!(p.release(mfn(5)), Err(Errno::EINVAL));
    assert_eq!(p.release(mfn(8)), Err(Errno::EINVAL));
    assert_eq!(p.allocate(1), Err(Errno::ENOMEM));
    assert_eq!(p.allocate(0), Ok(mfn(5)));
    assert_eq!(p.allocate(10), Err(Errno::ENOMEM));
    assert_eq!(p.allocate(64), Err(Errno::ENOMEM));
}

#[test]
fn a_frame_in_use_is_freed_with_its_last_reference() {
    let mut d = Domain::with_tree(8);
    assert_eq!(d.paging.release(mfn(4)), Ok(Released::Deferred));
    assert_eq!(d.paging.owned_frames(), 8);
    d.audit();
    d.update(3, 0, Pte(0)).unwrap();
    assert!(!d.paging.owns(mfn(4)));
    assert_eq!(d.paging.owned_frames(), 7);
    d.audit();
    d.refuses(Errno::EBUSY, |d| d.update(3, 0, maps(4, RO)));
    d.refuses(Errno::EINVAL, |d| d.paging.get_frame_ref(mfn(4)));
    d.refuses(Errno::EINVAL, |d| d.pin(Level::L1, 4));
    d.refuses(Errno::EINVAL, |d| d.paging.check_machphys(mfn(4)));
    d.refuses(Errno::EINVAL, |d| d.update(4, 0, Pte(0)));
}

#[test]
fn machphys_entries_are_set_for_own_frames_only() {
    let mut d = Domain::new(2);
    d.paging.check_machphys(mfn(1)).unwrap();
    for bad in [mfn(2), Mfn(0), SHARED, Mfn(u64::MAX)] {
        d.refuses(Errno::EINVAL, |d| d.paging.check_machphys(bad));
    }
}

#[test]
fn a_domain_has_a_sane_size() {
    for (base, frames) in [(BASE, 0), (BASE, MAX_FRAMES + 1), (u64::MAX, 1)] {
        assert!(Paging::new(Mfn(base), frames, 1).is_err());
    }
}

#[test]
fn relinquish_returns_everything_whatever_the_budget() {
    for budget in [1, 7, 100_000] {
        let mut d = Domain::with_tree(12);
        d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
        d.paging.set_gdt(&d.memory, V0, &[mfn(9)], 10).unwrap();
        d.update(3, 9, Pte::new(SHARED, RW)).unwrap();
        d.paging.release(mfn(2)).unwrap();
        d.paging.get_writable(&d.memory, mfn(10)).unwrap();
        d.paging.get_frame_ref(mfn(4)).unwrap();
        let mut steps = 0;
        while !d.paging.relinquish_step(&d.memory, budget) {
            steps += 1;
            assert!(steps < 10_000, "it ends");
            assert!(d.pin(Level::L1, 11).is_err());
            assert!(d.paging.allocate(0).is_err());
            assert!(d.paging.get_frame_ref(mfn(11)).is_err());
        }
        assert_eq!(d.paging.owned_frames(), 2, "granted to others");
        d.paging.put_writable(&d.memory, mfn(10));
        d.paging.put_frame_ref(mfn(4));
        assert_eq!(d.paging.owned_frames(), 0);
        assert_eq!(d.paging.frames.low[0x10].mappings(), 0);
        for frame in 0..12 {
            assert_eq!(d.frame_type(frame).1, 0);
        }
    }
}

#[test]
fn a_grant_may_end_while_the_domain_is_taken_apart() {
    let mut d = Domain::with_tree(8);
    d.paging.get_frame_ref(mfn(3)).unwrap();
    d.paging.relinquish_step(&d.memory, 40);
    d.paging.put_frame_ref(mfn(3));
    while !d.paging.relinquish_step(&d.memory, 64) {}
    assert_eq!(d.paging.owned_frames(), 0);
}
