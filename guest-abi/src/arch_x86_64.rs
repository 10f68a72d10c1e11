//! `public/arch-x86/xen-x86_64.h`: what is particular to 64-bit PV guests.
//!
//! All guest code runs in ring 3, kernel and user alike, on flat segments
//! that the hypervisor's part of the GDT provides. The kernel and user mode
//! differ in their page-table roots and GS bases; which of the two runs is
//! the hypervisor's own record (the vCPU's **mode**), not a privilege level
//! that the processor knows.
//!
//! ```text
//!   0xffffffffffffffff +--------------------------+
//!                      | the guest's              |
//!   0xffff880000000000 +--------------------------+ HYPERVISOR_VIRT_END
//!                      | the hypervisor's:        |
//!                      | L4 slots 256..=271       |
//!   0xffff800000000000 +--------------------------+ HYPERVISOR_VIRT_START
//!                      | not canonical            |
//!   0x0000800000000000 +--------------------------+
//!                      | the guest's              |
//!   0x0000000000000000 +--------------------------+
//! ```

use crate::layout::layout;

/// 32-bit ring-3 code segment.
pub const FLAT_RING3_CS32: u16 = 0xe023;
/// 64-bit ring-3 code segment: kernel and user mode.
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// 32-bit data segment.
pub const FLAT_RING3_DS32: u16 = 0xe02b;
/// The null selector: data segments of 64-bit code.
pub const FLAT_RING3_DS64: u16 = 0;
/// Stack segment, 32-bit.
pub const FLAT_RING3_SS32: u16 = 0xe02b;
/// Stack segment, 64-bit.
pub const FLAT_RING3_SS64: u16 = 0xe02b;
/// Code segment of a 64-bit kernel.
pub const FLAT_KERNEL_CS: u16 = FLAT_RING3_CS64;
/// Stack segment of a 64-bit kernel.
pub const FLAT_KERNEL_SS: u16 = FLAT_RING3_SS64;
/// Data segments of a 64-bit kernel.
pub const FLAT_KERNEL_DS: u16 = FLAT_RING3_DS64;
/// Code segment of 64-bit user mode.
pub const FLAT_USER_CS: u16 = FLAT_RING3_CS64;
/// Code segment of 32-bit user mode.
pub const FLAT_USER_CS32: u16 = FLAT_RING3_CS32;
/// Stack segment of 64-bit user mode.
pub const FLAT_USER_SS: u16 = FLAT_RING3_SS64;
/// Data segments of 64-bit user mode.
pub const FLAT_USER_DS: u16 = FLAT_RING3_DS64;

/// The hypervisor's part of every address space begins here.
pub const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// And ends before here.
pub const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;
/// The hypervisor's first slot in an L4 table.
pub const ROOT_PAGETABLE_FIRST_XEN_SLOT: usize = 256;
/// The hypervisor's last slot in an L4 table.
pub const ROOT_PAGETABLE_LAST_XEN_SLOT: usize = 271;
/// The machine-to-phys table's address by the header; ask
/// `XENMEM_machphys_mapping` for the real one.
pub const MACH2PHYS_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// The end of the machine-to-phys table by the header.
pub const MACH2PHYS_VIRT_END: u64 = 0xffff_8040_0000_0000;
/// Entries of that table.
pub const MACH2PHYS_NR_ENTRIES: u64 = (MACH2PHYS_VIRT_END - MACH2PHYS_VIRT_START) >> 3;

/// `set_segment_base`: FS.
pub const SEGBASE_FS: u32 = 0;
/// `set_segment_base`: GS of user mode.
pub const SEGBASE_GS_USER: u32 = 1;
/// `set_segment_base`: GS of kernel mode (the current one, for the caller).
pub const SEGBASE_GS_KERNEL: u32 = 2;
/// `set_segment_base`: loads the selector in the low 16 bits into user GS.
pub const SEGBASE_GS_USER_SEL: u32 = 3;

/// [`IretContext::flags`]: the return is from a system call, so that `rcx`
/// and `r11` need not be restored.
pub const VGCF_IN_SYSCALL: u64 = 1 << 8;

layout! {
    /// What `iret` finds on the kernel's stack, lowest address first.
    struct IretContext [72] {
        /// Value of `rax` to return with.
        0 => rax: u64,
        /// Value of `r11` to return with (unless [`VGCF_IN_SYSCALL`]).
        8 => r11: u64,
        /// Value of `rcx` to return with (unless [`VGCF_IN_SYSCALL`]).
        16 => rcx: u64,
        /// [`VGCF_IN_SYSCALL`] or 0.
        24 => flags: u64,
        /// Where to go on.
        32 => rip: u64,
        /// Code segment; its RPL chooses the mode: 3 is user, else kernel.
        40 => cs: u64,
        /// Flags; IF unmasks events.
        48 => rflags: u64,
        /// Stack pointer.
        56 => rsp: u64,
        /// Stack segment.
        64 => ss: u64,
    }

    /// A vCPU's registers.
    struct CpuUserRegs [200] {
        /// General-purpose register.
        0 => r15: u64,
        /// General-purpose register.
        8 => r14: u64,
        /// General-purpose register.
        16 => r13: u64,
        /// General-purpose register.
        24 => r12: u64,
        /// General-purpose register.
        32 => rbp: u64,
        /// General-purpose register.
        40 => rbx: u64,
        /// General-purpose register.
        48 => r11: u64,
        /// General-purpose register.
        56 => r10: u64,
        /// General-purpose register.
        64 => r9: u64,
        /// General-purpose register.
        72 => r8: u64,
        /// General-purpose register.
        80 => rax: u64,
        /// General-purpose register.
        88 => rcx: u64,
        /// General-purpose register.
        96 => rdx: u64,
        /// General-purpose register.
        104 => rsi: u64,
        /// General-purpose register.
        112 => rdi: u64,
        /// The hypervisor's own.
        120 => error_code: u32,
        /// The hypervisor's own.
        124 => entry_vector: u32,
        /// Instruction pointer.
        128 => rip: u64,
        /// Code segment.
        136 => cs: u16,
        /// Padding.
        138 => _pad0: u16,
        /// The event mask at the time of the entry.
        140 => saved_upcall_mask: u8,
        /// Padding.
        141 => _pad1: [u8; 3],
        /// Flags; IF is the inverse of `saved_upcall_mask`.
        144 => rflags: u64,
        /// Stack pointer.
        152 => rsp: u64,
        /// Stack segment.
        160 => ss: u16,
        /// Padding.
        162 => _pad2: [u16; 3],
        /// Data segment.
        168 => es: u16,
        /// Padding.
        170 => _pad3: [u16; 3],
        /// Data segment.
        176 => ds: u16,
        /// Padding.
        178 => _pad4: [u16; 3],
        /// Data segment; a base other than 0 overrides it.
        184 => fs: u16,
        /// Padding.
        186 => _pad5: [u16; 3],
        /// Data segment; a base other than 0 overrides it.
        192 => gs: u16,
        /// Padding.
        194 => _pad6: [u16; 3],
    }

    /// The architecture's part of [`VcpuInfo`](crate::xen::VcpuInfo).
    struct ArchVcpuInfo [16] {
        /// Address of the last page fault.
        0 => cr2: u64,
        /// Padding.
        8 => pad: u64,
    }
}

/// The value that goes into CR3 for a page-table root: the frame's address.
#[must_use]
pub const fn pfn_to_cr3(pfn: u64) -> u64 {
    pfn << 12
}

/// The frame in a CR3 value.
#[must_use]
pub const fn cr3_to_pfn(cr3: u64) -> u64 {
    cr3 >> 12
}
