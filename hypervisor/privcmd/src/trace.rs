//! What a trace of a domain holds: one [`Record`] for each thing that its vCPUs
//! asked of the hypervisor or got from it.
//!
//! Law: a record is a copy of what the hypervisor saw. Nothing in it is read
//! from the guest after the fact, so a guest that changes its memory changes no
//! record.

use serde::{Deserialize, Serialize};

/// Bytes of an argument in memory that a record keeps.
pub const MAX_DATA: usize = 96;

/// Kinds of records, as bits of a choice.
pub mod kind {
    /// Hypercalls, those inside a multicall too.
    pub const HYPERCALL: u32 = 1 << 0;
    /// Exceptions.
    pub const EXCEPTION: u32 = 1 << 1;
    /// Events: their delivery, and waiting for them.
    pub const EVENT: u32 = 1 << 2;
    /// System calls of the guest's user programs.
    pub const SYSCALL: u32 = 1 << 3;
    /// All of them.
    pub const ALL: u32 = HYPERCALL | EXCEPTION | EVENT | SYSCALL;
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it began: the guest's system time, in ns.
    pub time_ns: u64,
    /// How long the hypervisor was at it, in ns.
    pub took_ns: u64,
    /// On which vCPU.
    pub vcpu: u32,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A hypercall.
    Hypercall {
        /// Its number.
        number: u64,
        /// `rdi`, `rsi`, `rdx`, `r10`, `r8`, `r9`.
        args: [u64; 6],
        /// What it gave; `None` if it gives nothing (`iret`) or is to go on
        /// later (preempted).
        result: Option<i64>,
        /// It is an element of a multicall.
        in_multicall: bool,
        /// The start of the structure, list or text that its argument points
        /// to, as it was when the hypercall ended.
        data: Vec<u8>,
    },
    /// An exception.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, 0 where it has none.
        error: u32,
        /// The fault address of a page fault.
        cr2: u64,
        /// Where.
        rip: u64,
        /// In user mode.
        user: bool,
        /// It went to the guest's handler; else the hypervisor dealt with it.
        bounced: bool,
    },
    /// The event callback was entered with these ports pending and unmasked.
    Upcall {
        /// The lowest ones, at most 16.
        ports: Vec<u32>,
    },
    /// The vCPU slept: `took_ns` is for how long.
    Slept,
    /// A user program's `syscall`, on its way to the guest's kernel.
    Syscall {
        /// `rax`.
        number: u64,
        /// Where.
        rip: u64,
    },
}

/// The answer to a read of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Batch {
    /// In the order in which they ended on each vCPU.
    pub records: Vec<Record>,
    /// Records that did not fit in the buffer since the last read.
    pub lost: u64,
    /// The domain is gone: there will be no more.
    pub ended: bool,
}
