//! `public/xen.h`: the hypercalls' numbers and the structures that every PV
//! guest meets first.
//!
//! A PV kernel asks for everything privileged by a **hypercall**: `syscall`
//! with the number in `rax` and up to five arguments in `rdi`, `rsi`, `rdx`,
//! `r10`, `r8`; the result, or a negative [`Errno`](crate::errno::Errno),
//! comes back in `rax`; `rcx` and `r11` are lost, everything else is kept.
//!
//! Two pages are shared with it from the start: [`StartInfo`], which tells
//! what it was given, and [`SharedInfo`], through which events and time reach
//! it without any hypercall.
//!
//! ```
//! use guest_abi::xen::{HYPERVISOR_MMU_UPDATE, MMU_NORMAL_PT_UPDATE, MmuUpdate, hypercall_name};
//!
//! // An entry's machine address is a multiple of 8; the command is in the low bits.
//! let clear = MmuUpdate {
//!     ptr: 0x123_4008 | MMU_NORMAL_PT_UPDATE,
//!     val: 0,
//! };
//! assert_eq!(clear.ptr & !3, 0x123_4008);
//! assert_eq!(hypercall_name(HYPERVISOR_MMU_UPDATE), Some("mmu_update"));
//! assert_eq!(hypercall_name(99), None);
//! ```

use crate::{arch_x86::ArchSharedInfo, arch_x86_64::ArchVcpuInfo, layout::layout};

/// A hypercall's number, as it stands in `rax`.
macro_rules! hypercalls {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $xen:literal;)*) => {
        $($(#[$doc])* pub const $name: u64 = $number;)*

        /// Xen's name of a hypercall, or `None` for a number that has none.
        #[must_use]
        pub const fn hypercall_name(number: u64) -> Option<&'static str> {
            match number { $($number => Some($xen),)* _ => None }
        }
    };
}

