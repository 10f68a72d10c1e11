//! The daemon without a world around it.

mod fuzz;
mod requests;
mod restart;
mod transactions;
mod xsa;

use std::{collections::BTreeMap, time::Instant};

use guest_abi::{
    addr::{DomId, Mfn, Port},
    errno::Errno,
};

use super::Core;
use crate::xenstore::{
    change::Change,
    hypervisor::{DomainState, Hypervisor},
    peers::PeerId,
    ring::Stream,
    wire::{Message, Op, error_from_payload},
};

/// Domains that exist because a test says so.
#[derive(Debug, Default)]
pub(super) struct Domains {
    present: BTreeMap<DomId, DomainState>,
    attached: BTreeMap<DomId, (Mfn, Port)>,
    generations: u64,
    refuse: bool,
}

impl Domains {
    fn create(&mut self, dom: u16) {
        self.generations += 1;
        let state = DomainState {
            generation: self.generations,
            shutdown: false,
        };
        self.present.insert(DomId(dom), state);
    }

    fn destroy(&mut self, dom: u16) {
        self.present.remove(&DomId(dom));
    }
}

impl Hypervisor for Domains {
    fn domain(&mut self, dom: DomId) -> Result<Option<DomainState>, Errno> {
        Ok(self.present.get(&dom).copied())
    }

    fn attach(&mut self, dom: DomId, mfn: Mfn, port: Port) -> Result<Stream, Errno> {
        self.attached.remove(&dom);
        if self.refuse {
            return Err(Errno::ENOENT);
        }
        self.attached.insert(dom, (mfn, port));
        Ok(Stream::default())
    }

    fn detach(&mut self, dom: DomId) {
        self.attached.remove(&dom);
    }
}

/// A daemon and its surroundings.
pub(super) struct World {
    core: Core,
    domains: Domains,
    dom0: PeerId,
    now: Instant,
    history: Vec<Change>,
}

type Answer = Result<Vec<u8>, Errno>;

impl World {
    /// With these domains created and introduced.
    fn new(doms: impl IntoIterator<Item = u16>) -> World {
        let mut core = Core::new();
        let dom0 = core.connect();
        let mut world = World {
            core,
            domains: Domains::default(),
            dom0,
            now: Instant::now(),
            history: Vec::new(),
        };
        for dom in doms {
            world.boot(dom);
        }
        world
    }

    /// Creates a domain as a toolstack does.
    fn boot(&mut self, dom: u16) -> PeerId {
        self.domains.create(dom);
        let home = format!("/local/domain/{dom}");
        self.set(&home, "").unwrap();
        self.chmod(&home, &format!("n{dom}")).unwrap();
        let payload = format!("{dom}\x004096\x001\0");
        self.dom0(Op::Introduce, &payload).unwrap();
        PeerId::Guest(DomId(dom))
    }

    fn send(&mut self, peer: PeerId, kind: u32, tx: u32, payload: &[u8]) {
        let mut message = Message::new(Op::Read, 77, tx, payload.to_vec()).unwrap();
        message.header.kind = kind;
        let (core, domains) = (&mut self.core, &mut self.domains);
        core.handle(domains, self.now, peer, &message);
        self.history.extend(core.take_changes());
    }

    /// All that waits for a client.
    fn drain(&mut self, peer: PeerId) -> Vec<Message> {
        let mut messages = Vec::new();
        if let PeerId::Guest(dom) = peer {
            // As the server does: through the ring.
            while let Some(stream) = self.core.stream_mut(dom) {
                let mut bytes = std::mem::take(&mut stream.staged);
                let len = u32::try_from(bytes.len()).unwrap();
                stream.rsp_prod = stream.rsp_prod.wrapping_add(len);
                while let Some(message) = Message::take(&mut bytes).unwrap() {
                    messages.push(message);
                }
                let waiting = self
                    .core
                    .peer(peer)
                    .is_some_and(|state| !state.outbox.is_empty());
                if !waiting {
                    break;
                }
                self.core.stage(dom);
            }
            self.history.extend(self.core.take_changes());
            return messages;
        }
        let outbox = self.core.peer_mut(peer).map(|state| &mut state.outbox);
        if let Some(outbox) = outbox {
            while let Some(mut item) = outbox.pop() {
                messages.extend(Message::take(&mut item.bytes).unwrap());
            }
        }
        messages
    }

