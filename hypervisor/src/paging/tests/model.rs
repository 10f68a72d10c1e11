//! Random sequences of operations on a small domain, with all counts
//! recomputed by the slow model after each.
//!
//! The guest of this test is hostile: it fills frames with any entries while
//! they are not tables, uses every operation on every frame, and has a second
//! vCPU that never flushes. Besides the audit, after each step:
//!
//! - a refused operation has changed neither counts nor types, however often
//!   it was interrupted before;
//! - no vCPU can write a table, or walk through a frame that is writable, by a
//!   translation that it may have cached (the memory plays the caches).

use proptest::prelude::*;

use super::*;

const FRAMES: u64 = 14;
/// Three frames of other domains.
const FOREIGN: u64 = 0x9000;
/// Slots that the operations use; the others stay empty.
const SLOTS: [usize; 6] = [0, 1, 255, 256, 272, 511];

#[derive(Debug, Clone)]
enum Op {
    Fill {
        frame: u64,
        slot: usize,
        pte: Pte,
    },
    Descriptor {
        frame: u64,
        slot: usize,
        value: u64,
    },
    Update {
        frame: u64,
        slot: usize,
        pte: Pte,
        preserve: bool,
    },
    UpdateVa {
        root: u64,
        va: u64,
        pte: Pte,
    },
    Emulate {
        root: u64,
        va: u64,
        bytes: usize,
        write: PtWrite,
    },
    Pin {
        level: u8,
        frame: u64,
    },
    Unpin {
        frame: u64,
    },
    Kernel {
        vcpu: u32,
        frame: u64,
    },
    User {
        vcpu: u32,
        frame: u64,
    },
    Gdt {
        vcpu: u32,
        frames: Vec<u64>,
    },
    Ldt {
        vcpu: u32,
        slot: u64,
        entries: u32,
    },
    UseLdt {
        vcpu: u32,
        page: u32,
    },
    ReleaseVcpu {
        vcpu: u32,
    },
    Allocate {
        order: u32,
    },
    Release {
        frame: u64,
    },
    GetRef {
        frame: u64,
    },
    GetWritable {
        frame: u64,
    },
    PutHeld {
        which: usize,
    },
    MapGrant {
        frame: u64,
        slot: usize,
        pte: Pte,
    },
    UnmapGrant {
        frame: u64,
        slot: usize,
        of: u64,
        writable: bool,
        instead: Option<u64>,
    },
    Touch {
        times: usize,
    },
    Race {
        value: u64,
    },
    FlushAll,
}

fn any_frame() -> impl Strategy<Value = u64> {
    0..FRAMES + 1
}

/// Mostly entries that could be accepted somewhere.
fn any_pte() -> impl Strategy<Value = Pte> {
    let flags = prop_oneof![
        8 => Just(RO),
        8 => Just(RW),
        2 => Just(Pte::PRESENT | Pte::RW | Pte::GLOBAL),
        1 => (0u64..512).prop_map(|low| low | Pte::NX),
    ];
    let mapped = prop_oneof![
        12 => any_frame().prop_map(mfn),
        1 => Just(SHARED),
        1 => Just(SHARED_RO),
        1 => Just(Mfn(0x12)),
        1 => Just(Mfn(FOREIGN)),
    ];
    prop_oneof![
        10 => (mapped, flags).prop_map(|(mfn, flags)| Pte::new(mfn, flags)),
        2 => Just(Pte(0)),
        1 => any::<u64>().prop_map(Pte),
    ]
}

fn any_slot() -> impl Strategy<Value = usize> {
    prop::sample::select(SLOTS.to_vec())
}

/// Addresses that the slots map: half of them those of the first tree.
fn any_va() -> impl Strategy<Value = u64> {
    let index = || any_slot().prop_map(|i| i as u64);
    let anywhere =
        (index(), index(), index(), index(), 0u64..4096).prop_map(|(l4, l3, l2, l1, offset)| {
            let va = (l4 << 39) | (l3 << 30) | (l2 << 21) | (l1 << 12) | offset;
            if l4 >= 256 { va | (0xffff << 48) } else { va }
        });
    let first_tree = (
        0u64..3,
        any_slot(),
        prop::sample::select(vec![0u64, 0, 0, 1, 4, 6]),
    )
        .prop_map(|(l1, entry, byte)| (l1 << 12) + entry as u64 * 8 + byte);
    prop_oneof![anywhere, first_tree]
}

