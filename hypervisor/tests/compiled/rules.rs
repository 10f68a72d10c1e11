//! What compiling could spoil: code that changes, tables that change, loops that
//! do not end.

use crate::{
    guest::{CODE, DATA, END, Guest, page_fault},
    machine::ALL,
};
use hypervisor::{cpu::reg, interp::Exit};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Runs until something else than the budget ends it.
fn run_on(guest: &mut Guest) -> Exit {
    loop {
        match guest.run_for(1 << 20) {
            Exit::Budget => {}
            exit => return exit,
        }
    }
}

#[test]
fn loops_run_in_compiled_form() {
    // 2: inc eax; dec ecx; jnz 2b; hlt
    let mut guest = Guest::new(&[0xff, 0xc0, 0xff, 0xc9, 0x75, 0xfa, 0xf4]);
    *guest.gpr(reg::RCX) = 100_000;
    assert_eq!(run_on(&mut guest), END);
    assert_eq!(*guest.gpr(reg::RAX), 100_000);
    let counts = guest.interpreter.counts();
    assert_eq!(counts.instructions, 300_000);
    assert!(counts.compiled > 299_000, "{counts:?}");
}

/// Whatever leads back: a loop of calls, too, is left when its time is over.
#[test]
fn a_loop_of_calls_is_left() {
    // 2: pop rax; call 2b
    let mut guest = Guest::new(&[0x58, 0xe8, 0xfa, 0xff, 0xff, 0xff]);
    assert_eq!(guest.run_for(1 << 20), Exit::Budget);
    let counts = guest.interpreter.counts();
    assert!(counts.compiled > 1 << 19, "{counts:?}");
}

/// The immediate of the loop's own `add` is counted up through another mapping.
#[test]
fn a_loop_may_change_itself_through_another_mapping() {
    // 2: add eax, 0; inc dword [rdi]; dec ecx; jnz 2b; hlt
    let code = [0x05, 0, 0, 0, 0, 0xff, 0x07, 0xff, 0xc9, 0x75, 0xf5, 0xf4];
    let mut guest = Guest::new(&code);
    let alias = 0x1234_5000;
    guest.machine.map(guest.root, alias, guest.code, ALL);
    *guest.gpr(reg::RDI) = alias + 1;
    *guest.gpr(reg::RCX) = 1000;
    assert_eq!(run_on(&mut guest), END);
    assert_eq!(*guest.gpr(reg::RAX), 999 * 1000 / 2);
}

/// Code whose frame holds still is not compared in every run, but whenever that may be over.
#[test]
fn code_that_holds_still_is_compared_when_it_may_have_changed() {
    // mov eax, 1; hlt
    let mut guest = Guest::new(&[0xb8, 1, 0, 0, 0, 0xf4]);
    let set_to = |guest: &Guest, value| guest.machine.write(guest.code, 1, &[value]);
    let computed = |guest: &mut Guest| {
        assert_eq!(guest.rerun(), END);
        *guest.gpr(reg::RAX)
    };
    set_to(&guest, 2);
    assert_eq!(computed(&mut guest), 2, "nobody said that it holds still");
    guest.machine.still.lock().unwrap().push(guest.code);
    for _ in 0..200 {
        assert_eq!(computed(&mut guest), 2);
    }
    set_to(&guest, 3);
    assert_eq!(
        computed(&mut guest),
        2,
        "it was compared although it holds still"
    );
    guest.machine.still.lock().unwrap().clear();
    guest.machine.still_epoch.fetch_add(1, Relaxed);
    assert_eq!(computed(&mut guest), 3);
    set_to(&guest, 4);
    assert_eq!(computed(&mut guest), 4);
}

/// A store to a page of which one line is code, from that code, in a loop.
#[test]
fn data_beside_a_compiled_loop_can_be_written() {
    // 2: inc qword [rdi]; dec ecx; jnz 2b; hlt
    let mut guest = Guest::new(&[0x48, 0xff, 0x07, 0xff, 0xc9, 0x75, 0xf9, 0xf4]);
    *guest.gpr(reg::RDI) = CODE + 0x800;
    *guest.gpr(reg::RCX) = 1000;
    assert_eq!(run_on(&mut guest), END);
    assert_eq!(
        guest.machine.read(guest.code, 0x800, 2),
        1000u16.to_le_bytes()
    );
}

