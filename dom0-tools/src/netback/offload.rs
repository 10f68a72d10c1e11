//! Work on a packet that its sender left to somebody behind it: the checksum,
//! and the cutting of a large TCP packet into segments.
//!
//! Three languages say the same: a guest's ring (flags and extra information),
//! the header of a tap device (`struct virtio_net_hdr`), and [`Offload`].

use guest_abi::netif::{
    NETRXF_CSUM_BLANK, NETRXF_DATA_VALIDATED, NETTXF_CSUM_BLANK, NETTXF_DATA_VALIDATED,
    XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::packet::{Protocol, Transport};

/// What is known of a packet's checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It stands in the packet; nobody has looked.
    #[default]
    Unknown,
    /// It stands in the packet and is right.
    Valid,
    /// It is not filled in.
    Blank,
}

/// For which family a large packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// TCP over IPv4.
    V4,
    /// TCP over IPv6.
    V6,
}

impl Family {
    /// From `XEN_NETIF_GSO_TYPE_*`.
    #[must_use]
    pub const fn from_gso_type(kind: u8) -> Option<Self> {
        match kind {
            XEN_NETIF_GSO_TYPE_TCPV4 => Some(Self::V4),
            XEN_NETIF_GSO_TYPE_TCPV6 => Some(Self::V6),
            _ => None,
        }
    }

    /// As `XEN_NETIF_GSO_TYPE_*`.
    #[must_use]
    pub const fn gso_type(self) -> u8 {
        match self {
            Self::V4 => XEN_NETIF_GSO_TYPE_TCPV4,
            Self::V6 => XEN_NETIF_GSO_TYPE_TCPV6,
        }
    }
}

/// How a large packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// The family.
    pub family: Family,
    /// Bytes of data in a segment; never 0.
    pub size: u16,
}

/// What is left to do on a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its checksum.
    pub checksum: Checksum,
    /// Its cutting.
    pub gso: Option<Gso>,
}

/// A packet whose headers do not fit what is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no TCP or UDP header where a checksum or segmentation is asked for")]
pub struct NoTransport;

impl Offload {
    /// What `NETTXF_*` flags say; segmentation is in the extra information.
    #[must_use]
    pub const fn from_tx_flags(flags: u16, gso: Option<Gso>) -> Self {
        let checksum = if flags & NETTXF_CSUM_BLANK != 0 || gso.is_some() {
            Checksum::Blank
        } else if flags & NETTXF_DATA_VALIDATED != 0 {
            Checksum::Valid
        } else {
            Checksum::Unknown
        };
        Self { checksum, gso }
    }

    /// As `NETRXF_*` flags.
    #[must_use]
    pub const fn rx_flags(&self) -> u16 {
        match self.checksum {
            Checksum::Blank => NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED,
            Checksum::Valid => NETRXF_DATA_VALIDATED,
            Checksum::Unknown => 0,
        }
    }

    /// Does here what is left to do on the checksum.
    ///
    /// # Errors
    /// [`NoTransport`].
    pub fn complete_checksum(&mut self, packet: &mut [u8]) -> Result<(), NoTransport> {
        if self.checksum == Checksum::Blank {
            let transport = Transport::find(packet).ok_or(NoTransport)?;
            transport.complete_checksum(packet);
            self.checksum = Checksum::Valid;
        }
        Ok(())
    }
}

/// `struct virtio_net_hdr`, in front of each packet of a tap device.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VnetHeader {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

