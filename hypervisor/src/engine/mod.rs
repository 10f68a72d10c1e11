//! The CPU seam: what runs a vCPU's ring-3 context.
//!
//! There are two engines: KVM, and *software*, the interpreter alone. [`Engine`]
//! is one vCPU's, [`Engines`] is what a domain has of them.
//!
//! Law: an engine knows frames, not domains. It decides nothing about what a
//! trap means, and nothing that it reads back from the VM is trusted by the
//! code above: a [`Trap`](crate::cpu::Trap) holds only what ring-3 code could have brought about.

mod choice;
mod domain;
mod kick;
pub mod kvm;
mod soft;

pub use choice::{Available, EngineChoice, EngineKind, KvmHost, KvmMissing};
pub use domain::Engines;
pub use kick::{Kickable, install_kick_signal, kick_signal};
pub use soft::SoftVcpu;

use crate::{
    cpu::{Context, Trap},
    fpu::FpuState,
};
use guest_abi::addr::{MachineAddr, Mfn};
use kvm::KvmVcpu;
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
    /// The software engine met an instruction that it can't execute.
    #[error("the software engine does not know the instruction {0}")]
    Unknown(String),
    /// This process runs no domain on that engine.
    #[error("{0}")]
    Unavailable(String),
}

impl EngineError {
    pub(crate) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| EngineError::Kvm { call, source }
    }
}

/// Of a frame with so many changed words KVM forgets all it knows: that costs one
/// write and, for what did not change, faults that each bring back eight entries.
const MOST_OF_A_FRAME: usize = 256;

/// Page-table words that an engine has to write again from inside the VM,
/// before the guest runs on.
///
/// Law: what is written is what memory holds at that moment, in one locked step. So the
/// order of entries does not matter, and nobody's change of a word is lost.
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

impl TableWrite {
    fn frame(&self) -> Mfn {
        self.addr.frame()
    }
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
    /// Leaves as few words as will do: each once, and one for a frame of which
    /// so many have changed that it is to be forgotten.
    pub fn settle(&mut self) {
        self.words
            .sort_unstable_by_key(|write| (write.addr.0, write.forget_frame));
        self.words.dedup();
        let mut left = Vec::with_capacity(self.words.len().min(2 * MOST_OF_A_FRAME));
        for words in self.words.chunk_by(|a, b| a.frame() == b.frame()) {
            let whole = words.iter().any(|write| write.forget_frame);
            if whole || words.len() >= MOST_OF_A_FRAME {
                left.push(TableWrite {
                    forget_frame: true,
                    ..words[0]
                });
            } else {
                left.extend_from_slice(words);
            }
        }
        self.words = left;
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

/// What runs one vCPU.
pub enum Engine {
    /// KVM.
    Kvm(KvmVcpu),
    /// The interpreter.
    Soft(Box<SoftVcpu>),
}

impl Engine {
    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        match self {
            Engine::Kvm(_) => EngineKind::Kvm,
            Engine::Soft(_) => EngineKind::Soft,
        }
    }

    /// Makes the calling thread the one that [`kick_signal`] takes out of the
    /// guest.
    pub fn adopt_thread(&mut self) {
        if let Engine::Kvm(vcpu) = self {
            vcpu.adopt_thread();
        }
    }

    /// Runs ring 3 until it traps.
    ///
    /// # Errors
    /// [`EngineError`]: the domain can't go on, but for [`EngineError::Unknown`],
    /// which names the instruction that the context stands at.
    pub fn run(&mut self, entry: &mut Entry<'_>) -> Result<Trap, EngineError> {
        match self {
            Engine::Kvm(vcpu) => vcpu.run(entry),
            Engine::Soft(vcpu) => vcpu.run(entry),
        }
    }

    /// Carries the queued words out without going on into ring 3.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn write_tables(&mut self, entry: &mut Entry<'_>) -> Result<(), EngineError> {
        match self {
            Engine::Kvm(vcpu) => vcpu.write_tables(entry),
            Engine::Soft(_) => {
                entry.writes.clear();
                Ok(())
            }
        }
    }

    /// Sets XCR0, after the guest's `xsetbv` was checked.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn set_xcr0(&mut self, value: u64) -> Result<(), EngineError> {
        match self {
            Engine::Kvm(vcpu) => vcpu.set_xcr0(value),
            Engine::Soft(vcpu) => {
                vcpu.set_xcr0(value);
                Ok(())
            }
        }
    }

    /// The vector and x87 state.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn fpu(&mut self) -> Result<FpuState, EngineError> {
        match self {
            Engine::Kvm(vcpu) => vcpu.fpu(),
            Engine::Soft(vcpu) => Ok(vcpu.fpu()),
        }
    }

    /// Sets the vector and x87 state.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn set_fpu(&mut self, state: &FpuState) -> Result<(), EngineError> {
        match self {
            Engine::Kvm(vcpu) => vcpu.set_fpu(state),
            Engine::Soft(vcpu) => {
                vcpu.set_fpu(state);
                Ok(())
            }
        }
    }

    /// The selectors of ES, CS, SS, DS, FS and GS in ring 3, where they are known.
    #[must_use]
    pub fn selectors(&self) -> [Option<u16>; 6] {
        match self {
            Engine::Kvm(vcpu) => vcpu.selectors(),
            Engine::Soft(vcpu) => vcpu.selectors(),
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> EngineCounts {
        match self {
            Engine::Kvm(vcpu) => vcpu.counts(),
            Engine::Soft(vcpu) => vcpu.counts(),
        }
    }
}

/// Flags that ring-3 code may have set: CF PF AF ZF SF TF DF OF AC ID, RF.
const USER_FLAGS: u64 = 0x0025_0dd5;
/// IF and the bit that is always set.
const FIXED_FLAGS: u64 = 0x202;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn word(frame: u64, index: u64, forget_frame: bool) -> TableWrite {
        TableWrite {
            addr: MachineAddr((frame << 12) | (index * 8)),
            forget_frame,
        }
    }

    #[test]
    fn each_changed_word_is_written_or_its_frame_forgotten() {
        let mut writes = TableWrites::default();
        let most = u64::try_from(MOST_OF_A_FRAME).unwrap();
        for index in (0..512).rev() {
            writes.push(word(7, index, false));
        }
        for index in 0..most - 1 {
            writes.push(word(8, index, false));
            writes.push(word(8, index, false));
        }
        writes.push(word(9, 5, false));
        writes.push(word(9, 0, true));
        writes.push(word(10, 511, false));
        writes.settle();
        let (whole, single): (Vec<TableWrite>, Vec<TableWrite>) =
            writes.words().iter().partition(|word| word.forget_frame);
        let frames: Vec<_> = whole.iter().map(|word| word.frame().0).collect();
        assert_eq!(frames, [7, 9]);
        let mut expected: Vec<_> = (0..most - 1).map(|index| word(8, index, false)).collect();
        expected.push(word(10, 511, false));
        assert_eq!(single, expected);
    }
}