hypercalls! {
    /// Registers the exception handlers ([`TrapInfo`](crate::arch_x86::TrapInfo) array).
    HYPERVISOR_SET_TRAP_TABLE = 0, "set_trap_table";
    /// A batch of [`MmuUpdate`]s.
    HYPERVISOR_MMU_UPDATE = 1, "mmu_update";
    /// Installs the frames of the GDT.
    HYPERVISOR_SET_GDT = 2, "set_gdt";
    /// Sets the kernel's stack for the next entry from user mode.
    HYPERVISOR_STACK_SWITCH = 3, "stack_switch";
    /// Registers the event, failsafe and syscall entry points (old form).
    HYPERVISOR_SET_CALLBACKS = 4, "set_callbacks";
    /// Sets or clears CR0.TS.
    HYPERVISOR_FPU_TASKSWITCH = 5, "fpu_taskswitch";
    /// The first form of `sched_op`: argument by value.
    HYPERVISOR_SCHED_OP_COMPAT = 6, "sched_op_compat";
    /// Platform control, for the hardware domain.
    HYPERVISOR_PLATFORM_OP = 7, "platform_op";
    /// Writes a debug register.
    HYPERVISOR_SET_DEBUGREG = 8, "set_debugreg";
    /// Reads a debug register.
    HYPERVISOR_GET_DEBUGREG = 9, "get_debugreg";
    /// Writes one descriptor of a GDT or LDT.
    HYPERVISOR_UPDATE_DESCRIPTOR = 10, "update_descriptor";
    /// Memory reservations and maps: see [`memory`](crate::memory).
    HYPERVISOR_MEMORY_OP = 12, "memory_op";
    /// A batch of hypercalls: [`MulticallEntry`].
    HYPERVISOR_MULTICALL = 13, "multicall";
    /// Writes the L1 entry that maps one virtual address.
    HYPERVISOR_UPDATE_VA_MAPPING = 14, "update_va_mapping";
    /// Sets the vCPU's single-shot timer (absolute system time; 0 stops it).
    HYPERVISOR_SET_TIMER_OP = 15, "set_timer_op";
    /// The first form of `event_channel_op`.
    HYPERVISOR_EVENT_CHANNEL_OP_COMPAT = 16, "event_channel_op_compat";
    /// Version strings and features: see [`version`](crate::version).
    HYPERVISOR_XEN_VERSION = 17, "xen_version";
    /// The emergency console.
    HYPERVISOR_CONSOLE_IO = 18, "console_io";
    /// The first form of `physdev_op`.
    HYPERVISOR_PHYSDEV_OP_COMPAT = 19, "physdev_op_compat";
    /// Grant tables: see [`grant_table`](crate::grant_table).
    HYPERVISOR_GRANT_TABLE_OP = 20, "grant_table_op";
    /// Switches the `VMASST_*` aids on and off.
    HYPERVISOR_VM_ASSIST = 21, "vm_assist";
    /// [`HYPERVISOR_UPDATE_VA_MAPPING`] with a foreign domain's frame.
    HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN = 22, "update_va_mapping_otherdomain";
    /// Returns from an interrupt or to user mode
    /// ([`IretContext`](crate::arch_x86_64::IretContext) on the stack).
    HYPERVISOR_IRET = 23, "iret";
    /// Per-vCPU operations: see [`vcpu`](crate::vcpu).
    HYPERVISOR_VCPU_OP = 24, "vcpu_op";
    /// Sets the base of FS or GS.
    HYPERVISOR_SET_SEGMENT_BASE = 25, "set_segment_base";
    /// A batch of [`MmuextOp`]s.
    HYPERVISOR_MMUEXT_OP = 26, "mmuext_op";
    /// Security module.
    HYPERVISOR_XSM_OP = 27, "xsm_op";
    /// Registers the NMI handler: see [`nmi`](crate::nmi).
    HYPERVISOR_NMI_OP = 28, "nmi_op";
    /// Scheduling: see [`sched`](crate::sched).
    HYPERVISOR_SCHED_OP = 29, "sched_op";
    /// Registers entry points: see [`callback`](crate::callback).
    HYPERVISOR_CALLBACK_OP = 30, "callback_op";
    /// Profiling.
    HYPERVISOR_XENOPROF_OP = 31, "xenoprof_op";
    /// Event channels: see [`event_channel`](crate::event_channel).
    HYPERVISOR_EVENT_CHANNEL_OP = 32, "event_channel_op";
    /// Physical interrupts and I/O privilege: see [`physdev`](crate::physdev).
    HYPERVISOR_PHYSDEV_OP = 33, "physdev_op";
    /// For hardware-assisted guests only.
    HYPERVISOR_HVM_OP = 34, "hvm_op";
    /// System control, for the control domain.
    HYPERVISOR_SYSCTL = 35, "sysctl";
    /// Domain control, for the control domain.
    HYPERVISOR_DOMCTL = 36, "domctl";
    /// Crash kernels.
    HYPERVISOR_KEXEC_OP = 37, "kexec_op";
    /// Transcendent memory (removed from Xen).
    HYPERVISOR_TMEM_OP = 38, "tmem_op";
    /// Argo messages.
    HYPERVISOR_ARGO_OP = 39, "argo_op";
    /// Performance counters.
    HYPERVISOR_XENPMU_OP = 40, "xenpmu_op";
    /// Device models.
    HYPERVISOR_DM_OP = 41, "dm_op";
    /// Xen's parameter file system.
    HYPERVISOR_HYPFS_OP = 42, "hypfs_op";
    /// Machine checks.
    HYPERVISOR_ARCH_0 = 48, "mca";
    /// Architecture's second private number.
    HYPERVISOR_ARCH_1 = 49, "arch_1";
    /// Architecture's third private number.
    HYPERVISOR_ARCH_2 = 50, "arch_2";
    /// Architecture's fourth private number.
    HYPERVISOR_ARCH_3 = 51, "arch_3";
    /// Architecture's fifth private number.
    HYPERVISOR_ARCH_4 = 52, "arch_4";
    /// Architecture's sixth private number.
    HYPERVISOR_ARCH_5 = 53, "arch_5";
    /// Architecture's seventh private number.
    HYPERVISOR_ARCH_6 = 54, "arch_6";
    /// Architecture's eighth private number.
    HYPERVISOR_ARCH_7 = 55, "arch_7";
}

/// Bytes between two entries of a hypercall page; it holds one stub a number.
pub const HYPERCALL_PAGE_STUB_SIZE: usize = 32;

// ---- Virtual interrupts: (V) one a vCPU, (G) one a domain -----------------

