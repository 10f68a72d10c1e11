//! Page tables: permissions, error codes, accessed and dirty bits, and
//! translations that have gone stale.

use crate::{
    guest::{CODE, DATA, END, Guest, exception, page_fault},
    machine::{ALL, FIRST, NO_EXECUTE, PRESENT, USER, WRITE},
};
use guest_abi::addr::{GuestVirt, Mfn};
use hypervisor::{
    cpu::reg,
    interp::{Exit, FrameUse},
};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;
/// `mov rax, [rsi]; hlt`
const LOAD: &[u8] = &[0x48, 0x8b, 0x06, 0xf4];
/// `mov [rsi], rax; hlt`
const STORE: &[u8] = &[0x48, 0x89, 0x06, 0xf4];
/// `add [rsi], rax; hlt`
const UPDATE: &[u8] = &[0x48, 0x01, 0x06, 0xf4];

/// Clears bits of one level's entry for `address`; level 1 is the leaf.
fn restrict(guest: &Guest, address: u64, level: u64, clear: u64, set: u64) {
    let mut table = guest.root;
    for at in (1..=4).rev() {
        let word = guest
            .machine
            .word(table, ((address >> (3 + 9 * at)) & 511) * 8);
        if at == level {
            word.store(word.load(Relaxed) & !clear | set, Relaxed);
        }
        table = Mfn((word.load(Relaxed) & 0x000f_ffff_ffff_f000) >> 12);
    }
    guest.machine.epoch.fetch_add(1, Relaxed);
}

#[test]
fn error_codes_tell_presence_and_access_at_every_level() {
    for level in 1..=4 {
        for (code, write) in [(LOAD, 0), (STORE, 2), (UPDATE, 2)] {
            // (bits taken away, error code or no fault)
            let cases = [
                (0, None),
                (PRESENT, Some(4 | write)),
                (USER, Some(5 | write)),
                (WRITE, (write != 0).then_some(7)),
            ];
            for (clear, error) in cases {
                let mut guest = Guest::new(code);
                // Apart from the code, so that it stays reachable.
                let address = 0x7f00_1234_5000;
                guest.machine.map_new(guest.root, address, ALL);
                restrict(&guest, address, level, clear, 0);
                *guest.gpr(reg::RSI) = address + 8;
                let before = guest.context;
                let expected = error.map_or(END, |error| page_fault(error, address + 8));
                assert_eq!(guest.run(), expected, "level {level}, {code:x?}, {clear}");
                if error.is_some() {
                    assert_eq!(guest.stopped(), before);
                }
            }
        }
    }
}

#[test]
fn fetches_fault_with_the_fetch_bit() {
    let mut guest = Guest::new(&[0x90]);
    guest.context.rip = DATA + 0x1000;
    assert_eq!(guest.run(), page_fault(0x14, DATA + 0x1000));
    restrict(&guest, CODE, 1, 0, NO_EXECUTE);
    guest.context.rip = CODE;
    assert_eq!(guest.run(), page_fault(0x15, CODE));
    restrict(&guest, CODE, 1, NO_EXECUTE, 0);
    restrict(&guest, CODE, 2, 0, NO_EXECUTE);
    assert_eq!(guest.run(), page_fault(0x15, CODE));
    restrict(&guest, CODE, 2, NO_EXECUTE | USER, 0);
    assert_eq!(guest.run(), page_fault(0x15, CODE));
}

#[test]
fn accessed_and_dirty_bits_are_set_as_by_a_processor() {
    let bits = |guest: &Guest, address| {
        guest.machine.entry(guest.root, address).load(Relaxed) & (ACCESSED | DIRTY)
    };
    let mut guest = Guest::new(LOAD);
    assert_eq!(bits(&guest, CODE), 0);
    assert_eq!(guest.run(), END);
    assert_eq!(bits(&guest, CODE), ACCESSED);
    assert_eq!(bits(&guest, DATA), ACCESSED);
    let top = guest.machine.word(guest.root, 273 * 8).load(Relaxed);
    assert_eq!(top & (ACCESSED | DIRTY), ACCESSED);
    // The translation for reading is cached; writing must still set D.
    guest.machine.write(guest.code, 0, STORE);
    assert_eq!(guest.rerun(), END);
    assert_eq!(bits(&guest, DATA), ACCESSED | DIRTY);
    // A refused write leaves D alone.
    let mut guest = Guest::new(UPDATE);
    restrict(&guest, DATA, 1, WRITE, 0);
    assert_eq!(guest.run(), page_fault(7, DATA));
    assert_eq!(bits(&guest, DATA) & DIRTY, 0);
}

