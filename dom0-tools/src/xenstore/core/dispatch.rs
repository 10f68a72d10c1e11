//! From a message to what it asks for, and back to a reply.

use std::{sync::Arc, time::Instant};

use guest_abi::{addr::DomId, errno::Errno};

use super::Core;
use crate::xenstore::{
    change::Change,
    hypervisor::Hypervisor,
    path::{Path, WatchPath, special_name},
    peers::PeerId,
    perms::{Perm, Perms, parse_decimal, parse_domid},
    quota::within,
    transaction::{Conflict, Transaction},
    tree::{Effect, Reply, Request},
    watch::Watch,
    wire::{Message, Op, PAYLOAD_MAX, error_name, strings},
};

/// What a request leads to: the reply's payload, and what happens after the
/// reply.
struct Outcome {
    payload: Vec<u8>,
    effects: Vec<Effect>,
    watch: Option<Arc<Watch>>,
    special: Option<&'static str>,
}

impl Outcome {
    fn ok() -> Outcome {
        Outcome::payload(*b"OK\0")
    }

    fn payload(payload: impl Into<Vec<u8>>) -> Outcome {
        Outcome {
            payload: payload.into(),
            effects: Vec::new(),
            watch: None,
            special: None,
        }
    }
}

type Answer = Result<Outcome, Errno>;

impl Core {
    pub(super) fn dispatch(
        &mut self,
        hypervisor: &mut dyn Hypervisor,
        now: Instant,
        peer: PeerId,
        message: &Message,
    ) {
        let op = Op::from_wire(message.header.kind);
        let answer = match op {
            Some(op) => self.execute(hypervisor, now, peer, op, message),
            None => Err(Errno::ENOSYS),
        };
        let answer = answer.and_then(|outcome| {
            within(outcome.payload.len(), PAYLOAD_MAX, Errno::E2BIG)?;
            Ok(outcome)
        });
        self.trace(peer, message, answer.as_ref().err());
        match (op, answer) {
            (Some(op), Ok(outcome)) => {
                self.reply(peer, op, message, outcome.payload);
                self.publish(&outcome.effects);
                if let Some(watch) = outcome.watch {
                    self.send_event(&watch, &watch.path.full);
                }
                if let Some(special) = outcome.special {
                    self.fire_special(special);
                }
            }
            (_, Err(errno)) => {
                let name = format!("{}\0", error_name(errno));
                self.reply(peer, Op::Error, message, name.into_bytes());
            }
            (None, Ok(_)) => {}
        }
    }

    fn trace(&self, peer: PeerId, message: &Message, error: Option<&Errno>) {
        let op = Op::from_wire(message.header.kind).map_or("?", Op::name);
        let payload = String::from_utf8_lossy(&message.payload);
        if self.log_requests {
            tracing::info!(?peer, op, tx = message.header.tx_id, %payload, ?error, "request");
        } else {
            tracing::trace!(?peer, op, tx = message.header.tx_id, %payload, ?error, "request");
        }
    }

    fn reply(&mut self, peer: PeerId, op: Op, request: &Message, payload: Vec<u8>) {
        let header = request.header;
        let Ok(message) = Message::new(op, header.req_id, header.tx_id, payload) else {
            return;
        };
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let item = state.outbox.push_reply(message.to_bytes());
        if let PeerId::Guest(dom) = peer {
            let item = item.clone();
            self.changes.push(Change::Queued { dom, item });
        }
    }

    fn execute(
        &mut self,
        hypervisor: &mut dyn Hypervisor,
        now: Instant,
        peer: PeerId,
        op: Op,
        message: &Message,
    ) -> Answer {
        if needs_dom0(op) && !self.who(peer).is_privileged() {
            return Err(Errno::EACCES);
        }
        let payload = &message.payload[..];
        match op {
            Op::Read | Op::Directory | Op::GetPerms | Op::Mkdir | Op::Rm => {
                self.simple(peer, op, message)
            }
            Op::DirectoryPart => self.directory_part(peer, message),
            Op::Write => self.write(peer, message),
            Op::SetPerms => self.set_perms(hypervisor, peer, message),
            Op::Watch => self.watch(peer, payload),
            Op::Unwatch => self.unwatch(peer, payload),
            Op::ResetWatches => self.reset(peer),
            Op::TransactionStart => self.transaction_start(peer, message.header.tx_id),
            Op::TransactionEnd => self.transaction_end(now, peer, message),
            Op::Introduce => {
                let name = self.introduce(hypervisor, payload)?;
                Ok(with_special(name))
            }
            Op::Release => {
                let name = self.release(hypervisor, payload)?;
                Ok(with_special(name))
            }
            Op::Resume => self.resume(payload).map(|()| Outcome::ok()),
            Op::SetTarget => self.set_target(hypervisor, payload).map(|()| Outcome::ok()),
            Op::GetDomainPath => {
                let dom = parse_domid(one(payload)?)?;
                Ok(Outcome::payload(format!("/local/domain/{dom}\0")))
            }
            Op::IsDomainIntroduced => {
                let answer = self.is_introduced(parse_domid(one(payload)?)?);
                Ok(Outcome::payload(if answer { *b"T\0" } else { *b"F\0" }))
            }
            Op::Control => self.control(payload).map(Outcome::payload),
            Op::WatchEvent | Op::Error => Err(Errno::ENOSYS),
        }
    }

