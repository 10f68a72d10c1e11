//! Code that changes, code across pages, and how a run ends.

use crate::{
    guest::{CODE, DATA, END, Guest, exception, page_fault},
    machine::ALL,
    random::{Random, instruction, vector_instruction},
};
use hypervisor::{
    cpu::{Trap, reg},
    fpu::FpuState,
    interp::Exit,
};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

/// `mov byte [rdi], al; mov ebx, 1; hlt`: RDI may point at the 1.
const PATCH: &[u8] = &[0x88, 0x07, 0xbb, 1, 0, 0, 0, 0xf4];

#[test]
fn a_store_into_the_same_block_takes_effect_at_once() {
    let mut guest = Guest::new(PATCH);
    for value in [7, 8, 8, 9] {
        *guest.gpr(reg::RAX) = value;
        *guest.gpr(reg::RDI) = CODE + 3;
        assert_eq!(guest.rerun(), END);
        assert_eq!(*guest.gpr(reg::RBX), value);
    }
}

#[test]
fn a_store_through_another_mapping_takes_effect_at_once() {
    let mut guest = Guest::new(PATCH);
    let alias = 0x1234_5000;
    guest.machine.map(guest.root, alias, guest.code, ALL);
    // Write through the alias before the frame is known to hold code, too.
    *guest.gpr(reg::RAX) = 5;
    *guest.gpr(reg::RDI) = alias + 0x100;
    assert_eq!(guest.rerun(), END);
    *guest.gpr(reg::RDI) = alias + 3;
    for value in [7, 8, 9] {
        *guest.gpr(reg::RAX) = value;
        assert_eq!(guest.rerun(), END);
        assert_eq!(*guest.gpr(reg::RBX), value);
    }
}

#[test]
fn data_beside_code_can_be_written() {
    // `inc qword [rdi]; dec rcx; jnz`, with RDI in the code's page and even in
    // its cache line.
    let mut guest = Guest::new(&[0x48, 0xff, 0x07, 0x48, 0xff, 0xc9, 0x75, 0xf8, 0xf4]);
    for at in [0x10, 0x800] {
        *guest.gpr(reg::RDI) = CODE + at;
        *guest.gpr(reg::RCX) = 1000;
        assert_eq!(guest.rerun(), END);
        assert_eq!(guest.machine.word(guest.code, at).load(Relaxed), 1000);
    }
}

#[test]
fn code_that_somebody_else_changed_is_seen_in_the_next_run() {
    let mut guest = Guest::new(&[0xb8, 1, 0, 0, 0, 0xf4]);
    assert_eq!((guest.rerun(), *guest.gpr(reg::RAX)), (END, 1));
    guest.machine.write(guest.code, 1, &[2]);
    assert_eq!((guest.rerun(), *guest.gpr(reg::RAX)), (END, 2));
    guest.machine.write(guest.code, 0, &[0xbb]);
    assert_eq!((guest.rerun(), *guest.gpr(reg::RBX)), (END, 2));
}

#[test]
fn one_frame_of_code_runs_at_several_addresses() {
    // `lea rax, [rip]; call +0; pop rbx; hlt`
    let code = [0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x5b, 0xf4];
    let mut guest = Guest::new(&code);
    for at in [CODE, 0x7000, 0x7fff_ffff_f000] {
        guest.machine.map(guest.root, at, guest.code, ALL);
        guest.context.rip = at;
        assert_eq!(guest.run(), END);
        assert_eq!(*guest.gpr(reg::RAX), at + 7);
        assert_eq!(*guest.gpr(reg::RBX), at + 12);
    }
}

