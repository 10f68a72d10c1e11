//! A network interface: the front end of the network device protocol
//! ([`netif`](crate::netif)), one or several queues, frames copied by the back end.
//!
//! Frames go through pages that the caller gives: `RX` to receive into, `TX`
//! to send from. They stay granted, and frames are copied into and out of
//! them: nothing else is ever shared. A back end that comes back is connected
//! to again; frames that were under way are lost then, as on any network.
//!
//! ```no_run
//! # use guest_abi::kernel::{page::PagePool, xenbus::Bus, netfront::{*, NetError}};
//! static PAGES: PagePool<34> = PagePool::new();
//!
//! # fn f(bus: &mut Bus) -> Result<(), NetError> {
//! let rings = PAGES.take_many().expect("taken once");
//! let (rx, tx) = (PAGES.take_many(), PAGES.take_many());
//! let (rx, tx) = (rx.expect("taken once"), tx.expect("taken once"));
//! let mut net: Netfront<16, 16> = Netfront::open(bus, 0, rings, rx, tx, Offer::default())?;
//! net.connect(bus, bus.store.now() + 5_000_000_000)?;
//! let mut frame = [0; MAX_FRAME];
//! loop {
//!     net.poll(bus)?;
//!     while let Some(received) = net.receive(&mut frame)? {
//!         // Say it back.
//!         net.send(&frame[..received.length], Transmit::default())?;
//!     }
//!     net.poll(bus)?;
//!     bus.wait(&[net.port()], 0)?;
//! }
//! # }
//! ```

mod error;
mod rx;
mod tx;

pub use error::NetError;
use rx::RxQueue;
use tx::TxQueue;

use super::{
    blkfront::{close_port, queue_node},
    doorbell::{Doorbell, EventBell},
    page::Page,
    text::Text,
    xenbus::{Bus, BusError, Device, Phase, Step},
    xenstore::{StoreError, Tx},
};
use crate::{
    addr::{GrantRef, Port},
    netif::{XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6},
    xenbus::XenbusState,
};

/// The largest frame with an Ethernet header that comes in, unless
/// segmentation is [offered](Offer::gso): then it may have 64 KiB.
pub const MAX_FRAME: usize = 1518;

/// The state of a frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is there; the receiver checks it.
    #[default]
    Complete,
    /// It was checked.
    Validated,
    /// Only the pseudo header's sum is there: who sends the frame on puts in
    /// the rest, who receives it need not check.
    Blank,
}

/// A frame that is many: TCP data to be cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Bytes of payload in each segment.
    pub size: u16,
    /// `XEN_NETIF_GSO_TYPE_*`.
    pub kind: u8,
}

/// How a frame is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transmit {
    /// Its checksum.
    pub checksum: Checksum,
    /// Its segmentation.
    pub gso: Option<Gso>,
}

/// A frame that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub length: usize,
    /// Its checksum.
    pub checksum: Checksum,
    /// Its segmentation.
    pub gso: Option<Gso>,
}

/// What we can take; the back end may then send such frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Frames with [`Checksum::Blank`].
    pub blank_checksum: bool,
    /// Frames over several pages.
    pub scatter_gather: bool,
    /// TCP frames of up to 64 KiB; goes with the other two.
    pub gso: bool,
}

/// What the back end takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// Frames over several pages.
    pub scatter_gather: bool,
    /// TCP over IPv4 to be cut.
    pub gso_tcp4: bool,
    /// TCP over IPv6 to be cut.
    pub gso_tcp6: bool,
    /// IPv4 frames with [`Checksum::Blank`].
    pub checksum: bool,
    /// IPv6 frames with [`Checksum::Blank`].
    pub checksum6: bool,
}

/// The pages of one queue.
#[derive(Debug)]
pub struct QueuePages<const RX: usize, const TX: usize> {
    /// The two rings: to send, to receive.
    pub rings: [Page; 2],
    /// To receive into.
    pub rx: [Page; RX],
    /// To send from.
    pub tx: [Page; TX],
}