    /// Answers a tree request within the message's transaction, or at once.
    fn on_tree(
        &mut self,
        peer: PeerId,
        tx_id: u32,
        path: &Path,
        request: Request,
    ) -> Result<(Reply, Vec<Effect>), Errno> {
        let who = self.who(peer);
        let mut effects = Vec::new();
        if tx_id == 0 {
            if request.is_change() {
                self.check_memory(peer, request.bytes())?;
            }
            let limits = &self.limits;
            let reply = self
                .tree
                .apply(&who, limits, path, &request, &mut effects)?;
            return Ok((reply, effects));
        }
        self.check_memory(peer, request.bytes())?;
        let state = self.peers.get_mut(&peer).ok_or(Errno::ENOENT)?;
        let transaction = state.transactions.get_mut(&tx_id).ok_or(Errno::ENOENT)?;
        let reply = transaction.apply(&who, &self.limits, path, request)?;
        Ok((reply, effects))
    }

    /// Whether the client may make the daemon hold `more` bytes.
    fn check_memory(&self, peer: PeerId, more: usize) -> Result<(), Errno> {
        if self.who(peer).is_privileged() {
            return Ok(());
        }
        let nodes = self.tree.accounts().of(peer.dom()).bytes;
        let watches = self.watches.usage(peer).bytes;
        let state = self.peers.get(&peer);
        let transactions = state.map_or(0, |state| state.transaction_bytes());
        let total = nodes + watches + transactions + more;
        within(total, self.limits.memory, Errno::ENOMEM)
    }

    fn simple(&mut self, peer: PeerId, op: Op, message: &Message) -> Answer {
        let text = one(&message.payload)?;
        if op == Op::GetPerms && text.starts_with(b"@") {
            let perms = self.special_perms(peer, special_name(text)?)?;
            return Ok(Outcome::payload(spell_perms(&perms)));
        }
        let request = match op {
            Op::Read => Request::Read,
            Op::Directory => Request::List,
            Op::GetPerms => Request::GetPerms,
            Op::Mkdir => Request::Mkdir,
            _ => Request::Remove,
        };
        let path = Path::resolve(text, peer.dom())?;
        let (reply, effects) = self.on_tree(peer, message.header.tx_id, &path, request)?;
        let mut outcome = match reply {
            Reply::Done => Outcome::ok(),
            Reply::Value(value) => Outcome::payload(&*value),
            Reply::Names { list, .. } => Outcome::payload(list),
            Reply::Perms(perms) => Outcome::payload(spell_perms(&perms)),
        };
        outcome.effects = effects;
        Ok(outcome)
    }

    /// Part of a long list: the generation, then as many whole names from the
    /// given offset on as fit. The last part ends with an empty name.
    fn directory_part(&mut self, peer: PeerId, message: &Message) -> Answer {
        let [path, offset] = strings(&message.payload)?[..] else {
            return Err(Errno::EINVAL);
        };
        let path = Path::resolve(path, peer.dom())?;
        let offset: usize = parse_decimal(offset)?;
        let (reply, _) = self.on_tree(peer, message.header.tx_id, &path, Request::List)?;
        let Reply::Names { list, generation } = reply else {
            return Err(Errno::EINVAL);
        };
        let mut payload = format!("{generation}\0").into_bytes();
        let rest = list.get(offset..).ok_or(Errno::EINVAL)?;
        let room = PAYLOAD_MAX - payload.len();
        if rest.len() < room {
            payload.extend_from_slice(rest);
            payload.push(0);
        } else {
            let last = rest[..room].iter().rposition(|byte| *byte == 0);
            payload.extend_from_slice(&rest[..last.map_or(0, |at| at + 1)]);
        }
        Ok(Outcome::payload(payload))
    }

    fn write(&mut self, peer: PeerId, message: &Message) -> Answer {
        let nul = message.payload.iter().position(|byte| *byte == 0);
        let (path, value) = message.payload.split_at(nul.ok_or(Errno::EINVAL)?);
        let path = Path::resolve(path, peer.dom())?;
        let request = Request::Write(value[1..].into());
        let (_, effects) = self.on_tree(peer, message.header.tx_id, &path, request)?;
        Ok(Outcome {
            effects,
            ..Outcome::ok()
        })
    }

