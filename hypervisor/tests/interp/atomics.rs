//! Locked instructions between two vCPUs, and those that are refused.

use crate::{
    guest::{CODE, DATA, END, Guest},
    machine::ALL,
};
use hypervisor::{
    cpu::{Context, reg},
    interp::Exit,
};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const ROUNDS: u64 = 20_000;

/// Runs the guest's code from its start on two vCPUs at once: the second one
/// has 1 in R8.
fn race(guest: &Guest) {
    std::thread::scope(|scope| {
        for vcpu in 0..2 {
            let mut context: Context = guest.context;
            context.gpr[reg::R8] = vcpu;
            context.gpr[reg::RCX] = ROUNDS;
            context.gpr[reg::RSP] -= 0x100 * vcpu;
            let (machine, root) = (guest.machine.clone(), guest.root);
            scope.spawn(move || {
                let mut interpreter = crate::interpreter(&machine);
                let go = AtomicBool::new(false);
                let exit = interpreter.run(&mut context, root, u64::MAX, &go);
                assert_eq!(exit, END, "at {:#x}", context.rip);
            });
        }
    });
}

#[test]
fn locked_updates_are_not_lost() {
    let updates: [&[u8]; 4] = [
        // lock inc dword [rsi]
        &[0xf0, 0xff, 0x06],
        // lock add dword [rsi], 1
        &[0xf0, 0x83, 0x06, 0x01],
        // mov eax, 1; lock xadd [rsi], eax
        &[0xb8, 1, 0, 0, 0, 0xf0, 0x0f, 0xc1, 0x06],
        // mov eax, [rsi]; 1: lea edx, [rax + 1]; lock cmpxchg [rsi], edx; jne 1b
        &[
            0x8b, 0x06, 0x8d, 0x50, 0x01, 0xf0, 0x0f, 0xb1, 0x16, 0x75, 0xf7,
        ],
    ];
    for update in updates {
        let mut code = update.to_vec();
        // dec rcx; jnz to the start; hlt
        code.extend([0x48, 0xff, 0xc9, 0x75]);
        code.push(u8::try_from(256 - (code.len() + 1)).unwrap());
        code.push(0xf4);
        let guest = Guest::new(&code);
        race(&guest);
        let sum = guest.machine.word(guest.data, 0).load(Relaxed);
        assert_eq!(sum, 2 * ROUNDS, "{update:x?}");
    }
}

#[test]
fn a_lock_made_of_xchg_excludes() {
    // 1: mov eax, 1; xchg eax, [rsi]; test eax, eax; jnz 1b;
    // inc qword [rsi + 8]; mov dword [rsi], 0; dec rcx; jnz 1b; hlt
    let code = [
        0xb8, 1, 0, 0, 0, 0x87, 0x06, 0x85, 0xc0, 0x75, 0xf5, 0x48, 0xff, 0x46, 0x08, 0xc7, 0x06,
        0, 0, 0, 0, 0x48, 0xff, 0xc9, 0x75, 0xe6, 0xf4,
    ];
    let guest = Guest::new(&code);
    race(&guest);
    let sum = guest.machine.word(guest.data, 8).load(Relaxed);
    assert_eq!(sum, 2 * ROUNDS);
}

#[test]
fn sixteen_bytes_change_at_once() {
    // 1: mov rax, [rsi]; mov rdx, [rsi + 8]; lea rbx, [rax + 1];
    // mov rdi, rcx; lea rcx, [rdx + 1]; lock cmpxchg16b [rsi]; mov rcx, rdi;
    // jne 1b; dec rcx; jnz 1b; hlt
    let code = [
        0x48, 0x8b, 0x06, 0x48, 0x8b, 0x56, 0x08, 0x48, 0x8d, 0x58, 0x01, 0x48, 0x89, 0xcf, 0x48,
        0x8d, 0x4a, 0x01, 0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0x48, 0x89, 0xf9, 0x75, 0xe4, 0x48, 0xff,
        0xc9, 0x75, 0xdf, 0xf4,
    ];
    let guest = Guest::new(&code);
    race(&guest);
    for half in [0, 8] {
        let count = guest.machine.word(guest.data, half).load(Relaxed);
        assert_eq!(count, 2 * ROUNDS);
    }
}

#[test]
fn split_locks_are_for_the_engine() {
    // lock inc dword [rsi]; hlt
    let mut guest = Guest::new(&[0xf0, 0xff, 0x06, 0xf4]);
    guest.machine.map_new(guest.root, DATA + 0x1000, ALL);
    for at in [0x3d, 0x3f, 0xffd] {
        *guest.gpr(reg::RSI) = DATA + at;
        assert_eq!(guest.rerun(), Exit::Unknown);
        assert_eq!(guest.context.rip, CODE);
    }
    assert_eq!(guest.machine.read(guest.data, 0, 0x1000), [0; 0x1000]);
    *guest.gpr(reg::RSI) = DATA + 0x3c;
    assert_eq!(guest.rerun(), END);
    // Misaligned within a line is as good as aligned.
    *guest.gpr(reg::RSI) = DATA + 0x39;
    assert_eq!(guest.rerun(), END);
}