#[test]
fn an_instruction_across_pages_needs_both() {
    let mut guest = Guest::new(&[]);
    // `mov eax, 0x01020304`, two bytes of it in the first page
    guest.machine.write(guest.code, 0xffe, &[0xb8, 4]);
    guest.context.rip = CODE + 0xffe;
    assert_eq!(guest.run(), page_fault(0x14, CODE + 0x1000));
    assert_eq!(guest.context.rip, CODE + 0xffe);
    let second = guest.machine.map_new(guest.root, CODE + 0x1000, ALL);
    guest.machine.write(second, 0, &[3, 2, 1, 0xf4]);
    assert_eq!(guest.run(), END);
    assert_eq!(*guest.gpr(reg::RAX), 0x0102_0304);
    // Another second page, with the same first one.
    let other = guest.machine.alloc();
    guest.machine.write(other, 0, &[5, 5, 5, 0xf4]);
    guest.machine.map(guest.root, CODE + 0x1000, other, ALL);
    guest.context.rip = CODE + 0xffe;
    assert_eq!((guest.run(), *guest.gpr(reg::RAX)), (END, 0x0505_0504));
    // Its bytes change.
    guest.machine.write(other, 0, &[6]);
    guest.context.rip = CODE + 0xffe;
    assert_eq!((guest.run(), *guest.gpr(reg::RAX)), (END, 0x0505_0604));
}

#[test]
fn a_block_goes_on_in_the_next_page() {
    let mut guest = Guest::new(&[]);
    let second = guest.machine.map_new(guest.root, CODE + 0x1000, ALL);
    guest.machine.write(guest.code, 0xffe, &[0xff, 0xc0]);
    guest.machine.write(second, 0, &[0xff, 0xc0, 0xf4]);
    guest.context.rip = CODE + 0xffe;
    assert_eq!((guest.run(), *guest.gpr(reg::RAX)), (END, 2));
    assert_eq!(guest.context.rip, CODE + 0x1002);
}

#[test]
fn a_loop_ends_with_its_budget_and_goes_on_later() {
    let mut guest = Guest::new(&[0xff, 0xc0, 0xeb, 0xfc]);
    assert_eq!(guest.run_for(1000), Exit::Budget);
    assert_eq!(*guest.gpr(reg::RAX), 500);
    assert_eq!(guest.run_for(1000), Exit::Budget);
    assert_eq!(*guest.gpr(reg::RAX), 1000);
    // `jmp $`
    guest.machine.write(guest.code, 0, &[0xeb, 0xfe]);
    assert_eq!(guest.rerun(), Exit::Budget);
    assert_eq!(guest.context.rip, CODE);
}

#[test]
fn a_loop_ends_with_the_interrupt_flag() {
    let mut guest = Guest::new(&[0xeb, 0xfe]);
    let stop = AtomicBool::new(true);
    let run = |guest: &mut Guest| {
        guest
            .interpreter
            .run(&mut guest.context, guest.root, u64::MAX, &stop)
    };
    assert_eq!(run(&mut guest), Exit::Interrupted);
    stop.store(false, Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            stop.store(true, Relaxed);
        });
        assert_eq!(run(&mut guest), Exit::Interrupted);
    });
    assert!(stop.load(Relaxed));
}

#[test]
fn a_long_string_instruction_stops_between_elements() {
    // `rep stosb`
    let mut guest = Guest::new(&[0xf3, 0xaa, 0xf4]);
    for page in 1..16 {
        guest
            .machine
            .map(guest.root, DATA + page * 0x1000, guest.data, ALL);
    }
    *guest.gpr(reg::RCX) = 0x10000;
    *guest.gpr(reg::RAX) = 0x5a;
    assert_eq!(guest.run_for(1), Exit::Budget);
    assert_eq!(guest.context.rip, CODE);
    let left = *guest.gpr(reg::RCX);
    assert!(left > 0 && left < 0x10000);
    assert_eq!(*guest.gpr(reg::RDI), DATA + 0x10000 - left);
    assert_eq!(guest.run(), END);
    assert_eq!(*guest.gpr(reg::RCX), 0);
    assert_eq!(*guest.gpr(reg::RDI), DATA + 0x10000);
    assert_eq!(guest.machine.read(guest.data, 0, 0x1000), [0x5a; 0x1000]);
}

