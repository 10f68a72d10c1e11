//! Instructions and registers that the guest believes to be privileged.
//!
//! Law: nothing here touches guest memory by itself; bytes of an instruction
//! are fetched by the caller, once, and results go to the vCPU's state.

pub mod cpuid;
pub mod msr;
pub mod privileged;

pub use cpuid::CpuidPolicy;