#[test]
fn large_pages_are_walked() {
    let mut guest = Guest::new(LOAD);
    let address = 0x4000_0000 + 0x1000 * 5 + 0x10;
    guest.machine.entry(guest.root, address);
    // Make the level 2 entry a large page that starts at the first frame
    // (2 MiB-aligned frame numbers are multiples of 512).
    let large = (FIRST & !511) << 12 | ALL | 0x80;
    restrict(&guest, address, 2, u64::MAX, large);
    let frame = Mfn((FIRST & !511) + 5);
    guest.machine.write(frame, 0x10, &0x1234u64.to_le_bytes());
    *guest.gpr(reg::RSI) = address;
    assert_eq!(guest.run(), END);
    assert_eq!(*guest.gpr(reg::RAX), 0x1234);
}

#[test]
fn addresses_that_are_not_canonical_fault_without_a_walk() {
    let mut guest = Guest::new(LOAD);
    for address in [0x0000_8000_0000_0000, 0xffff_7fff_ffff_fff8, 1 << 63] {
        *guest.gpr(reg::RSI) = address;
        assert_eq!(guest.rerun(), exception(13, 0, 0));
        assert_eq!(guest.context.rip, CODE);
    }
    // An operand that begins below the hole and ends in it.
    *guest.gpr(reg::RSI) = 0x0000_7fff_ffff_fffc;
    guest
        .machine
        .map_new(guest.root, 0x0000_7fff_ffff_f000, ALL);
    assert_eq!(guest.rerun(), exception(13, 0, 0));
    // `push rax` and `mov rax, [rbp]` use the stack segment.
    guest.machine.write(guest.code, 0, &[0x50]);
    *guest.gpr(reg::RSP) = 1 << 63;
    assert_eq!(guest.rerun(), exception(12, 0, 0));
    guest.machine.write(guest.code, 0, &[0x48, 0x8b, 0x45, 0]);
    *guest.gpr(reg::RBP) = 1 << 63;
    assert_eq!(guest.rerun(), exception(12, 0, 0));
    // `jmp rsi`, `call rsi`, `ret` to nowhere: the branch faults.
    for code in [[0xff, 0xe6], [0xff, 0xd6]] {
        guest.machine.write(guest.code, 0, &code);
        *guest.gpr(reg::RSI) = 1 << 63;
        *guest.gpr(reg::RSP) = DATA + 0x800;
        let before = guest.context.gpr;
        assert_eq!(guest.rerun(), exception(13, 0, 0));
        assert_eq!((guest.context.rip, guest.context.gpr), (CODE, before));
    }
}

#[test]
fn a_store_across_a_missing_page_writes_nothing() {
    let mut guest = Guest::new(STORE);
    *guest.gpr(reg::RSI) = DATA + 0xffc;
    *guest.gpr(reg::RAX) = u64::MAX;
    assert_eq!(guest.run(), page_fault(6, DATA + 0x1000));
    assert_eq!(guest.machine.read(guest.data, 0xff8, 8), [0; 8]);
    let second = guest.machine.map_new(guest.root, DATA + 0x1000, ALL);
    assert_eq!(guest.run(), END);
    assert_eq!(
        guest.machine.read(guest.data, 0xff8, 8),
        [0, 0, 0, 0, 255, 255, 255, 255]
    );
    assert_eq!(guest.machine.read(second, 0, 5), [255, 255, 255, 255, 0]);
    // And an update over the same bytes carries across the page's end.
    guest.machine.write(guest.code, 0, UPDATE);
    *guest.gpr(reg::RAX) = 1;
    assert_eq!(guest.rerun(), END);
    assert_eq!(guest.machine.read(guest.data, 0xffc, 4), [0; 4]);
    assert_eq!(guest.machine.read(second, 0, 4), [0; 4]);
    assert_eq!(guest.context.rflags & 0x41, 0x41);
}

#[test]
fn changed_tables_are_seen_after_an_epoch_a_flush_or_another_root() {
    let mut guest = Guest::new(LOAD);
    guest.machine.write(guest.data, 0, &[1]);
    assert_eq!(guest.run(), END);
    let other = guest.machine.alloc();
    guest.machine.write(other, 0, &[2]);
    // Behind the interpreter's back: the old translation may live on, until
    // the page is flushed.
    let entry = (other.0 << 12) | ALL;
    guest.machine.entry(guest.root, DATA).store(entry, Relaxed);
    assert_eq!((guest.rerun(), *guest.gpr(reg::RAX)), (END, 1));
    guest.interpreter.flush_va(GuestVirt(DATA));
    assert_eq!((guest.rerun(), *guest.gpr(reg::RAX)), (END, 2));
    let entry = (guest.data.0 << 12) | ALL;
    guest.machine.entry(guest.root, DATA).store(entry, Relaxed);
    guest.interpreter.flush_all();
    assert_eq!((guest.rerun(), *guest.gpr(reg::RAX)), (END, 1));
    // The epoch does it by itself.
    guest.machine.map(guest.root, DATA, other, ALL);
    assert_eq!((guest.rerun(), *guest.gpr(reg::RAX)), (END, 2));
    // So does another root, and the first one again.
    let first = guest.root;
    guest.root = guest.machine.alloc();
    guest.machine.map(guest.root, CODE, guest.code, ALL);
    guest.machine.map(guest.root, DATA, guest.data, ALL);
    assert_eq!((guest.rerun(), *guest.gpr(reg::RAX)), (END, 1));
    let second = guest.root;
    guest.root = first;
    assert_eq!((guest.rerun(), *guest.gpr(reg::RAX)), (END, 2));
    guest.root = second;
    assert_eq!((guest.rerun(), *guest.gpr(reg::RAX)), (END, 1));
}

