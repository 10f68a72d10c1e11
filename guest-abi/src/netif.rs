//! `public/io/netif.h`: the network device's two rings.
//!
//! Transmit: a packet is one or more requests, each a part of a granted page;
//! all but the last carry [`NETTXF_MORE_DATA`]; the first one's `size` is the
//! whole packet's, the others' their own. Receive: the front end posts empty
//! granted pages, the back end fills them. Extra information follows a
//! packet's first slot in slots of its own ([`NetifExtraInfo`]).
//!
//! ```
//! use guest_abi::netif::{NETTXF_MORE_DATA, NetifTxRequest};
//!
//! // The first of two parts of a packet of 6000 bytes.
//! let first = NetifTxRequest {
//!     gref: 8,
//!     flags: NETTXF_MORE_DATA,
//!     size: 6000,
//!     ..Default::default()
//! };
//! assert_eq!(size_of_val(&first), 12);
//! ```

use crate::layout::layout;

/// Slots that a packet may always take.
pub const XEN_NETIF_NR_SLOTS_MIN: usize = 18;
/// The largest packet.
pub const XEN_NETIF_MAX_TX_SIZE: usize = 0xffff;

/// Transmit: the protocol's checksum is to be filled in.
pub const NETTXF_CSUM_BLANK: u16 = 1 << 0;
/// Transmit: the data were checked.
pub const NETTXF_DATA_VALIDATED: u16 = 1 << 1;
/// Transmit: the packet goes on in the next request.
pub const NETTXF_MORE_DATA: u16 = 1 << 2;
/// Transmit: extra information follows.
pub const NETTXF_EXTRA_INFO: u16 = 1 << 3;

/// Receive: the data were checked.
pub const NETRXF_DATA_VALIDATED: u16 = 1 << 0;
/// Receive: the protocol's checksum is not filled in.
pub const NETRXF_CSUM_BLANK: u16 = 1 << 1;
/// Receive: the packet goes on in the next response.
pub const NETRXF_MORE_DATA: u16 = 1 << 2;
/// Receive: extra information follows.
pub const NETRXF_EXTRA_INFO: u16 = 1 << 3;
/// Receive: a prefix of segmentation information.
pub const NETRXF_GSO_PREFIX: u16 = 1 << 4;

/// [`NetifExtraInfo::kind`]: nothing.
pub const XEN_NETIF_EXTRA_TYPE_NONE: u8 = 0;
/// [`NetifExtraInfo::kind`]: segmentation.
pub const XEN_NETIF_EXTRA_TYPE_GSO: u8 = 1;
/// [`NetifExtraInfo::kind`]: join a multicast group.
pub const XEN_NETIF_EXTRA_TYPE_MCAST_ADD: u8 = 2;
/// [`NetifExtraInfo::kind`]: leave it.
pub const XEN_NETIF_EXTRA_TYPE_MCAST_DEL: u8 = 3;
/// [`NetifExtraInfo::kind`]: a hash.
pub const XEN_NETIF_EXTRA_TYPE_HASH: u8 = 4;
/// One more than the last kind.
pub const XEN_NETIF_EXTRA_TYPE_MAX: u8 = 5;
/// [`NetifExtraInfo::flags`]: more extra information follows.
pub const XEN_NETIF_EXTRA_FLAG_MORE: u8 = 1 << 0;

/// Segmentation: none.
pub const XEN_NETIF_GSO_TYPE_NONE: u8 = 0;
/// Segmentation: TCP over IPv4.
pub const XEN_NETIF_GSO_TYPE_TCPV4: u8 = 1;
/// Segmentation: TCP over IPv6.
pub const XEN_NETIF_GSO_TYPE_TCPV6: u8 = 2;

/// Response: the packet was dropped.
pub const NETIF_RSP_DROPPED: i16 = -2;
/// Response: an error.
pub const NETIF_RSP_ERROR: i16 = -1;
/// Response: done.
pub const NETIF_RSP_OKAY: i16 = 0;
/// Response to a slot of extra information.
pub const NETIF_RSP_NULL: i16 = 1;

/// Bytes of a slot in the transmit ring.
pub const NETIF_TX_SLOT_SIZE: usize = size_of::<NetifTxRequest>();
/// Slots of a transmit ring of one page.
pub const NETIF_TX_RING_SLOTS: u32 = crate::ring::slots(4096, NETIF_TX_SLOT_SIZE);
/// Bytes of a slot in the receive ring.
pub const NETIF_RX_SLOT_SIZE: usize = size_of::<NetifRxRequest>();
/// Slots of a receive ring of one page.
pub const NETIF_RX_RING_SLOTS: u32 = crate::ring::slots(4096, NETIF_RX_SLOT_SIZE);

layout! {
    /// A transmit request.
    struct NetifTxRequest [12] {
        /// The granted page.
        0 => gref: u32,
        /// First byte in it.
        4 => offset: u16,
        /// `NETTXF_*`.
        6 => flags: u16,
        /// Repeated in the response.
        8 => id: u16,
        /// Bytes of the whole packet (first request) or of this part.
        10 => size: u16,
    }

    /// A transmit response.
    struct NetifTxResponse [4] {
        /// The request's.
        0 => id: u16,
        /// `NETIF_RSP_*`.
        2 => status: i16,
    }

    /// A receive request: an empty page.
    struct NetifRxRequest [8] {
        /// Repeated in the response.
        0 => id: u16,
        /// Padding.
        2 => _pad: u16,
        /// The granted page.
        4 => gref: u32,
    }

    /// A receive response.
    struct NetifRxResponse [8] {
        /// The request's.
        0 => id: u16,
        /// First byte in the page.
        2 => offset: u16,
        /// `NETRXF_*`.
        4 => flags: u16,
        /// Bytes in the page, or a negative `NETIF_RSP_*`.
        6 => status: i16,
    }

    /// Extra information.
    struct NetifExtraInfo [8] {
        /// `XEN_NETIF_EXTRA_TYPE_*`.
        0 => kind: u8,
        /// [`XEN_NETIF_EXTRA_FLAG_MORE`] or 0.
        1 => flags: u8,
        /// Segmentation: size (2 bytes), `XEN_NETIF_GSO_TYPE_*`, padding,
        /// features (2 bytes). Multicast: the group's address.
        2 => u: [u8; 6],
    }
}

const _: () = assert!(NETIF_TX_RING_SLOTS == 256 && NETIF_RX_RING_SLOTS == 256);
