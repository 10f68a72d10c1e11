//! The client against a daemon that answers, and against ones that lie.

extern crate std;

use core::cell::RefCell;
use std::{boxed::Box, collections::VecDeque, format, string::String, vec::Vec};

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::kernel::page::tests::{alias, host_page};

/// What a daemon says to a request.
type Answer = Box<dyn Fn(XsdSockmsg, &[u8]) -> Vec<u8>>;

/// The other half: runs whenever the client sleeps or rings.
struct Daemon {
    page: Page,
    got: RefCell<Vec<u8>>,
    out: RefCell<VecDeque<u8>>,
    answer: Answer,
    clock: RefCell<u64>,
}

impl Daemon {
    fn word(&self, offset: usize) -> &core::sync::atomic::AtomicU32 {
        self.page.word(offset).expect("in the page")
    }

    fn run(&self) {
        use core::sync::atomic::Ordering::SeqCst;
        let (cons, prod) = (self.word(2048), self.word(2052));
        while cons.load(SeqCst) != prod.load(SeqCst) {
            let mut byte = [0];
            let at = cons.load(SeqCst) as usize % 1024;
            self.page.read(at, &mut byte).expect("in the page");
            self.got.borrow_mut().push(byte[0]);
            cons.store(cons.load(SeqCst).wrapping_add(1), SeqCst);
        }
        let mut got = self.got.borrow_mut();
        if let Ok((header, rest)) = XsdSockmsg::read_from_prefix(&got) {
            let length = header.len as usize;
            if rest.len() >= length {
                let reply = (self.answer)(header, &rest[..length]);
                self.out.borrow_mut().extend(reply);
                got.drain(..16 + length);
            }
        }
        let (cons, prod) = (self.word(2056), self.word(2060));
        let mut out = self.out.borrow_mut();
        while prod.load(SeqCst).wrapping_sub(cons.load(SeqCst)) < 1024 {
            let Some(byte) = out.pop_front() else { break };
            let at = 1024 + prod.load(SeqCst) as usize % 1024;
            self.page.write(at, &[byte]).expect("in the page");
            prod.store(prod.load(SeqCst).wrapping_add(1), SeqCst);
        }
    }
}

impl Doorbell for Daemon {
    fn ring(&self) {}
    fn wait(&self, _: u64) {
        *self.clock.borrow_mut() += 1_000_000_000;
        self.run();
    }
    fn now(&self) -> u64 {
        *self.clock.borrow()
    }
}

fn message(kind: u32, req_id: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short");
    let header = XsdSockmsg {
        kind,
        req_id,
        tx_id: 0,
        len,
    };
    [header.as_bytes(), payload].concat()
}

fn store(answer: impl Fn(XsdSockmsg, &[u8]) -> Vec<u8> + 'static) -> Xenstore<Daemon> {
    let page = host_page();
    // Not from 0, so that the indices and the ring wrap.
    for offset in [2048, 2052, 2056, 2060] {
        let near = u32::MAX - 700;
        let word = page.word(offset).expect("in the page");
        word.store(near, core::sync::atomic::Ordering::SeqCst);
    }
    let daemon = Daemon {
        page: alias(&page),
        got: RefCell::default(),
        out: RefCell::default(),
        answer: Box::new(answer),
        clock: RefCell::new(1),
    };
    Xenstore::over(page, daemon)
}

/// Says what it was asked.
fn echo() -> Xenstore<Daemon> {
    store(|header, payload| message(header.kind, header.req_id, payload))
}

#[test]
fn requests_are_written_as_the_protocol_says() {
    let mut store = echo();
    assert_eq!(store.read(Tx::NONE, &"a/b"), Ok(&b"a/b\0"[..]));
    store.write(Tx::NONE, &"a", &42).expect("echoed");
    let perms = store.set_permissions(Tx::NONE, &"a", &["n0", "r3"]);
    perms.expect("echoed");
}

#[test]
fn a_long_message_goes_and_comes_in_pieces() {
    let mut store = echo();
    let long: String = ('a'..='z').cycle().take(4000).collect();
    let reply = store.read(Tx::NONE, &long).expect("echoed");
    assert_eq!(reply, format!("{long}\0").as_bytes());
    let too_long = "x".repeat(4096);
    assert_eq!(store.read(Tx::NONE, &too_long), Err(StoreError::TooLong));
    assert_eq!(store.read(Tx::NONE, &"next"), Ok(&b"next\0"[..]));
}

