//! What compiled code finds where: registers of the host, places in the
//! [`Cpu`], words of data.
//!
//! ```text
//!   guest   rax rdx rbx rbp rsi rdi r8   rcx rsp r12 r13   r9 r10 r11 r14 r15
//!   host    the same                     r9  r10 r12 r11   in memory
//!
//!   rcx     scratch: what is tested, and counts of shifts
//!   r13     FRAME: `Cpu::r`, 128 bytes further on
//!   r14     scratch: an address
//!   r15     scratch
//!   rsp     the host's stack
//!   flags   the guest's arithmetic flags, always
//! ```
//!
//! Since flags live in the host's, code between two instructions of the guest may
//! use only instructions that leave them alone: `lea`, `mov`, `movzx`,
//! `rorx`, `shrx` and `jrcxz` do.

use super::super::{
    flags::Flags,
    host::{FAST_ADDEND, FAST_ENTRY_BYTES, FAST_NUMBER_BITS, FAST_READ, FAST_WRITE},
    op::slot,
    state::Cpu,
    tlb::Tlb,
};
use super::asm::at;
use iced_x86::{MemoryOperand, Register};
use std::mem::offset_of;

/// What is tested; see the module's table.
pub const TEST: Register = Register::RCX;
/// The vCPU.
pub const FRAME: Register = Register::R13;
/// An address.
pub const PLACE: Register = Register::R14;
/// Whatever.
pub const MORE: Register = Register::R15;
/// The guest's stack pointer.
pub const STACK: Register = Register::R10;

/// FRAME is this much behind the vCPU's first byte, so that the general
/// registers are reached by one byte of displacement.
pub const BIAS: usize = offset_of!(Cpu, r) + 128;

/// Where each of the guest's general registers is, if not in memory.
const HOME: [Option<Register>; 16] = [
    Some(Register::RAX),
    Some(Register::R9),
    Some(Register::RDX),
    Some(Register::RBX),
    Some(STACK),
    Some(Register::RBP),
    Some(Register::RSI),
    Some(Register::RDI),
    Some(Register::R8),
    None,
    None,
    None,
    Some(Register::R12),
    Some(Register::R11),
    None,
    None,
];

/// The host's register for a guest's, by number.
pub fn home(number: usize) -> Option<Register> {
    HOME.get(number).copied().flatten()
}

/// Those of the guest's registers that have one of the host's, and which.
pub fn homes() -> impl Iterator<Item = (MemoryOperand, Register)> {
    let slots = (0u8..).zip(HOME);
    slots.filter_map(|(number, home)| Some((register(number), home?)))
}

fn field(offset: usize) -> MemoryOperand {
    let offset = i64::try_from(offset).unwrap_or(i64::MAX);
    at(FRAME, offset - i64::try_from(BIAS).unwrap_or(0))
}

/// A register's place in the vCPU, by its slot.
pub fn register(slot: u8) -> MemoryOperand {
    field(offset_of!(Cpu, r) + 8 * usize::from(slot))
}

/// The place in the vCPU of a general register, by number.
pub fn slot_of(number: usize) -> MemoryOperand {
    register(u8::try_from(number).unwrap_or(slot::ZERO))
}

/// `Cpu::rip`.
pub fn rip() -> MemoryOperand {
    field(offset_of!(Cpu, rip))
}

/// `Cpu::flags`, 16 bits.
pub fn flags() -> MemoryOperand {
    const { assert!(size_of::<Flags>() == 2) };
    field(offset_of!(Cpu, flags))
}

/// Instructions left.
pub fn left() -> MemoryOperand {
    field(offset_of!(Cpu, left))
}

/// The upper half of the instructions left: not zero if they are used up.
pub fn left_high() -> MemoryOperand {
    field(offset_of!(Cpu, left) + 4)
}

/// The negative of the run's number.
pub fn negative_epoch() -> MemoryOperand {
    field(offset_of!(Cpu, negative_epoch))
}