/// (V) The timebase changed, or a requested timeout is over.
pub const VIRQ_TIMER: u32 = 0;
/// (V) Somebody asks the guest to dump its state.
pub const VIRQ_DEBUG: u32 = 1;
/// (G, Dom0) Bytes came in on the emergency console.
pub const VIRQ_CONSOLE: u32 = 2;
/// (G, Dom0) Something exceptional happened to a domain: it shut down or died.
pub const VIRQ_DOM_EXC: u32 = 3;
/// (G, Dom0) The trace buffer has records.
pub const VIRQ_TBUF: u32 = 4;
/// (G, Dom0) A domain paused for its debugger.
pub const VIRQ_DEBUGGER: u32 = 6;
/// (V) A profiler's sample.
pub const VIRQ_XENOPROF: u32 = 7;
/// (G, Dom0) Bytes were written to the hypervisor's console ring.
pub const VIRQ_CON_RING: u32 = 8;
/// (G, Dom0) A physical CPU changed its state.
pub const VIRQ_PCPU_STATE: u32 = 9;
/// (G, Dom0) A memory event.
pub const VIRQ_MEM_EVENT: u32 = 10;
/// (G) An Argo message.
pub const VIRQ_ARGO: u32 = 11;
/// (G, Dom0) The hypervisor runs low on memory.
pub const VIRQ_ENOMEM: u32 = 12;
/// (V) A performance counter overflowed.
pub const VIRQ_XENPMU: u32 = 13;
/// The first of eight numbers of the architecture (machine checks).
pub const VIRQ_ARCH_0: u32 = 16;
/// How many virtual interrupts there are.
pub const NR_VIRQS: u32 = 24;

/// Whether a virtual interrupt exists once a vCPU; the others exist once a
/// domain and are bound on vCPU 0.
#[must_use]
pub const fn virq_is_per_vcpu(virq: u32) -> bool {
    matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}

// ---- mmu_update: the two low bits of `MmuUpdate::ptr` ----------------------

/// `*ptr = val`, checked; `ptr` is the machine address of a page-table entry.
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
/// The machine-to-phys entry of the frame at `ptr` becomes `val`.
pub const MMU_MACHPHYS_UPDATE: u64 = 1;
/// As [`MMU_NORMAL_PT_UPDATE`], but the accessed and dirty bits found in the
/// entry are kept.
pub const MMU_PT_UPDATE_PRESERVE_AD: u64 = 2;
/// As [`MMU_NORMAL_PT_UPDATE`]; `val` is not translated (HVM owners).
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;
/// The bits of [`MmuUpdate::ptr`] that hold the command.
pub const MMU_UPDATE_COMMAND_MASK: u64 = 3;

// ---- mmuext_op: `MmuextOp::cmd` ---------------------------------------------

/// Validates `arg1` as an L1 table and holds it so.
pub const MMUEXT_PIN_L1_TABLE: u32 = 0;
/// Validates `arg1` as an L2 table and holds it so.
pub const MMUEXT_PIN_L2_TABLE: u32 = 1;
/// Validates `arg1` as an L3 table and holds it so.
pub const MMUEXT_PIN_L3_TABLE: u32 = 2;
/// Validates `arg1` as an L4 table and holds it so.
pub const MMUEXT_PIN_L4_TABLE: u32 = 3;
/// Ends the pin of `arg1`.
pub const MMUEXT_UNPIN_TABLE: u32 = 4;
/// Loads `arg1` as the kernel's page-table root.
pub const MMUEXT_NEW_BASEPTR: u32 = 5;
/// Flushes this vCPU's TLB.
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
/// Flushes one address (`arg1`) from this vCPU's TLB.
pub const MMUEXT_INVLPG_LOCAL: u32 = 7;
/// Flushes the TLBs of the vCPUs in the bitmap at `arg2`.
pub const MMUEXT_TLB_FLUSH_MULTI: u32 = 8;
/// Flushes one address (`arg1`) for the vCPUs in the bitmap at `arg2`.
pub const MMUEXT_INVLPG_MULTI: u32 = 9;
/// Flushes the TLBs of all vCPUs.
pub const MMUEXT_TLB_FLUSH_ALL: u32 = 10;
/// Flushes one address (`arg1`) for all vCPUs.
pub const MMUEXT_INVLPG_ALL: u32 = 11;
/// Writes back and drops the caches (domains with hardware only).
pub const MMUEXT_FLUSH_CACHE: u32 = 12;
/// Loads the LDT at linear address `arg1` with `arg2` entries.
pub const MMUEXT_SET_LDT: u32 = 13;
/// Loads `arg1` as the user mode's page-table root (0: none).
pub const MMUEXT_NEW_USER_BASEPTR: u32 = 15;
/// Fills the frame `arg1` with zeroes.
pub const MMUEXT_CLEAR_PAGE: u32 = 16;
/// Copies the frame `arg2` to the frame `arg1`.
pub const MMUEXT_COPY_PAGE: u32 = 17;
/// [`MMUEXT_FLUSH_CACHE`] on all CPUs.
pub const MMUEXT_FLUSH_CACHE_GLOBAL: u32 = 18;
/// Marks a superpage (removed from Xen).
pub const MMUEXT_MARK_SUPER: u32 = 19;
/// Unmarks a superpage (removed from Xen).
pub const MMUEXT_UNMARK_SUPER: u32 = 20;

