//! One queue of an interface: a pair of rings on one side, a wire on the
//! other, and batches that go through.
//!
//! ```text
//!   transmit ring --take--> tx::Batch --Grants::read--> buffer --Wire::send--> host
//!   receive ring <--respond-- rx::Batch <--Grants::write-- buffer <--Wire::receive-- host
//! ```
//!
//! Law: buffers have their full size from the beginning and never grow. A
//! guest that sends faster than the wire takes, or than its rate, waits in its
//! own ring; one that takes nothing makes the host drop its packets. After
//! [`DRAIN`] without a page to put a packet into, packets are thrown away here
//! and the interface shows no carrier, until there are pages again.

use std::time::{Duration, Instant};

use tracing::debug;

use super::{
    credit::Credit,
    grants::{Grants, GrantsError},
    offload::Offload,
    rx::{self, slots_for},
    tx::{self, TxError},
    wire::{LARGEST_PACKET, Sent, Wire},
};
use crate::backend::{BackRing, RingError, SharedMemory};

/// How long a packet waits for pages before all are thrown away.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Slots that one batch takes from the transmit ring; one packet more may
/// begin before.
const TX_SLOTS: usize = 128;
/// Slots that one batch takes from the receive ring.
const RX_SLOTS: usize = 128;
/// Free slots of the receive ring with which a stalled guest is back.
const ROOM_AGAIN: u32 = 20;
/// The longest chain that is taken.
const CHAIN: usize = 24;
const PAGE: usize = 4096;

/// Why a queue can't be served any more.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The front end broke the transmit ring's rules.
    #[error("the front end broke the transmit ring: {0}")]
    Tx(#[from] TxError),
    /// The front end broke the receive ring's rules.
    #[error("the front end broke the receive ring: {0}")]
    Rx(#[from] RingError),
    /// The guest's pages.
    #[error(transparent)]
    Grants(#[from] GrantsError),
    /// The host's side.
    #[error("the host's side of the interface is gone: {0}")]
    Wire(std::io::Error),
}

/// What a queue has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets of the guest's that the host took.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets of the guest's that were wrong, or that the host did not take.
    pub sent_wrong: u64,
    /// Packets that the guest got.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets that were thrown away because the guest had no pages.
    pub dropped: u64,
}

/// What became of a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Something was done.
    pub worked: bool,
    /// The front end wants to hear of it.
    pub notify: bool,
}

/// A queue.
#[derive(Debug)]
pub struct Queue<M, G: Grants, W> {
    tx: BackRing<M>,
    rx: BackRing<M>,
    grants: G,
    wire: W,
    credit: Credit,
    /// Whether the guest takes a packet in several pages.
    takes_chains: bool,
    tx_batch: tx::Batch,
    tx_buffer: G::Buffer,
    /// Packets of the batch that are dealt with, and their bytes.
    tx_at: (usize, usize),
    /// Until when there is no credit.
    no_credit: Option<Instant>,
    wire_is_full: bool,
    rx_batch: rx::Batch,
    rx_buffer: G::Buffer,
    waiting: Option<Waiting>,
    is_draining: bool,
    done: Vec<bool>,
    /// What it has done.
    pub counts: Counts,
}

/// A packet at the start of the receive buffer that waits for pages.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    len: usize,
    offload: Offload,
    since: Instant,
}

impl<M: SharedMemory, G: Grants, W: Wire> Queue<M, G, W> {
    /// Of these parts.
    ///
    /// # Errors
    /// [`QueueError::Grants`] when there are no buffers for it.
    pub fn new(
        tx: BackRing<M>,
        rx: BackRing<M>,
        mut grants: G,
        wire: W,
        credit: Credit,
        takes_chains: bool,
    ) -> Result<Self, QueueError> {
        Ok(Self {
            tx,
            rx,
            wire,
            credit,
            takes_chains,
            tx_batch: tx::Batch::default(),
            tx_buffer: grants.buffer((TX_SLOTS + CHAIN) * PAGE)?,
            tx_at: (0, 0),
            no_credit: None,
            wire_is_full: false,
            rx_batch: rx::Batch::default(),
            rx_buffer: grants.buffer(RX_SLOTS * PAGE + LARGEST_PACKET)?,
            waiting: None,
            is_draining: false,
            done: Vec::new(),
            counts: Counts::default(),
            grants,
        })
    }

