//! `public/features.h`: what the hypervisor offers and a kernel can live
//! with, as numbers of bits (`XENVER_get_features`, ELF notes).
//!
//! ```
//! use guest_abi::features::{FEATURE_NAMES, XENFEAT_WRITABLE_PAGE_TABLES};
//!
//! let name = FEATURE_NAMES
//!     .iter()
//!     .find(|(_, bit)| *bit == XENFEAT_WRITABLE_PAGE_TABLES);
//! assert_eq!(name.unwrap().0, "writable_page_tables");
//! ```

/// The guest need not write page tables by hypercall.
pub const XENFEAT_WRITABLE_PAGE_TABLES: u32 = 0;
/// The guest need not write descriptors by hypercall.
pub const XENFEAT_WRITABLE_DESCRIPTOR_TABLES: u32 = 1;
/// The guest sees pseudo-physical frames only.
pub const XENFEAT_AUTO_TRANSLATED_PHYSMAP: u32 = 2;
/// The guest's kernel runs in ring 0.
pub const XENFEAT_SUPERVISOR_MODE_KERNEL: u32 = 3;
/// The guest's page directories may lie above 4 GiB.
pub const XENFEAT_PAE_PGDIR_ABOVE_4GB: u32 = 4;
/// `MMU_PT_UPDATE_PRESERVE_AD` works.
pub const XENFEAT_MMU_PT_UPDATE_PRESERVE_AD: u32 = 5;
/// Clearing and copying of pages by `mmuext_op`.
pub const XENFEAT_HIGHMEM_ASSIST: u32 = 6;
/// `GNTMAP_guest_avail*` bits reach the entry.
pub const XENFEAT_GNTTAB_MAP_AVAIL_BITS: u32 = 7;
/// HVM: events by vector.
pub const XENFEAT_HVM_CALLBACK_VECTOR: u32 = 8;
/// HVM: the clock is safe.
pub const XENFEAT_HVM_SAFE_PVCLOCK: u32 = 9;
/// HVM: physical interrupts as events.
pub const XENFEAT_HVM_PIRQS: u32 = 10;
/// The kernel can be (for a note), or the domain is, Dom0.
pub const XENFEAT_DOM0: u32 = 11;
/// `XENMEMF_vnode` works.
pub const XENFEAT_MEMORY_OP_VNODE_SUPPORTED: u32 = 13;
/// ARM: SMC calling convention.
pub const XENFEAT_ARM_SMCCC_SUPPORTED: u32 = 14;
/// The root of the ACPI tables may lie anywhere (kernel note).
pub const XENFEAT_LINUX_RSDP_UNRESTRICTED: u32 = 15;
/// PFNs are not MFNs.
pub const XENFEAT_NOT_DIRECT_MAPPED: u32 = 16;
/// PFNs are MFNs.
pub const XENFEAT_DIRECT_MAPPED: u32 = 17;
/// How many words of 32 features there are.
pub const XENFEAT_NR_SUBMAPS: u32 = 1;

/// The names that the string form of the features note uses
/// (`|`-separated, a leading `!` marks a required one), with their numbers.
pub const FEATURE_NAMES: [(&str, u32); 8] = [
    ("writable_page_tables", XENFEAT_WRITABLE_PAGE_TABLES),
    (
        "writable_descriptor_tables",
        XENFEAT_WRITABLE_DESCRIPTOR_TABLES,
    ),
    ("auto_translated_physmap", XENFEAT_AUTO_TRANSLATED_PHYSMAP),
    ("supervisor_mode_kernel", XENFEAT_SUPERVISOR_MODE_KERNEL),
    ("pae_pgdir_above_4gb", XENFEAT_PAE_PGDIR_ABOVE_4GB),
    ("hvm_callback_vector", XENFEAT_HVM_CALLBACK_VECTOR),
    ("hvm_pirqs", XENFEAT_HVM_PIRQS),
    ("dom0", XENFEAT_DOM0),
];