// ---- update_va_mapping: flags ------------------------------------------------

/// No flush.
pub const UVMF_NONE: u64 = 0;
/// Flush whole TLBs.
pub const UVMF_TLB_FLUSH: u64 = 1;
/// Flush the one address.
pub const UVMF_INVLPG: u64 = 2;
/// The bits that say what to flush.
pub const UVMF_FLUSHTYPE_MASK: u64 = 3;
/// Flush this vCPU; with the address of a vCPU bitmap ORed in, those vCPUs
/// (`UVMF_MULTI` has the same value).
pub const UVMF_LOCAL: u64 = 0;
/// Flush all vCPUs.
pub const UVMF_ALL: u64 = 1 << 2;

// ---- console_io ---------------------------------------------------------------

/// Writes to the hypervisor's console.
pub const CONSOLEIO_WRITE: u32 = 0;
/// Reads from the hypervisor's console.
pub const CONSOLEIO_READ: u32 = 1;

// ---- vm_assist ------------------------------------------------------------------

/// Switch an aid on.
pub const VMASST_CMD_ENABLE: u32 = 0;
/// Switch an aid off.
pub const VMASST_CMD_DISABLE: u32 = 1;
/// Emulate 4 GiB segments (32-bit guests).
pub const VMASST_TYPE_4GB_SEGMENTS: u32 = 0;
/// Trap 15 when that emulation was needed (32-bit guests).
pub const VMASST_TYPE_4GB_SEGMENTS_NOTIFY: u32 = 1;
/// Emulate plain writes to page-table pages that the guest maps read-only.
pub const VMASST_TYPE_WRITABLE_PAGETABLES: u32 = 2;
/// Page directories above 4 GiB (32-bit guests).
pub const VMASST_TYPE_PAE_EXTENDED_CR3: u32 = 3;
/// Take IOPL from the flags that `iret` loads.
pub const VMASST_TYPE_ARCHITECTURAL_IOPL: u32 = 4;
/// Flag the runstate area while it is being updated.
pub const VMASST_TYPE_RUNSTATE_UPDATE_FLAG: u32 = 5;
/// Keep the machine-to-phys table out of user page tables.
pub const VMASST_TYPE_M2P_STRICT: u32 = 32;

// ---- start_info.flags ---------------------------------------------------------

/// The domain is privileged.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// The domain is the initial control domain.
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// `mod_start` is a multiboot module list.
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
/// `mod_start` is a PFN, not a virtual address.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
/// The tools understand a p2m list mapped in virtual memory
/// ([`ArchSharedInfo::p2m_vaddr`]).
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;
/// Power management options.
pub const SIF_PM_MASK: u32 = 0xff << 8;

/// Bytes of [`StartInfo::cmd_line`].
pub const MAX_GUEST_CMDLINE: usize = 1024;

/// [`VcpuTimeInfo::flags`]: the clock never goes backwards, not even between vCPUs.
pub const XEN_PVCLOCK_TSC_STABLE_BIT: u8 = 1 << 0;
/// [`VcpuTimeInfo::flags`]: the guest was stopped for a while.
pub const XEN_PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

/// vCPUs that have their [`VcpuInfo`] in [`SharedInfo`].
pub const XEN_LEGACY_MAX_VCPUS: usize = 32;