/// A queue and what it is known by.
#[derive(Debug)]
struct Lane<const RX: usize, const TX: usize> {
    rx: RxQueue<RX>,
    tx: TxQueue<TX>,
    /// Of the rings, to send and to receive.
    grants: [GrantRef; 2],
    port: Option<Port>,
}

/// An interface of `Q` queues, each with `RX` pages (at most 256) to receive into
/// and `TX` (at most 256) to send from.
#[derive(Debug)]
pub struct Netfront<const RX: usize, const TX: usize, const Q: usize = 1> {
    device: Device,
    lanes: [Lane<RX, TX>; Q],
    /// Queues that this back end takes.
    active: usize,
    /// The queue that is asked first for the next frame.
    next: usize,
    phase: Phase,
    offer: Offer,
    takes: Takes,
    mac: [u8; 6],
    mtu: u16,
}

impl<const RX: usize, const TX: usize> Netfront<RX, TX> {
    /// The `nth` interface in xenstore's order; not connected yet.
    ///
    /// # Errors
    /// [`BusError::NoDevice`]; no grants left; xenstore's;
    /// [`NetError::Unsupported`] without a MAC address.
    pub fn open(
        bus: &mut Bus,
        nth: usize,
        rings: [Page; 2],
        rx: [Page; RX],
        tx: [Page; TX],
        offer: Offer,
    ) -> Result<Self, NetError> {
        Self::open_queues(bus, nth, [QueuePages { rings, rx, tx }], offer)
    }

    /// The event channel, to wait for together with others. It changes when
    /// the back end is started anew.
    #[must_use]
    pub fn port(&self) -> Option<Port> {
        self.lanes[0].port
    }
}

impl<const RX: usize, const TX: usize, const Q: usize> Netfront<RX, TX, Q> {
    const SOME: () = assert!(Q > 0, "an interface has a queue");

    /// As [`open`](Netfront::open), with several queues. A back end that takes
    /// fewer leaves the others unused.
    ///
    /// # Errors
    /// As [`open`](Netfront::open).
    pub fn open_queues(
        bus: &mut Bus,
        nth: usize,
        queues: [QueuePages<RX, TX>; Q],
        offer: Offer,
    ) -> Result<Self, NetError> {
        let () = Self::SOME;
        let id = Device::find(&mut bus.store, "vif", nth)?;
        let device = Device::open(&mut bus.store, "vif", id)?;
        let front = device.front();
        let mac: Text<32> = bus
            .store
            .read_text(Tx::NONE, &format_args!("{front}/mac"))?;
        let mtu = bus
            .store
            .number_or(Tx::NONE, &format_args!("{front}/mtu"), 1500)?;
        let mut lanes = queues.map(|pages| {
            let [tx_ring, rx_ring] = pages.rings;
            Lane {
                rx: RxQueue::new(rx_ring, pages.rx),
                tx: TxQueue::new(tx_ring, pages.tx),
                grants: [GrantRef(0); 2],
                port: None,
            }
        });
        let grants = &bus.grants;
        for lane in &mut lanes {
            lane.rx.grant_all(|page, _| device.grant(grants, page))?;
            lane.tx.grant_all(|page, _| device.grant(grants, page))?;
            lane.grants = [
                device.grant(grants, lane.tx.ring.page())?,
                device.grant(grants, lane.rx.ring.page())?,
            ];
        }
        Ok(Self {
            device,
            lanes,
            active: 1,
            next: 0,
            phase: Phase::Waiting,
            offer,
            takes: Takes::default(),
            mac: parse_mac(&mac).ok_or(NetError::Unsupported)?,
            mtu,
        })
    }

