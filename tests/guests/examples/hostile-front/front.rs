//! A device, and rings that nobody keeps in order.

use core::{fmt::Display, sync::atomic::Ordering};

use guest_abi::{
    addr::{GrantRef, Port},
    blkif::BLKIF_SLOT_SIZE,
    kernel::{
        doorbell::{Doorbell, EventBell},
        event,
        page::Page,
        time,
        xenbus::Device,
        xenstore::Tx,
    },
    netif::NETIF_TX_SLOT_SIZE,
    ring::SringHeader,
    xenbus::XenbusState,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{World, page};

/// For a back end to do something, in ns.
const PATIENCE: u64 = 60_000_000_000;
/// What a page holds before it is granted.
pub const OWN: u8 = 0x3C;
/// Where slots begin.
pub const HEADER: usize = 64;
/// Where the indices are.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;

pub struct Front {
    pub device: Device,
    /// A disk's ring and one that is not used; an interface's two.
    pub rings: [Page; 2],
    grants: [GrantRef; 2],
    pub is_disk: bool,
    pub port: Option<Port>,
    /// A page for data.
    pub data: Page,
    pub gref: GrantRef,
    /// A page for the segments of an indirect request.
    pub list: Page,
    pub list_gref: GrantRef,
}

impl Front {
    pub fn open(world: &mut World, kind: &str) -> Self {
        let bus = &mut world.bus;
        let id = Device::find(&mut bus.store, kind, 0).expect("such a device");
        let device = Device::open(&mut bus.store, kind, id).expect("such a device");
        let (rings, data, list) = ([page(), page()], page(), page());
        let grant = |page: &Page| device.grant(&bus.grants, page).expect("a free entry");
        Self {
            grants: [grant(&rings[0]), grant(&rings[1])],
            gref: grant(&data),
            list_gref: grant(&list),
            device,
            rings,
            data,
            list,
            is_disk: kind == "vbd",
            port: None,
        }
    }

    pub fn name(&self) -> &'static str {
        match self.is_disk {
            true => "disk",
            false => "interface",
        }
    }

    pub fn wait(&self, world: &mut World, state: XenbusState) -> bool {
        let deadline = time::system_time() + PATIENCE;
        let store = &mut world.bus.store;
        self.device.wait_for(store, &[state], deadline).is_ok()
    }

    pub fn say(&self, world: &mut World, state: XenbusState) {
        let said = self.device.set_state(&mut world.bus.store, state);
        said.expect("our own node");
    }

    /// Fresh rings, served; `false` if the back end does not come.
    pub fn connect(&mut self, world: &mut World) -> bool {
        if !self.wait(world, XenbusState::InitWait) {
            return false;
        }
        for ring in &self.rings {
            ring.clear();
            ring.write(0, SringHeader::fresh().as_bytes())
                .expect("a page");
        }
        self.data.write(0, &[OWN; 4096]).expect("a page");
        self.port = Some(self.device.open_port().expect("a port"));
        self.tell_rings(world);
        let ready = match self.is_disk {
            true => XenbusState::Initialised,
            false => XenbusState::Connected,
        };
        self.say(world, ready);
        let connected = self.wait(world, XenbusState::Connected);
        self.say(world, XenbusState::Connected);
        connected
    }

    fn tell_rings(&self, world: &mut World) {
        let (device, [one, two]) = (&self.device, &self.grants);
        let store = &mut world.bus.store;
        let mut tell = |node: &str, value: &dyn Display| {
            device.tell(store, Tx::NONE, node, value).expect("our node");
        };
        tell("event-channel", &self.port.expect("opened before"));
        if self.is_disk {
            tell("ring-ref", one);
            tell("protocol", &"x86_64-abi");
        } else {
            tell("tx-ring-ref", one);
            tell("rx-ring-ref", two);
            tell("request-rx-copy", &1);
            tell("feature-sg", &1);
        }
    }

    /// Lets go, and begins anew.
    pub fn close(&mut self, world: &mut World) -> bool {
        self.say(world, XenbusState::Closed);
        let closed = self.wait(world, XenbusState::Closed);
        if let Some(port) = self.port.take() {
            let _ = event::close(port);
        }
        self.say(world, XenbusState::Initialising);
        closed
    }

    pub fn slot_bytes(&self) -> usize {
        match self.is_disk {
            true => BLKIF_SLOT_SIZE,
            false => NETIF_TX_SLOT_SIZE,
        }
    }

    /// Writes a request of the first ring.
    pub fn put<T: IntoBytes + Immutable>(&self, slot: usize, request: &T) {
        let at = HEADER + slot * self.slot_bytes();
        self.rings[0].write(at, request.as_bytes()).expect("a slot");
    }

    /// Shows so many requests of the first ring.
    pub fn publish(&self, count: u32) {
        self.publish_in(0, count);
    }

    /// Shows so many requests of a ring.
    pub fn publish_in(&self, ring: usize, count: u32) {
        let word = self.rings[ring].word(REQ_PROD).expect("a page");
        word.store(count, Ordering::SeqCst);
        if let Some(port) = self.port {
            EventBell(port).ring();
        }
    }

    /// Responses of a ring.
    pub fn answered(&self, ring: usize) -> u32 {
        let word = self.rings[ring].word(RSP_PROD).expect("a page");
        word.load(Ordering::SeqCst)
    }

    /// Until so many requests of the first ring are answered; `false`: the device
    /// was closed before, or nothing comes.
    pub fn wait_for_answers(&self, world: &mut World, count: u32) -> bool {
        self.wait_for_answers_in(0, world, count)
    }

    pub fn wait_for_answers_in(&self, ring: usize, world: &mut World, count: u32) -> bool {
        let deadline = time::system_time() + PATIENCE;
        while self.answered(ring) < count && time::system_time() < deadline {
            let state = self.device.backend_state(&mut world.bus.store);
            if state.is_ok_and(|state| state == XenbusState::Closing) {
                return false;
            }
            let soon = time::system_time() + 2_000_000;
            let _ = world.bus.wait(&[self.port], soon);
        }
        self.answered(ring) == count
    }

    /// Does something again and again until so many requests of the first ring are
    /// answered; `false`: nothing comes.
    pub fn until_answered(&self, world: &mut World, count: u32, mut act: impl FnMut(u64)) -> bool {
        let deadline = time::system_time() + PATIENCE;
        while self.answered(0) < count && time::system_time() < deadline {
            act(world.random());
        }
        self.answered(0) == count
    }

    pub fn response<T: FromBytes + IntoBytes>(&self, slot: usize) -> T {
        let mut response = T::new_zeroed();
        let at = HEADER + slot * self.slot_bytes();
        let read = self.rings[0].read(at, response.as_mut_bytes());
        read.expect("a slot");
        response
    }

    /// Bytes of the data page that are not what they should be: `wrong` says which.
    pub fn count(&self, wrong: impl Fn(usize, u8) -> bool) -> usize {
        let mut bytes = [0; 512];
        (0..8)
            .map(|sector| {
                self.data.read(sector * 512, &mut bytes).expect("a page");
                let is_wrong = |(at, byte): &(usize, &u8)| wrong(sector * 512 + at, **byte);
                bytes.iter().enumerate().filter(is_wrong).count()
            })
            .sum()
    }

    /// Takes the data page back, which takes as long as the back end uses it.
    pub fn take_back(&mut self, world: &World) -> bool {
        let mut taken = false;
        let deadline = time::system_time() + PATIENCE;
        while !taken && time::system_time() < deadline {
            taken = world.bus.grants.take_back(self.gref).is_ok();
        }
        taken
    }

    /// Grants it anew.
    pub fn grant_again(&mut self, world: &World) {
        let again = self.device.grant(&world.bus.grants, &self.data);
        self.gref = again.expect("a free entry");
    }
}