    fn set_perms(
        &mut self,
        hypervisor: &mut dyn Hypervisor,
        peer: PeerId,
        message: &Message,
    ) -> Answer {
        let parts = strings(&message.payload)?;
        let (name, entries) = parts.split_first().ok_or(Errno::EINVAL)?;
        let entries = entries.iter().map(|entry| Perm::parse(entry));
        let perms = Perms::new(entries.collect::<Result<_, _>>()?)?;
        let perms = self.living(hypervisor, peer, &perms);
        if name.starts_with(b"@") {
            self.set_special_perms(peer, special_name(name)?, perms)?;
            return Ok(Outcome::ok());
        }
        let path = Path::resolve(name, peer.dom())?;
        let request = Request::SetPerms(perms);
        let (_, effects) = self.on_tree(peer, message.header.tx_id, &path, request)?;
        Ok(Outcome {
            effects,
            ..Outcome::ok()
        })
    }

    fn watch(&mut self, peer: PeerId, payload: &[u8]) -> Answer {
        let parts = strings(payload)?;
        let (path, token, depth) = match parts[..] {
            [path, token] | [path, token, b""] => (path, token, None),
            [path, token, depth] => (path, token, Some(parse_decimal(depth)?)),
            _ => return Err(Errno::EINVAL),
        };
        let path = WatchPath::resolve(path, peer.dom())?;
        if !self.who(peer).is_privileged() {
            let count = self.watches.usage(peer).count + 1;
            within(count, self.limits.watches, Errno::E2BIG)?;
            self.check_memory(peer, path.full.len() + token.len())?;
        }
        let watch = self.watches.add(peer, path, depth, token.into())?;
        self.note_for(peer, |dom| Change::Watched {
            dom,
            id: watch.id,
            path: watch.path.clone(),
            depth,
            token: watch.token.clone(),
        });
        Ok(Outcome {
            watch: Some(watch),
            ..Outcome::ok()
        })
    }

    fn unwatch(&mut self, peer: PeerId, payload: &[u8]) -> Answer {
        let parts = strings(payload)?;
        let [path, token, ..] = parts[..] else {
            return Err(Errno::EINVAL);
        };
        let path = WatchPath::resolve(path, peer.dom())?;
        let watch = self.watches.remove(peer, &path, token)?;
        self.note_for(peer, |dom| Change::Unwatched {
            dom,
            path,
            token: watch.token.clone(),
        });
        self.drop_events(peer, watch.id);
        Ok(Outcome::ok())
    }

    fn reset(&mut self, peer: PeerId) -> Answer {
        self.watches.remove_all(peer);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.transactions.clear();
        }
        self.note_for(peer, Change::Reset);
        Ok(Outcome::ok())
    }

    fn transaction_start(&mut self, peer: PeerId, tx_id: u32) -> Answer {
        if tx_id != 0 {
            return Err(Errno::EBUSY);
        }
        self.check_memory(peer, 0)?;
        let privileged = self.who(peer).is_privileged();
        let state = self.peers.get_mut(&peer).ok_or(Errno::ENOENT)?;
        if !privileged {
            let count = state.transactions.len() + 1;
            within(count, self.limits.transactions, Errno::ENOSPC)?;
        }
        let id = state.free_transaction_id();
        state.last_transaction = id;
        state.transactions.insert(id, Transaction::new(&self.tree));
        self.note_for(peer, |dom| Change::Started { dom, id });
        Ok(Outcome::payload(format!("{id}\0")))
    }

    fn transaction_end(&mut self, now: Instant, peer: PeerId, message: &Message) -> Answer {
        let commit = match one(&message.payload)? {
            b"T" => true,
            b"F" => false,
            _ => return Err(Errno::EINVAL),
        };
        let id = message.header.tx_id;
        let state = self.peers.get_mut(&peer).ok_or(Errno::ENOENT)?;
        let transaction = state.transactions.remove(&id).ok_or(Errno::ENOENT)?;
        self.note_for(peer, |dom| Change::Ended { dom, id });
        if !commit {
            return Ok(Outcome::ok());
        }
        match transaction.commit(&self.tree, &self.who(peer), &self.limits) {
            Ok(commit) => {
                self.tree = commit.tree;
                Ok(Outcome {
                    effects: commit.effects,
                    ..Outcome::ok()
                })
            }
            Err(conflict) => {
                self.blame(now, peer, conflict);
                Err(Errno::EAGAIN)
            }
        }
    }

    fn blame(&mut self, now: Instant, victim: PeerId, conflict: Conflict) {
        if let Conflict::With(dom) = conflict
            && dom != DomId::DOM0
            && dom != victim.dom()
        {
            self.credits.charge(dom, now);
        }
    }
}

fn with_special(name: Option<&'static str>) -> Outcome {
    Outcome {
        special: name,
        ..Outcome::ok()
    }
}

fn needs_dom0(op: Op) -> bool {
    matches!(
        op,
        Op::Control | Op::Introduce | Op::Release | Op::Resume | Op::SetTarget
    )
}

/// The payload's only string.
pub(super) fn one(payload: &[u8]) -> Result<&[u8], Errno> {
    match strings(payload)?[..] {
        [text] => Ok(text),
        _ => Err(Errno::EINVAL),
    }
}

fn spell_perms(perms: &Perms) -> Vec<u8> {
    let entries = perms.entries().iter();
    entries
        .flat_map(|entry| format!("{entry}\0").into_bytes())
        .collect()
}