#[test]
fn generations_of_roots_may_be_used_up() {
    let mut guest = Guest::new(LOAD);
    let other = guest.machine.alloc();
    guest.machine.write(guest.data, 0, &[1]);
    guest.machine.write(other, 0, &[2]);
    for round in 0..10_000u64 {
        let mfn = if round % 2 == 0 { guest.data } else { other };
        guest.machine.map(guest.root, DATA, mfn, ALL);
        assert_eq!(guest.rerun(), END);
        assert_eq!(*guest.gpr(reg::RAX), 1 + round % 2);
    }
}

#[test]
fn new_permissions_need_no_flush() {
    let mut guest = Guest::new(STORE);
    restrict(&guest, DATA, 1, WRITE, 0);
    assert_eq!(guest.run(), page_fault(7, DATA));
    // Not through `map`: no epoch, no flush.
    let entry = (guest.data.0 << 12) | ALL;
    guest.machine.entry(guest.root, DATA).store(entry, Relaxed);
    assert_eq!(guest.run(), END);
}

#[test]
fn frames_are_used_only_as_they_were_given_out() {
    let limit = |guest: &Guest, usage| {
        guest
            .machine
            .limited
            .lock()
            .unwrap()
            .push((guest.data, usage));
    };
    // Read-only, whatever the entry says.
    let mut guest = Guest::new(STORE);
    limit(&guest, FrameUse::Read);
    assert_eq!(guest.run(), Exit::Unknown);
    guest.machine.write(guest.code, 0, LOAD);
    assert_eq!(guest.rerun(), END);
    // The hypervisor's tables.
    let mut guest = Guest::new(LOAD);
    limit(&guest, FrameUse::Walk);
    assert_eq!(guest.run(), Exit::Unknown);
    // Beyond the domain's memory.
    let mut guest = Guest::new(LOAD);
    guest.machine.map(guest.root, DATA, Mfn(FIRST - 1), ALL);
    assert_eq!(guest.run(), Exit::Unknown);
    guest.root = Mfn(1 << 39);
    assert_eq!(guest.run(), Exit::Unknown);
}

#[test]
fn written_frames_are_reported() {
    let mut guest = Guest::new(LOAD);
    assert_eq!(guest.run(), END);
    assert_eq!(*guest.machine.written.lock().unwrap(), []);
    guest.machine.write(guest.code, 0, STORE);
    assert_eq!(guest.rerun(), END);
    assert_eq!(*guest.machine.written.lock().unwrap(), [guest.data]);
    guest.interpreter.flush_all();
    assert_eq!(guest.rerun(), END);
    assert_eq!(guest.machine.written.lock().unwrap().len(), 2);
}

/// Another vCPU changes an entry while it is walked: the walk finds the entry as it
/// was before or after, and the bits that it sets never bring an old one back.
#[test]
fn an_entry_may_change_while_it_is_walked() {
    /// Runs that found it writable, and runs that did not.
    const EACH: u64 = 1_000;
    let mut guest = Guest::new(UPDATE);
    let other = guest.machine.alloc();
    let entries = [
        (guest.data.0 << 12) | ALL,
        (other.0 << 12) | ALL,
        (guest.data.0 << 12) | PRESENT | USER,
        0,
    ];
    let machine = guest.machine.clone();
    let entry = machine.entry(guest.root, DATA);
    let done = AtomicBool::new(false);
    let change = || {
        let mut last = entry.load(Relaxed) & !(ACCESSED | DIRTY);
        let mut pause = 1u32;
        while !done.load(Relaxed) {
            for next in entries {
                let old = entry.swap(next, Relaxed);
                assert_eq!(old & !(ACCESSED | DIRTY), last, "an entry that was gone");
                assert!(last != 0 || old == 0, "{old:#x}");
                last = next;
                // Long enough for some walks, and in the middle of others.
                pause = (pause * 5 + 3) % 251;
                (0..pause).for_each(|_| std::hint::spin_loop());
            }
        }
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(change);
        let (mut updates, mut faults) = (0u64, 0u64);
        while (updates < EACH || faults < EACH) && !writer.is_finished() {
            guest.interpreter.flush_all();
            match guest.rerun() {
                END => updates += 1,
                exit if [page_fault(6, DATA), page_fault(7, DATA)].contains(&exit) => faults += 1,
                exit => {
                    done.store(true, Relaxed);
                    panic!("{exit:?}");
                }
            }
        }
        done.store(true, Relaxed);
        println!("{updates} updates, {faults} faults");
    });
}
