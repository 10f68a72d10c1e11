//! Looks at how this host's KVM behaves, by running a few instructions in it.
//!
//! Law: the answer comes from a trial, never from a module's name or a CPUID
//! bit: a KVM inside another machine is what it does.

use super::{KvmVm, install_monitor};
use crate::{
    cpu::{Context, Trap, reg},
    emulate::CpuidPolicy,
    engine::{EngineError, Entry, TableWrites},
    memory::{BASE_MFN, MachineMemory},
};
use guest_abi::addr::{MachineAddr, Mfn};
use kvm_ioctls::Kvm;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Traps of the trial; the quickest counts.
const ROUNDS: u32 = 24;
/// A trap that takes longer than this is worth avoiding.
const SLOW_TRAP: Duration = Duration::from_micros(12);

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// From ring 3 to this process and back, at the quickest.
    pub trap: Duration,
    /// The same on average.
    pub average: Duration,
}

impl Traits {
    /// Whether interpreting the guest's next instructions is likely to be
    /// quicker than going back into the VM.
    #[must_use]
    pub fn traps_are_slow(&self) -> bool {
        self.trap > SLOW_TRAP
    }
}

/// Runs the trial.
///
/// # Errors
/// KVM does not run ring-3 code as this engine needs it.
pub fn probe(kvm: &Kvm, cpuid: &CpuidPolicy) -> Result<Traits, EngineError> {
    const CODE: u64 = 0x40_0000;
    let memory = Arc::new(
        MachineMemory::new(8).map_err(|_| EngineError::Layout("no memory for the trial"))?,
    );
    let slots = install_monitor(&memory, 1)?;
    let vm = KvmVm::new(kvm, Arc::clone(&memory), cpuid)?;
    let frame = |index: u64| Mfn(BASE_MFN.0 + index);
    let word = |index: u64, entry: u64| MachineAddr((frame(index).0 << 12) + entry * 8);
    for (table, entry) in [(0, 0), (1, 0), (2, 2), (3, 0)] {
        memory.store(word(table, entry), frame(table + 1).0 << 12 | 7);
    }
    for (slot, value) in (256..).zip(&slots) {
        memory.store(word(0, slot), *value);
    }
    // syscall; jmp back to it
    memory.write(word(4, 0), &[0x0f, 0x05, 0xeb, 0xfc]);
    let mut vcpu = vm.create_vcpu(0)?;
    let mut context = Context {
        rip: CODE,
        rflags: 0x202,
        ..Context::default()
    };
    context.gpr[reg::RSP] = CODE + 0x1000;
    let mut writes = TableWrites::default();
    let (mut quickest, mut total) = (Duration::MAX, Duration::ZERO);
    for round in 0..ROUNDS {
        let start = Instant::now();
        let mut entry = Entry {
            context: &mut context,
            root: frame(0),
            flush: round == 0,
            writes: &mut writes,
        };
        let trap = vcpu.run(&mut entry)?;
        let time = start.elapsed();
        quickest = quickest.min(time);
        total += time;
        if trap != Trap::Syscall || context.rip != CODE + 2 {
            return Err(EngineError::Vm(format!(
                "the trial ended in {trap:?} at {:#x}",
                context.rip
            )));
        }
    }
    Ok(Traits {
        trap: quickest,
        average: total / ROUNDS,
    })
}
