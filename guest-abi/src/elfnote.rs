//! `public/elfnote.h`: what a kernel image tells the domain builder.
//!
//! Notes of owner `Xen`, each with a type from below. A string is
//! NUL-terminated; a number has 4 or 8 bytes. (Old kernels have one section
//! `__xen_guest` instead, a string of `NAME=value` pairs with commas.)
//!
//! ```
//! use guest_abi::elfnote::{XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_NAME};
//!
//! // A note: lengths of name and content, type, name, content.
//! let entry = 0xffff_ffff_8000_0000_u64;
//! let note: Vec<u8> = [4, 8, XEN_ELFNOTE_ENTRY]
//!     .into_iter()
//!     .flat_map(u32::to_le_bytes)
//!     .chain(*XEN_ELFNOTE_NAME)
//!     .chain(entry.to_le_bytes())
//!     .collect();
//! assert_eq!(note.len(), 24);
//! ```

/// The owner's name in each note, with its NUL.
pub const XEN_ELFNOTE_NAME: &[u8; 4] = b"Xen\0";

/// Text for people.
pub const XEN_ELFNOTE_INFO: u32 = 0;
/// Number: virtual address of the entry point.
pub const XEN_ELFNOTE_ENTRY: u32 = 1;
/// Number: virtual address of a page for hypercall stubs.
pub const XEN_ELFNOTE_HYPERCALL_PAGE: u32 = 2;
/// Number: virtual address of the initial mapping's first page.
pub const XEN_ELFNOTE_VIRT_BASE: u32 = 3;
/// Number: the physical address in the ELF headers that means
/// [`XEN_ELFNOTE_VIRT_BASE`].
pub const XEN_ELFNOTE_PADDR_OFFSET: u32 = 4;
/// String: `xen-3.0`.
pub const XEN_ELFNOTE_XEN_VERSION: u32 = 5;
/// String: name of the operating system.
pub const XEN_ELFNOTE_GUEST_OS: u32 = 6;
/// String: its version.
pub const XEN_ELFNOTE_GUEST_VERSION: u32 = 7;
/// String: `generic`.
pub const XEN_ELFNOTE_LOADER: u32 = 8;
/// String: `yes` for PAE and for 64-bit kernels.
pub const XEN_ELFNOTE_PAE_MODE: u32 = 9;
/// String: features, by [name](crate::features::FEATURE_NAMES).
pub const XEN_ELFNOTE_FEATURES: u32 = 10;
/// String: `yes` if the symbol table shall be loaded.
pub const XEN_ELFNOTE_BSD_SYMTAB: u32 = 11;
/// Number: lowest address that the hypervisor may use.
pub const XEN_ELFNOTE_HV_START_LOW: u32 = 12;
/// Pairs of numbers: mask and value of a valid L1 entry, for migration.
pub const XEN_ELFNOTE_L1_MFN_VALID: u32 = 13;
/// Number: 1 if the guest copes with a cancelled suspend.
pub const XEN_ELFNOTE_SUSPEND_CANCEL: u32 = 14;
/// Number: virtual address at which the p2m list shall be mapped.
pub const XEN_ELFNOTE_INIT_P2M: u32 = 15;
/// Number: 1 if the ramdisk need not be in the initial mapping.
pub const XEN_ELFNOTE_MOD_START_PFN: u32 = 16;
/// Number: features as bits, [`XENFEAT_*`](crate::features).
pub const XEN_ELFNOTE_SUPPORTED_FEATURES: u32 = 17;
/// Number: 32-bit physical entry point (PVH).
pub const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
