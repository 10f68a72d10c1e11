//! Which engines this host has, and which one new domains get.
//!
//! Law: KVM is used because a trial of it worked, never because of a name; and
//! where it is not used, the reason is kept for people to read.

use super::{
    EngineError,
    kvm::{KvmVm, Traits, own_cpuid, probe},
};
use crate::{emulate::CpuidPolicy, time::measure_tsc_khz, version};
use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm};
use std::fmt;

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineChoice {
    /// KVM where it works, else the software engine.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// The software engine; /dev/kvm is not opened.
    Soft,
}

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// Ring 3 of a KVM virtual machine.
    Kvm,
    /// The interpreter in this process.
    Soft,
}

impl EngineKind {
    /// Its name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            EngineKind::Kvm => "kvm",
            EngineKind::Soft => "soft",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why there is no KVM to be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmMissing {
    /// There is no `/dev/kvm`.
    #[error(
        "/dev/kvm does not exist: this host's kernel offers no KVM. Load the kvm module (and kvm_intel or kvm_amd), \
         or give this machine a CPU with virtualisation"
    )]
    NoDevice,
    /// It may not be opened.
    #[error(
        "/dev/kvm may not be opened by this user (permission denied). Add the user to the group that owns it \
         (often kvm), or run as root"
    )]
    Permission,
    /// It could not be opened for another reason.
    #[error("/dev/kvm can't be opened: {0}")]
    Open(kvm_ioctls::Error),
    /// It is too old.
    #[error("this host's KVM lacks {0}: a Linux kernel of version 5.10 or later has it")]
    Capability(&'static str),
    /// It does not run ring-3 code as the engine needs it.
    #[error("the trial of KVM failed: {0}")]
    Trial(#[from] EngineError),
    /// The operator wants none.
    #[error("the hypervisor was started with --engine soft")]
    NotWanted,
}

/// KVM as it was found.
#[derive(Debug)]
pub struct KvmHost {
    /// The device.
    pub device: Kvm,
    /// What the trial found.
    pub traits: Traits,
}

/// The engines of this host.
pub struct Available {
    /// KVM, or why there is none.
    pub kvm: Result<KvmHost, KvmMissing>,
    /// The TSC's rate.
    pub tsc_khz: u32,
    cpuid: CpuId,
}

impl Available {
    /// Looks at the host.
    ///
    /// # Errors
    /// KVM is wanted and there is none.
    pub fn find(choice: EngineChoice) -> Result<Self, KvmMissing> {
        let device = match choice {
            EngineChoice::Soft => Err(KvmMissing::NotWanted),
            EngineChoice::Auto | EngineChoice::Kvm => open_kvm(),
        };
        let found = device.and_then(try_kvm);
        let (kvm, tsc_khz, cpuid) = match found {
            Ok((kvm, khz, cpuid)) => (Ok(kvm), khz, cpuid),
            Err(missing) if choice == EngineChoice::Kvm => return Err(missing),
            Err(missing) => {
                let own = CpuId::from_entries(&own_cpuid());
                let own = own.map_err(|_| EngineError::Layout("CPUID table"))?;
                (Err(missing), measure_tsc_khz(), own)
            }
        };
        Ok(Available {
            kvm,
            tsc_khz,
            cpuid,
        })
    }

    /// The one that new domains get.
    #[must_use]
    pub fn default_kind(&self) -> EngineKind {
        if self.kvm.is_ok() {
            EngineKind::Kvm
        } else {
            EngineKind::Soft
        }
    }

    /// The CPU that a new domain sees.
    #[must_use]
    pub fn cpuid(&self) -> CpuidPolicy {
        // The same on every engine, so that a domain can change over.
        CpuidPolicy::new(&self.cpuid, version::XEN_VERSION, self.tsc_khz).for_interpreter()
    }

    /// Whether a trap costs as much as thousands of instructions.
    #[must_use]
    pub fn traps_are_slow(&self) -> bool {
        self.kvm
            .as_ref()
            .is_ok_and(|kvm| kvm.traits.traps_are_slow())
    }
}

/// The trial, and what KVM says of the processor.
fn try_kvm(device: Kvm) -> Result<(KvmHost, u32, CpuId), KvmMissing> {
    let khz = tsc_khz(&device).unwrap_or_else(measure_tsc_khz);
    let cpuid = KvmVm::supported_cpuid(&device)?;
    let policy = CpuidPolicy::new(&cpuid, version::XEN_VERSION, khz);
    let traits = probe(&device, &policy)?;
    Ok((KvmHost { device, traits }, khz, cpuid))
}

fn open_kvm() -> Result<Kvm, KvmMissing> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmMissing::NoDevice,
        libc::EACCES | libc::EPERM => KvmMissing::Permission,
        _ => KvmMissing::Open(error),
    })?;
    let needed = [
        (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    ];
    match needed.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmMissing::Capability(name)),
        None => Ok(kvm),
    }
}

/// The rate of the TSC that a vCPU reads.
fn tsc_khz(kvm: &Kvm) -> Option<u32> {
    let vm = kvm.create_vm().ok()?;
    let vcpu = vm.create_vcpu(0).ok()?;
    vcpu.get_tsc_khz().ok().filter(|khz| *khz > 100_000)
}
