//! Sending: filled pages out, empty pages back. No hypercall here.

use zerocopy::IntoBytes;

use super::{Checksum, NetError, Transmit};
use crate::{
    addr::GrantRef,
    kernel::{
        front_ring::FrontRing,
        page::{PAGE_BYTES, Page},
    },
    netif::{
        NETIF_RSP_NULL, NETIF_RSP_OKAY, NETIF_TX_RING_SLOTS, NETIF_TX_SLOT_SIZE, NETTXF_CSUM_BLANK,
        NETTXF_DATA_VALIDATED, NETTXF_EXTRA_INFO, NETTXF_MORE_DATA, NetifExtraInfo, NetifTxRequest,
        NetifTxResponse, XEN_NETIF_EXTRA_TYPE_GSO, XEN_NETIF_MAX_TX_SIZE, XEN_NETIF_NR_SLOTS_MIN,
    },
};

const SLOTS: usize = NETIF_TX_RING_SLOTS as usize;

#[derive(Clone, Copy, Debug, Default)]
struct Buffer {
    gref: GrantRef0,
    under_way: bool,
    serial: u8,
}

/// A reference with a default.
#[derive(Clone, Copy, Debug)]
struct GrantRef0(GrantRef);

impl Default for GrantRef0 {
    fn default() -> Self {
        Self(GrantRef(0))
    }
}

#[derive(Debug)]
pub(super) struct TxQueue<const N: usize> {
    pub(super) ring: FrontRing,
    pages: [Page; N],
    buffers: [Buffer; N],
    /// Frames that the back end did not send.
    pub(super) failed: u64,
}

impl<const N: usize> TxQueue<N> {
    const FITS: () = assert!(N > 0 && N <= SLOTS, "1 to 256 buffers");

    pub(super) fn new(ring: Page, pages: [Page; N]) -> Self {
        let () = Self::FITS;
        Self {
            ring: FrontRing::new(ring, NETIF_TX_SLOT_SIZE),
            pages,
            buffers: [Buffer::default(); N],
            failed: 0,
        }
    }

    pub(super) fn grant_all<E>(
        &mut self,
        mut grant: impl FnMut(&Page, GrantRef) -> Result<GrantRef, E>,
    ) -> Result<(), E> {
        for (page, buffer) in self.pages.iter().zip(&mut self.buffers) {
            buffer.gref = GrantRef0(grant(page, buffer.gref.0)?);
        }
        Ok(())
    }

    /// A fresh ring. What was under way is lost, as frames may be.
    pub(super) fn reset(&mut self) {
        self.ring.reset();
        for buffer in &mut self.buffers {
            buffer.under_way = false;
            buffer.serial = buffer.serial.wrapping_add(1);
        }
    }

    /// Buffers that hold no frame.
    pub(super) fn free(&self) -> usize {
        let free = |buffer: &&Buffer| !buffer.under_way;
        self.buffers.iter().filter(free).count()
    }

    /// Puts a frame on the ring, a page a slot.
    pub(super) fn send(&mut self, frame: &[u8], how: Transmit) -> Result<(), NetError> {
        let parts = frame.len().div_ceil(PAGE_BYTES);
        let sendable = 1..=XEN_NETIF_MAX_TX_SIZE.min(XEN_NETIF_NR_SLOTS_MIN * PAGE_BYTES);
        if !sendable.contains(&frame.len()) || parts > N {
            return Err(NetError::Length(frame.len()));
        }
        let slots = parts + usize::from(how.gso.is_some());
        if self.free() < parts || (self.ring.free() as usize) < slots {
            return Err(NetError::Busy);
        }
        for (index, part) in frame.chunks(PAGE_BYTES).enumerate() {
            let (size, mut flags) = match index {
                0 => (frame.len(), first_flags(how)),
                _ => (part.len(), 0),
            };
            if index + 1 < parts {
                flags |= NETTXF_MORE_DATA;
            }
            self.send_part(part, size, flags)?;
            if let (0, Some(gso)) = (index, how.gso) {
                let [low, high] = gso.size.to_le_bytes();
                let extra = NetifExtraInfo {
                    kind: XEN_NETIF_EXTRA_TYPE_GSO,
                    flags: 0,
                    u: [low, high, gso.kind, 0, 0, 0],
                };
                self.ring.push(&extra).ok_or(NetError::Busy)?;
            }
        }
        Ok(())
    }

    fn send_part(&mut self, part: &[u8], size: usize, flags: u16) -> Result<(), NetError> {
        let free = |buffer: &Buffer| !buffer.under_way;
        let index = self.buffers.iter().position(free).ok_or(NetError::Busy)?;
        let buffer = &mut self.buffers[index];
        let written = self.pages[index].write(0, part);
        written.ok_or(NetError::Length(part.len()))?;
        buffer.serial = buffer.serial.wrapping_add(1);
        buffer.under_way = true;
        let request = NetifTxRequest {
            gref: buffer.gref.0.0,
            offset: 0,
            flags,
            id: id(index, buffer.serial),
            size: u16::try_from(size).map_err(|_| NetError::Length(size))?,
        };
        self.ring.push(&request).ok_or(NetError::Busy)
    }

