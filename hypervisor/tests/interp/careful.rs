//! Alignment checks and breakpoints of an interpreter that is alone.

use crate::guest::{CODE, DATA, END, Guest, exception, page_fault};
use hypervisor::{
    cpu::reg,
    interp::{Breakpoints, Exit},
};

const AC: u64 = 1 << 18;
const RF: u64 = 1 << 16;

fn alone(code: &[u8]) -> Guest {
    let mut guest = Guest::new(code);
    guest.interpreter.model().alone = true;
    guest
}

/// With DR0 armed: kind and length as in DR7.
fn watched(code: &[u8], address: u64, kind_and_length: u64) -> Guest {
    let mut guest = alone(code);
    guest.interpreter.model().breakpoints = Breakpoints {
        address: [address, 0, 0, 0],
        control: 1 | kind_and_length << 16,
    };
    guest
}

fn hits(guest: &mut Guest) -> u64 {
    std::mem::take(&mut guest.interpreter.model().hits)
}

#[test]
fn a_misaligned_operand_is_a_fault_with_ac() {
    // mov [rsi + 1], eax; hlt
    let code = [0x89, 0x46, 0x01, 0xf4];
    let mut guest = alone(&code);
    assert_eq!(guest.run(), END);
    guest.context.rflags |= AC;
    *guest.gpr(reg::RAX) = 0x55;
    assert_eq!(guest.rerun(), exception(17, 0, 0));
    assert_eq!(guest.context.rip, CODE);
    assert_eq!(guest.machine.read(guest.data, 1, 1), [0]);
    // A byte is always aligned, and so is what is.
    let mut guest = alone(&[0x88, 0x46, 0x01, 0x89, 0x46, 0x04, 0xf4]);
    guest.context.rflags |= AC;
    assert_eq!(guest.run(), END);
    // A misaligned stack.
    let mut guest = alone(&[0x50]);
    guest.context.rflags |= AC;
    *guest.gpr(reg::RSP) = DATA + 0x804;
    assert_eq!(guest.run(), exception(17, 0, 0));
    assert_eq!(*guest.gpr(reg::RSP), DATA + 0x804);
}

#[test]
fn a_page_fault_comes_before_the_alignment_check() {
    // mov eax, [rsi]
    let mut guest = alone(&[0x8b, 0x06]);
    guest.context.rflags |= AC;
    *guest.gpr(reg::RSI) = DATA + 0xfff;
    assert_eq!(guest.run(), page_fault(4, DATA + 0x1000));
}

#[test]
fn popf_begins_and_ends_alignment_checks() {
    // pushfq; or dword [rsp], AC; popfq; mov eax, [rsi + 1]
    let mut guest = alone(&[
        0x9c, 0x81, 0x0c, 0x24, 0, 0, 4, 0, 0x9d, 0x8b, 0x46, 0x01, 0xf4,
    ]);
    assert_eq!(guest.run(), Exit::Budget);
    assert_eq!(guest.run(), exception(17, 0, 0));
    assert_eq!(guest.context.rip, CODE + 9);
    guest.context.rflags &= !AC;
    assert_eq!(guest.run(), END);
}

#[test]
fn an_instruction_breakpoint_is_a_fault_until_it_is_resumed() {
    // inc eax; inc eax; hlt
    let mut guest = watched(&[0xff, 0xc0, 0xff, 0xc0, 0xf4], CODE + 2, 0);
    assert_eq!(guest.run(), exception(1, 0, 0));
    assert_eq!((guest.context.rip, *guest.gpr(reg::RAX)), (CODE + 2, 1));
    assert_eq!(hits(&mut guest), 1);
    assert_eq!(guest.run(), exception(1, 0, 0));
    guest.context.rflags |= RF;
    assert_eq!(guest.run(), END);
    assert_eq!(*guest.gpr(reg::RAX), 2);
}

#[test]
fn what_is_written_traps_after_it() {
    // mov eax, [rsi + 8]; mov [rsi + 8], ebx; hlt: four bytes at 8
    let code = [0x8b, 0x46, 8, 0x89, 0x5e, 8, 0xf4];
    let mut guest = watched(&code, DATA + 8, 0b1101);
    *guest.gpr(reg::RBX) = 7;
    assert_eq!(guest.run(), exception(1, 0, 0));
    assert_eq!(guest.context.rip, CODE + 6);
    assert_eq!(guest.machine.read(guest.data, 8, 1), [7]);
    assert_eq!(hits(&mut guest), 1);
    assert_eq!(guest.run(), END);
    // Read or written.
    let mut guest = watched(&code, DATA + 8, 0b1111);
    assert_eq!(guest.run(), exception(1, 0, 0));
    assert_eq!(guest.context.rip, CODE + 3);
}

#[test]
fn a_repeated_instruction_traps_at_the_element() {
    // rep stosb; hlt: one byte at 2
    let mut guest = watched(&[0xf3, 0xaa, 0xf4], DATA + 2, 0b0001);
    *guest.gpr(reg::RCX) = 5;
    assert_eq!(guest.run(), exception(1, 0, 0));
    assert_eq!((guest.context.rip, *guest.gpr(reg::RCX)), (CODE, 2));
    assert_eq!(guest.run(), END);
    assert_eq!(*guest.gpr(reg::RCX), 0);
}

#[test]
fn pushes_and_calls_touch_the_stack() {
    // call +0; hlt
    let mut guest = watched(&[0xe8, 0, 0, 0, 0, 0xf4], DATA + 0x7f8, 0b1001);
    assert_eq!(guest.run(), exception(1, 0, 0));
    assert_eq!(guest.context.rip, CODE + 5);
}
