//! Where the headers of a packet lie, and its transport checksum.
//!
//! Law: a packet is a private copy. Nothing in it is believed: every length is
//! compared with the bytes that are there, every walk is bounded.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header.
pub const ETH_HLEN: usize = 14;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

/// Tags of virtual LANs that are looked through.
const MOST_TAGS: usize = 2;
/// Extension headers of IPv6 that are walked over.
const MOST_EXTENSIONS: usize = 8;

/// A protocol with a checksum over its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Where in its header the checksum lies.
    #[must_use]
    pub const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    const fn shortest_header(self) -> usize {
        match self {
            Self::Tcp => 20,
            Self::Udp => 8,
        }
    }
}

/// The addresses, which the checksum covers too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Source and destination.
    V4(Ipv4Addr, Ipv4Addr),
    /// Source and destination.
    V6(Ipv6Addr, Ipv6Addr),
}

/// What is known of a TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// From where to where.
    pub addresses: Addresses,
    /// The first byte of the TCP or UDP header.
    pub start: usize,
    /// One behind the last byte that the IP header claims.
    pub end: usize,
}

impl Transport {
    /// Finds the TCP or UDP header; `None` if there is none, it is cut off, or
    /// the packet is a fragment.
    #[must_use]
    pub fn find(packet: &[u8]) -> Option<Self> {
        let (kind, at) = network(packet)?;
        let found = match kind {
            ETH_P_IP => ipv4(packet, at),
            ETH_P_IPV6 => ipv6(packet, at),
            _ => None,
        }?;
        let needs = found.start + found.protocol.shortest_header();
        (needs <= found.end && found.end <= packet.len()).then_some(found)
    }

    /// Whether the packet is of IPv6.
    #[must_use]
    pub const fn is_ipv6(&self) -> bool {
        matches!(self.addresses, Addresses::V6(..))
    }

    /// One behind the last byte of the TCP or UDP header; `None` if that is
    /// not in the packet.
    #[must_use]
    pub fn header_end(&self, packet: &[u8]) -> Option<usize> {
        let len = match self.protocol {
            Protocol::Tcp => usize::from(packet.get(self.start + 12)? >> 4) * 4,
            Protocol::Udp => 8,
        };
        let end = self.start + len;
        (len >= self.protocol.shortest_header() && end <= self.end).then_some(end)
    }

    /// Puts the sum of the pseudo-header where the checksum goes: what a
    /// kernel expects that shall fill in the rest.
    pub fn write_pseudo_sum(&self, packet: &mut [u8]) {
        self.write_checksum(packet, fold(self.pseudo_sum()));
    }

    /// Computes the checksum and writes it.
    pub fn complete_checksum(&self, packet: &mut [u8]) {
        self.write_checksum(packet, 0);
        let data = add(self.pseudo_sum(), &packet[self.start..self.end]);
        let sum = match !fold(data) {
            // With UDP, zero means that there is none.
            0 if self.protocol == Protocol::Udp => 0xffff,
            sum => sum,
        };
        self.write_checksum(packet, sum);
    }

    /// Whether the checksum that stands there is right.
    #[must_use]
    pub fn checksum_is_right(&self, packet: &[u8]) -> bool {
        fold(add(self.pseudo_sum(), &packet[self.start..self.end])) == 0xffff
    }

