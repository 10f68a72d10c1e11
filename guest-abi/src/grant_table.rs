//! `public/grant_table.h`: grants, how one domain lets another use a page.
//!
//! A grant is a **capability**: entry `ref` of a domain's grant table names a
//! frame, one other domain, and what that domain may do with it. The other
//! domain maps the frame, or has the hypervisor copy to or from it, by quoting
//! the reference. The table is memory shared with the hypervisor, changed
//! without hypercalls:
//!
//! - **To grant**: write `domid` and `frame`; a write barrier; write `flags`
//!   with the type `permit_access`.
//! - **To take back**: read `flags`; if `reading` or `writing` is set the
//!   grant is in use and stays; else compare-and-swap the value read with 0,
//!   and start again if it changed meanwhile.
//!
//! In version 2 the in-use bits live in a separate array of status words.
//! Transitive grants (version 2) are a source of trouble and refused here.
//!
//! ```
//! use guest_abi::grant_table::{GNTST_BAD_GNTREF, GTF_PERMIT_ACCESS, GTF_READONLY, gntst_text};
//!
//! let flags = GTF_PERMIT_ACCESS | GTF_READONLY;
//! assert_eq!(flags, 5);
//! assert!(!gntst_text(GNTST_BAD_GNTREF).is_empty());
//! ```

use crate::layout::layout;

/// References that are not handed out by allocators.
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;
/// The grant of the console ring.
pub const GNTTAB_RESERVED_CONSOLE: u32 = 0;
/// The grant of the xenstore ring.
pub const GNTTAB_RESERVED_XENSTORE: u32 = 1;

/// Type: no grant.
pub const GTF_INVALID: u16 = 0;
/// Type: the domain may map or copy the frame.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// Type: the domain may give a frame to us.
pub const GTF_ACCEPT_TRANSFER: u16 = 2;
/// Type: a grant of a grant (version 2).
pub const GTF_TRANSITIVE: u16 = 3;
/// The bits that hold the type.
pub const GTF_TYPE_MASK: u16 = 3;
/// Access: reading only.
pub const GTF_READONLY: u16 = 1 << 2;
/// Access: in use for reading; set by the hypervisor.
pub const GTF_READING: u16 = 1 << 3;
/// Access: in use for writing; set by the hypervisor.
pub const GTF_WRITING: u16 = 1 << 4;
/// Access: cache attribute for the mapper.
pub const GTF_PWT: u16 = 1 << 5;
/// Access: cache attribute for the mapper.
pub const GTF_PCD: u16 = 1 << 6;
/// Access: cache attribute for the mapper.
pub const GTF_PAT: u16 = 1 << 7;
/// Access: a part of a page, for copies only (version 2).
pub const GTF_SUB_PAGE: u16 = 1 << 8;
/// Transfer: a frame is about to come.
pub const GTF_TRANSFER_COMMITTED: u16 = 1 << 2;
/// Transfer: the frame has come.
pub const GTF_TRANSFER_COMPLETED: u16 = 1 << 3;

/// Maps grants ([`GnttabMapGrantRef`]).
pub const GNTTABOP_MAP_GRANT_REF: u32 = 0;
/// Ends mappings ([`GnttabUnmapGrantRef`]).
pub const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
/// Makes the table that large and tells its frames ([`GnttabSetupTable`]).
pub const GNTTABOP_SETUP_TABLE: u32 = 2;
/// Prints a table on the hypervisor's console ([`GnttabDumpTable`]).
pub const GNTTABOP_DUMP_TABLE: u32 = 3;
/// Gives frames away ([`GnttabTransfer`]).
pub const GNTTABOP_TRANSFER: u32 = 4;
/// Copies between frames, granted or own ([`GnttabCopy`]).
pub const GNTTABOP_COPY: u32 = 5;
/// Tells a table's size ([`GnttabQuerySize`]).
pub const GNTTABOP_QUERY_SIZE: u32 = 6;
/// Ends mappings, putting another mapping in their place ([`GnttabUnmapAndReplace`]).
pub const GNTTABOP_UNMAP_AND_REPLACE: u32 = 7;
/// Chooses version 1 or 2 ([`GnttabSetVersion`]).
pub const GNTTABOP_SET_VERSION: u32 = 8;
/// Frames of the status array, version 2 ([`GnttabGetStatusFrames`]).
pub const GNTTABOP_GET_STATUS_FRAMES: u32 = 9;
/// Tells a table's version ([`GnttabGetVersion`]).
pub const GNTTABOP_GET_VERSION: u32 = 10;
/// Swaps two entries ([`GnttabSwapGrantRef`]).
pub const GNTTABOP_SWAP_GRANT_REF: u32 = 11;
/// Cleans caches of granted memory ([`GnttabCacheFlush`]).
pub const GNTTABOP_CACHE_FLUSH: u32 = 12;

