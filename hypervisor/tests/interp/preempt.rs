//! How soon a run ends when somebody asks for it, counted in instructions: the flag
//! lies in the guest's own memory, and the guest sets it.

use crate::{
    guest::{CODE, DATA, Guest},
    machine::ALL,
};
use hypervisor::{cpu::reg, interp::Exit};
use std::sync::atomic::AtomicBool;

/// Instructions, or elements of a string instruction, after the flag was set. At ten
/// nanoseconds each that is a tenth of a millisecond.
const BOUND: u64 = 8192 + 48;

/// Runs code that sets the flag at [`DATA`] and never ends.
fn run(guest: &mut Guest) {
    let flag = guest.machine.byte(guest.data, 0).cast();
    // SAFETY: a byte of the machine, which outlives the guest; it is only ever 0 or 1
    // when it is read, and touched by single instructions.
    let flag = unsafe { AtomicBool::from_ptr(flag) };
    let exit = guest
        .interpreter
        .run(&mut guest.context, guest.root, u64::MAX, flag);
    assert_eq!(exit, Exit::Interrupted);
}

#[test]
fn a_loop_ends_soon_after_the_flag_is_set() {
    let loops: [&[u8]; 3] = [
        // mov byte [rsi], 1; 1: inc rax; jmp 1b
        &[0xc6, 0x06, 1, 0x48, 0xff, 0xc0, 0xeb, 0xfb],
        // mov byte [rsi], 1; 1: inc rax; call 2f; jmp 1b; 2: ret
        &[
            0xc6, 0x06, 1, 0x48, 0xff, 0xc0, 0xe8, 2, 0, 0, 0, 0xeb, 0xf6, 0xc3,
        ],
        // mov byte [rsi], 1; lea rdx, [rip]; inc rax; jmp rdx
        &[
            0xc6, 0x06, 1, 0x48, 0x8d, 0x15, 0, 0, 0, 0, 0x48, 0xff, 0xc0, 0xff, 0xe2,
        ],
    ];
    for code in loops {
        let mut guest = Guest::new(code);
        run(&mut guest);
        let rounds = *guest.gpr(reg::RAX);
        assert!(rounds <= BOUND, "{rounds} rounds of {code:x?}");
        // It was set before: not one more.
        run(&mut guest);
        assert_eq!(*guest.gpr(reg::RAX), rounds);
    }
}

#[test]
fn straight_code_ends_soon_after_the_flag_is_set() {
    // mov byte [rsi], 1; inc eax, two thousand times
    let mut code = vec![0xc6, 0x06, 1];
    (0..2000).for_each(|_| code.extend([0xff, 0xc0]));
    let mut guest = Guest::new(&code);
    run(&mut guest);
    let after = *guest.gpr(reg::RAX);
    assert!(after < 200, "{after} instructions");
    assert_eq!(guest.context.rip, CODE + 3 + 2 * after);
}

#[test]
fn a_string_instruction_ends_soon_after_the_flag_is_set() {
    // rep stosb, rep stosq: the first element sets it. (One byte of it is 1.)
    for (code, size) in [(&[0xf3, 0xaa][..], 1), (&[0xf3, 0x48, 0xab], 8)] {
        let mut guest = Guest::new(code);
        for page in 0..256 {
            guest
                .machine
                .map(guest.root, DATA + page * 0x1000, guest.data, ALL);
        }
        let all = 0x10_0000 / size;
        *guest.gpr(reg::RCX) = all;
        *guest.gpr(reg::RAX) = 1;
        run(&mut guest);
        let done = all - *guest.gpr(reg::RCX);
        assert!((1..=BOUND).contains(&done), "{done} elements");
        assert_eq!(guest.context.rip, CODE);
    }
}