    /// Asks, and gives the answer and the events that came with it.
    fn ask_all(&mut self, peer: PeerId, op: Op, tx: u32, payload: &str) -> (Answer, Vec<String>) {
        self.send(peer, op.to_wire(), tx, payload.as_bytes());
        let mut answer = None;
        let mut events = Vec::new();
        for message in self.drain(peer) {
            if message.header.kind == Op::WatchEvent.to_wire() {
                events.push(spell_event(&message));
            } else {
                assert_eq!((message.header.req_id, message.header.tx_id), (77, tx));
                assert!(answer.is_none(), "two replies to one request");
                answer = Some(match Op::from_wire(message.header.kind) {
                    Some(Op::Error) => Err(error_from_payload(&message.payload)),
                    answered => {
                        assert_eq!(answered, Some(op));
                        Ok(message.payload)
                    }
                });
            }
        }
        (answer.expect("a request without a reply"), events)
    }

    fn ask(&mut self, peer: PeerId, op: Op, tx: u32, payload: &str) -> Answer {
        self.ask_all(peer, op, tx, payload).0
    }

    /// Adds a watch and gives the events that come with it.
    fn watch(&mut self, peer: PeerId, payload: &str) -> Vec<String> {
        let (answer, events) = self.ask_all(peer, Op::Watch, 0, payload);
        answer.unwrap();
        events
    }

    fn dom0(&mut self, op: Op, payload: &str) -> Answer {
        self.ask(self.dom0, op, 0, payload)
    }

    fn set(&mut self, path: &str, value: &str) -> Answer {
        self.dom0(Op::Write, &format!("{path}\0{value}"))
    }

    fn chmod(&mut self, path: &str, perms: &str) -> Answer {
        let perms = perms.replace(',', "\0");
        self.dom0(Op::SetPerms, &format!("{path}\0{perms}\0"))
    }

    fn perms(&mut self, path: &str) -> String {
        let perms = self.dom0(Op::GetPerms, &format!("{path}\0")).unwrap();
        let text = String::from_utf8(perms).unwrap();
        text.trim_end_matches('\0').replace('\0', ",")
    }

    fn exists(&mut self, path: &str) -> bool {
        self.dom0(Op::Read, &format!("{path}\0")).is_ok()
    }

    fn start(&mut self, peer: PeerId) -> u32 {
        let id = self.ask(peer, Op::TransactionStart, 0, "\0").unwrap();
        String::from_utf8(id)
            .unwrap()
            .trim_end_matches('\0')
            .parse()
            .unwrap()
    }

    fn commit(&mut self, peer: PeerId, tx: u32) -> Answer {
        self.ask(peer, Op::TransactionEnd, tx, "T\0")
    }

    /// The events that wait for a client, as `path token`.
    fn events(&mut self, peer: PeerId) -> Vec<String> {
        self.drain(peer).iter().map(spell_event).collect()
    }

    fn review(&mut self) {
        self.core.review_domains(&mut self.domains);
        self.history.extend(self.core.take_changes());
    }
}

fn spell_event(message: &Message) -> String {
    assert_eq!(message.header.kind, Op::WatchEvent.to_wire());
    assert_eq!((message.header.req_id, message.header.tx_id), (0, 0));
    let text = String::from_utf8_lossy(&message.payload).into_owned();
    text.trim_end_matches('\0').replace('\0', " ")
}

const OK: Result<&[u8], Errno> = Ok(b"OK\0");

/// `assert_eq!` between an answer and bytes.
macro_rules! answers {
    ($answer:expr, $expected:expr) => {
        assert_eq!(
            $answer.as_deref(),
            $expected.as_ref().map(|bytes| &bytes[..])
        )
    };
}
use answers;
