//! Decoded instructions.

use super::state::Cpu;

/// Where things lie in the register file: the general registers first, in
/// the order of the encoding, then what makes an address without a branch.
pub mod slot {
    #![allow(missing_docs, reason = "the registers' names")]
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    pub const R11: u8 = 11;
    /// Always zero: the base, index or segment that an operand lacks.
    pub const ZERO: u8 = 16;
    /// Virtual address of the page that the running code is in.
    pub const PAGE: u8 = 17;
    pub const FS: u8 = 18;
    pub const GS: u8 = 19;
    /// Holds a 32-bit effective address for the instruction's second part.
    pub const TEMP: u8 = 20;
    /// Marks an 8-bit operand as AH, CH, DH or BH.
    pub const HIGH_BYTE: u8 = 32;
}

/// What a handler tells the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next operation.
    Next,
    /// `Cpu::rip` says where to go on.
    Branch,
}

/// The instruction has not run: `Cpu::stop` says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Halt;

/// A handler's result.
pub type Outcome = Result<Flow, Halt>;
/// Executes one operation.
pub type Handler = fn(&mut Cpu, &Op) -> Outcome;

/// One operation: 40 bytes, mostly one to an instruction.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    /// What executes it.
    pub run: Handler,
    /// Immediate operand; branch target relative to the code page; a third
    /// register operand.
    pub imm: u64,
    /// Displacement of the memory operand; for branches without one, the next
    /// instruction relative to the code page.
    pub disp: u64,
    /// Slots that make the address: base, index and segment base.
    pub base: u8,
    /// See `base`.
    pub index: u8,
    /// Shift of the index; [`Op::STACK`] for an operand in the stack segment.
    pub scale: u8,
    /// See `base`.
    pub segment: u8,
    /// First register operand.
    pub dst: u8,
    /// Second register operand: the one that might have been in memory.
    pub src: u8,
    /// The instruction's offset in its page.
    pub at: u16,
    /// Its length.
    pub len: u8,
}

impl Op {
    /// In [`Op::scale`]: a non-canonical address is #SS, not #GP.
    pub const STACK: u8 = 0x40;

    /// An operation without operands.
    #[must_use]
    pub fn new(run: Handler, at: u16, len: u8) -> Self {
        Op {
            run,
            imm: 0,
            disp: 0,
            base: slot::ZERO,
            index: slot::ZERO,
            scale: 0,
            segment: slot::ZERO,
            dst: slot::ZERO,
            src: slot::ZERO,
            at,
            len,
        }
    }

    /// The next instruction, relative to the code page.
    #[must_use]
    #[inline(always)]
    pub fn next(&self) -> u64 {
        u64::from(self.at) + u64::from(self.len)
    }
}
