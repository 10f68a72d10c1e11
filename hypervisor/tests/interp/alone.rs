//! What the interpreter does by itself when there is no engine behind it: single
//! steps, locks across cache lines, 32-bit code.

use crate::{
    guest::{CODE, DATA, END, Guest, exception, page_fault},
    machine::ALL,
};
use hypervisor::{
    cpu::{Compat, reg},
    interp::Exit,
};
use iced_x86::{Decoder, DecoderOptions};
use std::sync::atomic::AtomicBool;

const TF: u64 = 1 << 8;
/// Where 32-bit code and its data are.
const LOW_CODE: u64 = 0x0804_8000;
const LOW_DATA: u64 = 0xffff_f000;

fn alone(code: &[u8]) -> Guest {
    let mut guest = Guest::new(code);
    guest.interpreter.model().alone = true;
    guest
}

/// A guest in 32-bit code, its data in the last page.
fn compat(code: &[u8]) -> Guest {
    let mut guest = alone(code);
    guest.machine.map(guest.root, LOW_CODE, guest.code, ALL);
    guest.machine.map(guest.root, LOW_DATA, guest.data, ALL);
    guest.context.rip = LOW_CODE;
    guest.context.compat = Some(Compat { cs: 0x23, ss: 0x2b });
    guest.context.gpr[reg::RSP] = LOW_DATA + 0x800;
    guest
}

#[test]
fn a_single_step_is_one_instruction() {
    // inc eax; inc eax
    let mut guest = alone(&[0xff, 0xc0, 0xff, 0xc0]);
    guest.context.rflags |= TF;
    for n in 1..=2 {
        assert_eq!(guest.run(), exception(1, 0, 0));
        assert_eq!((guest.context.rip, *guest.gpr(reg::RAX)), (CODE + 2 * n, n));
    }
}

#[test]
fn a_single_step_of_a_repeated_instruction_is_one_element() {
    // rep stosb
    let mut guest = alone(&[0xf3, 0xaa, 0xf4]);
    *guest.gpr(reg::RCX) = 2;
    guest.context.rflags |= TF;
    assert_eq!(guest.run(), exception(1, 0, 0));
    assert_eq!((guest.context.rip, *guest.gpr(reg::RCX)), (CODE, 1));
    assert_eq!(guest.run(), exception(1, 0, 0));
    assert_eq!(*guest.gpr(reg::RCX), 0);
}

#[test]
fn popf_that_sets_tf_traps_after_the_next_instruction() {
    // push $0x302; popfq; inc eax; inc eax
    let mut guest = alone(&[0x68, 2, 3, 0, 0, 0x9d, 0xff, 0xc0, 0xff, 0xc0]);
    assert_eq!(guest.run(), Exit::Budget);
    assert_eq!(guest.context.rip, CODE + 6);
    assert_eq!(guest.run(), exception(1, 0, 0));
    assert_eq!((guest.context.rip, *guest.gpr(reg::RAX)), (CODE + 8, 1));
}

#[test]
fn a_fault_comes_before_the_single_step() {
    // mov [rsi], al with nothing there
    let mut guest = alone(&[0x88, 0x06]);
    guest.context.rflags |= TF;
    *guest.gpr(reg::RSI) = DATA + 0x1000;
    assert_eq!(guest.run(), page_fault(6, DATA + 0x1000));
    assert_eq!(guest.context.rip, CODE);
}

#[test]
fn a_lock_across_lines_and_pages_is_done_whole_or_not_at_all() {
    // lock inc qword [rsi]; hlt
    let code = [0xf0, 0x48, 0xff, 0x06, 0xf4];
    let mut guest = alone(&code);
    *guest.gpr(reg::RSI) = DATA + 60;
    guest.machine.write(guest.data, 60, &0xffu64.to_le_bytes());
    assert_eq!(guest.run(), END);
    assert_eq!(
        guest.machine.read(guest.data, 60, 8),
        0x100u64.to_le_bytes()
    );
    // The second page is missing: nothing happens.
    let mut guest = alone(&code);
    *guest.gpr(reg::RSI) = DATA + 0xffc;
    assert_eq!(guest.run(), page_fault(6, DATA + 0x1000));
    assert_eq!(guest.machine.read(guest.data, 0xffc, 4), [0; 4]);
    let second = guest.machine.map_new(guest.root, DATA + 0x1000, ALL);
    guest.machine.write(guest.data, 0xffc, &[0xff; 4]);
    assert_eq!(guest.rerun(), END);
    assert_eq!(guest.machine.read(guest.data, 0xffc, 4), [0; 4]);
    assert_eq!(guest.machine.read(second, 0, 4), [1, 0, 0, 0]);
}

