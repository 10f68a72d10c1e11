//! A network interface.

use alloc::sync::Arc;

use axdriver_base::{BaseDriverOps, DevError, DevResult, DeviceType};
use axdriver_net::{EthernetAddress, NetBuf, NetBufPool, NetBufPtr, NetDriverOps};
use guest_abi::kernel::{
    netfront::{NetError, Netfront, Offer, Transmit},
    xenbus::Bus,
};
use log::{info, warn};

use crate::bus;

const RX: usize = 64;
const TX: usize = 32;
/// The two rings, and the pages of both queues.
pub const PAGES: usize = 2 + RX + TX;

/// Frames in ArceOS' hands at once, and the bytes of each.
const BUFFERS: (usize, usize) = (64, 1536);

/// The first network interface of the domain.
pub struct XenNet {
    front: Netfront<RX, TX>,
    buffers: Arc<NetBufPool>,
}

// SAFETY: by shared reference only fields are read, and the rings' indices,
// which are atomics.
unsafe impl Sync for XenNet {}

impl XenNet {
    /// Finds the interface; `None` if there is none, or its back end does not
    /// come.
    #[must_use]
    pub fn probe() -> Option<Self> {
        let rings = bus::PAGES.take_many()?;
        let (rx, tx) = (bus::PAGES.take_many()?, bus::PAGES.take_many()?);
        let found = bus::with(|bus| {
            let mut front = Netfront::open(bus, 0, rings, rx, tx, Offer::default())?;
            front.connect(bus, bus::deadline())?;
            Ok::<_, NetError>(front)
        })?;
        let front = found
            .inspect_err(|error| warn!("no network: {error}"))
            .ok()?;
        info!("eth0: mtu {}", front.mtu());
        let buffers = NetBufPool::new(BUFFERS.0, BUFFERS.1).ok()?;
        Some(Self { front, buffers })
    }

    /// Sends what waits, takes what came.
    fn poll(&mut self) -> DevResult {
        on_bus(|bus| self.front.poll(bus))
    }
}

/// Says what went wrong, and what ArceOS calls it.
fn on_bus(what: impl FnOnce(&mut Bus) -> Result<(), NetError>) -> DevResult {
    bus::with(what).ok_or(DevError::BadState)?.map_err(io)
}

fn io(error: NetError) -> DevError {
    warn!("eth0: {error}");
    DevError::Io
}

impl BaseDriverOps for XenNet {
    fn device_name(&self) -> &str {
        "xen-pv-net"
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }
}

impl NetDriverOps for XenNet {
    fn mac_address(&self) -> EthernetAddress {
        EthernetAddress(self.front.mac())
    }

    fn can_transmit(&self) -> bool {
        self.front.can_send()
    }

    fn can_receive(&self) -> bool {
        self.front.is_connected()
    }

    fn rx_queue_size(&self) -> usize {
        RX
    }

    fn tx_queue_size(&self) -> usize {
        TX
    }

    fn recycle_rx_buffer(&mut self, rx_buf: NetBufPtr) -> DevResult {
        // SAFETY: one of `receive`'s, as the trait demands.
        drop(unsafe { NetBuf::from_buf_ptr(rx_buf) });
        Ok(())
    }

    /// Buffers are free as soon as they are copied.
    fn recycle_tx_buffers(&mut self) -> DevResult {
        self.poll()
    }

    fn transmit(&mut self, tx_buf: NetBufPtr) -> DevResult {
        // SAFETY: one of `alloc_tx_buffer`'s, as the trait demands.
        let buffer = unsafe { NetBuf::from_buf_ptr(tx_buf) };
        let sent = self.front.send(buffer.packet(), Transmit::default());
        sent.map_err(io)?;
        self.poll()
    }

    fn receive(&mut self) -> DevResult<NetBufPtr> {
        self.poll()?;
        let mut buffer = self.buffers.alloc_boxed().ok_or(DevError::NoMemory)?;
        let received = self.front.receive(buffer.raw_buf_mut()).map_err(io)?;
        let received = received.ok_or(DevError::Again)?;
        buffer.set_packet_len(received.length);
        Ok(buffer.into_buf_ptr())
    }

    fn alloc_tx_buffer(&mut self, size: usize) -> DevResult<NetBufPtr> {
        let mut buffer = self.buffers.alloc_boxed().ok_or(DevError::NoMemory)?;
        if size > buffer.capacity() {
            return Err(DevError::InvalidParam);
        }
        buffer.set_packet_len(size);
        Ok(buffer.into_buf_ptr())
    }
}