#[test]
fn a_string_instruction_stops_at_a_fault_and_goes_on() {
    // `rep movsq`, `rep movsb` and, downwards, `std; rep movsb`
    for (code, size) in [(&[0xf3, 0x48, 0xa5][..], 8), (&[0xf3, 0xa4], 1)] {
        let mut guest = Guest::new(code);
        guest.machine.write(guest.code, code.len() as u64, &[0xf4]);
        let from = 0x10_0000;
        let frame = guest.machine.map_new(guest.root, from, ALL);
        guest.machine.write(frame, 0, &[1; 0x800]);
        *guest.gpr(reg::RSI) = from;
        *guest.gpr(reg::RDI) = DATA + 0xfc0;
        *guest.gpr(reg::RCX) = 0x80 / size;
        assert_eq!(guest.run(), page_fault(6, DATA + 0x1000));
        assert_eq!(guest.context.rip, CODE);
        assert_eq!(*guest.gpr(reg::RSI), from + 0x40);
        assert_eq!(*guest.gpr(reg::RDI), DATA + 0x1000);
        assert_eq!(*guest.gpr(reg::RCX), 0x40 / size);
        assert_eq!(guest.machine.read(guest.data, 0xfc0, 0x40), [1; 0x40]);
        let second = guest.machine.map_new(guest.root, DATA + 0x1000, ALL);
        assert_eq!(guest.run(), END);
        assert_eq!(guest.machine.read(second, 0, 0x41)[..0x40], [1; 0x40]);
        assert_eq!(guest.machine.read(second, 0x40, 1), [0]);
    }
    let mut guest = Guest::new(&[0xfd, 0xf3, 0xa4, 0xf4]);
    *guest.gpr(reg::RSI) = DATA + 0x800;
    *guest.gpr(reg::RDI) = DATA + 3;
    *guest.gpr(reg::RCX) = 10;
    assert_eq!(guest.run(), page_fault(6, DATA - 1));
    assert_eq!(*guest.gpr(reg::RCX), 6);
    assert_eq!(*guest.gpr(reg::RSI), DATA + 0x7fc);
}

#[test]
fn traps_leave_the_context_that_the_contract_says() {
    // `syscall`: RIP and flags are also in RCX and R11.
    let mut guest = Guest::new(&[0xf9, 0x0f, 0x05]);
    assert_eq!(guest.run(), Exit::Trap(Trap::Syscall));
    assert_eq!(guest.context.rip, CODE + 3);
    assert_eq!(*guest.gpr(reg::RCX), CODE + 3);
    assert_eq!(*guest.gpr(reg::R11), 0x203);
    assert_eq!(guest.context.rflags, 0x203);
    // (bytes, exit, how far RIP is)
    let cases: [(&[u8], Exit, u64); 20] = [
        (&[0xcc], exception(3, 0, 0), 1),
        (&[0x0f, 0x0b], exception(6, 0, 0), 0),
        (&[0x0f, 0x01, 0xca], exception(6, 0, 0), 0),
        (&[0x0f, 0xff, 0xc0], exception(6, 0, 0), 0),
        (&[0xf7, 0xf1], exception(0, 0, 0), 0),
        (&[0xcd, 0x80], exception(13, 0x80 * 8 + 2, 0), 0),
        (&[0xcd, 0x03], exception(3, 0, 0), 2),
        (&[0xf1], exception(1, 0, 0), 1),
        (&[0xfa], exception(13, 0, 0), 0),
        (&[0xfb], exception(13, 0, 0), 0),
        (&[0xec], exception(13, 0, 0), 0),
        (&[0xee], exception(13, 0, 0), 0),
        (&[0x0f, 0x32], exception(13, 0, 0), 0),
        (&[0x0f, 0x20, 0xd8], exception(13, 0, 0), 0),
        (&[0x0f, 0x23, 0xf8], exception(13, 0, 0), 0),
        (&[0x0f, 0x01, 0xf8], exception(13, 0, 0), 0),
        (&[0x0f, 0x01, 0x17], exception(13, 0, 0), 0),
        (&[0x48, 0xcf], Exit::Unknown, 0),
        (&[0x8e, 0xd8], Exit::Unknown, 0),
        (&[0x0f, 0x58, 0xc1], Exit::NeedsFpu, 0),
    ];
    for (code, exit, length) in cases {
        let mut guest = Guest::new(code);
        let before = guest.context.gpr;
        assert_eq!(guest.run(), exit, "{code:x?}");
        assert_eq!(guest.context.rip, CODE + length, "{code:x?}");
        assert_eq!(guest.context.gpr, before);
    }
}

