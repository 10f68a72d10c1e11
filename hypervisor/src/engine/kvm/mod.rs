//! The KVM engine: a domain is a VM whose ring 0 holds only our monitor.
//!
//! The guest runs in ring 3. A trap enters a stub of the monitor (or, for
//! `syscall`, a landing page) whose one instruction, an `out`, leaves the VM.
//! The process then reads the registers from `kvm_run` and the trap frame
//! from the trap stack, and enters again, either straight into ring 3 or
//! through the monitor's *entry routine*, which first writes page-table words
//! from inside the VM: a shadow-paging KVM notices no others.

mod layout;
mod monitor;
mod probe;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

pub use layout::{M2P, MFN_GRANTS, MFN_SHARED_INFO, MFN_TABLES, PROBE_CODE};
pub use monitor::{HypervisorSlots, MAX_VCPUS, install as install_monitor};
pub use probe::{Traits, probe};
pub use vcpu::KvmVcpu;
pub use vm::{KvmVm, own_cpuid};