    /// Waits until the back end is connected.
    ///
    /// # Errors
    /// [`BusError::TimedOut`] at `deadline` (ns of system time);
    /// [`NetError::Gone`]; [`NetError::Unsupported`].
    pub fn connect(&mut self, bus: &mut Bus, deadline: u64) -> Result<(), NetError> {
        loop {
            self.poll(bus)?;
            match self.phase {
                Phase::Live => return Ok(()),
                Phase::Gone => return Err(NetError::Gone),
                _ if bus.store.now() >= deadline => {
                    let state = self.device.backend_state(&mut bus.store)?;
                    return Err(BusError::TimedOut(state).into());
                }
                _ => bus.store.wait(deadline)?,
            }
        }
    }

    /// Its address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The largest payload of a frame.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// What the back end takes.
    #[must_use]
    pub fn takes(&self) -> Takes {
        self.takes
    }

    /// Whether the back end is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Live
    }

    /// The event channel of each queue, to wait for together with others. They
    /// change when the back end is started anew.
    #[must_use]
    pub fn ports(&self) -> [Option<Port>; Q] {
        core::array::from_fn(|n| self.lanes[n].port)
    }

    /// Queues that are used.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.active
    }

    /// Frames dropped as they came, and frames that the back end did not send.
    #[must_use]
    pub fn lost(&self) -> (u64, u64) {
        self.lanes.iter().fold((0, 0), |(dropped, failed), lane| {
            (dropped + lane.rx.dropped, failed + lane.tx.failed)
        })
    }

    /// The next frame, copied to `frame`. One that is larger is dropped.
    ///
    /// # Errors
    /// [`NetError::Ring`]: the back end is broken.
    pub fn receive(&mut self, frame: &mut [u8]) -> Result<Option<Received>, NetError> {
        if self.phase != Phase::Live {
            return Ok(None);
        }
        for step in 0..self.active {
            let at = (self.next + step) % self.active;
            let received = self.lanes[at].rx.receive(frame);
            let received = received.inspect_err(|_| self.phase = Phase::Gone)?;
            if received.is_some() {
                self.next = (at + 1) % self.active;
                return Ok(received);
            }
        }
        Ok(None)
    }

    /// Whether a frame of one page can be sent now, whichever queue it goes to.
    #[must_use]
    pub fn can_send(&self) -> bool {
        let room = |lane: &Lane<RX, TX>| lane.tx.free() > 0 && lane.tx.ring.free() > 0;
        self.phase == Phase::Live && self.lanes[..self.active].iter().all(room)
    }

    /// Sends a frame, with the next [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`NetError::Busy`], [`NetError::Length`], [`NetError::NotConnected`],
    /// [`NetError::Gone`].
    pub fn send(&mut self, frame: &[u8], how: Transmit) -> Result<(), NetError> {
        match self.phase {
            Phase::Live => {}
            Phase::Gone => return Err(NetError::Gone),
            _ => return Err(NetError::NotConnected),
        }
        let gso = match how.gso {
            None => true,
            Some(gso) => match gso.kind {
                XEN_NETIF_GSO_TYPE_TCPV4 => self.takes.gso_tcp4,
                XEN_NETIF_GSO_TYPE_TCPV6 => self.takes.gso_tcp6,
                _ => false,
            },
        };
        let one_page = frame.len() <= super::page::PAGE_BYTES;
        if !gso || !(one_page || self.takes.scatter_gather) {
            return Err(NetError::Length(frame.len()));
        }
        let queue = flow(frame) % self.active;
        self.lanes[queue].tx.send(frame, how)
    }

    /// Sends what is waiting, takes back what was sent, follows the back end's
    /// state. To be called before sleeping.
    ///
    /// # Errors
    /// [`NetError::Ring`] and [`NetError::Response`]: the back end is broken.
    /// Xenstore's.
    pub fn poll(&mut self, bus: &mut Bus) -> Result<(), NetError> {
        match self.device.next_step(&mut bus.store, self.phase)? {
            Step::Nothing | Step::Refresh => {}
            Step::SetUp => self.set_up(bus)?,
            Step::GoLive => self.phase = Phase::Live,
            Step::Close => self.wait_again(bus, XenbusState::Closed)?,
            Step::Ask => self.wait_again(bus, XenbusState::Initialising)?,
            Step::GiveUp => self.give_up(),
        }
        if self.phase != Phase::Live {
            return Ok(());
        }
        let mut lanes = self.lanes[..self.active].iter_mut();
        let taken = lanes.try_for_each(|lane| lane.tx.take_responses());
        taken.inspect_err(|_| self.give_up())?;
        for lane in &mut self.lanes[..self.active] {
            let wanted = [lane.tx.ring.publish(), lane.rx.ring.publish()];
            if let (true, Some(port)) = (wanted.contains(&true), lane.port) {
                EventBell(port).ring();
            }
        }
        Ok(())
    }

    /// Lets the back end go.
    ///
    /// # Errors
    /// Xenstore's. Grants still in use by the back end stay.
    pub fn close(mut self, bus: &mut Bus) -> Result<(), NetError> {
        let device = &self.device;
        device.set_state(&mut bus.store, XenbusState::Closing)?;
        let deadline = bus.store.now().saturating_add(5_000_000_000);
        let ended = [
            XenbusState::Closing,
            XenbusState::Closed,
            XenbusState::Unknown,
        ];
        // One that does not follow is left behind.
        let _ = device.wait_for(&mut bus.store, &ended, deadline);
        device.set_state(&mut bus.store, XenbusState::Closed)?;
        let grants = &bus.grants;
        let mut take_back = |_: &Page, gref| -> Result<GrantRef, StoreError> {
            let _ = grants.take_back(gref);
            Ok(gref)
        };
        for lane in &mut self.lanes {
            close_port(&mut lane.port);
            lane.rx.grant_all(&mut take_back)?;
            lane.tx.grant_all(&mut take_back)?;
            for gref in lane.grants {
                let _ = grants.take_back(gref);
            }
        }
        Ok(self.device.close(&mut bus.store)?)
    }

    /// Fresh rings for a back end that starts.
    fn set_up(&mut self, bus: &mut Bus) -> Result<(), NetError> {
        self.takes = self.read_takes(bus)?;
        let (device, offer) = (&self.device, self.offer);
        let queues = device.told(&mut bus.store, "multi-queue-max-queues", 1)?;
        self.active = usize::try_from(queues).unwrap_or(Q).clamp(1, Q);
        self.next = 0;
        for (n, lane) in self.lanes.iter_mut().enumerate() {
            close_port(&mut lane.port);
            lane.tx.reset();
            lane.rx.replay();
            if n < self.active {
                // Posted before the back end looks: it needs no event for them.
                let _ = lane.rx.ring.publish();
                lane.port = Some(device.open_port()?);
            }
        }
        let lanes = &self.lanes[..self.active];
        let number = u8::from;
        bus.store.transaction(|store, tx| {
            if Q > 1 {
                device.tell(store, tx, "multi-queue-num-queues", &lanes.len())?;
            }
            for (n, lane) in lanes.iter().enumerate() {
                let node = |name| queue_node(lanes.len(), n, name);
                device.tell(store, tx, &node("tx-ring-ref")?, &lane.grants[0])?;
                device.tell(store, tx, &node("rx-ring-ref")?, &lane.grants[1])?;
                let port = lane.port.unwrap_or(Port(0));
                device.tell(store, tx, &node("event-channel")?, &port)?;
            }
            device.tell(store, tx, "request-rx-copy", &1)?;
            device.tell(store, tx, "feature-rx-notify", &1)?;
            let complete = number(!offer.blank_checksum);
            device.tell(store, tx, "feature-no-csum-offload", &complete)?;
            let checksum6 = number(offer.blank_checksum);
            device.tell(store, tx, "feature-ipv6-csum-offload", &checksum6)?;
            device.tell(store, tx, "feature-sg", &number(offer.scatter_gather))?;
            device.tell(store, tx, "feature-gso-tcpv4", &number(offer.gso))?;
            device.tell(store, tx, "feature-gso-tcpv6", &number(offer.gso))
        })?;
        device.set_state(&mut bus.store, XenbusState::Connected)?;
        self.phase = Phase::Told;
        Ok(())
    }

    fn read_takes(&self, bus: &mut Bus) -> Result<Takes, NetError> {
        let mut told = |node| -> Result<bool, StoreError> {
            Ok(self.device.told(&mut bus.store, node, 0)? != 0)
        };
        if !told("feature-rx-copy")? {
            return Err(NetError::Unsupported);
        }
        Ok(Takes {
            scatter_gather: told("feature-sg")?,
            gso_tcp4: told("feature-gso-tcpv4")?,
            gso_tcp6: told("feature-gso-tcpv6")?,
            checksum: !told("feature-no-csum-offload")?,
            checksum6: told("feature-ipv6-csum-offload")?,
        })
    }

    fn wait_again(&mut self, bus: &mut Bus, say: XenbusState) -> Result<(), NetError> {
        self.phase = Phase::Waiting;
        self.device.set_state(&mut bus.store, say)?;
        Ok(())
    }

    fn give_up(&mut self) {
        self.phase = Phase::Gone;
        for lane in &mut self.lanes {
            close_port(&mut lane.port);
        }
    }
}

