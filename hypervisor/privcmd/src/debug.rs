//! Debugging a domain: what `XEN_DOMCTL_gdbsx_*` and `XEN_DOMCTL_debug_op` are
//! to Xen's tools.
//!
//! Law: everything that a debugger has changed to watch the guest (its pause,
//! its breakpoints) is taken back when its connection ends, however it ends.
//! What it wrote on the user's behalf (memory, registers) stays.

use serde::{Deserialize, Serialize};

/// Bytes of one read or write.
pub const MAX_TRANSFER: u32 = 64 << 10;
/// Breakpoints at a time.
pub const MAX_BREAKPOINTS: usize = 256;

/// What a debugger asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Stops the domain and keeps it for this connection, until [`Detach`](Call::Detach)
    /// or the connection's end. All other calls are about that domain.
    Attach {
        /// The domain.
        dom: u16,
    },
    /// Lets go of it: it runs on.
    Detach,
    /// Stops it. The stop is reported.
    Halt,
    /// Lets it run: all vCPUs or one of them, that one perhaps for one
    /// instruction only.
    Go {
        /// The only vCPU that runs.
        only: Option<u32>,
        /// It takes a step.
        step: bool,
    },
    /// Waits up to so long for a stop. Reply: [`Answer::Stop`].
    Wait {
        /// In ms, at most 1000.
        patience_ms: u32,
    },
    /// Reads memory as a vCPU sees it; fewer bytes where a page is missing.
    /// Breakpoints don't show. Reply: [`Answer::Bytes`].
    Read {
        /// Whose page tables.
        vcpu: u32,
        /// The first byte.
        address: u64,
        /// At most [`MAX_TRANSFER`].
        length: u32,
    },
    /// Writes memory, also read-only pages, but no page table. All or nothing
    /// of each page.
    Write {
        /// Whose page tables.
        vcpu: u32,
        /// The first byte.
        address: u64,
        /// At most [`MAX_TRANSFER`].
        bytes: Vec<u8>,
    },
    /// Sets the registers of a vCPU that is stopped: `user_regs` and the
    /// segment bases of a `vcpu_guest_context`.
    SetRegisters {
        /// The vCPU.
        vcpu: u32,
        /// A `vcpu_guest_context`.
        context: Vec<u8>,
    },
    /// Stops the domain when a vCPU gets to this instruction.
    AddBreakpoint {
        /// Whose page tables.
        vcpu: u32,
        /// The instruction.
        address: u64,
    },
    /// Takes a breakpoint back.
    RemoveBreakpoint {
        /// The instruction.
        address: u64,
    },
}

/// The reply to a [`Call`] that asks something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Memory.
    Bytes(Vec<u8>),
    /// Why it has stopped, if it has.
    Stop(Option<Stop>),
}

/// Why a domain has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// A vCPU is at a breakpoint.
    Breakpoint {
        /// The vCPU.
        vcpu: u32,
    },
    /// A vCPU has taken its step.
    Step {
        /// The vCPU.
        vcpu: u32,
    },
    /// [`Call::Halt`].
    Halted,
    /// It has shut down.
    Shutdown {
        /// A `SHUTDOWN_*`.
        reason: u32,
    },
}
