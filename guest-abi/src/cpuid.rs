//! `public/arch-x86/cpuid.h`: the CPUID leaves by which a guest knows Xen.
//!
//! Leaves from 0x40000000 on belong to hypervisors. A PV guest must ask with
//! the emulation prefix ([`XEN_EMULATE_PREFIX`](crate::arch_x86::XEN_EMULATE_PREFIX)),
//! for a plain `cpuid` may answer with the hardware's values.
//!
//! ```
//! use guest_abi::cpuid::{XEN_CPUID_SIGNATURE_EBX, xen_cpuid_leaf};
//!
//! assert_eq!(&XEN_CPUID_SIGNATURE_EBX.to_le_bytes(), b"XenV");
//! assert_eq!(xen_cpuid_leaf(1), 0x4000_0001);
//! ```

/// Leaf 0 of Xen: signature in EBX, ECX, EDX; EAX = the highest leaf.
pub const XEN_CPUID_FIRST_LEAF: u32 = 0x4000_0000;
/// "XenV".
pub const XEN_CPUID_SIGNATURE_EBX: u32 = 0x566e_6558;
/// "MMXe".
pub const XEN_CPUID_SIGNATURE_ECX: u32 = 0x6558_4d4d;
/// "nVMM".
pub const XEN_CPUID_SIGNATURE_EDX: u32 = 0x4d4d_566e;
/// Leaf 2, ECX: `MMU_PT_UPDATE_PRESERVE_AD` works.
pub const XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD: u32 = 1 << 0;
/// Leaf 4 (HVM), EAX: APIC accesses are virtualised.
pub const XEN_HVM_CPUID_APIC_ACCESS_VIRT: u32 = 1 << 0;
/// Leaf 4 (HVM), EAX: x2APIC is virtualised.
pub const XEN_HVM_CPUID_X2APIC_VIRT: u32 = 1 << 1;
/// Leaf 4 (HVM), EAX: IOMMU mappings for granted memory.
pub const XEN_HVM_CPUID_IOMMU_MAPPINGS: u32 = 1 << 2;
/// Leaf 4 (HVM), EAX: EBX holds the vCPU's number.
pub const XEN_HVM_CPUID_VCPU_ID_PRESENT: u32 = 1 << 3;
/// Leaf 4 (HVM), EAX: ECX holds the domid.
pub const XEN_HVM_CPUID_DOMID_PRESENT: u32 = 1 << 4;
/// Leaf 5 (PV), EBX: bits of a machine address.
pub const XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK: u32 = 0xff;
/// The highest leaf, counted from the first.
pub const XEN_CPUID_MAX_NUM_LEAVES: u32 = 5;

/// The number of Xen's leaf `i`: 0 signature, 1 version, 2 features and
/// hypercall pages, 3 time, 4 HVM, 5 PV.
#[must_use]
pub const fn xen_cpuid_leaf(i: u32) -> u32 {
    XEN_CPUID_FIRST_LEAF + i
}