#[test]
fn ring_3_cannot_pop_privileged_flags() {
    // `popfq; pushfq; pop rbx; hlt`
    let mut guest = Guest::new(&[0x9d, 0x9c, 0x5b, 0xf4]);
    guest
        .machine
        .write(guest.data, 0x800, &0x0024_3cd7u64.to_le_bytes());
    assert_eq!(guest.run(), Exit::Unknown, "AC is for the engine");
    guest
        .machine
        .write(guest.data, 0x800, &0x0020_7cd7u64.to_le_bytes());
    assert_eq!(guest.rerun(), END);
    assert_eq!(*guest.gpr(reg::RBX), 0x0020_4ed7);
    assert_eq!(guest.stopped().rflags, 0x0020_4ed7);
    // Single-stepping runs nothing.
    guest.context.rflags = 0x302;
    assert_eq!(guest.rerun(), Exit::Unknown);
    assert_eq!(guest.context.rip, CODE);
}

#[test]
fn selectors_can_be_read_and_null_ones_loaded_again() {
    let selectors = [Some(0x10), Some(0x33), Some(0x2b), Some(0), None, Some(3)];
    // `mov eax, cs; hlt`, `mov bx, ss`, `mov [rsi], es`, `push gs; pop rcx`
    let code = [
        0x8c, 0xc8, 0x66, 0x8c, 0xd3, 0x8c, 0x06, 0x0f, 0xa8, 0x59, 0xf4,
    ];
    let mut guest = Guest::new(&code);
    assert_eq!(guest.run(), Exit::Unknown);
    guest.interpreter.model().selectors = selectors;
    *guest.gpr(reg::RAX) = u64::MAX;
    *guest.gpr(reg::RBX) = u64::MAX;
    assert_eq!(guest.run(), END);
    assert_eq!(*guest.gpr(reg::RAX), 0x33);
    assert_eq!(*guest.gpr(reg::RBX), 0xffff_ffff_ffff_002b);
    assert_eq!(guest.machine.word(guest.data, 0).load(Relaxed), 0x10);
    assert_eq!(*guest.gpr(reg::RCX), 3);
    // `mov ds, ax`, `mov es, ax`, `mov gs, ax`: (value, outcome)
    for (register, value, exit) in [
        (0xd8, 0, END),
        (0xd8, 3, Exit::Unknown),
        (0xc0, 0x10, Exit::Unknown),
        (0xc0, 0, Exit::Unknown),
        (0xe8, 3, END),
        (0xe8, 0x33, Exit::Unknown),
        (0xe0, 0, Exit::Unknown),
    ] {
        let mut guest = Guest::new(&[0x8e, register, 0xf4]);
        guest.interpreter.model().selectors = selectors;
        *guest.gpr(reg::RAX) = value;
        assert_eq!(guest.run(), exit, "{register:x} {value:x}");
    }
}

#[test]
fn iret_returns_within_ring_3() {
    // `mov eax, ss; push rax; lea rax, [rsp + 8]; push rax; pushfq; or [rsp], 1;
    // mov eax, cs; push rax; lea rax, [rip + 3]; push rax; iretq; hlt`
    let code = [
        0x8c, 0xd0, 0x50, 0x48, 0x8d, 0x44, 0x24, 0x08, 0x50, 0x9c, 0x83, 0x0c, 0x24, 0x01, 0x8c,
        0xc8, 0x50, 0x48, 0x8d, 0x05, 0x03, 0, 0, 0, 0x50, 0x48, 0xcf, 0xf4,
    ];
    let mut guest = Guest::new(&code);
    let stack = *guest.gpr(reg::RSP);
    guest.interpreter.model().selectors = [None, Some(0x33), Some(0x2b), None, None, None];
    assert_eq!((guest.run(), guest.context.rip), (END, CODE + 27));
    assert_eq!(*guest.gpr(reg::RSP), stack);
    assert_eq!(guest.stopped().rflags, 0x203);
    // To another code segment, or single-stepping: for the engine.
    for (word, value) in [(1, 0x23u64), (2, 0x302), (0, 1 << 63)] {
        let mut guest = Guest::new(&[0x48, 0xcf, 0xf4]);
        guest.interpreter.model().selectors = [None, Some(0x33), Some(0x2b), None, None, None];
        let mut frame = [CODE + 2, 0x33, 0x202, DATA, 0x2b];
        frame[word] = value;
        for (at, value) in frame.iter().enumerate() {
            let at = 0x800 + 8 * at as u64;
            guest.machine.write(guest.data, at, &value.to_le_bytes());
        }
        let before = guest.context;
        assert_eq!(guest.run(), Exit::Unknown);
        assert_eq!(guest.context, before);
    }
}

