//! The interface, as smoltcp wants it.

use guest_abi::kernel::netfront::{MAX_FRAME, Transmit};
use smoltcp::{
    phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium},
    time::Instant,
};

use crate::{Net, or_crash};

/// The largest packet that comes in, where the back end does not cut it: 64 KiB, and an
/// Ethernet header.
pub const FRAME: usize = 65536 + 14;

/// An interface and the packet that came in last.
pub struct Wire {
    pub net: Net,
    incoming: &'static mut [u8; FRAME],
    /// Packets that no single frame of a wire could have held.
    pub large: u64,
}

pub struct Incoming<'a>(&'a [u8]);
pub struct Outgoing<'a>(&'a mut Net);

impl Wire {
    pub fn new(net: Net, incoming: &'static mut [u8; FRAME]) -> Self {
        Self {
            net,
            incoming,
            large: 0,
        }
    }
}

impl Device for Wire {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        // A frame may be answered at once: only with room for that.
        if !self.net.can_send() {
            return None;
        }
        let received = or_crash(self.net.receive(&mut self.incoming[..]))?;
        self.large += u64::from(received.length > MAX_FRAME);
        let frame = &self.incoming[..received.length];
        Some((Incoming(frame), Outgoing(&mut self.net)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        self.net.can_send().then_some(Outgoing(&mut self.net))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // Frames of the host's own come with a blank checksum.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.net.mtu()).min(1500) + 14;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = [0; MAX_FRAME];
        let result = fill(&mut frame[..length]);
        // A frame that can't go now is a frame lost: TCP sends it again.
        let _ = self.0.send(&frame[..length], Transmit::default());
        result
    }
}