/// Mostly the root of the first tree.
fn any_root() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0), 1 => any_frame()]
}

fn any_write() -> impl Strategy<Value = (usize, PtWrite)> {
    let value = || any_pte().prop_map(|pte| pte.0);
    let write = prop_oneof![
        value().prop_map(|value| PtWrite::Write { value }),
        (value(), value()).prop_map(|(old, new)| PtWrite::CompareExchange { old, new }),
    ];
    (prop::sample::select(vec![1usize, 2, 4, 8, 8, 8]), write)
}

fn any_op() -> impl Strategy<Value = Op> {
    let frame = any_frame;
    let vcpu = || 0u32..3;
    prop_oneof![
        20 => (frame(), any_slot(), any_pte())
            .prop_map(|(frame, slot, pte)| Op::Fill { frame, slot, pte }),
        1 => (frame(), any_slot(), any::<u64>())
            .prop_map(|(frame, slot, value)| Op::Descriptor { frame, slot, value }),
        20 => (frame(), any_slot(), any_pte(), any::<bool>())
            .prop_map(|(frame, slot, pte, preserve)| Op::Update { frame, slot, pte, preserve }),
        4 => (any_root(), any_va(), any_pte())
            .prop_map(|(root, va, pte)| Op::UpdateVa { root, va, pte }),
        8 => (any_root(), any_va(), any_write())
            .prop_map(|(root, va, (bytes, write))| Op::Emulate { root, va, bytes, write }),
        12 => (1u8..5, frame()).prop_map(|(level, frame)| Op::Pin { level, frame }),
        6 => frame().prop_map(|frame| Op::Unpin { frame }),
        2 => (vcpu(), any_root()).prop_map(|(vcpu, frame)| Op::Kernel { vcpu, frame }),
        3 => (vcpu(), frame()).prop_map(|(vcpu, frame)| Op::User { vcpu, frame }),
        2 => (vcpu(), prop::collection::vec(frame(), 0..3))
            .prop_map(|(vcpu, frames)| Op::Gdt { vcpu, frames }),
        1 => (vcpu(), 0u64..3, 0u32..1500)
            .prop_map(|(vcpu, slot, entries)| Op::Ldt { vcpu, slot, entries }),
        2 => (vcpu(), 0u32..3).prop_map(|(vcpu, page)| Op::UseLdt { vcpu, page }),
        1 => vcpu().prop_map(|vcpu| Op::ReleaseVcpu { vcpu }),
        3 => (0u32..3).prop_map(|order| Op::Allocate { order }),
        3 => frame().prop_map(|frame| Op::Release { frame }),
        2 => frame().prop_map(|frame| Op::GetRef { frame }),
        2 => frame().prop_map(|frame| Op::GetWritable { frame }),
        3 => (0usize..8).prop_map(|which| Op::PutHeld { which }),
        4 => (frame(), any_slot(), 0u64..3, any::<bool>()).prop_map(|(frame, slot, of, write)| {
            let pte = Pte::new(Mfn(FOREIGN + of), if write { RW } else { RO });
            Op::MapGrant { frame, slot, pte }
        }),
        3 => (frame(), any_slot(), 0u64..3, any::<bool>(), prop::option::of(any_va())).prop_map(
            |(frame, slot, of, writable, instead)| {
                Op::UnmapGrant { frame, slot, of, writable, instead }
            }
        ),
        1 => (0usize..40).prop_map(|times| Op::Touch { times }),
        1 => any::<u64>().prop_map(|value| Op::Race { value }),
        1 => Just(Op::FlushAll),
    ]
}

/// What a guest may do by itself: write frames that are not tables.
fn guest_can_write(d: &Domain, frame: u64) -> bool {
    let index = d.paging.frames.index(mfn(frame));
    index.is_some_and(|i| {
        let frame = d.paging.frames.at(i);
        frame.type_count() == 0 || frame.frame_type() == FrameType::Writable
    })
}

fn hold(d: &mut Domain, held: HeldRef, outcome: Result<(), Errno>) -> Result<(), Errno> {
    if outcome.is_ok() {
        d.held.push(held);
    }
    outcome
}

