//! The CPU seam: what runs a vCPU's ring-3 context.
//!
//! Law: an engine knows frames, not domains. It decides nothing about what a
//! trap means, and nothing that it reads back from the VM is trusted by the
//! code above: a [`Trap`](crate::cpu::Trap) holds only what ring-3 code could have brought about.

pub mod kvm;

use crate::cpu::Context;
use guest_abi::addr::{MachineAddr, Mfn};
use std::fmt;

/// Why an engine could not run a vCPU. The domain is crashed with it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A KVM call failed.
    #[error("{call} failed: {source}")]
    Kvm {
        /// The ioctl.
        call: &'static str,
        /// The kernel's answer.
        source: kvm_ioctls::Error,
    },
    /// The VM did what no guest should bring about.
    #[error("the VM stopped: {0}")]
    Vm(String),
    /// Guest memory could not be given to the VM.
    #[error("the monitor's pages do not fit: {0}")]
    Layout(&'static str),
}

impl EngineError {
    pub(crate) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| EngineError::Kvm { call, source }
    }
}

/// Page-table words that an engine has to write again from inside the VM,
/// before the guest runs on.
///
/// Law: a word's value is taken from memory when the queue is carried out, so
/// the order of entries does not matter and a repeated word is written once.
#[derive(Debug, Default)]
pub struct TableWrites {
    words: Vec<TableWrite>,
}

/// One word of [`TableWrites`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableWrite {
    /// Where.
    pub addr: MachineAddr,
    /// Make KVM forget all that it cached of this frame.
    pub forget_frame: bool,
}

impl TableWrites {
    /// Adds a word.
    pub fn push(&mut self, write: TableWrite) {
        if self.words.last() != Some(&write) {
            self.words.push(write);
        }
    }
    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
    /// The queued words.
    #[must_use]
    pub fn words(&self) -> &[TableWrite] {
        &self.words
    }
    /// Leaves each word in the queue once.
    pub fn sort(&mut self) {
        self.words
            .sort_unstable_by_key(|write| (write.addr.0, write.forget_frame));
        self.words.dedup();
    }
    /// Forgets all.
    pub fn clear(&mut self) {
        self.words.clear();
    }
}

/// What a vCPU enters the guest with.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The ring-3 context; on return, the one at the trap.
    pub context: &'a mut Context,
    /// The L4 table.
    pub root: Mfn,
    /// Drop this vCPU's cached translations first.
    pub flush: bool,
    /// Page-table words to repeat first; empty on return.
    pub writes: &'a mut TableWrites,
}

/// What an engine counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineCounts {
    /// Entries into the VM.
    pub entries: u64,
    /// Page-table words written from inside.
    pub table_writes: u64,
    /// Flushes of cached translations.
    pub flushes: u64,
}

impl fmt::Display for EngineCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} entries, {} table writes, {} flushes",
            self.entries, self.table_writes, self.flushes
        )
    }
}