#[test]
fn a_long_run_sees_what_another_vcpu_writes_into_its_code() {
    // 2: inc rax; jmp 2b
    let mut guest = Guest::new(&[0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    let (machine, code) = (guest.machine.clone(), guest.code);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            // The jump's distance becomes 0, and `hlt` comes after it.
            machine.write(code, 5, &[0xf4]);
            machine.write(code, 4, &[0]);
        });
        assert_eq!(run_on(&mut guest), END);
    });
    assert_eq!(guest.context.rip, CODE + 5);
}

#[test]
fn an_endless_loop_stops_within_a_millisecond() {
    // 2: inc rax; mov [rdi], rax; jmp 2b
    let mut guest = Guest::new(&[0x48, 0xff, 0xc0, 0x48, 0x89, 0x07, 0xeb, 0xf8]);
    let mut best = Duration::MAX;
    // On a busy machine a thread may have to wait for its turn.
    for _ in 0..50 {
        let stop = AtomicBool::new(false);
        let asked = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(2));
                let asked = Instant::now();
                stop.store(true, Relaxed);
                asked
            });
            let (interpreter, context) = (&mut guest.interpreter, &mut guest.context);
            let exit = interpreter.run(context, guest.root, u64::MAX, &stop);
            let stopped = Instant::now();
            assert_eq!(exit, Exit::Interrupted);
            stopped.duration_since(thread.join().unwrap())
        });
        best = best.min(asked);
        if best < Duration::from_millis(1) {
            return;
        }
    }
    panic!("the best was {best:?}");
}

/// Another vCPU makes a page point to one frame and the other, and to none.
#[test]
fn tables_may_change_while_they_are_walked() {
    // 2: mov rbx, [rsi]; cmp rbx, rdx; je 3f; cmp rbx, r8; jne 4f; 3: dec ecx; jnz 2b; 4: hlt
    let mut guest = Guest::new(&[
        0x48, 0x8b, 0x1e, 0x48, 0x39, 0xd3, 0x74, 0x05, 0x4c, 0x39, 0xc3, 0x75, 0x04, 0xff, 0xc9,
        0x75, 0xef, 0xf4,
    ]);
    let (machine, root) = (guest.machine.clone(), guest.root);
    let frames = [guest.data, machine.alloc()];
    for (frame, value) in frames.iter().zip([0x1111u64, 0x2222]) {
        machine.write(*frame, 0, &value.to_le_bytes());
    }
    *guest.gpr(reg::RDX) = 0x1111;
    *guest.gpr(reg::R8) = 0x2222;
    let over = AtomicBool::new(false);
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                machine.map(root, DATA, frames[0], ALL);
                machine.map(root, DATA, frames[1], ALL);
                machine.map(root, DATA, frames[0], 0);
            }
            machine.map(root, DATA, frames[1], ALL);
        });
        for _ in 0..300 {
            *guest.gpr(reg::RCX) = 200;
            guest.context.rip = CODE;
            let exit = run_on(&mut guest);
            seen.push((exit, *guest.gpr(reg::RCX), guest.context.rip));
        }
        over.store(true, Relaxed);
    });
    for (exit, left, rip) in seen {
        match exit {
            END => assert_eq!(left, 0, "another value was seen"),
            // An entry that changes faster than it can be walked is left to the VM.
            Exit::Unknown => {}
            exit => assert_eq!((exit, rip), (page_fault(4, DATA), CODE)),
        }
    }
    guest.context.rip = CODE;
    *guest.gpr(reg::RCX) = 5;
    assert_eq!(run_on(&mut guest), END);
    assert_eq!(*guest.gpr(reg::RBX), 0x2222);
}

/// Calls and returns, and jumps to addresses in tables, between pages that the
/// same frames give under another root, too.
#[test]
fn jumps_are_not_remembered_for_other_tables() {
    // call rax; hlt
    let mut guest = Guest::new(&[0xff, 0xd0, 0xf4]);
    let there = CODE + 0x10_0000;
    let first = guest.machine.map_new(guest.root, there, ALL);
    // mov ebx, 1; ret
    guest.machine.write(first, 0, &[0xbb, 1, 0, 0, 0, 0xc3]);
    let other = guest.machine.alloc();
    for (address, mfn) in [(CODE, guest.code), (DATA, guest.data)] {
        guest.machine.map(other, address, mfn, ALL);
    }
    let second = guest.machine.map_new(other, there, ALL);
    guest.machine.write(second, 0, &[0xbb, 2, 0, 0, 0, 0xc3]);
    *guest.gpr(reg::RAX) = there;
    let roots = [guest.root, other];
    for round in 0..40 {
        guest.root = roots[round % 2];
        assert_eq!(guest.rerun(), END);
        assert_eq!(*guest.gpr(reg::RBX), 1 + (round % 2) as u64);
    }
}