    fn write_checksum(&self, packet: &mut [u8], sum: u16) {
        let at = self.start + self.protocol.checksum_offset();
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn pseudo_sum(&self) -> u64 {
        let addresses = match self.addresses {
            Addresses::V4(from, to) => add(add(0, &from.octets()), &to.octets()),
            Addresses::V6(from, to) => add(add(0, &from.octets()), &to.octets()),
        };
        addresses + u64::from(self.protocol.number()) + (self.end - self.start) as u64
    }
}

/// The kind of the network layer, and where it begins.
fn network(packet: &[u8]) -> Option<(u16, usize)> {
    let mut at = ETH_HLEN - 2;
    for _ in 0..=MOST_TAGS {
        match word(packet, at)? {
            ETH_P_8021Q | ETH_P_8021AD => at += 4,
            kind => return Some((kind, at + 2)),
        }
    }
    None
}

fn ipv4(packet: &[u8], at: usize) -> Option<Transport> {
    let header = packet.get(at..at + 20)?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let is_fragment = word(header, 6)? & 0x3fff != 0;
    if header[0] >> 4 != 4 || header_len < 20 || is_fragment {
        return None;
    }
    let address = |at: usize| header[at..at + 4].try_into().map(u32::from_be_bytes).ok();
    let (from, to) = (address(12)?, address(16)?);
    Some(Transport {
        protocol: Protocol::from_number(header[9])?,
        addresses: Addresses::V4(from.into(), to.into()),
        start: at + header_len,
        end: at + usize::from(word(header, 2)?),
    })
}

fn ipv6(packet: &[u8], at: usize) -> Option<Transport> {
    let header = packet.get(at..at + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).ok();
    let (from, to) = (address(8)?, address(24)?);
    let (protocol, start) = upper_layer(packet, header[6], at + 40)?;
    Some(Transport {
        protocol,
        addresses: Addresses::V6(from.into(), to.into()),
        start,
        end: at + 40 + usize::from(word(header, 4)?),
    })
}

/// Walks over the extension headers of IPv6.
fn upper_layer(packet: &[u8], first: u8, start: usize) -> Option<(Protocol, usize)> {
    let (mut kind, mut at) = (first, start);
    for _ in 0..=MOST_EXTENSIONS {
        if let Some(protocol) = Protocol::from_number(kind) {
            return Some((protocol, at));
        }
        let header = packet.get(at..at + 2)?;
        let len = match kind {
            // Hop by hop, routing, destination.
            0 | 43 | 60 => usize::from(header[1]) * 8 + 8,
            // Authentication.
            51 => usize::from(header[1]) * 4 + 8,
            _ => return None,
        };
        (kind, at) = (header[0], at + len);
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// Adds the bytes, as 16-bit words of the network, to a sum that is not yet
/// folded.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    // The sum of big 32-bit words folds to the same as that of 16-bit ones.
    let whole: u64 = words
        .iter()
        .map(|w| u64::from(u32::from_be_bytes(*w)))
        .sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + whole + u64::from(u32::from_be_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while let Some(carry) = Some(sum >> 16).filter(|carry| *carry != 0) {
        sum = (sum & 0xffff) + carry;
    }
    u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An IPv4 packet without checksum at layer four.
    pub(crate) fn ipv4_packet(protocol: Protocol, payload: &[u8]) -> Vec<u8> {
        let l4 = l4_header(protocol, payload.len());
        let mut packet = vec![2; 12];
        packet.extend(ETH_P_IP.to_be_bytes());
        let total = u16::try_from(20 + l4.len() + payload.len()).unwrap();
        packet.extend([0x45, 0]);
        packet.extend(total.to_be_bytes());
        packet.extend([0, 1, 0x40, 0, 64, protocol.number(), 0, 0]);
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(l4);
        packet.extend(payload);
        packet
    }

    /// The same with IPv6, and one extension header.
    pub(crate) fn ipv6_packet(protocol: Protocol, payload: &[u8]) -> Vec<u8> {
        let l4 = l4_header(protocol, payload.len());
        let mut packet = vec![2; 12];
        packet.extend(ETH_P_IPV6.to_be_bytes());
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(
            u16::try_from(8 + l4.len() + payload.len())
                .unwrap()
                .to_be_bytes(),
        );
        packet.extend([0, 64]);
        packet.extend([0xfd; 16]);
        packet.extend([0xfe; 16]);
        packet.extend([protocol.number(), 0, 1, 4, 0, 0, 0, 0]);
        packet.extend(l4);
        packet.extend(payload);
        packet
    }

    fn l4_header(protocol: Protocol, payload: usize) -> Vec<u8> {
        match protocol {
            Protocol::Tcp => {
                let mut header = vec![0; 20];
                header[..4].copy_from_slice(&[0x30, 0x39, 0, 80]);
                header[12] = 5 << 4;
                header
            }
            Protocol::Udp => {
                let len = u16::try_from(payload + 8).unwrap().to_be_bytes();
                vec![0x30, 0x39, 0, 53, len[0], len[1], 0, 0]
            }
        }
    }

    #[test]
    fn finds_headers_of_both_families() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let packet = ipv4_packet(protocol, b"hello");
            let found = Transport::find(&packet).unwrap();
            assert_eq!((found.protocol, found.start), (protocol, 34));
            assert_eq!(found.end, packet.len());
            let packet = ipv6_packet(protocol, b"hello");
            let found = Transport::find(&packet).unwrap();
            assert_eq!((found.protocol, found.start), (protocol, 62));
            assert!(found.is_ipv6());
            let size = packet.len() - 5;
            assert_eq!(found.header_end(&packet), Some(size));
        }
    }

    #[test]
    fn looks_through_two_tags_and_not_three() {
        let plain = ipv4_packet(Protocol::Tcp, b"x");
        let mut tagged = plain.clone();
        for tags in 1..=3 {
            tagged.splice(12..12, [0x81, 0, 0, 7]);
            let found = Transport::find(&tagged).map(|found| found.start);
            assert_eq!(found, (tags < 3).then_some(34 + 4 * tags));
        }
    }

    /// The checksum of a known packet: a query of the name system.
    #[test]
    fn computes_a_known_checksum() {
        let mut packet = ipv4_packet(Protocol::Udp, &[0xab]);
        let transport = Transport::find(&packet).unwrap();
        transport.complete_checksum(&mut packet);
        // 0a00+0001+0a00+0002 + 0011 + 0009 + 3039+0035+0009 + ab00 = 0xef94
        assert_eq!(&packet[40..42], &(!0xef94_u16).to_be_bytes());
        assert!(transport.checksum_is_right(&packet));
        packet[42] ^= 1;
        assert!(!transport.checksum_is_right(&packet));
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        let mut packet = ipv4_packet(Protocol::Udp, &[0, 0]);
        let transport = Transport::find(&packet).unwrap();
        transport.complete_checksum(&mut packet);
        let sum = packet[40..42].to_vec();
        // With its own checksum as data the whole sums up to all ones.
        packet[42..44].copy_from_slice(&sum);
        transport.complete_checksum(&mut packet);
        assert_eq!(packet[40..42], [0xff, 0xff]);
    }

    #[test]
    fn fragments_and_cut_packets_have_no_transport() {
        let packet = ipv4_packet(Protocol::Tcp, b"data");
        for len in 0..packet.len() {
            assert_eq!(Transport::find(&packet[..len]), None, "{len}");
        }
        let mut fragment = packet.clone();
        fragment[20] = 0x20;
        assert_eq!(Transport::find(&fragment), None);
        let mut other = packet;
        other[23] = 1;
        assert_eq!(Transport::find(&other), None);
    }

    #[test]
    fn a_header_longer_than_the_packet_is_noticed() {
        let mut packet = ipv4_packet(Protocol::Tcp, b"data");
        packet[46] = 0xf0;
        let transport = Transport::find(&packet).unwrap();
        assert_eq!(transport.header_end(&packet), None);
        packet[46] = 0x40;
        assert_eq!(transport.header_end(&packet), None);
    }

    proptest! {
        /// Whatever the bytes: no panic, and what is found lies in the packet.
        #[test]
        fn hostile_packets_are_harmless(
            mut packet in proptest::collection::vec(any::<u8>(), 0..200),
            kind in prop::sample::select(vec![ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q]),
        ) {
            if packet.len() > 40 {
                packet[12..14].copy_from_slice(&kind.to_be_bytes());
                packet[14] = if kind == ETH_P_IP { 0x45 } else { 0x60 };
            }
            if let Some(found) = Transport::find(&packet) {
                prop_assert!(found.end <= packet.len());
                let _ = found.header_end(&packet);
                found.write_pseudo_sum(&mut packet);
                found.complete_checksum(&mut packet);
                prop_assert!(found.checksum_is_right(&packet));
            }
        }

        /// Completing from the pseudo-header's sum, as a kernel or a card does,
        /// gives the same as computing it whole.
        #[test]
        fn the_pseudo_sum_leads_to_the_checksum(payload in proptest::collection::vec(any::<u8>(), 0..99)) {
            let mut whole = ipv6_packet(Protocol::Tcp, &payload);
            let transport = Transport::find(&whole).unwrap();
            let mut partial = whole.clone();
            transport.complete_checksum(&mut whole);
            transport.write_pseudo_sum(&mut partial);
            let sum = !fold(add(0, &partial[transport.start..transport.end]));
            transport.write_checksum(&mut partial, sum);
            prop_assert_eq!(whole, partial);
        }
    }
}