layout! {
    /// One element of `mmu_update`.
    struct MmuUpdate [16] {
        /// Machine address of the entry, with `MMU_*` in the two low bits.
        0 => ptr: u64,
        /// The new value.
        8 => val: u64,
    }

    /// One element of `mmuext_op`.
    struct MmuextOp [24] {
        /// `MMUEXT_*`.
        0 => cmd: u32,
        /// Padding.
        4 => _pad: u32,
        /// An MFN or a linear address, as the command says.
        8 => arg1: u64,
        /// A number of entries (low 32 bits), the address of a vCPU bitmap or
        /// a source MFN, as the command says.
        16 => arg2: u64,
    }

    /// One element of `multicall`.
    struct MulticallEntry [64] {
        /// The hypercall's number.
        0 => op: u64,
        /// Its result; written by the hypervisor.
        8 => result: u64,
        /// Its arguments.
        16 => args: [u64; 6],
    }

    /// How to turn the time-stamp counter into system time.
    ///
    /// The hypervisor makes `version` odd, writes, makes it even. A reader
    /// reads `version`, the fields, and `version` again, and starts anew if
    /// the first was odd or the two differ. Then
    /// `ns = system_time + ((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32`
    /// (a negative shift shifts right).
    struct VcpuTimeInfo [32] {
        /// Odd while an update is under way.
        0 => version: u32,
        /// Padding.
        4 => pad0: u32,
        /// The TSC at the last update.
        8 => tsc_timestamp: u64,
        /// Nanoseconds since boot at the last update.
        16 => system_time: u64,
        /// 32-bit binary fraction: nanoseconds a shifted tick.
        24 => tsc_to_system_mul: u32,
        /// Shift of the tick difference, before multiplying.
        28 => tsc_shift: i8,
        /// `XEN_PVCLOCK_*`.
        29 => flags: u8,
        /// Padding.
        30 => pad1: [u8; 2],
    }

    /// What the hypervisor shares with one vCPU.
    ///
    /// An event for the vCPU sets the port's bit in
    /// [`SharedInfo::evtchn_pending`], then (unless the port is masked) the
    /// word's bit in `evtchn_pending_sel`, then `evtchn_upcall_pending`; and
    /// calls the event entry point unless `evtchn_upcall_mask` is set. The
    /// guest clears in the same order backwards.
    struct VcpuInfo [64] {
        /// Not 0: some event waits. Set by the hypervisor, cleared by the guest.
        0 => evtchn_upcall_pending: u8,
        /// Not 0: no upcalls. Written by the guest; set by the hypervisor on
        /// entry to a handler.
        1 => evtchn_upcall_mask: u8,
        /// Padding.
        2 => _pad: [u8; 6],
        /// Which words of [`SharedInfo::evtchn_pending`] to look at.
        8 => evtchn_pending_sel: u64,
        /// The architecture's part.
        16 => arch: ArchVcpuInfo,
        /// The clock.
        32 => time: VcpuTimeInfo,
    }

    /// What the hypervisor shares with the whole domain: one page, whose
    /// machine address stands in [`StartInfo::shared_info`].
    struct SharedInfo [3136] {
        /// One each for the first 32 vCPUs.
        0 => vcpu_info: [VcpuInfo; 32],
        /// One bit a port: an event is pending.
        2048 => evtchn_pending: [u64; 64],
        /// One bit a port: its events do not reach the vCPU.
        2560 => evtchn_mask: [u64; 64],
        /// Odd while the three wall-clock fields are being updated.
        3072 => wc_version: u32,
        /// Wall-clock seconds since 1970 at system time 0, low half.
        3076 => wc_sec: u32,
        /// And nanoseconds.
        3080 => wc_nsec: u32,
        /// High half of `wc_sec`.
        3084 => wc_sec_hi: u32,
        /// The architecture's part.
        3088 => arch: ArchSharedInfo,
    }

    /// What the domain builder tells the kernel; `rsi` holds its virtual
    /// address at the entry point.
    ///
    /// The console fields are those of an ordinary domain (`console.domU`).
    struct StartInfo [1168] {
        /// `xen-<version>-<platform>`, NUL-terminated.
        0 => magic: [u8; 32],
        /// Pages of the domain.
        32 => nr_pages: u64,
        /// Machine address of [`SharedInfo`].
        40 => shared_info: u64,
        /// `SIF_*`.
        48 => flags: u32,
        /// Padding.
        52 => _pad0: u32,
        /// Frame of the xenstore ring
        /// ([`XenstoreDomainInterface`](crate::xs_wire::XenstoreDomainInterface)).
        56 => store_mfn: u64,
        /// Its event channel.
        64 => store_evtchn: u32,
        /// Padding.
        68 => _pad1: u32,
        /// Frame of the console ring
        /// ([`XenconsInterface`](crate::console::XenconsInterface)).
        72 => console_mfn: u64,
        /// Its event channel.
        80 => console_evtchn: u32,
        /// Padding.
        84 => _pad2: u32,
        /// Virtual address of the page-table root.
        88 => pt_base: u64,
        /// Frames of the initial page tables, from `pt_base` on.
        96 => nr_pt_frames: u64,
        /// Virtual address of the list of MFNs by PFN (p2m).
        104 => mfn_list: u64,
        /// Virtual address (or PFN, [`SIF_MOD_START_PFN`]) of the ramdisk; 0 if none.
        112 => mod_start: u64,
        /// Its bytes.
        120 => mod_len: u64,
        /// Command line, NUL-terminated.
        128 => cmd_line: [u8; 1024],
        /// First PFN of the p2m list, where it is not in the initial mapping.
        1152 => first_p2m_pfn: u64,
        /// Frames of the p2m list.
        1160 => nr_p2m_frames: u64,
    }
}
