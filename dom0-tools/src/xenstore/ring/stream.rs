//! Messages through a page of 1024 bytes each way, over restarts of the
//! daemon.
//!
//! Law: `req_cons` in the page, the only sign to the guest that a request has
//! been taken, moves on only after what the request did is in the journal; and
//! a reply's bytes go into the page only after the journal knows them. So a
//! daemon that dies at any point finds each request either in the ring, not
//! done, or in the journal, done:
//!
//! - A request is taken in the pieces that the guest puts in: Linux writes its
//!   header first, and sends no event for the rest unless it sees the header
//!   taken. The pieces so far are noted in the journal with the position that
//!   they end at. For the same reason the ring is looked at once more after
//!   the guest was shown that something was taken.
//! - A reply is noted when it is made, and again when its turn comes to go
//!   into the ring (`staged`). How much of it went in stands in the page, in
//!   `rsp_prod`. As a reply is staged only when less than a ring's worth is
//!   left of those before, whatever was staged earlier is in the ring.
//!
//! A guest that scribbles over `rsp_prod` while the daemon is away loses its
//! own connection and nothing else.

use std::sync::atomic::{Ordering, fence};

use guest_abi::xs_wire::{XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX, XENSTORE_RING_SIZE};

use super::RingPage;
use crate::xenstore::wire::{HEADER_LEN, Header, Message};

/// The guest broke the protocol and is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// More bytes in the ring than fit.
    #[error("an index of the ring makes no sense: producer {prod}, consumer {cons}")]
    Indices {
        /// The producer's index.
        prod: u32,
        /// The consumer's index.
        cons: u32,
    },
    /// A message that is too long.
    #[error("a request of {0} bytes")]
    TooLong(u32),
}

impl RingError {
    /// The value of the page's `error` field.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            RingError::Indices { .. } => XENSTORE_ERROR_RINGIDX,
            RingError::TooLong(_) => XENSTORE_ERROR_PROTO,
        }
    }
}

/// The daemon's side of a connection, as far as it survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Position up to which requests count as taken.
    pub req_cons: u32,
    /// The first bytes of a request that is not whole yet.
    pub input: Vec<u8>,
    /// Position up to which reply bytes are in the ring.
    pub rsp_prod: u32,
    /// Reply bytes that come next.
    pub staged: Vec<u8>,
    /// The guest broke the protocol.
    pub broken: bool,
}

impl Stream {
    /// A stream that starts where the page's indices stand.
    #[must_use]
    pub fn starting_at(page: &RingPage) -> Stream {
        Stream {
            req_cons: page.req_cons(),
            rsp_prod: page.rsp_prod(),
            ..Stream::default()
        }
    }

