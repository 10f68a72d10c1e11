//! Code that all regions share: the way in, the ways out, and calls of ours.
//!
//! Law: wherever compiled code is left, or calls a function of ours that looks at
//! the registers, the guest's are in the [`Cpu`]. A function of ours never
//! unwinds into compiled code.

use super::{
    asm::{Asm, at, indexed},
    calls,
    layout::{FRAME, JUMPS, MORE, PLACE, TEST, flags, homes, jump_tag, rip, temporary, word},
};
use crate::interp::{host::CodeMemory, op::slot};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// Addresses of the shared code.
#[derive(Debug, Clone, Copy, Default)]
pub struct Glue {
    /// `fn(FRAME, entry) -> code`: loads the guest's registers and goes there.
    pub enter: u64,
    /// Leaves with the code in TEST; PLACE is the guest's next address.
    pub leave: u64,
    /// `call`: makes the translation of PLACE for the access that TEST tells;
    /// TEST is zero if there is one.
    pub translate: u64,
    /// `call`: lets the interpreter execute the operation at PLACE; does not
    /// return if the guest goes on elsewhere.
    pub interpret: u64,
    /// `call`: compares region PLACE with memory; TEST is zero if it is right.
    pub verify: u64,
    /// `call`: where to go for the address PLACE: in MORE, and TEST is zero, if
    /// it is known.
    pub find: u64,
    /// Goes on at the address PLACE.
    pub go: u64,
}