/// Map: for devices.
pub const GNTMAP_DEVICE_MAP: u32 = 1 << 0;
/// Map: for the CPU.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
/// Map: read-only.
pub const GNTMAP_READONLY: u32 = 1 << 2;
/// Map: accessible to the guest's user mode.
pub const GNTMAP_APPLICATION_MAP: u32 = 1 << 3;
/// Map: `host_addr` is the machine address of the page-table entry.
pub const GNTMAP_CONTAINS_PTE: u32 = 1 << 4;
/// Map: the first of the bits that go into the entry's available bits.
pub const GNTMAP_GUEST_AVAIL0_SHIFT: u32 = 16;
/// Map: those bits.
pub const GNTMAP_GUEST_AVAIL_MASK: u32 = u32::MAX << GNTMAP_GUEST_AVAIL0_SHIFT;

/// [`GnttabCopy::flags`]: the source is a grant.
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
/// [`GnttabCopy::flags`]: the destination is a grant.
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

/// [`GnttabCacheFlush::op`]: write back.
pub const GNTTAB_CACHE_CLEAN: u32 = 1 << 0;
/// [`GnttabCacheFlush::op`]: drop.
pub const GNTTAB_CACHE_INVAL: u32 = 1 << 1;
/// [`GnttabCacheFlush::op`]: `a` is a reference, not an address.
pub const GNTTAB_CACHE_SOURCE_GREF: u32 = 1 << 31;

macro_rules! statuses {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        $(#[doc = concat!("Status: ", $text, ".")] pub const $name: i16 = $value;)*

        /// What a status means, in a few words.
        #[must_use]
        pub const fn gntst_text(status: i16) -> &'static str {
            match status { $($value => $text,)* _ => "unknown status" }
        }
    };
}

statuses! {
    GNTST_OKAY = 0, "done";
    GNTST_GENERAL_ERROR = -1, "general error";
    GNTST_BAD_DOMAIN = -2, "no such domain";
    GNTST_BAD_GNTREF = -3, "bad grant reference";
    GNTST_BAD_HANDLE = -4, "bad mapping handle";
    GNTST_BAD_VIRT_ADDR = -5, "bad virtual address or page-table entry";
    GNTST_BAD_DEV_ADDR = -6, "bad device address";
    GNTST_NO_DEVICE_SPACE = -7, "the IOMMU is full";
    GNTST_PERMISSION_DENIED = -8, "the grant does not allow it";
    GNTST_BAD_PAGE = -9, "the page does not fit the operation";
    GNTST_BAD_COPY_ARG = -10, "the copy crosses a page's end";
    GNTST_ADDRESS_TOO_BIG = -11, "the frame's address is too large";
    GNTST_EAGAIN = -12, "try again";
    GNTST_NO_SPACE = -13, "no room for the mapping";
}

