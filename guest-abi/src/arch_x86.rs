//! `public/arch-x86/xen.h`: what 32- and 64-bit PV guests have in common:
//! the trap table, the state in which a vCPU is started, and the part of
//! [`SharedInfo`](crate::xen::SharedInfo) with which the tools find a guest's
//! p2m list.

use crate::{arch_x86_64::CpuUserRegs, layout::layout};

/// Pages of the GDT that are the guest's; those above are the hypervisor's.
pub const FIRST_RESERVED_GDT_PAGE: usize = 14;
/// The first byte of the hypervisor's part of the GDT.
pub const FIRST_RESERVED_GDT_BYTE: usize = FIRST_RESERVED_GDT_PAGE * 4096;
/// The first entry of the hypervisor's part of the GDT: also the most entries
/// that a guest may give.
pub const FIRST_RESERVED_GDT_ENTRY: usize = FIRST_RESERVED_GDT_BYTE / 8;

/// [`TrapInfo::flags`]: the privilege needed to raise it by `int` (0 to 3).
pub const TI_DPL_MASK: u8 = 3;
/// [`TrapInfo::flags`]: events are masked on entry (an interrupt gate).
pub const TI_IF: u8 = 4;

/// [`VcpuGuestContext::flags`]: `fpu_ctxt` holds something.
pub const VGCF_I387_VALID: u64 = 1 << 0;
/// [`VcpuGuestContext::flags`]: the vCPU is in kernel mode.
pub const VGCF_IN_KERNEL: u64 = 1 << 2;
/// [`VcpuGuestContext::flags`]: the failsafe entry masks events.
pub const VGCF_FAILSAFE_DISABLES_EVENTS: u64 = 1 << 3;
/// [`VcpuGuestContext::flags`]: the syscall entry masks events.
pub const VGCF_SYSCALL_DISABLES_EVENTS: u64 = 1 << 4;
/// [`VcpuGuestContext::flags`]: the vCPU is up (`XEN_DOMCTL_setvcpucontext`).
pub const VGCF_ONLINE: u64 = 1 << 5;

/// The bytes `ud2a; "xen"` in front of an instruction that the hypervisor
/// shall emulate.
pub const XEN_EMULATE_PREFIX: [u8; 5] = [0x0f, 0x0b, b'x', b'e', b'n'];

layout! {
    /// One entry of `set_trap_table`; an entry with `address` 0 ends the table.
    struct TrapInfo [16] {
        /// The vector.
        0 => vector: u8,
        /// [`TI_DPL_MASK`] and [`TI_IF`].
        1 => flags: u8,
        /// Code segment of the handler.
        2 => cs: u16,
        /// Padding.
        4 => _pad: u32,
        /// The handler.
        8 => address: u64,
    }

    /// The state of a vCPU at its start (`VCPUOP_initialise`,
    /// `XEN_DOMCTL_setvcpucontext`).
    struct VcpuGuestContext [5168] {
        /// FPU and SSE state, as `fxsave` writes it.
        0 => fpu_ctxt: [u8; 512],
        /// `VGCF_*`.
        512 => flags: u64,
        /// General registers.
        520 => user_regs: CpuUserRegs,
        /// The trap table, by vector.
        720 => trap_ctxt: [TrapInfo; 256],
        /// Linear address of the LDT.
        4816 => ldt_base: u64,
        /// Its entries.
        4824 => ldt_ents: u64,
        /// Frames of the GDT.
        4832 => gdt_frames: [u64; 16],
        /// Its entries.
        4960 => gdt_ents: u64,
        /// Stack segment on entry from user mode.
        4968 => kernel_ss: u64,
        /// Stack pointer on entry from user mode.
        4976 => kernel_sp: u64,
        /// CR0 to CR7; 3 is the kernel's page-table root, 1 the user's (as
        /// `frame << 12`; bit 0 of 1 says that it is valid).
        4984 => ctrlreg: [u64; 8],
        /// DR0 to DR7.
        5048 => debugreg: [u64; 8],
        /// Entry point of events.
        5112 => event_callback_eip: u64,
        /// Entry point for faults while returning to the guest.
        5120 => failsafe_callback_eip: u64,
        /// Entry point of user mode's `syscall`.
        5128 => syscall_callback_eip: u64,
        /// `VMASST_TYPE_*`, one bit each.
        5136 => vm_assist: u64,
        /// Base of FS.
        5144 => fs_base: u64,
        /// Base of GS in kernel mode.
        5152 => gs_base_kernel: u64,
        /// Base of GS in user mode.
        5160 => gs_base_user: u64,
    }

    /// The architecture's part of [`SharedInfo`](crate::xen::SharedInfo):
    /// written by the guest, for the tools.
    struct ArchSharedInfo [48] {
        /// PFNs in the p2m list.
        0 => max_pfn: u64,
        /// Frame of the list of frames of the list of MFNs by PFN; all ones
        /// if it is not used.
        8 => pfn_to_mfn_frame_list_list: u64,
        /// `XEN_NMIREASON_*`; written by the hypervisor.
        16 => nmi_reason: u64,
        /// CR3 under which `p2m_vaddr` is valid.
        24 => p2m_cr3: u64,
        /// Virtual address of the linear p2m list.
        32 => p2m_vaddr: u64,
        /// Odd while the guest changes the list.
        40 => p2m_generation: u64,
    }

    /// One CPUID leaf in a domain's policy.
    struct XenCpuidLeaf [24] {
        /// Leaf number.
        0 => leaf: u32,
        /// Sub-leaf number, or [`XEN_CPUID_NO_SUBLEAF`].
        4 => subleaf: u32,
        /// EAX.
        8 => a: u32,
        /// EBX.
        12 => b: u32,
        /// ECX.
        16 => c: u32,
        /// EDX.
        20 => d: u32,
    }
}

/// [`XenCpuidLeaf::subleaf`] of a leaf without sub-leaves.
pub const XEN_CPUID_NO_SUBLEAF: u32 = u32::MAX;

/// What the manuals call the exception of a vector, `None` for vectors that
/// have no name.
///
/// ```
/// assert_eq!(guest_abi::arch_x86::exception_name(14), Some("#PF"));
/// assert_eq!(guest_abi::arch_x86::exception_name(9), None);
/// ```
#[must_use]
pub const fn exception_name(vector: u8) -> Option<&'static str> {
    Some(match vector {
        0 => "#DE",
        1 => "#DB",
        2 => "NMI",
        3 => "#BP",
        4 => "#OF",
        5 => "#BR",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XM",
        _ => return None,
    })
}
