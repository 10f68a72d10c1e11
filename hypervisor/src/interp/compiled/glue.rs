//! Code that all regions share: the way in, the ways out, and calls of ours.
//!
//! Law: wherever compiled code is left, or calls a function of ours that looks at
//! the registers, the guest's are in the [`Cpu`]. A function of ours never
//! unwinds into compiled code.

use super::{
    asm::{Asm, Label, at, indexed, indexed_by_4},
    calls,
    layout::{
        ENTRY_WORDS, FRAME, JUMP_DROP, JUMP_TURN, MORE, NUMBER_SHIFTS, PLACE, RETURNS, STACK, TEST,
        addend, fast_set, flags, home, homes, jump_tag, key, negative_epoch, page, rip, slot_of,
        temporary, word,
    },
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
    /// For accesses of 1, 2, 4 and 8 bytes, for reading and for writing: `call`; PLACE, a
    /// guest's address, becomes the host's. Only from a site: see `leave_site`.
    access: [[u64; 4]; 2],
    /// For each of the guest's registers: `call`; pushes it. Only from a site.
    pub push: [u64; 16],
    /// For each of the guest's registers: `call`; pops it. Only from a site.
    pub pop: [u64; 16],
    /// `call`: MORE becomes where to go for the address PLACE. Only from a site.
    pub find: u64,
    /// Leaves before the instruction of the site that called one of the above and could
    /// not be served.
    leave_site: u64,
    /// Goes on at the address PLACE.
    pub go: u64,
    /// `call`: pushes the address at offset TEST of the page, and remembers that a return to
    /// it goes to MORE. Only from a site.
    pub push_return: u64,
    /// `call`: pops a return's address into PLACE; MORE becomes where to go. Only from a site.
    pub pop_return: u64,
}

