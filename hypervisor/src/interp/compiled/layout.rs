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
    host::{FAST_ADDEND, FAST_READ, FAST_WRITE},
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

/// What jumps found in this run are tagged with.
pub fn jump_tag() -> MemoryOperand {
    field(offset_of!(Cpu, jump_tag))
}

/// The address of the current root's set of translations.
pub fn fast_set() -> MemoryOperand {
    field(offset_of!(Cpu, tlb) + offset_of!(Tlb, fast_set))
}

/// A set's keys, for writing or reading, relative to its entry's number.
pub fn keys(write: bool) -> i64 {
    i64::try_from(if write { FAST_WRITE } else { FAST_READ }).unwrap_or(0)
}

/// A set's addends.
pub fn addends() -> i64 {
    i64::try_from(FAST_ADDEND).unwrap_or(0)
}

/// The address of the code page.
pub fn page() -> MemoryOperand {
    register(slot::PAGE)
}

/// Room for two words while an instruction is executed.
pub fn temporary(n: u8) -> MemoryOperand {
    register(slot::TEMP + 1 + n)
}

/// Jumps that are remembered.
pub const JUMPS: usize = 4096;
/// Regions that there can be.
pub const REGIONS: usize = 1 << 15;
/// Links that there can be.
pub const LINKS: usize = 1 << 17;

/// The words of data behind the code.
pub mod word {
    use super::{JUMPS, LINKS, REGIONS};
    /// Negative addresses of remembered jumps.
    pub const JUMP_KEY: usize = 0;
    /// Their negative tags.
    pub const JUMP_TAG: usize = JUMPS;
    /// Where they go.
    pub const JUMP_ENTRY: usize = 2 * JUMPS;
    /// For each region the number of the run that has compared it with memory.
    pub const CHECKED: usize = 3 * JUMPS;
    /// For each link where it goes.
    pub const LINK: usize = CHECKED + REGIONS;
    /// All of them.
    pub const COUNT: usize = LINK + LINKS;
}

/// The remembered jump for an address.
pub fn jump_number(address: u64) -> usize {
    let mixed = address.wrapping_add(address.rotate_right(12));
    usize::try_from(mixed >> 4 & (JUMPS as u64 - 1)).unwrap_or(0)
}