    /// Takes what the back end has answered.
    pub(super) fn take_responses(&mut self) -> Result<(), NetError> {
        loop {
            while let Some(response) = self.ring.pop::<NetifTxResponse>()? {
                // A slot of extra information is answered so, without number.
                if response.status != NETIF_RSP_NULL {
                    self.complete(response)?;
                }
            }
            if !self.ring.arm() {
                return Ok(());
            }
        }
    }

    fn complete(&mut self, response: NetifTxResponse) -> Result<(), NetError> {
        let wrong = NetError::Response { id: response.id };
        let index = usize::from(response.id.as_bytes()[0]);
        let buffer = self.buffers.get_mut(index).ok_or(wrong)?;
        if !buffer.under_way || id(index, buffer.serial) != response.id {
            return Err(wrong);
        }
        buffer.under_way = false;
        self.failed += u64::from(response.status != NETIF_RSP_OKAY);
        Ok(())
    }
}

/// A request's number: the buffer and how often it was used.
#[allow(clippy::cast_possible_truncation)] // below 256
fn id(buffer: usize, serial: u8) -> u16 {
    u16::from_le_bytes([buffer as u8, serial])
}

fn first_flags(how: Transmit) -> u16 {
    let checksum = match how.checksum {
        Checksum::Complete => 0,
        Checksum::Validated => NETTXF_DATA_VALIDATED,
        Checksum::Blank => NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED,
    };
    let extra = if how.gso.is_some() {
        NETTXF_EXTRA_INFO
    } else {
        0
    };
    checksum | extra
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;

    use zerocopy::FromBytes;

    use super::{super::Gso, *};
    use crate::kernel::page::tests::{alias, host_page};

    fn queue() -> (TxQueue<4>, Page) {
        let ring = host_page();
        let back = alias(&ring);
        (
            TxQueue::new(ring, core::array::from_fn(|_| host_page())),
            back,
        )
    }

    fn request(back: &Page, index: usize) -> NetifTxRequest {
        let mut bytes = [0; 12];
        back.read(64 + index * 12, &mut bytes).expect("in the page");
        NetifTxRequest::read_from_bytes(&bytes).expect("its size")
    }

    fn answer(back: &Page, index: usize, id: u16, status: i16) {
        let response = NetifTxResponse { id, status };
        let written = back.write(64 + index * 12, response.as_bytes());
        written.expect("in the page");
        let produced = u32::try_from(index).expect("small") + 1;
        back.word(8)
            .expect("there")
            .store(produced, Ordering::SeqCst);
    }

    #[test]
    fn a_large_frame_takes_several_slots() {
        let (mut queue, back) = queue();
        let how = Transmit {
            checksum: Checksum::Blank,
            gso: Some(Gso {
                size: 1448,
                kind: 1,
            }),
        };
        queue.send(&[1; 9000], how).expect("room");
        let _ = queue.ring.publish();
        let first = request(&back, 0);
        assert_eq!((first.size, first.flags), (9000, 1 | 2 | 4 | 8));
        let (second, third) = (request(&back, 2), request(&back, 3));
        assert_eq!((second.size, second.flags), (4096, NETTXF_MORE_DATA));
        assert_eq!((third.size, third.flags), (808, 0));
        assert_eq!(
            queue.send(&[1; 5000], Transmit::default()),
            Err(NetError::Busy)
        );
        answer(&back, 0, first.id, 0);
        answer(&back, 1, 0xffff, NETIF_RSP_NULL);
        answer(&back, 2, second.id, 0);
        answer(&back, 3, third.id, -1);
        queue.take_responses().expect("as asked");
        assert_eq!((queue.free(), queue.failed), (4, 1));
    }

    #[test]
    fn lengths_that_cannot_be() {
        let (mut queue, _) = queue();
        for length in [0, 65536, 4 * 4096 + 1] {
            let sent = queue.send(&std_zeroes()[..length], Transmit::default());
            assert_eq!(sent, Err(NetError::Length(length)));
        }
    }

    fn std_zeroes() -> &'static [u8; 65536] {
        &[0; 65536]
    }

    #[test]
    fn answers_to_nothing_are_found_out() {
        let (mut queue, back) = queue();
        queue.send(b"x", Transmit::default()).expect("room");
        let _ = queue.ring.publish();
        let right = request(&back, 0).id;
        for id in [right ^ 1, right ^ 0x100, 0xffff] {
            let (mut queue, back) = self::queue();
            queue.send(b"x", Transmit::default()).expect("room");
            let _ = queue.ring.publish();
            answer(&back, 0, id, 0);
            assert_eq!(queue.take_responses(), Err(NetError::Response { id }));
        }
    }
}
