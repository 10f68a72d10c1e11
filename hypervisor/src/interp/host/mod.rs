//! What the interpreter lets the host processor do: arithmetic with its flags,
//! and accesses to guest memory.
//!
//! Law: these files hold all `unsafe` code of the interpreter, but for what
//! compiled code hands back to us (`compiled/calls.rs`). An instruction
//! of the guest is executed by the same instruction of the host, on values
//! (`arith`, `muldiv`, `bits`) or on memory (`memory`, `atomic`). Guest memory
//! is touched by single assembler instructions only, so that an access is as
//! atomic as the guest's own would be, and is never the compiler's to tear,
//! repeat or leave out; no reference to it exists.

mod arith;
mod atomic;
mod bits;
mod code_memory;
mod fast;
mod memory;
mod muldiv;
mod stub;
mod word;

pub use arith::{Arith, WideArith};
pub use atomic::{Atomic, WideAtomic, cmpxchg16b};
pub use bits::{BitWord, Checksum, VexWord};
pub use code_memory::{CodeMemory, enter};
pub use fast::{
    ADDEND as FAST_ADDEND, ENTRY_BYTES as FAST_ENTRY_BYTES, FastTlb,
    NUMBER_BITS as FAST_NUMBER_BITS, READ as FAST_READ, SETS as FAST_SETS, WRITE as FAST_WRITE,
};
pub use memory::{
    FramePtr, HostPtr, Memory, copy_out, random_number, random_seed, same_bytes, time_stamp,
};
pub use muldiv::MulDiv;
pub use stub::{HOST_MXCSR, SCRATCH, Stub, StubFrame, StubMemory};
pub use word::Word;

use std::sync::LazyLock;

/// Whether this is a processor of AMD's line: some instructions differ.
pub static IS_AMD: LazyLock<bool> = LazyLock::new(|| {
    let vendor = std::arch::x86_64::__cpuid(0).ebx;
    // "AuthenticAMD" and "HygonGenuine".
    matches!(vendor, 0x6874_7541 | 0x6f67_7948)
});

/// Whether loading a null selector into FS or GS clears the base; where it is
/// not certain, no.
pub static NULL_CLEARS_BASE: LazyLock<bool> = LazyLock::new(|| !*IS_AMD);

/// The register file: `op::slot` says what lies where.
pub type Registers = [u64; 32];
