//! `public/memory.h`: `memory_op`, a domain's memory as a whole.
//!
//! A PV domain has a **reservation** of so many frames. It knows each by two
//! numbers: the machine frame (MFN), which page tables and hypercalls name,
//! and its own contiguous pseudo-physical number (PFN). The list from PFN to
//! MFN (p2m) is the guest's to keep; the table from MFN to PFN (m2p) is the
//! hypervisor's, readable by the guest where [`XENMEM_MACHPHYS_MAPPING`] says.
//!
//! The command is in the low six bits of the first argument; the bits above
//! are the hypervisor's, for going on after a preemption: a guest leaves them 0.
//!
//! ```
//! use guest_abi::{addr::DomId, memory::MemoryReservation};
//!
//! // One page less, for XENMEM_DECREASE_RESERVATION.
//! let frames = [0x1234u64];
//! let less = MemoryReservation {
//!     extent_start: frames.as_ptr() as u64,
//!     nr_extents: 1,
//!     domid: DomId::SELF.0,
//!     ..Default::default()
//! };
//! assert_eq!(less.extent_order, 0);
//! ```

use crate::layout::layout;

/// Adds frames; their MFNs are written to the extent array.
pub const XENMEM_INCREASE_RESERVATION: u32 = 0;
/// Gives frames back; the extent array names them by MFN.
pub const XENMEM_DECREASE_RESERVATION: u32 = 1;
/// The highest MFN of the machine.
pub const XENMEM_MAXIMUM_RAM_PAGE: u32 = 2;
/// How many pages a domain has ([`MemoryDomain`]).
pub const XENMEM_CURRENT_RESERVATION: u32 = 3;
/// How many pages it may have ([`MemoryDomain`]).
pub const XENMEM_MAXIMUM_RESERVATION: u32 = 4;
/// The frames of the machine-to-phys table ([`MachphysMfnList`]).
pub const XENMEM_MACHPHYS_MFN_LIST: u32 = 5;
/// Adds frames at given PFNs: the extent array holds PFNs and gets MFNs.
pub const XENMEM_POPULATE_PHYSMAP: u32 = 6;
/// Puts a frame of the hypervisor's at a PFN (translated guests only).
pub const XENMEM_ADD_TO_PHYSMAP: u32 = 7;
/// The domain's pseudo-physical memory map ([`MemoryMap`] of [`E820Entry`]).
pub const XENMEM_MEMORY_MAP: u32 = 9;
/// The machine's memory map (control domain).
pub const XENMEM_MACHINE_MEMORY_MAP: u32 = 10;
/// Trades frames for others of a wished shape ([`MemoryExchange`]).
pub const XENMEM_EXCHANGE: u32 = 11;
/// Where the machine-to-phys table is mapped ([`MachphysMapping`]).
pub const XENMEM_MACHPHYS_MAPPING: u32 = 12;
/// Sets a domain's memory map ([`ForeignMemoryMap`]).
pub const XENMEM_SET_MEMORY_MAP: u32 = 13;
/// The highest PFN that a domain uses ([`MemoryDomain`]).
pub const XENMEM_MAXIMUM_GPFN: u32 = 14;
/// Takes a frame away from a PFN (translated guests only).
pub const XENMEM_REMOVE_FROM_PHYSMAP: u32 = 15;
/// Populate on demand: sets the target.
pub const XENMEM_SET_POD_TARGET: u32 = 16;
/// Populate on demand: tells the target.
pub const XENMEM_GET_POD_TARGET: u32 = 17;
/// Memory sharing: pages saved.
pub const XENMEM_GET_SHARING_FREED_PAGES: u32 = 18;
/// Memory sharing: pages shared.
pub const XENMEM_GET_SHARING_SHARED_PAGES: u32 = 19;
/// Memory paging.
pub const XENMEM_PAGING_OP: u32 = 20;
/// Memory access rights.
pub const XENMEM_ACCESS_OP: u32 = 21;
/// Memory sharing.
pub const XENMEM_SHARING_OP: u32 = 22;
/// A batch of [`XENMEM_ADD_TO_PHYSMAP`].
pub const XENMEM_ADD_TO_PHYSMAP_BATCH: u32 = 23;
/// Claims pages for a domain under construction.
pub const XENMEM_CLAIM_PAGES: u32 = 24;
/// [`XENMEM_MACHPHYS_MFN_LIST`] of the 32-bit table.
pub const XENMEM_MACHPHYS_COMPAT_MFN_LIST: u32 = 25;
/// The domain's virtual NUMA layout.
pub const XENMEM_GET_VNUMAINFO: u32 = 26;
/// Memory reserved for devices.
pub const XENMEM_RESERVED_DEVICE_MEMORY_MAP: u32 = 27;
/// Maps a resource of another domain.
pub const XENMEM_ACQUIRE_RESOURCE: u32 = 28;

