//! What the guest sends: chains of slots in the transmit ring become packets.
//!
//! ```text
//!   slot      content                    response
//!   n         request, whole size        status        MORE_DATA, EXTRA_INFO
//!   n+1       extra information          NULL          if EXTRA_INFO
//!   n+2       request, own size          status        MORE_DATA
//!   n+3       request, own size          status
//! ```
//!
//! Law: a slot is copied once; the copy is checked. A front end that a working
//! driver can't be mistaken for (a slot that reaches over its page, a chain
//! that ends in nothing, unknown extra information) loses its device; a packet
//! that is merely wrong gets error responses, as with Linux' back end. Batches
//! are bounded by the ring.

use guest_abi::{
    grant_table::GNTTAB_NR_RESERVED_ENTRIES,
    netif::{
        NETIF_RSP_ERROR, NETIF_RSP_NULL, NETIF_RSP_OKAY, NETTXF_EXTRA_INFO, NETTXF_MORE_DATA,
        NetifExtraInfo, NetifTxRequest, NetifTxResponse, XEN_NETIF_EXTRA_FLAG_MORE,
        XEN_NETIF_EXTRA_TYPE_GSO, XEN_NETIF_EXTRA_TYPE_MAX, XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
        XEN_NETIF_EXTRA_TYPE_MCAST_DEL, XEN_NETIF_EXTRA_TYPE_NONE, XEN_NETIF_NR_SLOTS_MIN,
    },
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    grants::Piece,
    offload::{Family, Gso, Offload},
    packet::ETH_HLEN,
};
use crate::backend::{BackRing, RingError, SharedMemory};

const PAGE: usize = 4096;
/// Slots behind the first that make a packet one to be dropped.
const MOST_SLOTS: usize = XEN_NETIF_NR_SLOTS_MIN;
/// Slots behind the first that no working driver uses.
const FATAL_SLOTS: usize = 20;

/// Why a front end loses its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxError {
    /// The indices are impossible.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A packet's chain ends before its last slot.
    #[error("a packet goes on in a slot that has not been sent")]
    MissingSlot,
    /// Extra information is announced and not there.
    #[error("extra information is announced in a slot that has not been sent")]
    MissingExtra,
    /// A chain that is far too long.
    #[error("a packet has more than {FATAL_SLOTS} slots")]
    TooManySlots,
    /// A slot that is not within a page.
    #[error("a slot reaches from byte {offset} over {size} bytes, past the end of its page")]
    CrossesPage {
        /// Its first byte.
        offset: u16,
        /// Its length.
        size: u16,
    },
    /// Extra information of no known kind.
    #[error("extra information is of the unknown kind {0}")]
    ExtraKind(u8),
    /// Segmentation that is none.
    #[error("a packet is to be cut into segments of 0 bytes")]
    SegmentSize,
    /// Segmentation of no known kind.
    #[error("segmentation is of the unknown kind {0}")]
    SegmentKind(u8),
}

/// A packet, or what was to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Slots of extra information.
    pub extras: u32,
    /// Its pieces, in [`Batch::pieces`], from here ...
    pub first: usize,
    /// ... so many.
    pub count: usize,
    /// Its bytes, all pieces together.
    pub len: usize,
    /// What is left to do on it.
    pub offload: Offload,
    /// Whether it is to be answered with an error.
    pub is_wrong: bool,
}

/// Packets taken from the ring and not answered yet.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order of the ring.
    pub packets: Vec<Packet>,
    /// The parts of pages that they lie in, those of wrong packets included.
    pub pieces: Vec<Piece>,
    /// For each piece its request's number.
    ids: Vec<u16>,
}

/// The extra information of a packet.
#[derive(Default)]
struct Extras {
    count: u32,
    gso: Option<Gso>,
    multicast: bool,
}

