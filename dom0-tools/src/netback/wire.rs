//! What lies behind a virtual interface on the host's side: a tap device or a
//! user-mode network.

use std::{io, os::fd::BorrowedFd};

use super::offload::Offload;

/// The largest packet either side may hand over: 64 KiB of IP packet, an
/// Ethernet header and a tag.
pub const LARGEST_PACKET: usize = 65_536 + 18;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Done,
    /// It was not taken: try again when the wire can be written.
    Full,
}

/// The host's end of an interface's queue.
pub trait Wire: Send {
    /// Hands a packet to the host. What `offload` asks for and the host can't
    /// do is done in the packet first.
    ///
    /// # Errors
    /// The packet can't be sent and is to be dropped; of kind
    /// [`io::ErrorKind::BrokenPipe`] if none can be sent any more.
    fn send(&mut self, packet: &mut [u8], offload: Offload) -> io::Result<Sent>;

    /// The next packet from the host, if there is one: its length.
    ///
    /// # Errors
    /// No packet will come any more.
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<(usize, Offload)>>;

    /// For `poll`; `None` while there is nothing to wait for.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether something waits for the wire to become writable.
    fn wants_to_write(&self) -> bool {
        false
    }

    /// Sends on what was taken and could not be sent at once.
    fn flush(&mut self) {}

    /// Tells the host whether the guest takes packets.
    fn set_carrier(&mut self, _on: bool) {}
}

impl<W: Wire + ?Sized> Wire for Box<W> {
    fn send(&mut self, packet: &mut [u8], offload: Offload) -> io::Result<Sent> {
        (**self).send(packet, offload)
    }
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<(usize, Offload)>> {
        (**self).receive(buf)
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).fd()
    }
    fn wants_to_write(&self) -> bool {
        (**self).wants_to_write()
    }
    fn flush(&mut self) {
        (**self).flush();
    }
    fn set_carrier(&mut self, on: bool) {
        (**self).set_carrier(on);
    }
}