/// Bits of the first argument that hold the command.
pub const MEMOP_CMD_MASK: u64 = 0x3f;
/// Where the hypervisor keeps the extent to go on with.
pub const MEMOP_EXTENT_SHIFT: u32 = 6;

/// [`MemoryReservation::mem_flags`]: the most address bits of a frame (0 = any).
pub const XENMEMF_ADDRESS_BITS_MASK: u32 = 0xff;
/// [`MemoryReservation::mem_flags`]: only make the PFNs known; fill them later.
pub const XENMEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;
/// [`MemoryReservation::mem_flags`]: fail rather than use another NUMA node.
pub const XENMEMF_EXACT_NODE_REQUEST: u32 = 1 << 17;
/// [`MemoryReservation::mem_flags`]: the node number is a virtual one.
pub const XENMEMF_VNODE: u32 = 1 << 18;

/// [`AddToPhysmap::space`]: the shared info page.
pub const XENMAPSPACE_SHARED_INFO: u32 = 0;
/// [`AddToPhysmap::space`]: a frame of the grant table.
pub const XENMAPSPACE_GRANT_TABLE: u32 = 1;
/// [`AddToPhysmap::space`]: another frame of the domain.
pub const XENMAPSPACE_GMFN: u32 = 2;
/// [`AddToPhysmap::space`]: a range of such frames.
pub const XENMAPSPACE_GMFN_RANGE: u32 = 3;
/// [`AddToPhysmapBatch::space`]: frames of another domain.
pub const XENMAPSPACE_GMFN_FOREIGN: u32 = 4;
/// [`AddToPhysmap::space`]: device memory.
pub const XENMAPSPACE_DEV_MMIO: u32 = 5;
/// [`AddToPhysmap::idx`]: a status frame of the grant table, not an entry frame.
pub const XENMAPIDX_GRANT_TABLE_STATUS: u64 = 0x8000_0000;

/// [`E820Entry::kind`]: memory for use.
pub const E820_RAM: u32 = 1;
/// [`E820Entry::kind`]: not for use.
pub const E820_RESERVED: u32 = 2;
/// [`E820Entry::kind`]: ACPI tables.
pub const E820_ACPI: u32 = 3;
/// [`E820Entry::kind`]: ACPI non-volatile storage.
pub const E820_NVS: u32 = 4;
/// [`E820Entry::kind`]: faulty memory.
pub const E820_UNUSABLE: u32 = 5;