impl Batch {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.pieces.clear();
        self.ids.clear();
    }

    /// Takes one packet from the ring; whether there was one. `credit` is
    /// asked for its size first and may refuse: then the packet stays.
    ///
    /// # Errors
    /// [`TxError`]: the front end is to lose its device.
    pub fn take<M: SharedMemory>(
        &mut self,
        ring: &mut BackRing<M>,
        credit: impl FnOnce(u16) -> bool,
    ) -> Result<bool, TxError> {
        let Some(first) = ring.take::<NetifTxRequest>()? else {
            return Ok(false);
        };
        if !credit(first.size) {
            ring.untake(1);
            return Ok(false);
        }
        let extras = if first.flags & NETTXF_EXTRA_INFO != 0 {
            take_extras(ring)?
        } else {
            Extras::default()
        };
        let start = self.pieces.len();
        self.push(&first);
        let chain_is_wrong = self.take_chain(ring, &first, start)?;
        let head = self.pieces[start];
        let is_wrong = chain_is_wrong || usize::from(head.len) < ETH_HLEN || extras.multicast;
        if !is_wrong {
            check_page(head.offset, head.len)?;
        }
        let is_wrong = is_wrong || self.pieces[start..].iter().any(is_reserved);
        if is_wrong {
            // Nothing of it is read.
            self.pieces[start..]
                .iter_mut()
                .for_each(|piece| piece.len = 0);
        }
        let pieces = &self.pieces[start..];
        self.packets.push(Packet {
            extras: extras.count,
            first: start,
            count: pieces.len(),
            len: pieces.iter().map(|piece| usize::from(piece.len)).sum(),
            offload: Offload::from_tx_flags(first.flags, extras.gso),
            is_wrong,
        });
        Ok(true)
    }

    /// The bytes of all packets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.iter().map(|packet| packet.len).sum()
    }

    /// Whether there is no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Notes which pieces were read; a packet that lacks one is wrong.
    pub fn note_read(&mut self, done: &[bool]) {
        for packet in &mut self.packets {
            let done = done.get(packet.first..packet.first + packet.count);
            packet.is_wrong |= !done.is_some_and(|done| done.iter().all(|done| *done));
        }
    }

    /// Takes the slots behind the first; whether they make no packet. The
    /// first piece's length becomes its own.
    fn take_chain<M: SharedMemory>(
        &mut self,
        ring: &mut BackRing<M>,
        first: &NetifTxRequest,
        start: usize,
    ) -> Result<bool, TxError> {
        let mut is_wrong = false;
        let mut last = *first;
        let mut rest = first.size;
        while last.flags & NETTXF_MORE_DATA != 0 {
            let behind_first = self.pieces.len() - start - 1;
            last = ring.take()?.ok_or(TxError::MissingSlot)?;
            if behind_first >= FATAL_SLOTS {
                return Err(TxError::TooManySlots);
            }
            is_wrong |= behind_first >= MOST_SLOTS;
            match rest.checked_sub(last.size) {
                Some(left) => rest = left,
                // A packet above 64 KiB: its size has overflowed.
                None => is_wrong = true,
            }
            check_page(last.offset, last.size)?;
            self.push(&last);
        }
        self.pieces[start].len = rest;
        Ok(is_wrong)
    }

    fn push(&mut self, request: &NetifTxRequest) {
        self.pieces.push(Piece {
            gref: request.gref,
            offset: request.offset,
            len: request.size,
        });
        self.ids.push(request.id);
    }

    /// Answers the packet: all its slots, in their order.
    pub fn respond<M: SharedMemory>(&self, ring: &mut BackRing<M>, packet: &Packet, is_ok: bool) {
        let status = if is_ok {
            NETIF_RSP_OKAY
        } else {
            NETIF_RSP_ERROR
        };
        let ids = &self.ids[packet.first..packet.first + packet.count];
        for (n, id) in ids.iter().enumerate() {
            ring.respond(&NetifTxResponse { id: *id, status });
            if n == 0 {
                for _ in 0..packet.extras {
                    ring.respond(&NetifTxResponse {
                        id: 0,
                        status: NETIF_RSP_NULL,
                    });
                }
            }
        }
    }
}

fn take_extras<M: SharedMemory>(ring: &mut BackRing<M>) -> Result<Extras, TxError> {
    let mut extras = Extras::default();
    loop {
        let slot: NetifTxRequest = ring.take()?.ok_or(TxError::MissingExtra)?;
        let (extra, _) =
            NetifExtraInfo::read_from_prefix(slot.as_bytes()).map_err(|_| TxError::MissingExtra)?;
        extras.count += 1;
        match extra.kind {
            XEN_NETIF_EXTRA_TYPE_NONE | XEN_NETIF_EXTRA_TYPE_MAX.. => {
                return Err(TxError::ExtraKind(extra.kind));
            }
            XEN_NETIF_EXTRA_TYPE_GSO => extras.gso = Some(gso(&extra)?),
            XEN_NETIF_EXTRA_TYPE_MCAST_ADD | XEN_NETIF_EXTRA_TYPE_MCAST_DEL => {
                extras.multicast = true;
            }
            // A hash is of no use here.
            _ => {}
        }
        if extra.flags & XEN_NETIF_EXTRA_FLAG_MORE == 0 {
            return Ok(extras);
        }
    }
}

fn gso(extra: &NetifExtraInfo) -> Result<Gso, TxError> {
    let size = u16::from_le_bytes([extra.u[0], extra.u[1]]);
    if size == 0 {
        return Err(TxError::SegmentSize);
    }
    let kind = extra.u[2];
    let family = Family::from_gso_type(kind).ok_or(TxError::SegmentKind(kind))?;
    Ok(Gso { family, size })
}

fn check_page(offset: u16, size: u16) -> Result<(), TxError> {
    if usize::from(offset) + usize::from(size) > PAGE {
        return Err(TxError::CrossesPage { offset, size });
    }
    Ok(())
}

/// The guest's console and xenstore rings are no part of a packet. (What a
/// killed back end has left in a slot may name them.)
pub(super) const fn is_reserved(piece: &Piece) -> bool {
    piece.gref < GNTTAB_NR_RESERVED_ENTRIES
}

#[cfg(test)]
#[path = "tx_tests.rs"]
mod tests;
