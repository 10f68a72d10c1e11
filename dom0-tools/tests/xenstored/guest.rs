//! The guest's side of a ring, as Linux plays it: a request's header and its
//! payload go in one after the other, an event is sent only when the other
//! side may be waiting for it, and replies are taken in pieces.

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use dom0_tools::xenstore::{
    ring::RingPage,
    wire::{Message, Op, error_from_payload},
};
use guest_abi::errno::Errno;

use crate::fake_hypervisor::{BASE_MFN, FakeHypervisor};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
const RING: u32 = 1024;

/// A guest with a ring in page `PAGE` of its memory.
pub struct Guest {
    pub page: RingPage,
    pub dom: u16,
    hypervisor: FakeHypervisor,
    input: Vec<u8>,
    events: Vec<String>,
    last_request: u32,
}

/// The page of the ring within the domain's memory.
const PAGE: u64 = 3;
/// The guest's port.
pub const PORT: u32 = 1;

impl Guest {
    pub fn new(hypervisor: &FakeHypervisor, dom: u16, memory: &Arc<File>) -> Guest {
        let fd = OwnedFd::from(memory.try_clone().unwrap());
        Guest {
            page: RingPage::map(fd, PAGE * 4096).unwrap(),
            dom,
            hypervisor: hypervisor.clone(),
            input: Vec::new(),
            events: Vec::new(),
            last_request: 0,
        }
    }

    pub fn mfn() -> u64 {
        BASE_MFN + PAGE
    }

    /// Puts bytes in, waiting for room. Until they are in, replies are taken
    /// out, as another thread of the guest would.
    pub fn put(&mut self, mut bytes: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !bytes.is_empty() {
            let (prod, cons) = (self.page.req_prod(), self.page.req_cons());
            let room = RING - prod.wrapping_sub(cons);
            let len = bytes.len().min(usize::try_from(room).unwrap());
            if len == 0 {
                assert!(Instant::now() < deadline, "the daemon takes nothing");
                self.take();
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            self.page.write_requests(prod, &bytes[..len]);
            bytes = &bytes[len..];
            self.page
                .set_req_prod(prod.wrapping_add(u32::try_from(len).unwrap()));
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            // Linux: an event only if the other side had seen all before.
            if prod.wrapping_sub(self.page.req_cons()) == 0 || self.is_taken(prod) {
                self.notify();
            }
        }
    }

    fn is_taken(&self, prod: u32) -> bool {
        let taken = self.page.req_cons().wrapping_sub(prod);
        taken <= RING
    }

    pub fn notify(&self) {
        self.hypervisor.notify(self.dom, PORT);
    }

    /// Takes out what is there.
    pub fn take(&mut self) -> usize {
        let (prod, cons) = (self.page.rsp_prod(), self.page.rsp_cons());
        let len = prod.wrapping_sub(cons);
        assert!(len <= RING, "the daemon overfills the ring");
        if len == 0 {
            return 0;
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.page.read_replies(cons, &mut bytes);
        self.input.extend_from_slice(&bytes);
        self.page.set_rsp_cons(prod);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        // Linux: an event only if the ring was full.
        if self.page.rsp_prod().wrapping_sub(cons) >= RING {
            self.notify();
        }
        bytes.len()
    }

    /// The next message; `None` if none comes within `wait`.
    pub fn message(&mut self, wait: Duration) -> Option<Message> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(message) = Message::take(&mut self.input).unwrap() {
                return Some(message);
            }
            if self.take() == 0 {
                if Instant::now() >= deadline {
                    return None;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// Puts a request in, header first, and gives its number.
    pub fn send(&mut self, op: Op, tx: u32, payload: &[u8]) -> u32 {
        self.last_request += 1;
        let request = Message::new(op, self.last_request, tx, payload.to_vec()).unwrap();
        self.put(&request.header.to_bytes());
        self.put(payload);
        self.last_request
    }

    /// The reply to the request of this number; events before it are kept.
    pub fn reply(&mut self, number: u32, op: Op) -> Result<Vec<u8>, Errno> {
        loop {
            let message = self.message(PATIENCE).expect("no reply");
            if message.header.kind == Op::WatchEvent.to_wire() {
                self.events.push(spell(&message));
                continue;
            }
            assert_eq!(
                message.header.req_id, number,
                "replies come in order, once each"
            );
            if message.header.kind == Op::Error.to_wire() {
                return Err(error_from_payload(&message.payload));
            }
            assert_eq!(message.header.kind, op.to_wire());
            return Ok(message.payload);
        }
    }

    pub fn ask(&mut self, op: Op, tx: u32, payload: &str) -> Result<Vec<u8>, Errno> {
        let number = self.send(op, tx, payload.as_bytes());
        self.reply(number, op)
    }

    pub fn start(&mut self) -> u32 {
        let id = self.ask(Op::TransactionStart, 0, "\0").unwrap();
        let text = String::from_utf8(id).unwrap();
        text.trim_end_matches('\0').parse().unwrap()
    }

    /// The next event, as `path token`.
    pub fn event(&mut self) -> String {
        if !self.events.is_empty() {
            return self.events.remove(0);
        }
        let message = self.message(PATIENCE).expect("no event");
        assert_eq!(message.header.kind, Op::WatchEvent.to_wire());
        spell(&message)
    }

    /// Whether nothing comes for a while.
    pub fn is_quiet(&mut self) -> bool {
        self.events.is_empty() && self.message(Duration::from_millis(200)).is_none()
    }

    /// Throws away what was half received, as a new kernel does.
    pub fn forget(&mut self) {
        self.input.clear();
        self.events.clear();
    }
}

fn spell(message: &Message) -> String {
    let text = String::from_utf8(message.payload.clone()).unwrap();
    text.trim_end_matches('\0').replace('\0', " ")
}