layout! {
    /// An entry of version 1. Linux and the hypervisor access `flags` and
    /// `domid` together as one 32-bit word.
    struct GrantEntryV1 [8] {
        /// `GTF_*`.
        0 => flags: u16,
        /// The domain that may use the grant.
        2 => domid: u16,
        /// The frame.
        4 => frame: u32,
    }

    /// An entry of version 2: a whole page.
    struct GrantEntryV2FullPage [16] {
        /// `GTF_*`.
        0 => flags: u16,
        /// The domain that may use the grant.
        2 => domid: u16,
        /// Padding.
        4 => pad0: u32,
        /// The frame.
        8 => frame: u64,
    }

    /// An entry of version 2 with [`GTF_SUB_PAGE`].
    struct GrantEntryV2SubPage [16] {
        /// `GTF_*`.
        0 => flags: u16,
        /// The domain that may use the grant.
        2 => domid: u16,
        /// First byte of the part.
        4 => page_off: u16,
        /// Its length.
        6 => length: u16,
        /// The frame.
        8 => frame: u64,
    }

    /// An entry of version 2 of type [`GTF_TRANSITIVE`].
    struct GrantEntryV2Transitive [16] {
        /// `GTF_*`.
        0 => flags: u16,
        /// The domain that may use the grant.
        2 => domid: u16,
        /// The domain that granted to us.
        4 => trans_domid: u16,
        /// Padding.
        6 => pad0: u16,
        /// Its grant.
        8 => gref: u32,
        /// Padding.
        12 => _pad: u32,
    }

    /// Argument of [`GNTTABOP_MAP_GRANT_REF`].
    struct GnttabMapGrantRef [32] {
        /// In: virtual address, or machine address of the entry
        /// ([`GNTMAP_CONTAINS_PTE`]).
        0 => host_addr: u64,
        /// In: `GNTMAP_*`.
        8 => flags: u32,
        /// In: the grant.
        12 => gref: u32,
        /// In: whose grant.
        16 => dom: u16,
        /// Out: `GNTST_*`.
        18 => status: i16,
        /// Out: names the mapping for its end.
        20 => handle: u32,
        /// Out: address for devices.
        24 => dev_bus_addr: u64,
    }

    /// Argument of [`GNTTABOP_UNMAP_GRANT_REF`].
    struct GnttabUnmapGrantRef [24] {
        /// In: as when mapping; 0 leaves the CPU's mapping.
        0 => host_addr: u64,
        /// In: as told when mapping; 0 leaves the devices' mapping.
        8 => dev_bus_addr: u64,
        /// In: which mapping.
        16 => handle: u32,
        /// Out: `GNTST_*`.
        20 => status: i16,
        /// Padding.
        22 => _pad: u16,
    }

    /// Argument of [`GNTTABOP_SETUP_TABLE`].
    struct GnttabSetupTable [24] {
        /// In: whose table.
        0 => dom: u16,
        /// Padding.
        2 => _pad0: u16,
        /// In: its frames.
        4 => nr_frames: u32,
        /// Out: `GNTST_*`.
        8 => status: i16,
        /// Padding.
        10 => _pad1: [u16; 3],
        /// In: address of an array for their MFNs.
        16 => frame_list: u64,
    }

    /// Argument of [`GNTTABOP_DUMP_TABLE`].
    struct GnttabDumpTable [4] {
        /// In: whose table.
        0 => dom: u16,
        /// Out: `GNTST_*`.
        2 => status: i16,
    }

    /// Argument of [`GNTTABOP_TRANSFER`].
    struct GnttabTransfer [24] {
        /// In: the frame given away.
        0 => mfn: u64,
        /// In: to whom.
        8 => domid: u16,
        /// Padding.
        10 => _pad0: u16,
        /// In: its grant that accepts the frame.
        12 => gref: u32,
        /// Out: `GNTST_*`.
        16 => status: i16,
        /// Padding.
        18 => _pad1: [u16; 3],
    }

    /// One side of a [`GnttabCopy`].
    struct GnttabCopyPtr [16] {
        /// The grant (low 32 bits) or the own frame.
        0 => u: u64,
        /// Whose.
        8 => domid: u16,
        /// First byte in the page.
        10 => offset: u16,
        /// Padding.
        12 => _pad: u32,
    }

    /// Argument of [`GNTTABOP_COPY`].
    struct GnttabCopy [40] {
        /// In: from.
        0 => source: GnttabCopyPtr,
        /// In: to.
        16 => dest: GnttabCopyPtr,
        /// In: bytes; no page's end may lie within.
        32 => len: u16,
        /// In: `GNTCOPY_*`.
        34 => flags: u16,
        /// Out: `GNTST_*`.
        36 => status: i16,
        /// Padding.
        38 => _pad: u16,
    }

    /// Argument of [`GNTTABOP_QUERY_SIZE`].
    struct GnttabQuerySize [16] {
        /// In: whose table.
        0 => dom: u16,
        /// Padding.
        2 => _pad0: u16,
        /// Out: frames now.
        4 => nr_frames: u32,
        /// Out: frames it may have.
        8 => max_nr_frames: u32,
        /// Out: `GNTST_*`.
        12 => status: i16,
        /// Padding.
        14 => _pad1: u16,
    }

    /// Argument of [`GNTTABOP_UNMAP_AND_REPLACE`].
    struct GnttabUnmapAndReplace [24] {
        /// In: as when mapping.
        0 => host_addr: u64,
        /// In: the address whose mapping takes its place.
        8 => new_addr: u64,
        /// In: which mapping.
        16 => handle: u32,
        /// Out: `GNTST_*`.
        20 => status: i16,
        /// Padding.
        22 => _pad: u16,
    }

    /// Argument of [`GNTTABOP_SET_VERSION`].
    struct GnttabSetVersion [4] {
        /// In and out.
        0 => version: u32,
    }

    /// Argument of [`GNTTABOP_GET_STATUS_FRAMES`].
    struct GnttabGetStatusFrames [16] {
        /// In: how many.
        0 => nr_frames: u32,
        /// In: whose.
        4 => dom: u16,
        /// Out: `GNTST_*`.
        6 => status: i16,
        /// In: address of an array for their frame numbers.
        8 => frame_list: u64,
    }

    /// Argument of [`GNTTABOP_GET_VERSION`].
    struct GnttabGetVersion [8] {
        /// In: whose table.
        0 => dom: u16,
        /// Padding.
        2 => pad: u16,
        /// Out.
        4 => version: u32,
    }

    /// Argument of [`GNTTABOP_SWAP_GRANT_REF`].
    struct GnttabSwapGrantRef [12] {
        /// In.
        0 => ref_a: u32,
        /// In.
        4 => ref_b: u32,
        /// Out: `GNTST_*`.
        8 => status: i16,
        /// Padding.
        10 => _pad: u16,
    }

    /// Argument of [`GNTTABOP_CACHE_FLUSH`].
    struct GnttabCacheFlush [16] {
        /// In: a device address, or a reference (low 32 bits).
        0 => a: u64,
        /// In: first byte in the page.
        8 => offset: u16,
        /// In: bytes.
        10 => length: u16,
        /// In: `GNTTAB_CACHE_*`.
        12 => op: u32,
    }
}