    /// The host's side.
    pub const fn wire(&self) -> &W {
        &self.wire
    }

    /// The host's side.
    pub const fn wire_mut(&mut self) -> &mut W {
        &mut self.wire
    }

    /// Its wire again, when the queue is served no more.
    pub fn into_wire(self) -> W {
        self.wire
    }

    /// Whether packets of the guest's wait for the wire.
    pub const fn waits_to_send(&self) -> bool {
        self.wire_is_full
    }

    /// Whether a packet waits for pages of the guest's, so that no other is
    /// wanted.
    pub const fn waits_for_pages(&self) -> bool {
        self.waiting.is_some()
    }

    /// When to take a turn although nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        let drain = self.waiting.map(|waiting| waiting.since + DRAIN);
        [drain, self.no_credit].into_iter().flatten().min()
    }

    /// Moves a batch from the guest to the host.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn turn_tx(&mut self, now: Instant) -> Result<Turn, QueueError> {
        if self.tx_at.0 == self.tx_batch.packets.len() {
            self.fill_tx(now)?;
        }
        let before = self.tx_at.0;
        self.send_all()?;
        let worked = self.tx_at.0 > before;
        let notify = worked && self.tx.push();
        Ok(Turn { worked, notify })
    }

    /// Takes packets from the ring and reads their bytes.
    fn fill_tx(&mut self, now: Instant) -> Result<(), QueueError> {
        self.tx_batch.clear();
        self.tx_at = (0, 0);
        self.no_credit = None;
        let (credit, no_credit) = (&mut self.credit, &mut self.no_credit);
        while self.tx_batch.pieces.len() < TX_SLOTS {
            let ask = |size: u16| match credit.take(size.into(), now) {
                Ok(()) => true,
                Err(next) => {
                    *no_credit = Some(next);
                    false
                }
            };
            if !self.tx_batch.take(&mut self.tx, ask)? {
                break;
            }
        }
        if self.tx_batch.is_empty() {
            return Ok(());
        }
        if self.tx_batch.len() > self.tx_buffer.len() {
            return Err(TxError::TooManySlots.into());
        }
        let (pieces, buffer) = (&self.tx_batch.pieces, &mut self.tx_buffer);
        self.grants.read(pieces, buffer, &mut self.done)?;
        self.tx_batch.note_read(&self.done);
        Ok(())
    }

    /// Sends what is left of the batch, until the wire is full.
    fn send_all(&mut self) -> Result<(), QueueError> {
        self.wire_is_full = false;
        while let Some(packet) = self.tx_batch.packets.get(self.tx_at.0).copied() {
            let end = self.tx_at.1 + packet.len;
            let mut is_ok = false;
            if !packet.is_wrong {
                let bytes = &mut self.tx_buffer[self.tx_at.1..end];
                match self.wire.send(bytes, packet.offload) {
                    Ok(Sent::Full) => {
                        self.wire_is_full = true;
                        return Ok(());
                    }
                    Ok(Sent::Done) => is_ok = true,
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                        return Err(QueueError::Wire(error));
                    }
                    Err(error) => debug!(%error, len = packet.len, "a packet can't be sent"),
                }
            }
            self.count_sent(&packet, is_ok);
            self.tx_batch
                .respond(&mut self.tx, &packet, !packet.is_wrong);
            self.tx_at = (self.tx_at.0 + 1, end);
        }
        Ok(())
    }

    fn count_sent(&mut self, packet: &tx::Packet, is_ok: bool) {
        if is_ok {
            self.counts.sent += 1;
            self.counts.sent_bytes += packet.len as u64;
        } else {
            self.counts.sent_wrong += 1;
        }
    }

    /// Slots that wait in the transmit ring.
    ///
    /// # Errors
    /// [`QueueError::Tx`].
    pub fn waiting_in_tx(&self) -> Result<u32, QueueError> {
        Ok(self.tx.unconsumed().map_err(TxError::from)?)
    }

    /// Whether the guest has looked at all responses of its transmit ring that
    /// it was to be notified of.
    #[must_use]
    pub fn tx_is_seen(&self) -> bool {
        self.tx.is_seen()
    }

    /// Likewise of its receive ring.
    #[must_use]
    pub fn rx_is_seen(&self) -> bool {
        self.rx.is_seen()
    }

    /// Asks to be notified when the guest sends; whether it has already.
    ///
    /// # Errors
    /// [`QueueError::Tx`].
    pub fn rest_tx(&mut self) -> Result<bool, QueueError> {
        // Who waits for credit or the wire looks by itself.
        if self.wire_is_full || self.no_credit.is_some() {
            return Ok(false);
        }
        Ok(self.tx.final_check().map_err(TxError::from)?)
    }

    /// Moves a batch from the host to the guest.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn turn_rx(&mut self, now: Instant) -> Result<Turn, QueueError> {
        let mut free = self.rx.unconsumed()?;
        if free >= ROOM_AGAIN {
            self.resume();
        }
        let (mut filled, mut dropped) = (0, 0);
        while self.rx_batch.slots() < RX_SLOTS && dropped < RX_SLOTS {
            let Some(packet) = self.next_packet(filled, now)? else {
                break;
            };
            let slots = slots_for(packet.len, &packet.offload);
            if slots <= free {
                free -= slots;
                self.rx_batch
                    .place(&mut self.rx, packet.len, &packet.offload)?;
                filled += packet.len;
            } else if self.may_keep(&packet, now) {
                self.waiting = Some(packet);
                break;
            } else {
                self.counts.dropped += 1;
                dropped += 1;
            }
        }
        let turn = self.flush_rx(filled)?;
        if let Some(waiting) = &self.waiting {
            self.rx_buffer.copy_within(filled..filled + waiting.len, 0);
        }
        Ok(turn)
    }

    /// The packet that waits, or else the next from the wire, at this place of
    /// the buffer. (One that waits is at its start, and comes first.)
    fn next_packet(&mut self, at: usize, now: Instant) -> Result<Option<Waiting>, QueueError> {
        if let Some(waiting) = self.waiting.take() {
            return Ok(Some(waiting));
        }
        loop {
            let room = &mut self.rx_buffer[at..];
            let Some((len, offload)) = self.wire.receive(room).map_err(QueueError::Wire)? else {
                return Ok(None);
            };
            let fits = self.takes_chains || (len <= PAGE && offload.gso.is_none());
            if len > 0 && fits {
                return Ok(Some(Waiting {
                    len,
                    offload,
                    since: now,
                }));
            }
            self.counts.dropped += 1;
        }
    }

    /// Whether a packet without pages waits for them; if not, it is dropped.
    fn may_keep(&mut self, packet: &Waiting, now: Instant) -> bool {
        let waited = now.saturating_duration_since(packet.since);
        if waited >= DRAIN && !self.is_draining {
            debug!("the guest takes no packets: they are dropped until it does");
            self.is_draining = true;
            self.wire.set_carrier(false);
        }
        !self.is_draining
    }

    /// There are pages again.
    fn resume(&mut self) {
        if std::mem::take(&mut self.is_draining) {
            self.wire.set_carrier(true);
        }
    }

    /// Copies the batch into the guest's pages and answers.
    fn flush_rx(&mut self, filled: usize) -> Result<Turn, QueueError> {
        if self.rx_batch.is_empty() {
            return Ok(Turn::default());
        }
        let pieces = &self.rx_batch.pieces;
        self.counts.received += self.rx_batch.packets();
        self.counts.received_bytes += filled as u64;
        let buffer = &mut self.rx_buffer;
        self.grants.write(pieces, buffer, &mut self.done)?;
        self.rx_batch.respond(&mut self.rx, &self.done);
        Ok(Turn {
            worked: true,
            notify: self.rx.push(),
        })
    }

    /// Asks to be notified of pages, if a packet waits for some; whether there
    /// are enough already.
    ///
    /// # Errors
    /// [`QueueError::Rx`].
    pub fn rest_rx(&mut self) -> Result<bool, QueueError> {
        let wanted = match &self.waiting {
            Some(waiting) => slots_for(waiting.len, &waiting.offload),
            None if self.is_draining => ROOM_AGAIN,
            None => return Ok(false),
        };
        self.rx.ask_for_event_after(wanted);
        Ok(self.rx.unconsumed()? >= wanted)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