fn run(d: &mut Domain, op: &Op) -> Result<(), Errno> {
    let (p, m) = (&mut d.paging, &d.memory);
    match op.clone() {
        Op::Fill { frame, slot, pte } => {
            if guest_can_write(d, frame) {
                d.poke(frame, slot, pte);
            }
            Ok(())
        }
        Op::Descriptor { frame, slot, value } => p.update_descriptor(m, entry(frame, slot), value),
        Op::Update {
            frame,
            slot,
            pte,
            preserve,
        } => {
            let mode = match preserve {
                true => UpdateMode::PreserveAd,
                false => UpdateMode::Normal,
            };
            p.mmu_update(m, entry(frame, slot), pte, mode)
        }
        Op::UpdateVa { root, va, pte } => p.update_va_mapping(m, mfn(root), GuestVirt(va), pte),
        Op::Emulate {
            root,
            va,
            bytes,
            write,
        } => p
            .emulate_pt_write(m, mfn(root), GuestVirt(va), bytes, write)
            .map(|_| ()),
        Op::Pin { level, frame } => p.pin_table(m, Level::from_number(level).unwrap(), mfn(frame)),
        Op::Unpin { frame } => p.unpin_table(m, mfn(frame)),
        Op::Kernel { vcpu, frame } => p.new_baseptr(m, VcpuId(vcpu), mfn(frame)),
        Op::User { vcpu, frame } => {
            let root = if frame == FRAMES { Mfn(0) } else { mfn(frame) };
            p.new_user_baseptr(m, VcpuId(vcpu), root)
        }
        Op::Gdt { vcpu, frames } => {
            let frames: Vec<Mfn> = frames.into_iter().map(mfn).collect();
            let entries = u32::try_from(frames.len()).unwrap() * 512;
            p.set_gdt(m, VcpuId(vcpu), &frames, entries)
        }
        Op::Ldt {
            vcpu,
            slot,
            entries,
        } => p.set_ldt(m, VcpuId(vcpu), GuestVirt(slot << 12), entries),
        Op::UseLdt { vcpu, page } => p.ldt_frame(m, VcpuId(vcpu), page).map(|_| ()),
        Op::ReleaseVcpu { vcpu } => p.release_vcpu(m, VcpuId(vcpu)),
        Op::Allocate { order } => p.allocate(order).map(|_| ()),
        Op::Release { frame } => p.release(mfn(frame)).map(|_| ()),
        Op::GetRef { frame } => {
            let outcome = p.get_frame_ref(mfn(frame));
            hold(d, HeldRef::Frame(mfn(frame)), outcome)
        }
        Op::GetWritable { frame } => {
            let outcome = p.get_writable(m, mfn(frame));
            hold(d, HeldRef::Writable(mfn(frame)), outcome)
        }
        Op::PutHeld { which } => {
            if which < d.held.len() {
                match d.held.swap_remove(which) {
                    HeldRef::Frame(mfn) => p.put_frame_ref(mfn),
                    HeldRef::Writable(mfn) => p.put_writable(m, mfn),
                }
            }
            Ok(())
        }
        Op::MapGrant { frame, slot, pte } => {
            p.map_grant(m, GrantSlot::Entry(entry(frame, slot)), pte)
        }
        Op::UnmapGrant {
            frame,
            slot,
            of,
            writable,
            instead,
        } => {
            let at = GrantSlot::Entry(entry(frame, slot));
            let instead = instead.map(|va| GrantSlot::Virtual(mfn(0), GuestVirt(va)));
            p.unmap_grant(m, at, Mfn(FOREIGN + of), writable, instead)
        }
        Op::Touch { times } => {
            m.touch_before_exchange.set(times);
            Ok(())
        }
        Op::Race { value } => {
            m.replace_before_exchange.set(Some(value));
            Ok(())
        }
        Op::FlushAll => {
            m.cached_writable.borrow_mut().clear();
            m.cached_tables.borrow_mut().clear();
            p.note_full_flush();
            Ok(())
        }
    }
}

/// The lost race writes a table behind the rules' back, which no honest
/// memory does: put back what was there, as the counts say.
fn run_with_race_undone(d: &mut Domain, op: &Op) -> Result<(), Errno> {
    let before = d.memory.words.borrow().clone();
    let armed = d.memory.replace_before_exchange.get().is_some();
    let outcome = run(d, op);
    let fired = armed && d.memory.replace_before_exchange.get().is_none();
    if fired && outcome.is_err() {
        *d.memory.words.borrow_mut() = before;
    }
    outcome
}