    /// Takes the next whole request, if there is one. The page is not told:
    /// see [`Stream::show`].
    ///
    /// # Errors
    /// [`RingError`].
    pub fn receive(&mut self, page: &RingPage) -> Result<Option<Message>, RingError> {
        // What the guest was shown to be taken comes before this look.
        fence(Ordering::SeqCst);
        let mut fresh = distance(page.req_prod(), self.req_cons)?;
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                return Ok(Message::take(&mut self.input).ok().flatten());
            }
            if fresh == 0 {
                return Ok(None);
            }
            let len = missing.min(fresh);
            self.copy_in(page, len);
            fresh -= len;
        }
    }

    /// Bytes that the present message lacks, as far as is known.
    fn missing(&self) -> Result<usize, RingError> {
        let Some(head) = self.input.first_chunk::<HEADER_LEN>() else {
            return Ok(HEADER_LEN - self.input.len());
        };
        let header = Header::from_bytes(*head);
        let len = header
            .message_len()
            .map_err(|_| RingError::TooLong(header.len))?;
        Ok(len.saturating_sub(self.input.len()))
    }

    fn copy_in(&mut self, page: &RingPage, len: usize) {
        let old = self.input.len();
        self.input.resize(old + len, 0);
        page.read_requests(self.req_cons, &mut self.input[old..]);
        self.req_cons = self.req_cons.wrapping_add(position(len));
    }

    /// Whether the next reply may be staged.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        !self.broken && self.staged.len() < XENSTORE_RING_SIZE
    }

    /// Puts as much of what is staged into the ring as fits, shows the guest
    /// what has been taken and put in, and tells whether anything was.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn show(&mut self, page: &RingPage) -> Result<bool, RingError> {
        let taken = page.req_cons() != self.req_cons;
        if taken {
            page.set_req_cons(self.req_cons);
        }
        let mut put = false;
        // Linux sends an event only for making room in a full ring. So what
        // does not fit may be left only when the ring is full, seen after the
        // guest could see what was put in.
        loop {
            let room = XENSTORE_RING_SIZE - distance(self.rsp_prod, page.rsp_cons())?;
            let len = room.min(self.staged.len());
            if len == 0 {
                return Ok(taken || put);
            }
            page.write_replies(self.rsp_prod, &self.staged[..len]);
            self.staged.drain(..len);
            self.rsp_prod = self.rsp_prod.wrapping_add(position(len));
            page.set_rsp_prod(self.rsp_prod);
            fence(Ordering::SeqCst);
            put = true;
        }
    }

    /// Goes on after a restart. What is in the journal as staged from
    /// `rsp_prod` on is partly in the ring already; the page tells how much.
    ///
    /// # Errors
    /// [`RingError::Indices`] if what it tells can't be.
    pub fn resume(&mut self, page: &RingPage) -> Result<(), RingError> {
        let prod = page.rsp_prod();
        let done = prod.wrapping_sub(self.rsp_prod) as usize;
        if done > self.staged.len() {
            return Err(RingError::Indices {
                prod,
                cons: self.rsp_prod,
            });
        }
        self.staged.drain(..done);
        self.rsp_prod = prod;
        Ok(())
    }

    /// Notes a reply as staged while the journal is read: of what was staged
    /// before, at most a ring's worth was not in the ring.
    pub fn restage(&mut self, reply: &[u8]) {
        let surplus = self.staged.len().saturating_sub(XENSTORE_RING_SIZE);
        self.staged.drain(..surplus);
        self.rsp_prod = self.rsp_prod.wrapping_add(position(surplus));
        self.staged.extend_from_slice(reply);
    }
}

/// Bytes between two positions, if they can be in the ring together.
fn distance(prod: u32, cons: u32) -> Result<usize, RingError> {
    let len = prod.wrapping_sub(cons) as usize;
    if len > XENSTORE_RING_SIZE {
        return Err(RingError::Indices { prod, cons });
    }
    Ok(len)
}

