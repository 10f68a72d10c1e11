//! One domain's VM: its memory slots and its CPUID table.

use super::{
    monitor::{self, HypervisorSlots},
    vcpu::KvmVcpu,
};
use crate::{engine::EngineError, memory::MachineMemory};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::sync::Arc;

/// A VM with the monitor in place.
#[derive(Debug)]
pub struct KvmVm {
    fd: VmFd,
    memory: Arc<MachineMemory>,
    cpuid: CpuId,
    slots: HypervisorSlots,
}

impl KvmVm {
    /// Makes a VM over `memory`, for at most `vcpus` vCPUs.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn new(
        kvm: &Kvm,
        memory: Arc<MachineMemory>,
        vcpus: u32,
        cpuid: CpuId,
    ) -> Result<Self, EngineError> {
        let fd = kvm.create_vm().map_err(EngineError::kvm("KVM_CREATE_VM"))?;
        if fd.check_extension(Cap::SetTssAddr) {
            // Real mode is never entered; Intel wants the page set all the same.
            fd.set_tss_address(0xfffb_d000)
                .map_err(EngineError::kvm("KVM_SET_TSS_ADDR"))?;
        }
        let slots = monitor::install(&memory, vcpus).ok_or(EngineError::Layout(
            "page tables for this much memory exceed the low area",
        ))?;
        for (slot, area) in (0u32..).zip(memory.areas()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: area.start(),
                memory_size: area.bytes(),
                userspace_addr: area.host_address() as u64,
            };
            // SAFETY: the area is mapped for as long as `memory` lives, which
            // this VM and each of its vCPUs keep alive; the areas are disjoint.
            unsafe { fd.set_user_memory_region(region) }
                .map_err(EngineError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(KvmVm {
            fd,
            memory,
            cpuid,
            slots,
        })
    }

    /// The L4 entries of the hypervisor's slots 256..=271.
    #[must_use]
    pub fn hypervisor_slots(&self) -> &HypervisorSlots {
        &self.slots
    }

    /// Makes vCPU `id`.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn create_vcpu(&self, id: u32) -> Result<KvmVcpu, EngineError> {
        let fd = self
            .fd
            .create_vcpu(u64::from(id))
            .map_err(EngineError::kvm("KVM_CREATE_VCPU"))?;
        fd.set_cpuid2(&self.cpuid)
            .map_err(EngineError::kvm("KVM_SET_CPUID2"))?;
        KvmVcpu::new(fd, id, Arc::clone(&self.memory))
    }

    /// What this host's KVM can show to a guest.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, EngineError> {
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(EngineError::kvm("KVM_GET_SUPPORTED_CPUID"))
    }
}
