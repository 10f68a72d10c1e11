//! The other half, for tests: a front end's ring over plain memory, and nodes
//! without a daemon.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use guest_abi::{
    addr::DomId,
    ring::{self, SringHeader},
};
use nix::sys::eventfd::EventFd;
use vm_memory::Bytes;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    bus::{Attention, Bus, BusError, Store},
    memory::{PlainMemory, SharedMemory},
};

/// A front end's half of a ring.
pub struct FrontRing {
    memory: Arc<PlainMemory>,
    slot_size: usize,
    slots: u32,
    req_prod: u32,
    req_shown: u32,
    rsp_cons: u32,
}

impl FrontRing {
    /// Makes a fresh ring there.
    pub fn new(memory: Arc<PlainMemory>, slot_size: usize) -> Self {
        let header = SringHeader::fresh();
        memory.slice().write_slice(header.as_bytes(), 0).unwrap();
        Self {
            slots: ring::slots(memory.len(), slot_size),
            memory,
            slot_size,
            req_prod: 0,
            req_shown: 0,
            rsp_cons: 0,
        }
    }

    /// Whether there is room for a request.
    pub fn has_room(&self) -> bool {
        ring::free_requests(self.slots, self.req_prod, self.rsp_cons) > 0
    }

    /// Writes a request.
    pub fn put<R: IntoBytes + Immutable>(&mut self, request: &R) {
        assert!(self.has_room());
        let at = ring::slot_offset(self.req_prod, self.slots, self.slot_size);
        let slice = self.memory.slice();
        slice.write_slice(request.as_bytes(), at).unwrap();
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Shows the requests; whether the back end wants to be notified.
    pub fn push(&mut self) -> bool {
        let old = std::mem::replace(&mut self.req_shown, self.req_prod);
        self.memory
            .slice()
            .store(self.req_prod, 0, Ordering::Release)
            .unwrap();
        fence(Ordering::SeqCst);
        let event = self.memory.slice().load(4, Ordering::Acquire).unwrap();
        ring::must_notify(old, self.req_prod, event)
    }

    /// Claims any number of requests.
    pub fn set_req_prod(&mut self, value: u32) {
        let slice = self.memory.slice();
        slice.store(value, 0, Ordering::Release).unwrap();
    }

    /// The next response.
    pub fn take<R: FromBytes>(&mut self) -> Option<R> {
        let slice = self.memory.slice();
        let rsp_prod: u32 = slice.load(8, Ordering::Acquire).unwrap();
        if rsp_prod == self.rsp_cons {
            return None;
        }
        let at = ring::slot_offset(self.rsp_cons, self.slots, self.slot_size);
        let mut bytes = vec![0; size_of::<R>()];
        slice.read_slice(&mut bytes, at).unwrap();
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Some(R::read_from_bytes(&bytes).unwrap())
    }

    /// Asks for a notification; whether there is a response already.
    pub fn final_check(&mut self) -> bool {
        let slice = self.memory.slice();
        let event = self.rsp_cons.wrapping_add(1);
        slice.store(event, 12, Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
        let rsp_prod: u32 = slice.load(8, Ordering::Acquire).unwrap();
        rsp_prod != self.rsp_cons
    }
}

/// Nodes in a map.
#[derive(Default, Debug)]
pub struct FakeStore(pub BTreeMap<String, String>);

impl FakeStore {
    /// A node's value.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }

    /// Sets a node.
    pub fn set(&mut self, path: &str, value: &str) {
        self.0.insert(path.into(), value.into());
    }
}

/// Calls nobody.
pub fn attention() -> Attention {
    Attention(Arc::new(EventFd::new().unwrap()))
}

impl FakeStore {
    /// A device of domain 3's, for a driver without a hypervisor.
    pub fn bus<'a>(
        &'a mut self,
        attention: &'a Attention,
        kind: &'static str,
        device: &'a str,
    ) -> Bus<'a> {
        Bus {
            store: self,
            client: None,
            attention,
            dom: DomId(3),
            kind,
            device,
            backend: format!("/local/domain/0/backend/{kind}/3/{device}"),
            frontend: format!("/local/domain/3/device/{kind}/{device}"),
        }
    }
}

impl Store for FakeStore {
    fn find(&mut self, path: &str) -> Result<Option<String>, BusError> {
        Ok(self.0.get(path).cloned())
    }
    fn write(&mut self, path: &str, value: &str) -> Result<(), BusError> {
        self.set(path, value);
        Ok(())
    }
    fn remove(&mut self, path: &str) -> Result<(), BusError> {
        let below = format!("{path}/");
        self.0
            .retain(|node, _| node != path && !node.starts_with(&below));
        Ok(())
    }
    fn children(&mut self, path: &str) -> Result<Vec<String>, BusError> {
        let below = format!("{path}/");
        let names = self.0.keys().filter_map(|node| node.strip_prefix(&below));
        let mut names: Vec<String> = names
            .filter_map(|rest| rest.split('/').next().map(str::to_owned))
            .collect();
        names.dedup();
        Ok(names)
    }
    fn watch(&mut self, _path: &str, _token: &str) -> Result<(), BusError> {
        Ok(())
    }
    fn unwatch(&mut self, _path: &str, _token: &str) -> Result<(), BusError> {
        Ok(())
    }
}