#[test]
fn cpuid_and_time_come_from_the_model() {
    // `cpuid; hlt` and `rdtscp; hlt`
    let mut guest = Guest::new(&[0x0f, 0xa2, 0xf4]);
    assert_eq!(guest.run(), Exit::Unknown);
    guest.interpreter.model().cpuid = Some(Box::new(|leaf, sub| [leaf, sub, 3, 4]));
    *guest.gpr(reg::RAX) = 0xffff_0000_0000_0007;
    *guest.gpr(reg::RCX) = 2;
    assert_eq!(guest.run(), END);
    let gpr = guest.context.gpr;
    let answer = [gpr[reg::RAX], gpr[reg::RBX], gpr[reg::RCX], gpr[reg::RDX]];
    assert_eq!(answer, [7, 2, 3, 4]);
    guest
        .machine
        .write(guest.code, 0, &[0x0f, 0x01, 0xf9, 0xf4]);
    assert_eq!(guest.rerun(), Exit::Unknown);
    guest.interpreter.model().tsc_aux = Some(9);
    let time = |guest: &mut Guest| {
        assert_eq!(guest.rerun(), END);
        *guest.gpr(reg::RDX) << 32 | *guest.gpr(reg::RAX)
    };
    let first = time(&mut guest);
    assert!(time(&mut guest) > first);
    assert_eq!(*guest.gpr(reg::RCX), 9);
    guest.interpreter.model().tsc_offset = first.wrapping_neg();
    assert!(time(&mut guest) < first);
}

/// Whatever the bytes are, running them ends, and an instruction that stopped
/// the interpreter has had no effect: stopping there again changes nothing.
#[test]
fn any_bytes_run_or_stop_cleanly() {
    let mut random = Random(7);
    for _ in 0..crate::FRESH {
        let mut guest = Guest::new(&[]);
        let mut code = Vec::new();
        while code.len() < 64 {
            match random.below(4) {
                0 => code.extend(instruction(&mut random)),
                1 => code.extend(vector_instruction(&mut random)),
                _ => code.push(random.byte()),
            }
        }
        guest.machine.write(guest.code, 0xfe0, &code[..32]);
        guest.machine.write(guest.code, 0, &code[32..64]);
        for register in 0..16 {
            let near = DATA + random.below(0x1000);
            *guest.gpr(register) = random.pick(&[near, near, CODE, 0, 1 << 63]);
        }
        // Exceptions of every kind may be unmasked and pending: no stub faults.
        let mut fpu = FpuState::new();
        fpu.set_mxcsr(u32::try_from(random.next() & 0xffff).unwrap());
        fpu.set_x87_u16(0, u16::try_from(random.next() & 0xf7f).unwrap());
        fpu.set_x87_u16(2, u16::try_from(random.next() & 0x7f7f).unwrap());
        fpu.settle_x87();
        guest.interpreter.load_fpu(&fpu);
        guest.interpreter.model().xcr0 = Some(7);
        guest.context.rip = CODE + 0xfe0;
        let mut exit = guest.run_for(300);
        for _ in 0..4 {
            if exit != Exit::Budget {
                break;
            }
            exit = guest.run_for(300);
        }
        let repeats = match exit {
            Exit::Trap(Trap::Exception { vector, .. }) => !matches!(vector, 1 | 3 | 4),
            exit => exit == Exit::Unknown,
        };
        if repeats {
            let before = guest.context;
            assert_eq!(guest.run(), exit, "{code:x?}");
            assert_eq!(guest.context, before, "{code:x?}");
        }
    }
}
