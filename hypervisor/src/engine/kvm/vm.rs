//! One domain's VM: its memory slots and its CPUID table.

use super::vcpu::KvmVcpu;
use crate::{
    emulate::CpuidPolicy, engine::EngineError, memory::MachineMemory, window::ForeignWindow,
};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::sync::{Arc, OnceLock};

/// The slot of foreign frames, after those of the domain's own memory.
const WINDOW_SLOT: u32 = 3;

/// A VM. Its memory has the monitor in it.
#[derive(Debug)]
pub struct KvmVm {
    fd: VmFd,
    memory: Arc<MachineMemory>,
    cpuid: CpuId,
    cr4: u64,
    /// Kept alive for the VM.
    window: OnceLock<Arc<ForeignWindow>>,
}

impl KvmVm {
    /// Makes a VM over `memory`, where the monitor has been installed. It has
    /// no shadow of any table yet.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn new(
        kvm: &Kvm,
        memory: Arc<MachineMemory>,
        cpuid: &CpuidPolicy,
    ) -> Result<Self, EngineError> {
        let fd = kvm.create_vm().map_err(EngineError::kvm("KVM_CREATE_VM"))?;
        if fd.check_extension(Cap::SetTssAddr) {
            // Real mode is never entered; Intel wants the page set all the same.
            fd.set_tss_address(0xfffb_d000)
                .map_err(EngineError::kvm("KVM_SET_TSS_ADDR"))?;
        }
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
            cpuid: cpuid.for_kvm(),
            cr4: cpuid.cr4(),
            window: OnceLock::new(),
        })
    }

    /// Adds the memory slot of a window. The first one stays.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn add_window(&self, window: &Arc<ForeignWindow>) -> Result<(), EngineError> {
        if self.window.set(Arc::clone(window)).is_err() {
            return Ok(());
        }
        let region = kvm_userspace_memory_region {
            slot: WINDOW_SLOT,
            flags: 0,
            guest_phys_addr: window.first().0 << 12,
            memory_size: window.bytes(),
            userspace_addr: window.host_address() as u64,
        };
        // SAFETY: the window is kept as long as this VM, and lies above all
        // other slots. This process does not access it.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(EngineError::kvm("KVM_SET_USER_MEMORY_REGION"))
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
        KvmVcpu::new(fd, id, self.cr4, Arc::clone(&self.memory))
    }

    /// What ring-3 code can use on this host.
    ///
    /// A KVM that runs ring 3 natively without VMX or SVM knows little of the
    /// features that its guests can use: its list lacks even XSAVE on a CPU
    /// that has it. Ring-3 code there uses what this process itself can use.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, EngineError> {
        let listed = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(EngineError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let own = own_cpuid();
        let xsave =
            |list: &[kvm_cpuid_entry2]| list.iter().any(|e| e.function == 1 && e.ecx & XSAVE != 0);
        if xsave(listed.as_slice()) || !xsave(&own) {
            return Ok(listed);
        }
        CpuId::from_entries(&own).map_err(|_| EngineError::Layout("CPUID table"))
    }
}

/// Leaf 1, ECX.
const XSAVE: u32 = 1 << 26;

/// The CPUID table of this process.
#[must_use]
pub fn own_cpuid() -> Vec<kvm_cpuid_entry2> {
    let leaf = |function, index, flags| {
        let r = core::arch::x86_64::__cpuid_count(function, index);
        kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax: r.eax,
            ebx: r.ebx,
            ecx: r.ecx,
            edx: r.edx,
            ..Default::default()
        }
    };
    let plain = [0, 1, 2]
        .into_iter()
        .chain(0x8000_0000..=0x8000_0008)
        .map(|function| leaf(function, 0, 0));
    let indexed = (0..4)
        .map(|index| (4, index))
        .chain([(7, 0)])
        .chain([0, 1, 2, 3, 5, 6, 7].map(|index| (0xd, index)));
    let indexed =
        indexed.map(|(function, index)| leaf(function, index, KVM_CPUID_FLAG_SIGNIFCANT_INDEX));
    plain.chain(indexed).collect()
}