#[test]
fn locks_across_lines_are_not_lost_between_vcpus() {
    const ROUNDS: u64 = 5000;
    // lock inc qword [rsi]; dec ecx; jnz; hlt
    let guest = alone(&[0xf0, 0x48, 0xff, 0x06, 0xff, 0xc9, 0x75, 0xf8, 0xf4]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (machine, root, mut context) = (&guest.machine, guest.root, guest.context);
            scope.spawn(move || {
                let mut interpreter = crate::interpreter(machine);
                interpreter.model().alone = true;
                context.gpr[reg::RSI] = DATA + 60;
                context.gpr[reg::RCX] = ROUNDS;
                let go = AtomicBool::new(false);
                let exit = interpreter.run(&mut context, root, u64::MAX, &go);
                assert_eq!(exit, END);
            });
        }
    });
    let sum = guest.machine.read(guest.data, 60, 8);
    assert_eq!(sum, (2 * ROUNDS).to_le_bytes());
}

/// Every opcode of one and of two bytes that no processor has is named as such;
/// what a processor has is not.
#[test]
fn undefined_opcodes_are_told_from_unknown_ones() {
    let mut undefined = 0;
    for two in [false, true] {
        for opcode in 0..=255u8 {
            let mut code = if two {
                vec![0x0f, opcode]
            } else {
                vec![opcode]
            };
            code.resize(16, 0xc0);
            let invalid = Decoder::with_ip(64, &code, CODE, DecoderOptions::NONE)
                .decode()
                .is_invalid();
            let mut guest = alone(&code);
            let described = guest.interpreter.describe(&guest.context, guest.root);
            if invalid {
                undefined += 1;
                assert_eq!(described, None, "{code:x?}");
                let exit = guest.run();
                assert!(
                    exit == Exit::Unknown || exit == exception(6, 0, 0),
                    "{code:x?}: {exit:?}"
                );
            }
        }
    }
    assert!(undefined > 20, "{undefined} undefined opcodes");
    let mut guest = alone(&[0x0f, 0x09]);
    let name = guest.interpreter.describe(&guest.context, guest.root);
    assert!(name.is_some_and(|name| name.contains("wbinvd")));
}

#[test]
fn calls_and_the_stack_of_32_bit_code() {
    // mov eax, 5; push eax; pop ecx; inc ecx; call f; hlt; f: add eax, ecx; pusha; popa; ret
    let mut guest = compat(&[
        0xb8, 5, 0, 0, 0, 0x50, 0x59, 0x41, 0xe8, 1, 0, 0, 0, 0xf4, 0x01, 0xc8, 0x60, 0x61, 0xc3,
    ]);
    assert_eq!(guest.run(), END);
    assert_eq!(guest.context.rip, LOW_CODE + 13);
    assert_eq!(*guest.gpr(reg::RAX), 11);
    assert_eq!(*guest.gpr(reg::RSP), LOW_DATA + 0x800);
    let back = guest.machine.read(guest.data, 0x7fc, 4);
    assert_eq!(back, [13, 0x80, 0x04, 0x08]);
}