/// What vCPUs may have cached after this step.
fn cache_translations(d: &Domain) {
    let mut writable = d.memory.cached_writable.borrow_mut();
    let mut tables = d.memory.cached_tables.borrow_mut();
    for index in 0..d.paging.frames.len() {
        let Some(level) = d.paging.frames.at(index).live_table() else {
            continue;
        };
        let table = d.paging.frames.mfn(index);
        tables.insert(table.0);
        for slot in SLOTS {
            let pte = d.memory.get(table, slot);
            if level == Level::L1 && pte.is_present() && pte.is_writable() {
                writable.insert(pte.mfn().0);
            }
        }
    }
}

fn check_caches(d: &Domain) {
    for index in 0..d.paging.frames.len() {
        let frame = d.paging.frames.at(index);
        let mfn = d.paging.frames.mfn(index);
        if frame.type_count() == 0 {
            continue;
        }
        let (writable, table) = (
            d.memory.cached_writable.borrow().contains(&mfn.0),
            d.memory.cached_tables.borrow().contains(&mfn.0),
        );
        let t = frame.frame_type();
        assert!(!(writable && t != FrameType::Writable), "{mfn} is {t:?}");
        assert!(!(table && t == FrameType::Writable), "{mfn} is {t:?}");
    }
}

/// One attempt, or as many as it takes.
fn attempt(d: &mut Domain, op: &Op, patient: bool) -> Result<(), Errno> {
    for _ in 0..1000 {
        let outcome = run_with_race_undone(d, op);
        check_caches(d);
        d.audit();
        cache_translations(d);
        if outcome != Err(Errno::ERESTART) || !patient {
            return outcome;
        }
    }
    panic!("{op:?} does not get anywhere");
}

fn settle(d: &mut Domain) {
    while !d.paging.finish_work(&d.memory) {
        d.audit();
    }
}

fn step(d: &mut Domain, op: &Op, patient: bool) {
    settle(d);
    let before = d.snapshot();
    let nothing_kept = d.paging.work.kept().next().is_none();
    let outcome = attempt(d, op, patient);
    if outcome.is_err() && outcome != Err(Errno::ERESTART) && nothing_kept {
        settle(d);
        assert_eq!(d.snapshot(), before, "{op:?} refused");
    }
}

fn take_apart(mut d: Domain, budget: usize) {
    let held = std::mem::take(&mut d.held);
    while !d.paging.relinquish_step(&d.memory, budget) {}
    for held in held {
        match held {
            HeldRef::Frame(mfn) => d.paging.put_frame_ref(mfn),
            HeldRef::Writable(mfn) => d.paging.put_writable(&d.memory, mfn),
        }
    }
    assert_eq!(d.paging.owned_frames(), 0);
    for frame in d.snapshot() {
        assert_eq!((frame.0, frame.4), (0, 0), "{frame:?}");
    }
    assert!(d.paging.frames.low.iter().all(|low| low.mappings() == 0));
    assert_eq!(d.paging.frames.foreign.named().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn counts_always_equal_the_model(
        ops in prop::collection::vec((any_op(), prop::bool::weighted(0.9)), 1..80),
        piece in prop_oneof![Just(u32::MAX), 0u32..8],
        budget in 1usize..2000,
    ) {
        let mut d = Domain::with_tree(FRAMES);
        d.paging.add_foreign_frames(Mfn(FOREIGN), 3).unwrap();
        d.paging.set_budget(piece);
        d.paging.new_baseptr(&d.memory, V0, mfn(0)).unwrap();
        cache_translations(&d);
        for (op, patient) in &ops {
            step(&mut d, op, *patient);
        }
        take_apart(d, budget);
    }

    /// Tables, roots and addresses of nothing but noise.
    #[test]
    fn a_walk_never_panics(
        words in prop::collection::vec(any_pte(), 24),
        root in any::<u64>(),
        va in any_va(),
    ) {
        let d = Domain::new(4);
        for (i, pte) in words.iter().enumerate() {
            d.poke(i as u64 / 6, SLOTS[i % 6], *pte);
        }
        for root in [Mfn(root), mfn(0), mfn(3)] {
            let _ = d.paging.translate(&d.memory, root, GuestVirt(va));
        }
    }
}
