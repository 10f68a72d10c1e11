//! Instructions that only 32-bit code has.

use crate::{
    guest::{END, Guest, exception},
    machine::ALL,
};
use hypervisor::{
    cpu::{Compat, reg},
    interp::Exit,
};

const CODE: u64 = 0x0804_8000;
const DATA: u64 = 0x1000;
const CF: u64 = 1;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const OF: u64 = 1 << 11;

fn compat(code: &[u8]) -> Guest {
    let mut guest = Guest::new(code);
    guest.interpreter.model().alone = true;
    guest.machine.map(guest.root, CODE, guest.code, ALL);
    guest.machine.map(guest.root, DATA, guest.data, ALL);
    guest.context.rip = CODE;
    guest.context.compat = Some(Compat { cs: 0x23, ss: 0x2b });
    guest.context.gpr[reg::RSI] = DATA;
    guest.context.gpr[reg::RSP] = DATA + 0x800;
    guest
}

/// Runs from the start with AX, and CF and AF set or not; AX and the flags after it.
fn run(guest: &mut Guest, ax: u64, flags: u64) -> (u64, u64) {
    guest.context.rip = CODE;
    guest.context.rflags = 0x202 | flags;
    *guest.gpr(reg::RAX) = ax;
    assert_eq!(guest.run(), END);
    (*guest.gpr(reg::RAX), guest.stopped().rflags)
}

fn packed(value: u64) -> u64 {
    ((value / 10 % 10) << 4) | (value % 10)
}

#[test]
fn packed_decimals_are_added_and_subtracted() {
    // add al, bl; daa; hlt, and sub al, bl; das; hlt
    let mut add = compat(&[0x00, 0xd8, 0x27, 0xf4]);
    let mut subtract = compat(&[0x28, 0xd8, 0x2f, 0xf4]);
    for a in 0..100 {
        for b in 0..100 {
            *add.gpr(reg::RBX) = packed(b);
            let (sum, flags) = run(&mut add, packed(a), 0);
            assert_eq!((sum, flags & CF), (packed(a + b), u64::from(a + b > 99)));
            *subtract.gpr(reg::RBX) = packed(b);
            let (rest, flags) = run(&mut subtract, packed(a), 0);
            assert_eq!(
                (rest, flags & CF),
                (packed(100 + a - b), u64::from(a < b)),
                "{a} - {b}"
            );
        }
    }
}

#[test]
fn single_digits_are_added_and_subtracted() {
    // add al, bl; aaa; hlt, and sub al, bl; aas; hlt
    let mut add = compat(&[0x00, 0xd8, 0x37, 0xf4]);
    let mut subtract = compat(&[0x28, 0xd8, 0x3f, 0xf4]);
    for a in 0..10 {
        for b in 0..10 {
            *add.gpr(reg::RBX) = b;
            let (sum, flags) = run(&mut add, 0x200 | a, 0);
            let carry = u64::from(a + b > 9);
            assert_eq!(sum, (0x200 + carry * 0x100) | ((a + b) % 10));
            assert_eq!(flags & (CF | AF), carry * (CF | AF));
            *subtract.gpr(reg::RBX) = b;
            let (rest, flags) = run(&mut subtract, 0x200 | a, 0);
            let borrow = u64::from(a < b);
            assert_eq!(rest, (0x200 - borrow * 0x100) | ((10 + a - b) % 10));
            assert_eq!(flags & CF, borrow);
        }
    }
}

#[test]
fn products_become_digits_and_back() {
    // aam; hlt, and aad; hlt
    let mut digits = compat(&[0xd4, 10, 0xf4]);
    let mut number = compat(&[0xd5, 10, 0xf4]);
    for value in 0..100 {
        let (ax, flags) = run(&mut digits, 0x7700 | value, 0);
        assert_eq!(ax, ((value / 10) << 8) | (value % 10));
        assert_eq!(flags & ZF != 0, value % 10 == 0);
        assert_eq!(run(&mut number, ax, 0).0, value);
    }
    let mut guest = compat(&[0xd4, 0]);
    assert_eq!(guest.run(), exception(0, 0, 0));
}

#[test]
fn bounds_are_checked() {
    // bound eax, [esi]; hlt
    let mut guest = compat(&[0x62, 0x06, 0xf4]);
    let limits: Vec<u8> = [-5i32, 7].iter().flat_map(|n| n.to_le_bytes()).collect();
    guest.machine.write(guest.data, 0, &limits);
    for inside in [-5i32, 0, 7] {
        run(&mut guest, u64::from(inside.cast_unsigned()), 0);
    }
    for outside in [-6i32, 8, i32::MIN] {
        guest.context.rip = CODE;
        *guest.gpr(reg::RAX) = u64::from(outside.cast_unsigned());
        assert_eq!(guest.run(), exception(5, 0, 0));
        assert_eq!(guest.context.rip, CODE);
    }
}

#[test]
fn an_overflow_traps_where_it_is_asked_for() {
    // into; hlt
    let mut guest = compat(&[0xce, 0xf4]);
    assert_eq!(guest.run(), END);
    guest.context.rip = CODE;
    guest.context.rflags |= OF;
    assert_eq!(guest.run(), exception(4, 0, 0));
    assert_eq!(guest.context.rip, CODE + 1);
}

#[test]
fn privilege_levels_are_raised() {
    // arpl ax, bx; hlt, and arpl [esi], bx; hlt
    for (code, memory) in [([0x63, 0xd8], false), ([0x63, 0x1e], true)] {
        for (selector, other) in [(0x10u8, 3u8), (0x11, 1), (0x13, 0)] {
            let mut guest = compat(&[code[0], code[1], 0xf4]);
            guest.machine.write(guest.data, 0, &[selector, 0]);
            *guest.gpr(reg::RBX) = other.into();
            let (ax, flags) = run(&mut guest, selector.into(), 0);
            let raises = selector & 3 < other;
            let expected = if raises {
                selector & !3 | other
            } else {
                selector
            };
            let memory_now = guest.machine.read(guest.data, 0, 1)[0];
            assert_eq!(flags & ZF != 0, raises);
            assert_eq!(
                if memory { memory_now.into() } else { ax },
                u64::from(expected)
            );
        }
    }
}

#[test]
fn tables_are_looked_up_in_32_bits() {
    // xlat; hlt
    let mut guest = compat(&[0xd7, 0xf4]);
    guest.machine.write(guest.data, 0x20, &[0x99]);
    *guest.gpr(reg::RBX) = DATA + 0x10;
    assert_eq!(run(&mut guest, 0x10, 0).0, 0x99);
}

#[test]
fn far_branches_are_handed_on() {
    let jump = [0xea, 0, 0, 0, 0, 0x33, 0];
    let codes: [&[u8]; 6] = [
        &jump,
        &[0xff, 0x2e],
        &[0xff, 0x1e],
        &[0xcb],
        &[0xca, 4, 0],
        &[0xcf],
    ];
    for code in codes {
        let mut guest = compat(code);
        let before = guest.context;
        assert_eq!(guest.run(), exception(13, 0xfff8, 0), "{code:x?}");
        assert_eq!(guest.stopped(), before);
        guest.interpreter.model().alone = false;
        assert_eq!(guest.run(), Exit::Unknown);
    }
}