/// A number that the frames of one connection have in common, so that they stay in
/// their order: of the two addresses and, over TCP and UDP, the ports.
fn flow(frame: &[u8]) -> usize {
    const IPV4: [u8; 2] = [0x08, 0x00];
    const IPV6: [u8; 2] = [0x86, 0xdd];
    let has_ports = |protocol: Option<&u8>| matches!(protocol, Some(6 | 17));
    let (start, mut end) = match frame.get(12..14) {
        Some(kind) if kind == IPV4 => (26, 34),
        Some(kind) if kind == IPV6 => (22, 54),
        _ => (0, 12),
    };
    // Not behind options, and not in later fragments, which have no ports.
    let whole_v4 = start == 26
        && frame.get(14) == Some(&0x45)
        && frame
            .get(20..22)
            .is_some_and(|word| word[0] & 0x3f == 0 && word[1] == 0)
        && has_ports(frame.get(23));
    if whole_v4 || (start == 22 && has_ports(frame.get(20))) {
        end += 4;
    }
    let bytes = frame.get(start..end).unwrap_or_default();
    bytes.iter().fold(0_usize, |sum, &byte| {
        sum.wrapping_mul(31).wrapping_add(usize::from(byte))
    })
}

/// Six pairs of hexadecimal digits.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut pieces = text.trim().split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(pieces.next()?, 16).ok()?;
    }
    pieces.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::{flow, parse_mac};

    /// A TCP frame between two ports, in the fragment at `offset`.
    fn frame(from: u8, to: u8, offset: u8) -> [u8; 60] {
        let mut frame = [0; 60];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[21] = offset;
        frame[23] = 6;
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        (frame[35], frame[37]) = (from, to);
        frame
    }

    #[test]
    fn a_connection_stays_in_its_queue() {
        let mut longer = frame(80, 9, 0);
        longer[50] = 1;
        assert_eq!(flow(&frame(80, 9, 0)), flow(&longer));
        let queues = |n: u8| flow(&frame(80, n, 0)) % 4;
        assert!((0..8).any(|n| queues(n) != queues(0)), "all in one queue");
        // What stands where ports would be is data there.
        assert_eq!(flow(&frame(80, 9, 1)), flow(&frame(1, 2, 1)));
        for length in 0..60 {
            let _ = flow(&frame(80, 9, 0)[..length]);
        }
    }

    #[test]
    fn mac_addresses() {
        let right = Some([0, 0x16, 0x3e, 1, 2, 0xff]);
        assert_eq!(parse_mac("00:16:3e:01:02:ff"), right);
        for wrong in [
            "",
            "00:16:3e:01:02",
            "00:16:3e:01:02:ff:00",
            "00:16:3e:01:02:gg",
        ] {
            assert_eq!(parse_mac(wrong), None);
        }
    }
}