/// Registers of the host that a function of ours may change.
const VOLATILE: [Register; 8] = [
    Register::RAX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// Registers that belong to whoever called us.
const PRESERVED: [Register; 6] = [
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

impl Glue {
    /// Writes the code; `None` if there is no room.
    pub fn new(memory: &mut CodeMemory) -> Option<Self> {
        let mut asm = Asm::new(memory);
        let mut glue = Glue {
            enter: asm.here(),
            ..Glue::default()
        };
        enter(&mut asm);
        glue.leave = asm.here();
        let tail = leave(&mut asm);
        glue.translate = asm.here();
        call_quick(&mut asm, calls::translate as *const () as u64);
        glue.verify = asm.here();
        call_quick(&mut asm, calls::verify as *const () as u64);
        glue.interpret = asm.here();
        interpret(&mut asm, tail);
        glue.find = asm.here();
        find(&mut asm, memory);
        glue.go = asm.here();
        asm.call(glue.find);
        let away = asm.label();
        asm.jump_if_rcx(away);
        asm.jump_by(MORE);
        asm.bind(away);
        asm.set(TEST, calls::NEXT);
        asm.jump_to(glue.leave);
        memory.add(&asm.finish()?)?;
        Some(glue)
    }
}

fn enter(asm: &mut Asm) {
    for register in PRESERVED {
        asm.put(Instruction::with1(Code::Push_r64, register));
    }
    // Aligns the stack for calls from here.
    asm.lea(Register::RSP, at(Register::RSP, -8));
    asm.mov(FRAME, Register::RDI);
    asm.mov(MORE, Register::RSI);
    asm.load(PLACE, rip());
    load_flags(asm);
    load_all(asm);
    asm.jump_by(MORE);
}

/// Leaves; the address of the part that only leaves, the registers being
/// where they belong.
fn leave(asm: &mut Asm) -> u64 {
    asm.store(rip(), PLACE);
    store_all(asm);
    store_flags(asm);
    let tail = asm.here();
    asm.mov(Register::RAX, TEST);
    asm.lea(Register::RSP, at(Register::RSP, 8));
    for register in PRESERVED.into_iter().rev() {
        asm.put(Instruction::with1(Code::Pop_r64, register));
    }
    asm.put(Instruction::with(Code::Retnq));
    tail
}

fn load_all(asm: &mut Asm) {
    for (place, home) in homes() {
        asm.load(home, place);
    }
}

fn store_all(asm: &mut Asm) {
    for (place, home) in homes() {
        asm.store(place, home);
    }
}

/// The registers that a function of ours changes, and their places.
fn volatile() -> impl Iterator<Item = (MemoryOperand, Register)> {
    homes().filter(|(_, home)| VOLATILE.contains(home))
}

/// Puts the flags into the vCPU; RAX, which is changed, is there already.
fn store_flags(asm: &mut Asm) {
    asm.put(Instruction::with(Code::Lahf));
    asm.put(Instruction::with1(Code::Seto_rm8, Register::AL));
    asm.put(Instruction::with2(
        Code::Mov_rm16_r16,
        flags(),
        Register::AX,
    ));
}

/// Takes the flags from the vCPU; changes RAX.
fn load_flags(asm: &mut Asm) {
    asm.put(Instruction::with2(
        Code::Movzx_r32_rm16,
        Register::EAX,
        flags(),
    ));
    asm.put(Instruction::with2(Code::Add_AL_imm8, Register::AL, 0x7f));
    asm.put(Instruction::with(Code::Sahf));
}

/// `TEST = function(FRAME, PLACE, TEST)`. The stack is aligned but for our own
/// return address.
fn call(asm: &mut Asm, function: u64) {
    asm.lea(Register::RSP, at(Register::RSP, -8));
    asm.mov(Register::RDI, FRAME);
    asm.mov(Register::RSI, PLACE);
    asm.mov(Register::RDX, TEST);
    asm.set_address(Register::RAX, function);
    asm.put(Instruction::with1(Code::Call_rm64, Register::RAX));
    asm.lea(Register::RSP, at(Register::RSP, 8));
    asm.mov(TEST, Register::RAX);
}

/// Calls a function that does not look at the guest's registers.
fn call_quick(asm: &mut Asm, function: u64) {
    for (place, home) in volatile() {
        asm.store(place, home);
    }
    store_flags(asm);
    call(asm, function);
    load_flags(asm);
    for (place, home) in volatile() {
        asm.load(home, place);
    }
    asm.put(Instruction::with(Code::Retnq));
}

fn interpret(asm: &mut Asm, tail: u64) {
    store_all(asm);
    store_flags(asm);
    call(asm, calls::interpret as *const () as u64);
    let elsewhere = asm.label();
    asm.jump_if_rcx(elsewhere);
    load_flags(asm);
    load_all(asm);
    asm.put(Instruction::with(Code::Retnq));
    asm.bind(elsewhere);
    // Without our return address.
    asm.lea(Register::RSP, at(Register::RSP, 8));
    asm.jump_to(tail);
}

/// Looks the address PLACE up among the remembered jumps.
fn find(asm: &mut Asm, memory: &CodeMemory) {
    let table = |word: usize| i64::try_from(word * 8).unwrap_or(0);
    // The number, as `layout::jump_number` has it.
    asm.put(Instruction::with3(
        Code::VEX_Rorx_r64_rm64_imm8,
        TEST,
        PLACE,
        12,
    ));
    asm.lea(TEST, MemoryOperand::with_base_index(TEST, PLACE));
    let narrow = |asm: &mut Asm| {
        asm.put(Instruction::with2(
            Code::Movzx_r32_rm16,
            Register::ECX,
            Register::CX,
        ));
    };
    narrow(asm);
    asm.put(Instruction::with3(
        Code::VEX_Rorx_r32_rm32_imm8,
        Register::ECX,
        Register::ECX,
        4,
    ));
    narrow(asm);
    const { assert!(JUMPS == 1 << 12) };
    asm.lea(
        MORE,
        at(Register::RIP, memory.word_address(0).cast_signed()),
    );
    asm.lea(MORE, indexed(MORE, TEST, 0));
    asm.load(TEST, at(MORE, table(word::JUMP_KEY)));
    asm.lea(TEST, MemoryOperand::with_base_index(TEST, PLACE));
    let unknown = asm.label();
    asm.jump_if_rcx(unknown);
    // The right address: of the right tables, too?
    asm.store(temporary(2), PLACE);
    asm.load(PLACE, jump_tag());
    asm.load(TEST, at(MORE, table(word::JUMP_TAG)));
    asm.lea(TEST, MemoryOperand::with_base_index(TEST, PLACE));
    asm.load(PLACE, temporary(2));
    asm.load(MORE, at(MORE, table(word::JUMP_ENTRY)));
    asm.bind(unknown);
    asm.put(Instruction::with(Code::Retnq));
    const { assert!(slot::TEMP + 3 < 32) };
}