#[test]
fn refusals_have_their_errno() {
    let mut store = store(|header, _| message(XS_ERROR, header.req_id, b"ENOENT\0"));
    let refused = Err(StoreError::Refused(Errno::ENOENT));
    assert_eq!(store.read(Tx::NONE, &"a"), refused);
    assert_eq!(store.number_or(Tx::NONE, &"a", 7u32), Ok(7));
}

#[test]
fn values_that_are_not_what_they_should_be() {
    let mut store = store(|header, _| message(header.kind, header.req_id, b"\xff1"));
    let number = store.read_number::<u32>(Tx::NONE, &"a");
    assert_eq!(number, Err(StoreError::Malformed));
    let text = store.read_text::<8>(Tx::NONE, &"a");
    assert_eq!(text, Err(StoreError::Malformed));
}

#[test]
fn names_of_a_directory() {
    let mut store = store(|header, _| message(header.kind, header.req_id, b"vbd\0\xff\0vif\0"));
    let names = store.directory(Tx::NONE, &"device").expect("a list");
    assert_eq!(names.collect::<Vec<_>>(), ["vbd", "vif"]);
}

#[test]
fn a_transaction_is_done_again_when_somebody_else_was_first() {
    let tries = std::rc::Rc::new(core::cell::Cell::new(0));
    let seen = tries.clone();
    let mut store = store(move |header, _| match header.kind {
        XS_TRANSACTION_START => message(header.kind, header.req_id, b"77\0"),
        XS_TRANSACTION_END if seen.replace(seen.get() + 1) < 2 => {
            message(XS_ERROR, header.req_id, b"EAGAIN\0")
        }
        kind => {
            assert!(kind == XS_TRANSACTION_END || header.tx_id == 77);
            message(kind, header.req_id, b"OK\0")
        }
    });
    let done = store.transaction(|store, tx| store.write(tx, &"a", &1));
    assert_eq!((done, tries.get()), (Ok(()), 3));
}

#[test]
fn events_come_between_answers_and_are_kept() {
    let mut store = store(|header, _| {
        let event = message(XS_WATCH_EVENT, 0, b"some/path\x000\0");
        let foreign = message(XS_WATCH_EVENT, 0, b"some/path\x0099\0");
        let late = message(XS_READ, header.req_id.wrapping_sub(1), b"old");
        let reply = message(header.kind, header.req_id, b"new");
        [event, foreign, late, reply].concat()
    });
    let watch = store.watch(&"some").expect("a free one");
    assert_eq!(store.fired(&watch), Ok(true));
    assert_eq!(store.fired(&watch), Ok(false));
    assert_eq!(store.read(Tx::NONE, &"a"), Ok(&b"new"[..]));
    assert_eq!(store.fired(&watch), Ok(true));
    store.unwatch(watch, &"some").expect("in place");
    assert_eq!((store.taken, store.pending), (0, 0));
}

#[test]
fn watches_run_out() {
    let mut store = echo();
    let watches: Vec<_> = (0..MAX_WATCHES).map(|_| store.watch(&"a")).collect();
    assert!(watches.iter().all(Result::is_ok));
    assert_eq!(store.watch(&"a"), Err(StoreError::NoWatch));
}

#[test]
fn a_silent_daemon_is_given_up() {
    let mut store = store(|_, _| Vec::new());
    assert_eq!(store.read(Tx::NONE, &"a"), Err(StoreError::TimedOut));
}

#[test]
fn broken_indices_end_it() {
    for offset in [2048, 2060] {
        let mut store = echo();
        let page = alias(&store.connection.bell.page);
        let word = page.word(offset).expect("in the page");
        word.fetch_add(5000, core::sync::atomic::Ordering::SeqCst);
        let answer = store.read(Tx::NONE, &"a");
        assert!(
            matches!(answer, Err(StoreError::BrokenRing { .. })),
            "{answer:?}"
        );
    }
}

proptest! {
    /// Whatever bytes come in: an error or an answer, no panic, no hang.
    #[test]
    fn a_daemon_that_writes_anything(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let mut store = store(move |_, _| bytes.clone());
        let _ = store.read(Tx::NONE, &"a").map(<[u8]>::len);
        let _ = store.watch(&"b");
    }

    /// Headers that are nearly right.
    #[test]
    fn a_daemon_that_lies_about_kinds_and_lengths(
        kind in 0u32..24, id in 0u32..3, len in 0u32..5000, payload in "\\PC{0,40}"
    ) {
        let mut store = store(move |_, _| {
            let header = XsdSockmsg { kind, req_id: id, tx_id: 0, len };
            [header.as_bytes(), payload.as_bytes()].concat()
        });
        let _ = store.directory(Tx::NONE, &"a").map(Iterator::count);
        let _ = store.begin();
    }
}