/// A length within the ring as a step of its positions.
fn position(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    use super::*;
    use crate::xenstore::wire::{Op, PAYLOAD_MAX};

    fn page() -> RingPage {
        let file = File::from(memfd_create("ring", MFdFlags::empty()).unwrap());
        file.set_len(4096).unwrap();
        RingPage::of_file(&file).unwrap()
    }

    /// Puts in what fits, as a guest does.
    fn put(page: &RingPage, bytes: &mut Vec<u8>) {
        let (prod, cons) = (page.req_prod(), page.req_cons());
        let room = XENSTORE_RING_SIZE - distance(prod, cons).unwrap();
        let len = room.min(bytes.len());
        page.write_requests(prod, &bytes[..len]);
        bytes.drain(..len);
        page.set_req_prod(prod.wrapping_add(position(len)));
    }

    /// Takes out what is there, as a guest does.
    fn get(page: &RingPage, limit: usize) -> Vec<u8> {
        let (prod, cons) = (page.rsp_prod(), page.rsp_cons());
        let mut bytes = vec![0; distance(prod, cons).unwrap().min(limit)];
        page.read_replies(cons, &mut bytes);
        page.set_rsp_cons(cons.wrapping_add(position(bytes.len())));
        bytes
    }

    fn message(len: usize) -> Message {
        let payload = (0u8..=250).cycle().take(len).collect();
        Message::new(Op::Write, 7, 0, payload).unwrap()
    }

    #[test]
    fn hostile_indices_break_the_connection() {
        for (prod, cons) in [(1025, 0), (0, 1), (5, u32::MAX - 2000)] {
            let page = page();
            let mut stream = Stream {
                req_cons: cons,
                ..Stream::default()
            };
            page.set_req_prod(prod);
            let error = stream.receive(&page).unwrap_err();
            assert_eq!(error.code(), XENSTORE_ERROR_RINGIDX);
        }
        let page = page();
        page.set_rsp_cons(1);
        assert!(Stream::default().show(&page).is_err());
    }

    #[test]
    fn a_producer_index_that_runs_backwards_breaks_the_connection() {
        let page = page();
        let mut stream = Stream::default();
        put(&page, &mut message(100).to_bytes()[..50].to_vec());
        assert_eq!(stream.receive(&page), Ok(None));
        page.set_req_prod(20);
        assert!(stream.receive(&page).is_err());
    }

    #[test]
    fn a_header_that_changes_after_it_was_read_changes_nothing() {
        let page = page();
        let mut stream = Stream::default();
        let mut bytes = message(8).to_bytes();
        let mut rest = bytes.split_off(16);
        put(&page, &mut bytes);
        assert_eq!(stream.receive(&page), Ok(None));
        page.write_requests(12, &4096u32.to_le_bytes());
        put(&page, &mut rest);
        assert_eq!(stream.receive(&page), Ok(Some(message(8))));
    }

    #[test]
    fn the_first_piece_of_a_request_is_taken_so_that_the_guest_sends_an_event_for_the_rest() {
        let page = page();
        let mut stream = Stream::default();
        let mut bytes = message(500).to_bytes();
        let mut rest = bytes.split_off(300);
        put(&page, &mut bytes);
        assert_eq!(stream.receive(&page), Ok(None));
        assert!(stream.show(&page).unwrap());
        assert_eq!(page.req_cons(), 300);
        put(&page, &mut rest);
        assert!(stream.receive(&page).unwrap().is_some());
        assert_eq!(page.req_cons(), 300);
        assert!(stream.show(&page).unwrap());
        assert_eq!(page.req_cons(), 516);
    }

    #[test]
    fn too_long_a_request_breaks_the_connection() {
        let page = page();
        let header = Header {
            len: 4097,
            ..Header::default()
        };
        put(&page, &mut header.to_bytes().to_vec());
        assert_eq!(
            Stream::default().receive(&page),
            Err(RingError::TooLong(4097))
        );
    }

    proptest! {
        /// Requests of any size arrive whole and in order, and replies of any
        /// size too, although the daemon dies and comes back at any point: it
        /// keeps only what the journal keeps.
        #[test]
        fn nothing_is_lost_or_doubled_over_restarts(
            lengths in prop::collection::vec(0usize..=PAYLOAD_MAX, 1..12),
            deaths in prop::collection::vec(any::<(bool, bool)>(), 1..64),
            sip in 1usize..1024,
            start in any::<u32>(),
        ) {
            let page = page();
            page.set_req_prod(start);
            page.set_req_cons(start);
            page.set_rsp_prod(start);
            page.set_rsp_cons(start);
            let mut stream = Stream::starting_at(&page);
            let messages: Vec<Message> = lengths.into_iter().map(message).collect();
            let mut outgoing: Vec<u8> = messages.iter().flat_map(Message::to_bytes).collect();
            let sent = outgoing.clone();
            let (mut received, mut queue, mut back) = (Vec::new(), Vec::new(), Vec::new());
            let mut deaths = deaths.into_iter().cycle();
            let mut journal = stream.clone();
            let mut died = false;
            while back.len() < sent.len() {
                put(&page, &mut outgoing);
                // The daemon echoes: a request, the journal, then the page.
                let (before, after) = deaths.next().unwrap();
                let mut worked = stream.clone();
                if let Some(request) = worked.receive(&page).unwrap() {
                    if before && !died {
                        // Died before the journal: it never happened.
                        died = true;
                        stream = journal.clone();
                        stream.resume(&page).unwrap();
                        continue;
                    }
                    died = false;
                    queue.push(request.to_bytes());
                    received.push(request);
                }
                stream = worked;
                while stream.wants_more() && !queue.is_empty() {
                    stream.restage(&queue.remove(0));
                }
                journal = stream.clone();
                stream.show(&page).unwrap();
                if after {
                    // Died after the page: the journal has the old position.
                    stream = journal.clone();
                    stream.resume(&page).unwrap();
                    journal = stream.clone();
                }
                back.extend(get(&page, sip));
            }
            prop_assert_eq!(received, messages);
            prop_assert_eq!(back, sent);
        }
    }
}