layout! {
    /// Argument of the operations that change a reservation.
    struct MemoryReservation [32] {
        /// Address of an array of frame numbers, one an extent.
        0 => extent_start: u64,
        /// Its length.
        8 => nr_extents: u64,
        /// An extent is `1 << extent_order` frames.
        16 => extent_order: u32,
        /// `XENMEMF_*`.
        20 => mem_flags: u32,
        /// The domain.
        24 => domid: u16,
        /// Padding.
        26 => _pad: [u16; 3],
    }

    /// Argument of [`XENMEM_EXCHANGE`].
    struct MemoryExchange [72] {
        /// The frames given, by MFN.
        0 => input: MemoryReservation,
        /// The frames wished: PFNs in, MFNs out.
        32 => output: MemoryReservation,
        /// Out: input extents dealt with.
        64 => nr_exchanged: u64,
    }

    /// Argument of the questions about one domain.
    struct MemoryDomain [2] {
        /// The domain.
        0 => domid: u16,
    }

    /// Argument of [`XENMEM_MACHPHYS_MFN_LIST`].
    struct MachphysMfnList [24] {
        /// In: length of the array.
        0 => max_extents: u32,
        /// Padding.
        4 => _pad0: u32,
        /// In: address of the array, filled with MFNs.
        8 => extent_start: u64,
        /// Out: how many were filled.
        16 => nr_extents: u32,
        /// Padding.
        20 => _pad1: u32,
    }

    /// Result of [`XENMEM_MACHPHYS_MAPPING`].
    struct MachphysMapping [24] {
        /// Where the table starts.
        0 => v_start: u64,
        /// Where it ends.
        8 => v_end: u64,
        /// The highest MFN in it.
        16 => max_mfn: u64,
    }

    /// Argument of [`XENMEM_ADD_TO_PHYSMAP`].
    struct AddToPhysmap [24] {
        /// Whose map.
        0 => domid: u16,
        /// Frames ([`XENMAPSPACE_GMFN_RANGE`] only).
        2 => size: u16,
        /// `XENMAPSPACE_*`.
        4 => space: u32,
        /// Which frame of the space.
        8 => idx: u64,
        /// The PFN where it shall appear.
        16 => gpfn: u64,
    }

    /// Argument of [`XENMEM_ADD_TO_PHYSMAP_BATCH`].
    struct AddToPhysmapBatch [32] {
        /// Whose map.
        0 => domid: u16,
        /// `XENMAPSPACE_*`.
        2 => space: u16,
        /// Length of the arrays.
        4 => size: u16,
        /// The other domain ([`XENMAPSPACE_GMFN_FOREIGN`] only).
        6 => foreign_domid: u16,
        /// Address of the frames.
        8 => idxs: u64,
        /// Address of the PFNs.
        16 => gpfns: u64,
        /// Address of an array of `i32` for the results.
        24 => errs: u64,
    }

    /// Argument of [`XENMEM_REMOVE_FROM_PHYSMAP`].
    struct RemoveFromPhysmap [16] {
        /// Whose map.
        0 => domid: u16,
        /// Padding.
        2 => _pad: [u16; 3],
        /// The PFN.
        8 => gpfn: u64,
    }

    /// Argument of [`XENMEM_MEMORY_MAP`].
    struct MemoryMap [16] {
        /// In: entries that fit; out: entries written.
        0 => nr_entries: u32,
        /// Padding.
        4 => _pad: u32,
        /// Address of an array of [`E820Entry`].
        8 => buffer: u64,
    }

    /// Argument of [`XENMEM_SET_MEMORY_MAP`].
    struct ForeignMemoryMap [24] {
        /// Whose map.
        0 => domid: u16,
        /// Padding.
        2 => _pad: [u16; 3],
        /// The map.
        8 => map: MemoryMap,
    }
}

/// One region of a memory map. 20 bytes: the entries of an array are not
/// aligned to 8, as in the BIOS call that gave it its name.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
#[repr(C, packed(4))]
pub struct E820Entry {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// `E820_*`.
    pub kind: u32,
}

const _: () = {
    assert!(size_of::<E820Entry>() == 20);
    assert!(core::mem::offset_of!(E820Entry, addr) == 0);
    assert!(core::mem::offset_of!(E820Entry, size) == 8);
    assert!(core::mem::offset_of!(E820Entry, kind) == 16);
};
