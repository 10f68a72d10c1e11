//! Looks at how this host's KVM behaves, by running a few instructions in it.
//!
//! Law: the answer comes from a trial, never from a module's name or a CPUID
//! bit: a KVM inside another machine is what it does.

use super::{KvmVcpu, KvmVm, install_monitor};
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
    /// XCR0 as ring 3 sees it whatever the guest sets, where that is so.
    pub fixed_xcr0: Option<u64>,
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
    // xor ecx, ecx; xgetbv; syscall
    memory.write(word(4, 8), &[0x31, 0xc9, 0x0f, 0x01, 0xd0, 0x0f, 0x05]);
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
    let fixed_xcr0 = fixed_xcr0(&mut vcpu, frame(0), CODE + 64);
    Ok(Traits {
        trap: quickest,
        average: total / ROUNDS,
        fixed_xcr0,
    })
}

/// XCR0 that ring 3 reads by the code at `rip`, if it is not what was set.
fn fixed_xcr0(vcpu: &mut KvmVcpu, root: Mfn, rip: u64) -> Option<u64> {
    const X87: u64 = 1;
    vcpu.set_xcr0(X87).ok()?;
    let mut context = Context {
        rip,
        rflags: 0x202,
        ..Context::default()
    };
    let trap = vcpu.run(&mut Entry {
        context: &mut context,
        root,
        flush: false,
        writes: &mut TableWrites::default(),
    });
    let gpr = &context.gpr;
    let seen = gpr[reg::RDX] << 32 | gpr[reg::RAX];
    (matches!(trap, Ok(Trap::Syscall)) && seen != X87).then_some(seen)
}