/// Bytes of an access.
const SIZES: [usize; 4] = [1, 2, 4, 8];

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
        verify(&mut asm, memory);
        glue.interpret = asm.here();
        interpret(&mut asm, tail);
        glue.leave_site = asm.here();
        leave_site(&mut asm, tail);
        for (write, row) in [false, true].into_iter().zip(0..) {
            for (bytes, column) in SIZES.into_iter().zip(0..) {
                glue.access[row][column] = asm.here();
                access(&mut asm, &glue, bytes, write);
            }
        }
        for number in 0..16 {
            glue.push[number] = asm.here();
            push(&mut asm, &glue, number);
            glue.pop[number] = asm.here();
            pop(&mut asm, &glue, number);
        }
        let look = asm.here();
        find(&mut asm, memory);
        glue.find = asm.here();
        asm.call(look);
        let unknown = asm.label();
        asm.jump_if_rcx(unknown);
        asm.put(Instruction::with(Code::Retnq));
        asm.bind(unknown);
        asm.jump_to(glue.leave_site);
        glue.go = asm.here();
        asm.call(look);
        let away = asm.label();
        asm.jump_if_rcx(away);
        asm.jump_by(MORE);
        asm.bind(away);
        asm.set(TEST, calls::NEXT);
        asm.jump_to(glue.leave);
        glue.push_return = asm.here();
        push_return(&mut asm, &glue, memory);
        glue.pop_return = asm.here();
        pop_return(&mut asm, &glue, memory, look);
        memory.add(&asm.finish()?)?;
        Some(glue)
    }

    /// The shared code that makes a translation; `None` for sizes that have none.
    pub fn access(&self, bytes: usize, write: bool) -> Option<u64> {
        let size = SIZES.iter().position(|size| *size == bytes)?;
        Some(self.access[usize::from(write)][size])
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

/// Region PLACE, whose bytes do not hold still: TEST is zero if it was compared in this run,
/// or is right.
fn verify(asm: &mut Asm, memory: &CodeMemory) {
    let table = memory.word_address(word::CHECKED).cast_signed();
    asm.lea(MORE, at(Register::RIP, table));
    asm.load(TEST, indexed(MORE, PLACE, 0));
    asm.load(MORE, negative_epoch());
    asm.lea(TEST, MemoryOperand::with_base_index(TEST, MORE));
    let stale = asm.label();
    asm.jump_if_rcx(stale);
    asm.put(Instruction::with(Code::Retnq));
    asm.bind(stale);
    call_quick(asm, calls::verify as *const () as u64);
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

/// Looks the address PLACE up among the remembered jumps: where to go is in MORE, and
/// TEST is zero, if it is known.
fn find(asm: &mut Asm, memory: &CodeMemory) {
    let word = |word: usize| i64::try_from(word * 8).unwrap_or(0);
    // The number, as `layout::jump_word` has it.
    asm.turn(TEST, PLACE, JUMP_TURN);
    asm.lea(TEST, MemoryOperand::with_base_index(TEST, PLACE));
    asm.narrow(Register::ECX);
    asm.turn(Register::ECX, Register::ECX, JUMP_DROP);
    asm.narrow(Register::ECX);
    asm.lea(
        MORE,
        at(Register::RIP, memory.word_address(word::JUMP).cast_signed()),
    );
    const { assert!(word::JUMP_WORDS == 4) };
    asm.lea(TEST, indexed_by_4(TEST));
    asm.lea(MORE, indexed(MORE, TEST, 0));
    asm.load(TEST, at(MORE, word(word::JUMP_KEY)));
    asm.lea(TEST, MemoryOperand::with_base_index(TEST, PLACE));
    let unknown = asm.label();
    asm.jump_if_rcx(unknown);
    // The right address: of the right tables, too?
    asm.store(temporary(2), PLACE);
    asm.load(PLACE, jump_tag());
    asm.load(TEST, at(MORE, word(word::JUMP_TAG)));
    asm.lea(TEST, MemoryOperand::with_base_index(TEST, PLACE));
    asm.load(PLACE, temporary(2));
    asm.load(MORE, at(MORE, word(word::JUMP_ENTRY)));
    asm.bind(unknown);
    asm.put(Instruction::with(Code::Retnq));
    const { assert!(slot::TEMP + 4 < 32) };
}

/// PLACE, a guest's address, becomes where the host has `bytes` bytes at it. Goes to the
/// label where there is no translation; the address is in a temporary then.
pub fn translate(asm: &mut Asm, bytes: usize, write: bool) -> Label {
    let [left, right] = NUMBER_SHIFTS;
    asm.store(address(), PLACE);
    asm.set_low(MORE, left);
    asm.shift_left(TEST, PLACE, MORE);
    asm.set_low(MORE, right);
    asm.shift_right(TEST, TEST, MORE);
    const { assert!(ENTRY_WORDS == 4) };
    asm.lea(TEST, indexed_by_4(TEST));
    asm.load(MORE, fast_set());
    asm.lea(MORE, indexed(MORE, TEST, 0));
    asm.load(TEST, at(MORE, key(write)));
    asm.load(MORE, at(MORE, addend()));
    let reach = i64::try_from(bytes).unwrap_or(0) - 1;
    asm.lea(
        TEST,
        MemoryOperand::with_base_index_scale_displ_size(TEST, PLACE, 1, reach, 1),
    );
    asm.lea(PLACE, MemoryOperand::with_base_index(PLACE, MORE));
    asm.set_low(MORE, 12);
    asm.shift_right(TEST, TEST, MORE);
    let missing = asm.label();
    asm.jump_if_rcx(missing);
    missing
}

/// Where [`translate`] keeps the guest's address.
pub fn address() -> MemoryOperand {
    temporary(3)
}

/// `call`: [`translate`]s, and leaves before the instruction of the caller's if there
/// can be no translation.
fn access(asm: &mut Asm, glue: &Glue, bytes: usize, write: bool) {
    let (again, missing) = access_with(asm, bytes, write);
    asm.put(Instruction::with(Code::Retnq));
    missed(asm, glue, bytes, write, again, missing);
}

/// [`translate`]s: where this begins, and where it goes without a translation, to
/// [`missed`].
fn access_with(asm: &mut Asm, bytes: usize, write: bool) -> (Label, Label) {
    let again = asm.label();
    asm.bind(again);
    (again, translate(asm, bytes, write))
}

/// Makes the translation and goes `again`, or leaves before the site's instruction.
fn missed(asm: &mut Asm, glue: &Glue, bytes: usize, write: bool, again: Label, missing: Label) {
    asm.bind(missing);
    asm.load(PLACE, address());
    let size = i32::try_from(bytes).unwrap_or(0);
    asm.set(TEST, size | if write { calls::WRITE } else { 0 });
    // Aligns the stack, as it is where regions call.
    asm.lea(Register::RSP, at(Register::RSP, -8));
    asm.call(glue.translate);
    asm.lea(Register::RSP, at(Register::RSP, 8));
    let away = asm.label();
    asm.jump_if_rcx(away);
    asm.jump(again);
    asm.bind(away);
    asm.jump_to(glue.leave_site);
}

fn push(asm: &mut Asm, glue: &Glue, number: usize) {
    asm.lea(PLACE, at(STACK, -8));
    let (again, missing) = access_with(asm, 8, true);
    let from = home(number).unwrap_or_else(|| {
        asm.load(TEST, slot_of(number));
        TEST
    });
    asm.store(at(PLACE, 0), from);
    asm.lea(STACK, at(STACK, -8));
    asm.put(Instruction::with(Code::Retnq));
    missed(asm, glue, 8, true, again, missing);
}

fn pop(asm: &mut Asm, glue: &Glue, number: usize) {
    asm.mov(PLACE, STACK);
    let (again, missing) = access_with(asm, 8, false);
    asm.lea(STACK, at(STACK, 8));
    if let Some(home) = home(number) {
        asm.load(home, at(PLACE, 0));
    } else {
        asm.load(TEST, at(PLACE, 0));
        asm.store(slot_of(number), TEST);
    }
    asm.put(Instruction::with(Code::Retnq));
    missed(asm, glue, 8, false, again, missing);
}

/// MORE becomes where the remembered return lies whose address is on top of the guest's
/// stack. Changes TEST.
fn remembered_return(asm: &mut Asm, memory: &CodeMemory) {
    const { assert!(RETURNS == 1 << 8 && word::RETURN_WORDS == 2) };
    asm.turn(Register::ECX, Register::R10D, 3);
    asm.narrow_to_byte(Register::ECX);
    asm.lea(TEST, MemoryOperand::with_base_index(TEST, TEST));
    let table = memory.word_address(word::RETURN).cast_signed();
    asm.lea(MORE, at(Register::RIP, table));
    asm.lea(MORE, indexed(MORE, TEST, 0));
    const { assert!(matches!(STACK, Register::R10)) };
}

fn push_return(asm: &mut Asm, glue: &Glue, memory: &CodeMemory) {
    let [offset, entry] = [4, 5].map(temporary);
    asm.store(offset, TEST);
    asm.store(entry, MORE);
    asm.lea(PLACE, at(STACK, -8));
    let (again, missing) = access_with(asm, 8, true);
    asm.load(TEST, offset);
    asm.load(MORE, page());
    asm.lea(TEST, MemoryOperand::with_base_index(TEST, MORE));
    asm.store(at(PLACE, 0), TEST);
    asm.mov(PLACE, TEST);
    asm.lea(STACK, at(STACK, -8));
    remembered_return(asm, memory);
    asm.invert(PLACE);
    asm.store(in_return(MORE, word::RETURN_KEY), PLACE);
    asm.load(PLACE, entry);
    asm.store(in_return(MORE, word::RETURN_ENTRY), PLACE);
    asm.put(Instruction::with(Code::Retnq));
    missed(asm, glue, 8, true, again, missing);
}

fn pop_return(asm: &mut Asm, glue: &Glue, memory: &CodeMemory, look: u64) {
    asm.mov(PLACE, STACK);
    let (again, missing) = access_with(asm, 8, false);
    asm.load(PLACE, at(PLACE, 0));
    remembered_return(asm, memory);
    asm.load(TEST, in_return(MORE, word::RETURN_KEY));
    let reach = MemoryOperand::with_base_index_scale_displ_size(TEST, PLACE, 1, 1, 1);
    asm.lea(TEST, reach);
    asm.load(MORE, in_return(MORE, word::RETURN_ENTRY));
    let other = asm.label();
    asm.jump_if_rcx(other);
    asm.lea(STACK, at(STACK, 8));
    asm.put(Instruction::with(Code::Retnq));
    asm.bind(other);
    asm.call(look);
    let unknown = asm.label();
    asm.jump_if_rcx(unknown);
    asm.lea(STACK, at(STACK, 8));
    asm.put(Instruction::with(Code::Retnq));
    asm.bind(unknown);
    asm.jump_to(glue.leave_site);
    missed(asm, glue, 8, false, again, missing);
}

fn in_return(base: Register, word: usize) -> MemoryOperand {
    at(base, i64::try_from(word * 8).unwrap_or(0))
}

/// Leaves before the instruction of the site that our return address tells, for the
/// interpreter.
fn leave_site(asm: &mut Asm, tail: u64) {
    asm.load(PLACE, at(Register::RSP, 0));
    asm.lea(Register::RSP, at(Register::RSP, 8));
    store_all(asm);
    store_flags(asm);
    asm.mov(Register::RDI, FRAME);
    asm.mov(Register::RSI, PLACE);
    asm.set_address(Register::RAX, calls::leave_site as *const () as u64);
    asm.put(Instruction::with1(Code::Call_rm64, Register::RAX));
    asm.mov(TEST, Register::RAX);
    asm.jump_to(tail);
}
