//! The CPU contract: all that an engine has to do for a PV vCPU.
//!
//! In PV all guest code, kernel and user, runs in ring 3. So the contract is:
//! run this ring-3 [`Context`] under its page-table root until it traps, and
//! say which [`Trap`]. What the trap means is decided above the seam.

use guest_abi::addr::{GuestVirt, Mfn};

/// Indices into [`Context::gpr`], in the order of the instruction encoding.
pub mod reg {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
    pub const R14: usize = 14;
    pub const R15: usize = 15;
}

/// The integer state of a vCPU's ring-3 context. FPU, SSE and AVX state stays
/// in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Context {
    /// General-purpose registers, indexed by [`reg`].
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags. IF reads as 1 and IOPL as 0 in ring 3; the vCPU keeps its virtual ones.
    pub rflags: u64,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS, of the current mode.
    pub gs_base: u64,
    /// Set while 32-bit code runs.
    pub compat: Option<Compat>,
    /// ES, DS, FS and GS, as far as the hypervisor or the interpreter loaded
    /// them: a KVM engine does not tell what ring 3 loaded by itself.
    pub data: DataSelectors,
    /// The same of the segments that 32-bit code uses.
    pub segments: DataSegments,
}

/// The segments of 32-bit code: it runs in a code segment without the L bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compat {
    /// Selects that segment.
    pub cs: u16,
    /// Selects the stack's.
    pub ss: u16,
}

/// Selectors of data segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the registers' names")]
pub struct DataSelectors {
    pub es: u16,
    pub ds: u16,
    pub fs: u16,
    pub gs: u16,
}

/// What 32-bit code can reach through a data segment register: what the descriptor
/// said when the selector was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins. (FS and GS have theirs in the context.)
    pub base: u32,
    /// The first offset.
    pub first: u32,
    /// The last offset; none can be used if it is less than the first.
    pub last: u32,
    /// It can be written.
    pub writable: bool,
}

impl Segment {
    /// All of 4 GiB.
    pub const FLAT: Segment = Segment {
        base: 0,
        first: 0,
        last: u32::MAX,
        writable: true,
    };
    /// Nothing: of a null selector.
    pub const NONE: Segment = Segment {
        base: 0,
        first: 1,
        last: 0,
        writable: false,
    };

    /// Whether it has this many bytes at an offset.
    #[must_use]
    pub fn contains(&self, offset: u32, bytes: u32) -> bool {
        let end = offset.checked_add(bytes.saturating_sub(1));
        // A flat one wraps.
        (self.first == 0 && self.last == u32::MAX)
            || offset >= self.first && end.is_some_and(|end| end <= self.last)
    }
}

impl Default for Segment {
    fn default() -> Self {
        Segment::FLAT
    }
}

/// The segments behind the data segment registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the registers' names")]
pub struct DataSegments {
    pub es: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
}

impl DataSelectors {
    /// Whether all of them are null, as in 64-bit code they mostly are.
    #[must_use]
    pub fn are_null(self) -> bool {
        (self.es | self.ds | self.fs | self.gs) & !3 == 0
    }
}

impl Context {
    /// Whether the processor can't run this as the KVM engine sets it up: 32-bit
    /// code, and selectors of segments that the engine's tables lack.
    #[must_use]
    pub fn needs_interpreter(&self) -> bool {
        self.compat.is_some() || !self.data.are_null()
    }
}

/// Why the guest stopped running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// `syscall`: `rip` and `rflags` are already those after the instruction
    /// (from rcx and r11). From kernel mode this is a hypercall.
    Syscall,
    /// A processor exception at `rip` (a fault: the instruction has not run;
    /// for vectors 1 trap-like, 3 and 4 it has).
    Exception {
        /// 0..=31.
        vector: u8,
        /// The error code; 0 for vectors without one.
        error: u32,
        /// The faulting address; meaningful for vector 14 only.
        cr2: GuestVirt,
    },
    /// Another thread wants this vCPU's attention; nothing happened in the guest.
    Kick,
}

/// The page-table root under which a context runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root(pub Mfn);
