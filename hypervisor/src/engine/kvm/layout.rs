//! Where the monitor lies inside a VM.
//!
//! ```text
//! machine frames (low area)              virtual, L4 slot 258 (supervisor only)
//! 0         never mapped                 MONITOR + 0x0000   stubs, one per vector
//!                                        MONITOR + 0x1000   IDT
//! 2         ring-0 stubs, entry routine  MONITOR + 0x2000   GDT
//! 3         IDT                          MONITOR + 0x10000 * (n + 1)   vCPU n:
//! 4         GDT of vCPU 0 (all equal)        + 0x0000 TSS and I/O bitmap
//! 5         syscall landing page             + 0x1000 trap stack
//! 6..       grant frames grow from here      + 0x2000 entry list, 3 pages
//! 0x800..   page tables of slots 257..259
//! 0xc00..   vCPU pages, 8 each           L4 slot 259 (supervisor only): all machine
//! 0xfff     shared_info                  memory, so that a page-table write is one store
//! L4 slot 257 (user, read-only): the machine-to-phys table from its start,
//! the syscall landing page at its end.
//! ```
//!
//! Slot 256 stays empty: a shadow-paging KVM keeps it for itself.

use guest_abi::addr::Mfn;

/// Index of the L4 slot that the guest may read.
pub const SLOT_GUEST: usize = 257;
/// Index of the L4 slot that holds the monitor.
pub const SLOT_MONITOR: usize = 258;
/// Index of the L4 slot that maps all machine memory.
pub const SLOT_ALIAS: usize = 259;

/// First address of an L4 slot in the upper half.
#[must_use]
pub const fn slot_address(slot: usize) -> u64 {
    0xffff_0000_0000_0000 | (slot as u64) << 39
}

/// Where the guest finds the machine-to-phys table.
pub const M2P: u64 = slot_address(SLOT_GUEST);
/// The page that `syscall` lands on: the last 2 MiB of slot 257 start here.
pub const SYSCALL_PAGE: u64 = slot_address(SLOT_GUEST) + (1 << 39) - (2 << 20);
/// In the same page: a load from the address in rax to rbx, and `syscall`.
pub const PROBE_CODE: u64 = SYSCALL_PAGE + 0x100;
/// The monitor's shared pages.
pub const MONITOR: u64 = slot_address(SLOT_MONITOR);
/// All machine memory: address = `ALIAS` + machine address.
pub const ALIAS: u64 = slot_address(SLOT_ALIAS);

/// Ring-0 code.
pub const STUBS: u64 = MONITOR;
/// The interrupt descriptor table.
pub const IDT: u64 = MONITOR + 0x1000;
/// The global descriptor table.
pub const GDT: u64 = MONITOR + 0x2000;

/// Bytes of one vector's stub.
pub const STUB_BYTES: usize = 16;
/// Offset of the entry routine in the stub page.
pub const ENTRY_OFFSET: usize = 0x800;
/// Page-table writes that one entry can carry.
pub const ENTRY_WRITES: usize = 320;
/// Bytes of one unrolled write of the entry routine.
pub const ENTRY_WRITE_BYTES: u64 = 6;
/// Where the entry routine ends: what follows restores rdi and returns.
pub const ENTRY_END: u64 = STUBS + ENTRY_OFFSET as u64 + ENTRY_WRITES as u64 * ENTRY_WRITE_BYTES;

/// The frame of `shared_info`: the highest of the area, so that its machine
/// *address* is no machine frame *number* of a domain below 64 GiB. (GRUB's PV
/// port compares the two, and would take its own first page for this one.)
pub const MFN_SHARED_INFO: Mfn = Mfn(0xfff);
/// The frame of the stubs.
pub const MFN_STUBS: Mfn = Mfn(2);
/// The frame of the IDT.
pub const MFN_IDT: Mfn = Mfn(3);
/// The frame of the GDT.
pub const MFN_GDT: Mfn = Mfn(4);
/// The frame that `syscall` lands on.
pub const MFN_SYSCALL: Mfn = Mfn(5);
/// Grant table frames lie at `MFN_GRANTS..MFN_TABLES`.
pub const MFN_GRANTS: Mfn = Mfn(6);
/// Page tables of the monitor's slots, up to `MFN_VCPUS`.
pub const MFN_TABLES: Mfn = Mfn(0x800);
/// vCPU pages.
pub const MFN_VCPUS: Mfn = Mfn(0xc00);
/// Frames of one vCPU.
pub const VCPU_FRAMES: u64 = 8;

/// Selectors of our GDT. The user ones are Linux's, because a shadow-paging
/// KVM shows those to the guest whatever was loaded.
pub mod selector {
    #![allow(missing_docs)]
    pub const KERNEL_CODE: u16 = 0x10;
    pub const KERNEL_DATA: u16 = 0x18;
    pub const USER_DATA: u16 = 0x2b;
    pub const USER_CODE: u16 = 0x33;
    pub const TSS: u16 = 0x40;
}

/// The port by which a ring-0 stub leaves the VM.
pub const PORT_TRAP: u8 = 0x10;
/// The port by which the syscall page leaves the VM.
pub const PORT_SYSCALL: u8 = 0x18;

/// A vCPU's own pages.
#[derive(Debug, Clone, Copy)]
pub struct VcpuArea(pub u32);

impl VcpuArea {
    fn frame(self, index: u64) -> Mfn {
        Mfn(MFN_VCPUS.0 + u64::from(self.0) * VCPU_FRAMES + index)
    }
    /// Virtual address of page `index`.
    #[must_use]
    pub fn virt(self, index: u64) -> u64 {
        MONITOR + 0x1_0000 * (u64::from(self.0) + 1) + index * 0x1000
    }
    /// The TSS and its I/O bitmap.
    #[must_use]
    pub fn tss(self) -> Mfn {
        self.frame(0)
    }
    /// The stack that traps push their frame on.
    #[must_use]
    pub fn trap_stack(self) -> Mfn {
        self.frame(1)
    }
    /// The first of the pages that the entry routine reads.
    #[must_use]
    pub fn entry_list(self) -> Mfn {
        self.frame(2)
    }
    /// Top of the trap stack.
    #[must_use]
    pub fn trap_stack_top(self) -> u64 {
        self.virt(2)
    }
    /// The pages of this vCPU: (virtual address, frame).
    pub fn pages(self) -> impl Iterator<Item = (u64, Mfn)> {
        (0..5).map(move |index| (self.virt(index), self.frame(index)))
    }
}
