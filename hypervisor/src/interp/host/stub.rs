//! Small pieces of code made at run time: one guest instruction each, between
//! loads and stores of the registers that it uses.
//!
//! Law: what is written here was encoded by us from an instruction on the
//! list of `vector::plan`, its memory operand replaced by `[rsi]`.

use super::{CodeMemory, HostPtr, Registers, Word};
use crate::{
    fpu::{FpuState, MXCSR_INIT},
    interp::flags::Flags,
};
use std::{io, mem::offset_of};

/// Bytes of code of one vCPU: some two thousand stubs.
const CAPACITY: usize = 256 << 10;
/// Room for memory operands that cross pages.
pub const SCRATCH: usize = 512;

/// What a stub works on: RDI points to it.
#[repr(C, align(64))]
pub struct StubFrame {
    /// The guest's vector and x87 registers.
    pub state: FpuState,
    /// The process's own MXCSR.
    host_mxcsr: u32,
    /// A memory operand that is not in one piece, or must not be written yet.
    pub scratch: Scratch,
}

/// See [`StubFrame::scratch`].
#[repr(C, align(64))]
pub struct Scratch(pub [u8; SCRATCH]);

/// Where a stub finds the process's MXCSR.
pub const HOST_MXCSR: usize = offset_of!(StubFrame, host_mxcsr);

const _: () = assert!(offset_of!(StubFrame, state) == 0);

impl StubFrame {
    /// With the initial state.
    pub fn new() -> Box<Self> {
        Box::new(StubFrame {
            state: FpuState::new(),
            host_mxcsr: MXCSR_INIT,
            scratch: Scratch([0; SCRATCH]),
        })
    }
}

/// An address of executable code; see [`StubMemory::add`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stub(usize);

impl Stub {
    /// The address `bytes` into its code.
    #[must_use]
    pub fn address(self, bytes: usize) -> u64 {
        (self.0 + bytes) as u64
    }

    /// Runs it on `memory`, or on the frame's scratch; the flags that it gave, if
    /// it was made to give them.
    ///
    /// The caller has checked what the instruction can fault on: like a
    /// [`HostPtr`], a `Stub` is only handed out to code that keeps this law.
    #[inline(always)]
    pub fn run(
        self,
        frame: &mut StubFrame,
        memory: Option<HostPtr>,
        registers: &mut Registers,
        flags: Flags,
    ) -> Flags {
        type Code = unsafe extern "sysv64" fn(*mut StubFrame, u64, *mut u64, u64) -> u64;
        let scratch = || frame.scratch.0.as_mut_ptr().expose_provenance() as u64;
        let place = memory.map_or_else(scratch, HostPtr::address);
        // SAFETY: the address is that of complete code for this signature.
        let code: Code = unsafe { std::mem::transmute(self.0) };
        // SAFETY: the code uses the registers that a C function may use, the
        // frame, the register file and the operand, whose bytes the caller has
        // checked.
        let ax = unsafe { code(frame, place, registers.as_mut_ptr(), flags.to_rflags()) };
        Flags(Word::low(ax))
    }
}

/// Memory for stubs.
pub struct StubMemory(CodeMemory);

impl StubMemory {
    /// Maps an empty piece.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        CodeMemory::new(CAPACITY, 0).map(StubMemory)
    }

    /// Adds code; `None` when there is no room left.
    pub fn add(&mut self, code: &[u8]) -> Option<Stub> {
        self.0.add(code).map(Stub)
    }

    /// Forgets all code; the addresses handed out are used again.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