#[test]
fn addresses_of_32_bit_code_wrap() {
    // mov eax, fs:[0xfffffffc]; mov ebx, [esi + edi]; lea ecx, [esi + edi]; hlt
    let mut guest = compat(&[
        0x64, 0xa1, 0xfc, 0xff, 0xff, 0xff, 0x8b, 0x1c, 0x3e, 0x8d, 0x0c, 0x3e, 0xf4,
    ]);
    guest
        .machine
        .write(guest.data, 0x10, &0x1234_5678u32.to_le_bytes());
    guest.context.fs_base = LOW_DATA + 0x14;
    *guest.gpr(reg::RSI) = LOW_DATA + 0x20;
    *guest.gpr(reg::RDI) = 0xffff_fff0;
    assert_eq!(guest.run(), END);
    assert_eq!(*guest.gpr(reg::RAX), 0x1234_5678);
    assert_eq!(*guest.gpr(reg::RBX), 0x1234_5678);
    assert_eq!(*guest.gpr(reg::RCX), LOW_DATA + 0x10);
}

#[test]
fn strings_and_interrupts_of_32_bit_code() {
    // rep movsb; int 0x80
    let mut guest = compat(&[0xf3, 0xa4, 0xcd, 0x80]);
    guest.machine.write(guest.data, 0, b"hello");
    *guest.gpr(reg::RSI) = LOW_DATA;
    *guest.gpr(reg::RDI) = LOW_DATA + 0x100;
    *guest.gpr(reg::RCX) = 5;
    assert_eq!(guest.run(), exception(13, 0x80 * 8 + 2, 0));
    assert_eq!(guest.machine.read(guest.data, 0x100, 5), b"hello");
    assert_eq!(*guest.gpr(reg::RSI), LOW_DATA + 5);
}

/// One frame may hold code of both kinds: the same bytes mean different things.
#[test]
fn the_same_bytes_are_decoded_for_each_mode() {
    // 64-bit: rex.w inc eax... = `48 ff c0` inc rax; 32-bit: dec eax; inc eax
    let mut guest = compat(&[0x48, 0xff, 0xc0, 0xf4]);
    *guest.gpr(reg::RAX) = 0xffff_ffff;
    assert_eq!(guest.run(), END);
    assert_eq!(*guest.gpr(reg::RAX), 0xffff_ffff);
    guest.context.compat = None;
    assert_eq!(guest.rerun(), END);
    assert_eq!(*guest.gpr(reg::RAX), 0x1_0000_0000);
}

/// Selectors that need a descriptor table are left to who has one.
#[test]
fn selectors_with_descriptors_fault_with_their_number() {
    // mov eax, 0x63; mov gs, eax
    let mut guest = compat(&[0xb8, 0x63, 0, 0, 0, 0x8e, 0xe8]);
    assert_eq!(guest.run(), exception(13, 0x60, 0));
    assert_eq!(guest.context.rip, LOW_CODE + 5);
    // mov eax, 0x2b; mov ds, eax; mov ebx, ds; hlt
    let mut guest = compat(&[0xb8, 0x2b, 0, 0, 0, 0x8e, 0xd8, 0x8c, 0xdb, 0xf4]);
    assert_eq!(guest.run(), END);
    assert_eq!((*guest.gpr(reg::RBX), guest.context.data.ds), (0x2b, 0x2b));
}

/// `lar` and its like need a descriptor table as well; their operand is read first.
#[test]
fn what_looks_into_descriptors_is_handed_on() {
    // lar eax, ecx; lsl eax, [rsi]; verr cx; verw [rsi]
    let codes: [(&[u8], bool); 4] = [
        (&[0x0f, 0x02, 0xc1], false),
        (&[0x0f, 0x03, 0x06], true),
        (&[0x0f, 0x00, 0xe1], false),
        (&[0x0f, 0x00, 0x2e], true),
    ];
    for (code, memory) in codes {
        let mut guest = alone(code);
        let before = guest.context;
        assert_eq!(guest.run(), exception(13, 0xfff8, 0), "{code:x?}");
        assert_eq!(guest.stopped(), before);
        if memory {
            *guest.gpr(reg::RSI) = DATA + 0x1000;
            assert_eq!(guest.run(), page_fault(4, DATA + 0x1000));
        }
        let mut guest = Guest::new(code);
        assert_eq!(guest.run(), Exit::Unknown);
    }
}