/// A function that adds to its own return address every other time.
#[test]
fn a_return_goes_where_the_stack_says() {
    // 2: call 3f; inc ebx; dec ecx; jnz 2b; hlt
    // 3: test cl, 1; jz 4f; add qword [rsp], 2; 4: ret
    let mut guest = Guest::new(&[
        0xe8, 7, 0, 0, 0, 0xff, 0xc3, 0xff, 0xc9, 0x75, 0xf5, 0xf4, 0xf6, 0xc1, 1, 0x74, 5, 0x48,
        0x83, 0x04, 0x24, 2, 0xc3,
    ]);
    *guest.gpr(reg::RCX) = 1000;
    assert_eq!(run_on(&mut guest), END);
    assert_eq!(*guest.gpr(reg::RBX), 500);
    assert_eq!(*guest.gpr(reg::RSP), DATA + 0x800);
}

/// More calls in each other than are remembered.
#[test]
fn returns_of_a_deep_recursion() {
    // call 2f; hlt; 2: dec ecx; jz 3f; call 2b; 3: inc ebx; ret
    let mut guest = Guest::new(&[
        0xe8, 1, 0, 0, 0, 0xf4, 0xff, 0xc9, 0x74, 5, 0xe8, 0xf7, 0xff, 0xff, 0xff, 0xff, 0xc3, 0xc3,
    ]);
    guest.machine.map_new(guest.root, DATA - 0x1000, ALL);
    for round in 1..=20 {
        guest.context.rip = CODE;
        *guest.gpr(reg::RCX) = 700;
        assert_eq!(run_on(&mut guest), END);
        assert_eq!(*guest.gpr(reg::RBX), 700 * round);
    }
}

/// The tables change between a call and its return.
#[test]
fn returns_are_not_remembered_for_other_tables() {
    // call rax; mov ebx, N; hlt
    let caller = |n| [0xff, 0xd0, 0xbb, n, 0, 0, 0, 0xf4];
    let mut guest = Guest::new(&caller(1));
    let there = CODE + 0x10_0000;
    let function = guest.machine.map_new(guest.root, there, ALL);
    // 2: dec ecx; jnz 2b; ret
    let code = [0xff, 0xc9, 0x75, 0xfc, 0xc3];
    guest.machine.write(function, 0, &code);
    let other = guest.machine.alloc();
    guest.machine.map(other, there, function, ALL);
    guest.machine.map(other, DATA, guest.data, ALL);
    let callers = guest.machine.map_new(other, CODE, ALL);
    guest.machine.write(callers, 0, &caller(2));
    *guest.gpr(reg::RAX) = there;
    let roots = [guest.root, other];
    for round in 0..200 {
        guest.context.rip = CODE;
        *guest.gpr(reg::RCX) = 4000;
        guest.root = roots[round % 2];
        assert_eq!(guest.run_for(2000), Exit::Budget);
        let stays = round % 3 == 0;
        guest.root = roots[(round + usize::from(!stays)) % 2];
        assert_eq!(run_on(&mut guest), END);
        let expected = 1 + (round + usize::from(!stays)) % 2;
        assert_eq!(*guest.gpr(reg::RBX), expected as u64, "round {round}");
    }
}

/// What jumps lead to must be canonical, whatever lay there before.
#[test]
fn a_call_of_no_address_pushes_nothing() {
    // call rax; hlt
    let mut guest = Guest::new(&[0xff, 0xd0, 0xf4]);
    let stack = *guest.gpr(reg::RSP);
    for _ in 0..3 {
        *guest.gpr(reg::RAX) = 1 << 63;
        assert_eq!(guest.rerun(), END);
        assert_eq!((guest.context.rip, *guest.gpr(reg::RSP)), (CODE, stack));
    }
}
