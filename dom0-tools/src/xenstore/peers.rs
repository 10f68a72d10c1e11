//! The daemon's clients, and what is on its way to them.
//!
//! Law: an [`Outbox`] is bounded whatever its reader does (XSA-326). Replies
//! are bounded by not taking further requests; events by telling one that is
//! still waiting only once and, past the limit, by melting all events of one
//! watch into a single event on the watch's own path, which tells the client
//! to look again at everything below.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use guest_abi::addr::DomId;

use super::{transaction::Transaction, watch::WatchId};

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerId {
    /// A guest, through its ring.
    Guest(DomId),
    /// A Dom0 process, through the socket; connections are numbered.
    Socket(u64),
}

impl PeerId {
    /// The client's domain.
    #[must_use]
    pub fn dom(self) -> DomId {
        match self {
            PeerId::Guest(dom) => dom,
            PeerId::Socket(_) => DomId::DOM0,
        }
    }
}

/// A client's state, except for its watches.
#[derive(Debug, Default)]
pub struct Peer {
    /// What is on its way to the client.
    pub outbox: Outbox,
    /// Its open transactions.
    pub transactions: BTreeMap<u32, Transaction>,
    /// The number that the last transaction got.
    pub last_transaction: u32,
}

impl Peer {
    /// A number for a new transaction: not 0, not in use.
    #[must_use]
    pub fn free_transaction_id(&self) -> u32 {
        let mut id = self.last_transaction;
        loop {
            id = id.wrapping_add(1);
            if id != 0 && !self.transactions.contains_key(&id) {
                return id;
            }
        }
    }

    /// Bytes that its transactions take, estimated.
    #[must_use]
    pub fn transaction_bytes(&self) -> usize {
        self.transactions.values().map(Transaction::bytes).sum()
    }
}

/// Which event a waiting message tells of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventKey {
    /// The watch.
    pub watch: WatchId,
    /// The path as told.
    pub path: Arc<str>,
}

/// A message that waits for its reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Rises from message to message.
    pub seq: u64,
    /// The whole message.
    pub bytes: Vec<u8>,
    /// Set for watch events.
    pub event: Option<EventKey>,
}

/// Estimated bytes of a waiting message's bookkeeping.
const ITEM_OVERHEAD: usize = 96;

impl Item {
    fn cost(&self) -> usize {
        ITEM_OVERHEAD + self.bytes.len() + self.event.as_ref().map_or(0, |key| key.path.len())
    }
}

/// Messages that wait for one reader, oldest first.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Item>,
    waiting: HashMap<EventKey, u64>,
    event_bytes: usize,
    replies: usize,
    last_seq: u64,
}

impl Outbox {
    /// Adds a reply and gives it its number.
    pub fn push_reply(&mut self, bytes: Vec<u8>) -> &Item {
        self.push(bytes, None)
    }

    /// Adds an event, unless it is waiting already.
    pub fn push_event(&mut self, bytes: Vec<u8>, key: EventKey) -> Option<&Item> {
        if self.waiting.contains_key(&key) {
            return None;
        }
        Some(self.push(bytes, Some(key)))
    }

    fn push(&mut self, bytes: Vec<u8>, event: Option<EventKey>) -> &Item {
        let seq = self.last_seq + 1;
        self.restore(Item { seq, bytes, event });
        &self.queue[self.queue.len() - 1]
    }

    /// Adds a message that has its number already.
    pub fn restore(&mut self, item: Item) {
        self.last_seq = self.last_seq.max(item.seq);
        match &item.event {
            Some(key) => {
                self.event_bytes += item.cost();
                self.waiting.insert(key.clone(), item.seq);
            }
            None => self.replies += 1,
        }
        self.queue.push_back(item);
    }

    /// Takes the oldest message.
    pub fn pop(&mut self) -> Option<Item> {
        let item = self.queue.pop_front()?;
        self.forget(&item);
        Some(item)
    }

    /// The waiting messages, oldest first.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.queue.iter()
    }

    /// Drops the messages of these numbers, which must be in rising order.
    pub fn drop_items(&mut self, seqs: &[u64]) {
        let (gone, kept) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|item: &Item| seqs.binary_search(&item.seq).is_ok());
        self.queue = kept;
        let gone: VecDeque<Item> = gone;
        gone.iter().for_each(|item| self.forget(item));
    }

    fn forget(&mut self, item: &Item) {
        match &item.event {
            Some(key) => {
                self.event_bytes -= item.cost();
                self.waiting.remove(key);
            }
            None => self.replies -= 1,
        }
    }

    /// The numbers of the waiting events of one watch.
    #[must_use]
    pub fn events_of(&self, watch: WatchId) -> Vec<u64> {
        let events = self
            .queue
            .iter()
            .filter(|item| item.event.as_ref().is_some_and(|key| key.watch == watch));
        events.map(|item| item.seq).collect()
    }

    /// The watch whose waiting events take the most room, if it has several.
    #[must_use]
    pub fn noisiest_watch(&self) -> Option<WatchId> {
        let mut cost: BTreeMap<WatchId, (usize, usize)> = BTreeMap::new();
        for item in &self.queue {
            if let Some(key) = &item.event {
                let (count, bytes) = cost.entry(key.watch).or_default();
                *count += 1;
                *bytes += item.cost();
            }
        }
        let several = cost.into_iter().filter(|(_, (count, _))| *count > 1);
        several
            .max_by_key(|(_, (_, bytes))| *bytes)
            .map(|(watch, _)| watch)
    }

    /// Bytes that waiting events take, estimated.
    #[must_use]
    pub fn event_bytes(&self) -> usize {
        self.event_bytes
    }

    /// How many replies wait.
    #[must_use]
    pub fn replies(&self) -> usize {
        self.replies
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(watch: WatchId, path: &str) -> EventKey {
        EventKey {
            watch,
            path: path.into(),
        }
    }

    #[test]
    fn a_waiting_event_is_told_once() {
        let mut outbox = Outbox::default();
        assert!(outbox.push_event(vec![1], key(1, "/a")).is_some());
        assert!(outbox.push_event(vec![1], key(1, "/a")).is_none());
        assert!(outbox.push_event(vec![1], key(2, "/a")).is_some());
        outbox.pop();
        assert!(outbox.push_event(vec![1], key(1, "/a")).is_some());
        assert_eq!(outbox.events_of(1).len(), 1);
    }

    #[test]
    fn accounts_return_to_zero() {
        let mut outbox = Outbox::default();
        outbox.push_reply(vec![0; 9]);
        outbox.push_event(vec![1; 50], key(1, "/a"));
        outbox.push_event(vec![1; 50], key(2, "/b"));
        outbox.push_event(vec![1; 50], key(2, "/c"));
        assert_eq!(outbox.noisiest_watch(), Some(2));
        let noisy = outbox.events_of(2);
        outbox.drop_items(&noisy);
        assert_eq!(outbox.noisiest_watch(), None);
        assert_eq!((outbox.replies(), outbox.items().count()), (1, 2));
        while outbox.pop().is_some() {}
        assert_eq!((outbox.replies(), outbox.event_bytes()), (0, 0));
        assert!(outbox.is_empty());
    }

    #[test]
    fn transaction_numbers_wrap_around_without_zero() {
        let mut peer = Peer {
            last_transaction: u32::MAX - 1,
            ..Peer::default()
        };
        peer.last_transaction = peer.free_transaction_id();
        assert_eq!(peer.last_transaction, u32::MAX);
        assert_eq!(peer.free_transaction_id(), 1);
    }
}