/// The negative of the mark of code that holds still.
pub fn negative_still() -> MemoryOperand {
    field(offset_of!(Cpu, negative_still))
}

/// What jumps found in this run are tagged with.
pub fn jump_tag() -> MemoryOperand {
    field(offset_of!(Cpu, jump_tag))
}

/// The address of the current root's set of translations.
pub fn fast_set() -> MemoryOperand {
    field(offset_of!(Cpu, tlb) + offset_of!(Tlb, fast_set))
}

/// Where an entry of a set has its key, for writing or reading.
pub fn key(write: bool) -> i64 {
    i64::try_from(if write { FAST_WRITE } else { FAST_READ }).unwrap_or(0)
}

/// Where an entry of a set has its addend.
pub fn addend() -> i64 {
    i64::try_from(FAST_ADDEND).unwrap_or(0)
}

/// Shifts, to the left and then to the right, that make an entry's number of an address.
pub const NUMBER_SHIFTS: [u32; 2] = [64 - 12 - FAST_NUMBER_BITS, 64 - FAST_NUMBER_BITS];
/// An entry is this many words.
pub const ENTRY_WORDS: u32 = {
    assert!(FAST_ENTRY_BYTES == 32);
    4
};

/// The address of the code page.
pub fn page() -> MemoryOperand {
    register(slot::PAGE)
}

/// Room for six words while an instruction is executed: two for the emitter, one for
/// looking up jumps, one for translating, two for calls.
pub fn temporary(n: u8) -> MemoryOperand {
    register(slot::TEMP + 1 + n)
}

/// Jumps that are remembered.
pub const JUMPS: usize = 1 << JUMP_BITS;
const JUMP_BITS: u32 = 14;
/// Of an address plus itself turned to the right by so much, the lowest 16 bits but
/// [`JUMP_DROP`] number its jump. (Two returns are not that near each other.)
pub const JUMP_TURN: u32 = 13;
/// See [`JUMP_TURN`].
pub const JUMP_DROP: u32 = 16 - JUMP_BITS;
/// Returns that are remembered, each by the place on the stack where its address lies; this
/// many because a byte numbers them.
pub const RETURNS: usize = 1 << 8;
/// Regions that there can be.
pub const REGIONS: usize = 1 << 15;
/// Links that there can be.
pub const LINKS: usize = 1 << 17;

/// The words of data behind the code.
pub mod word {
    use super::{JUMPS, LINKS, REGIONS, RETURNS};
    /// Remembered jumps, of [`JUMP_WORDS`] each.
    pub const JUMP: usize = 0;
    /// Half a cache line.
    pub const JUMP_WORDS: usize = 4;
    /// In a jump: its negative address.
    pub const JUMP_KEY: usize = 0;
    /// In a jump: its negative tag.
    pub const JUMP_TAG: usize = 1;
    /// In a jump: where it goes.
    pub const JUMP_ENTRY: usize = 2;
    /// Remembered returns, of [`RETURN_WORDS`] each.
    pub const RETURN: usize = JUMP + JUMP_WORDS * JUMPS;
    /// Their size.
    pub const RETURN_WORDS: usize = 2;
    /// In a return: its address, every bit inverted.
    pub const RETURN_KEY: usize = 0;
    /// In a return: where it goes.
    pub const RETURN_ENTRY: usize = 1;
    /// For each region the number of the run that has compared it with memory.
    pub const CHECKED: usize = RETURN + RETURN_WORDS * RETURNS;
    /// For each link where it goes.
    pub const LINK: usize = CHECKED + REGIONS;
    /// All of them.
    pub const COUNT: usize = LINK + LINKS;
}

/// The first word of the remembered jump for an address.
pub fn jump_word(address: u64) -> usize {
    let mixed = address.wrapping_add(address.rotate_right(JUMP_TURN));
    let number = usize::try_from((mixed & 0xffff) >> JUMP_DROP).unwrap_or(0);
    word::JUMP + word::JUMP_WORDS * number
}