impl VnetHeader {
    /// The header for a packet; the packet's checksum field gets what the
    /// kernel expects there.
    ///
    /// # Errors
    /// [`NoTransport`].
    pub fn prepare(offload: &Offload, packet: &mut [u8]) -> Result<Self, NoTransport> {
        let mut header = Self::default();
        match offload.checksum {
            Checksum::Unknown => return Ok(header),
            Checksum::Valid => {
                header.flags = DATA_VALID;
                return Ok(header);
            }
            Checksum::Blank => header.flags = NEEDS_CSUM,
        }
        let transport = Transport::find(packet).ok_or(NoTransport)?;
        transport.write_pseudo_sum(packet);
        let small = |n: usize| u16::try_from(n).map_err(|_| NoTransport);
        header.csum_start = small(transport.start)?;
        header.csum_offset = small(transport.protocol.checksum_offset())?;
        header.hdr_len = small(transport.header_end(packet).ok_or(NoTransport)?)?;
        if let Some(gso) = offload.gso {
            let fits = transport.protocol == Protocol::Tcp
                && transport.is_ipv6() == (gso.family == Family::V6);
            if !fits {
                return Err(NoTransport);
            }
            header.gso_type = match gso.family {
                Family::V4 => GSO_TCPV4,
                Family::V6 => GSO_TCPV6,
            };
            header.gso_size = gso.size;
        }
        Ok(header)
    }

    /// What the header of a received packet says.
    #[must_use]
    pub fn offload(&self) -> Offload {
        let checksum = if self.flags & NEEDS_CSUM != 0 {
            Checksum::Blank
        } else if self.flags & DATA_VALID != 0 {
            Checksum::Valid
        } else {
            Checksum::Unknown
        };
        let family = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => Some(Family::V4),
            GSO_TCPV6 => Some(Family::V6),
            _ => None,
        };
        let gso = family.filter(|_| self.gso_size != 0).map(|family| Gso {
            family,
            size: self.gso_size,
        });
        Offload { checksum, gso }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::{ipv4_packet, ipv6_packet};
    use super::*;

    const BLANK: Offload = Offload {
        checksum: Checksum::Blank,
        gso: None,
    };

    #[test]
    fn flags_say_the_same_both_ways() {
        let tx = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;
        let offload = Offload::from_tx_flags(tx, None);
        assert_eq!(offload, BLANK);
        assert_eq!(
            offload.rx_flags(),
            NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED
        );
        assert_eq!(Offload::from_tx_flags(0, None).rx_flags(), 0);
    }

    #[test]
    fn a_large_packet_is_described_to_the_tap() {
        let gso = Gso {
            family: Family::V4,
            size: 1448,
        };
        let mut packet = ipv4_packet(Protocol::Tcp, &[7; 9000]);
        let offload = Offload::from_tx_flags(0, Some(gso));
        let header = VnetHeader::prepare(&offload, &mut packet).unwrap();
        assert_eq!((header.csum_start, header.csum_offset), (34, 16));
        assert_eq!((header.hdr_len, header.gso_size), (54, 1448));
        assert_eq!(header.offload(), offload);
        // For the other family, or for UDP, it makes no sense.
        for mut packet in [
            ipv6_packet(Protocol::Tcp, &[7; 9000]),
            ipv4_packet(Protocol::Udp, &[7; 9000]),
        ] {
            assert_eq!(VnetHeader::prepare(&offload, &mut packet), Err(NoTransport));
        }
    }

    #[test]
    fn a_blank_checksum_without_transport_is_refused() {
        let mut arp = vec![0xff; 60];
        assert_eq!(VnetHeader::prepare(&BLANK, &mut arp), Err(NoTransport));
        assert_eq!({ BLANK }.complete_checksum(&mut arp), Err(NoTransport));
        let plain = Offload::default();
        assert_eq!(
            VnetHeader::prepare(&plain, &mut arp),
            Ok(VnetHeader::default())
        );
    }

    #[test]
    fn a_checksum_completed_here_is_valid() {
        let mut packet = ipv6_packet(Protocol::Udp, b"abc");
        let mut offload = BLANK;
        offload.complete_checksum(&mut packet).unwrap();
        assert_eq!(offload.checksum, Checksum::Valid);
        assert!(Transport::find(&packet).unwrap().checksum_is_right(&packet));
    }
}
