//! `public/io/blkif.h`: the block device's ring.
//!
//! A request names sectors of 512 bytes and up to eleven granted pages with
//! the part of each to use; with [`BLKIF_OP_INDIRECT`] the list of pages is
//! itself in granted pages. The layouts are those of the protocol
//! `x86_64-abi`.
//!
//! ```
//! use guest_abi::blkif::{BLKIF_OP_READ, BlkifRequest};
//!
//! let mut request = BlkifRequest::default();
//! request.operation = BLKIF_OP_READ;
//! request.nr_segments = 1;
//! request.sector_number = 2048;
//! assert_eq!(size_of::<BlkifRequest>(), 112);
//! ```

use crate::layout::layout;

/// Read.
pub const BLKIF_OP_READ: u8 = 0;
/// Write.
pub const BLKIF_OP_WRITE: u8 = 1;
/// Write, ordered against all others.
pub const BLKIF_OP_WRITE_BARRIER: u8 = 2;
/// Make what was written durable.
pub const BLKIF_OP_FLUSH_DISKCACHE: u8 = 3;
/// Forget sectors ([`BlkifRequestDiscard`]).
pub const BLKIF_OP_DISCARD: u8 = 5;
/// Read or write with an indirect list ([`BlkifRequestIndirect`]).
pub const BLKIF_OP_INDIRECT: u8 = 6;

/// Pages in a request.
pub const BLKIF_MAX_SEGMENTS_PER_REQUEST: usize = 11;
/// Pages of lists in an indirect request.
pub const BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8;
/// Bytes of a sector.
pub const BLKIF_SECTOR_SIZE: u64 = 512;

/// [`BlkifRequestDiscard::flag`]: erase for good.
pub const BLKIF_DISCARD_SECURE: u8 = 1 << 0;

/// Done.
pub const BLKIF_RSP_OKAY: i16 = 0;
/// Failed.
pub const BLKIF_RSP_ERROR: i16 = -1;
/// Not supported here.
pub const BLKIF_RSP_EOPNOTSUPP: i16 = -2;

/// Node `info`: a CD-ROM.
pub const VDISK_CDROM: u32 = 1;
/// Node `info`: removable.
pub const VDISK_REMOVABLE: u32 = 2;
/// Node `info`: read-only.
pub const VDISK_READONLY: u32 = 4;

/// Bytes of a slot in the ring.
pub const BLKIF_SLOT_SIZE: usize = size_of::<BlkifRequest>();
/// Slots of a ring of one page.
pub const BLKIF_RING_SLOTS: u32 = crate::ring::slots(4096, BLKIF_SLOT_SIZE);

layout! {
    /// One page of a request.
    struct BlkifRequestSegment [8] {
        /// The grant.
        0 => gref: u32,
        /// First sector of the page to use (0 to 7).
        4 => first_sect: u8,
        /// Last sector to use, inclusive.
        5 => last_sect: u8,
        /// Padding.
        6 => _pad: u16,
    }

    /// A request to read, write or flush.
    struct BlkifRequest [112] {
        /// `BLKIF_OP_*`.
        0 => operation: u8,
        /// Segments used.
        1 => nr_segments: u8,
        /// The device's number.
        2 => handle: u16,
        /// Padding.
        4 => _pad: u32,
        /// Repeated in the response.
        8 => id: u64,
        /// First sector.
        16 => sector_number: u64,
        /// The pages.
        24 => seg: [BlkifRequestSegment; 11],
    }

    /// A request to discard.
    struct BlkifRequestDiscard [32] {
        /// [`BLKIF_OP_DISCARD`].
        0 => operation: u8,
        /// [`BLKIF_DISCARD_SECURE`] or 0.
        1 => flag: u8,
        /// The device's number.
        2 => handle: u16,
        /// Padding.
        4 => _pad: u32,
        /// Repeated in the response.
        8 => id: u64,
        /// First sector.
        16 => sector_number: u64,
        /// How many.
        24 => nr_sectors: u64,
    }

    /// A request with an indirect list.
    struct BlkifRequestIndirect [64] {
        /// [`BLKIF_OP_INDIRECT`].
        0 => operation: u8,
        /// [`BLKIF_OP_READ`] or [`BLKIF_OP_WRITE`].
        1 => indirect_op: u8,
        /// Segments in the list.
        2 => nr_segments: u16,
        /// Padding.
        4 => _pad0: u32,
        /// Repeated in the response.
        8 => id: u64,
        /// First sector.
        16 => sector_number: u64,
        /// The device's number.
        24 => handle: u16,
        /// Padding.
        26 => _pad1: u16,
        /// Grants of the list's pages, 512 [`BlkifRequestSegment`]s each.
        28 => indirect_grefs: [u32; 8],
        /// Padding.
        60 => _pad2: u32,
    }

    /// A response.
    struct BlkifResponse [16] {
        /// The request's.
        0 => id: u64,
        /// The request's.
        8 => operation: u8,
        /// Padding.
        9 => _pad0: u8,
        /// `BLKIF_RSP_*`.
        10 => status: i16,
        /// Padding.
        12 => _pad1: u32,
    }
}

const _: () = assert!(BLKIF_RING_SLOTS == 32);
