//! Receiving: empty pages out, filled pages back. No hypercall here.
//!
//! Law: a response belongs to the request at the same place of the ring (slots
//! of extra information have no number), whatever number it says. Parts of a
//! frame are noted, each once, until the frame is whole; then they are copied
//! out and their pages go back on the ring.

use super::{Checksum, Gso, NetError, Received};
use crate::{
    addr::GrantRef,
    kernel::{
        front_ring::FrontRing,
        page::{PAGE_BYTES, Page},
    },
    netif::{
        NETIF_RX_RING_SLOTS, NETIF_RX_SLOT_SIZE, NETRXF_CSUM_BLANK, NETRXF_DATA_VALIDATED,
        NETRXF_EXTRA_INFO, NETRXF_MORE_DATA, NetifExtraInfo, NetifRxRequest, NetifRxResponse,
        XEN_NETIF_EXTRA_FLAG_MORE, XEN_NETIF_EXTRA_TYPE_GSO, XEN_NETIF_NR_SLOTS_MIN,
    },
};
use zerocopy::{FromBytes, IntoBytes};

const SLOTS: usize = NETIF_RX_RING_SLOTS as usize;

/// A part of a frame: where it lies.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    buffer: usize,
    offset: usize,
    length: usize,
}

/// What is known of the frame that is coming in.
#[derive(Debug, Default)]
struct Frame {
    parts: [Part; XEN_NETIF_NR_SLOTS_MIN],
    count: usize,
    length: usize,
    flags: u16,
    gso: Option<Gso>,
    /// The next slot is extra information.
    extra: bool,
    /// Something is wrong with it: it is taken in and dropped.
    bad: bool,
}

#[derive(Debug)]
pub(super) struct RxQueue<const N: usize> {
    pub(super) ring: FrontRing,
    pages: [Page; N],
    grants: [GrantRef; N],
    /// The buffer posted at each place of the ring.
    posted: [u16; SLOTS],
    /// Buffers that are not posted.
    idle: [bool; N],
    frame: Frame,
    pub(super) dropped: u64,
}

impl<const N: usize> RxQueue<N> {
    const FITS: () = assert!(N > 0 && N <= SLOTS, "1 to 256 buffers");

    pub(super) fn new(ring: Page, pages: [Page; N]) -> Self {
        let () = Self::FITS;
        Self {
            ring: FrontRing::new(ring, NETIF_RX_SLOT_SIZE),
            pages,
            grants: [GrantRef(0); N],
            posted: [0; SLOTS],
            idle: [true; N],
            frame: Frame::default(),
            dropped: 0,
        }
    }

    pub(super) fn grant_all<E>(
        &mut self,
        mut grant: impl FnMut(&Page, GrantRef) -> Result<GrantRef, E>,
    ) -> Result<(), E> {
        for (page, gref) in self.pages.iter().zip(&mut self.grants) {
            *gref = grant(page, *gref)?;
        }
        Ok(())
    }

    /// A fresh ring with all buffers on it; a frame half here is lost.
    pub(super) fn replay(&mut self) {
        self.ring.reset();
        self.idle = [true; N];
        self.frame = Frame::default();
        self.post();
    }

    /// Puts all idle buffers on the ring.
    pub(super) fn post(&mut self) {
        for buffer in 0..N {
            if self.idle[buffer] {
                self.post_one(buffer);
            }
        }
    }

    #[allow(clippy::cast_possible_truncation)] // below 256
    fn post_one(&mut self, buffer: usize) {
        let place = self.ring.next_request() as usize % SLOTS;
        let request = NetifRxRequest {
            id: place as u16,
            gref: self.grants[buffer].0,
            ..Default::default()
        };
        if self.ring.push(&request).is_some() {
            self.posted[place] = buffer as u16;
            self.idle[buffer] = false;
        }
    }

    /// The next whole frame, copied to `to`.
    pub(super) fn receive(&mut self, to: &mut [u8]) -> Result<Option<Received>, NetError> {
        loop {
            let place = self.ring.next_response() as usize % SLOTS;
            let Some(bytes) = self.ring.pop::<[u8; NETIF_RX_SLOT_SIZE]>()? else {
                if self.ring.arm() {
                    continue;
                }
                return Ok(None);
            };
            let buffer = usize::from(self.posted[place]);
            if self.take_slot(buffer, bytes) {
                let frame = core::mem::take(&mut self.frame);
                let received = self.copy_out(&frame, to);
                self.post();
                if received.is_some() {
                    return Ok(received);
                }
                self.dropped += 1;
            }
        }
    }

    /// One slot. `true`: the frame is whole.
    fn take_slot(&mut self, buffer: usize, bytes: [u8; NETIF_RX_SLOT_SIZE]) -> bool {
        let frame = &mut self.frame;
        if frame.extra {
            // Its buffer was not used.
            self.idle[buffer] = true;
            let info: NetifExtraInfo = zerocopy::transmute!(bytes);
            frame.take_extra(&info);
        } else {
            let response = NetifRxResponse::read_from_bytes(bytes.as_bytes());
            let response = response.unwrap_or_default();
            if !frame.take_part(buffer, &response) {
                self.idle[buffer] = true;
            }
        }
        !frame.extra && frame.flags & NETRXF_MORE_DATA == 0
    }

    /// A whole frame; its buffers are idle then. `None`: it was bad.
    fn copy_out(&mut self, frame: &Frame, to: &mut [u8]) -> Option<Received> {
        let fits = !frame.bad && frame.count > 0 && frame.length <= to.len();
        let mut at = 0;
        let mut copied = fits;
        for part in &frame.parts[..frame.count] {
            self.idle[part.buffer] = true;
            if fits {
                let room = &mut to[at..at + part.length];
                copied &= self.pages[part.buffer].read(part.offset, room).is_some();
                at += part.length;
            }
        }
        copied.then_some(Received {
            length: frame.length,
            checksum: match frame.flags {
                flags if flags & NETRXF_CSUM_BLANK != 0 => Checksum::Blank,
                flags if flags & NETRXF_DATA_VALIDATED != 0 => Checksum::Validated,
                _ => Checksum::Complete,
            },
            gso: frame.gso,
        })
    }
}

impl Frame {
    /// A slot with data. `false`: its buffer is not needed.
    fn take_part(&mut self, buffer: usize, response: &NetifRxResponse) -> bool {
        let first = self.count == 0 && !self.bad;
        // The checksum's flags are the first slot's.
        let kept = if first { response.flags } else { self.flags };
        self.flags = kept & !NETRXF_MORE_DATA | response.flags & NETRXF_MORE_DATA;
        self.extra = first && response.flags & NETRXF_EXTRA_INFO != 0;
        let offset = usize::from(response.offset);
        let length = usize::try_from(response.status);
        let inside = |&length: &usize| length > 0 && offset + length <= PAGE_BYTES;
        let part = length.ok().filter(inside).map(|length| Part {
            buffer,
            offset,
            length,
        });
        let (Some(part), Some(place)) = (part, self.parts.get_mut(self.count)) else {
            self.bad = true;
            return false;
        };
        *place = part;
        self.count += 1;
        self.length += part.length;
        true
    }

    fn take_extra(&mut self, info: &NetifExtraInfo) {
        self.extra = info.flags & XEN_NETIF_EXTRA_FLAG_MORE != 0;
        if info.kind == XEN_NETIF_EXTRA_TYPE_GSO {
            self.gso = Some(Gso {
                size: u16::from_le_bytes([info.u[0], info.u[1]]),
                kind: info.u[2],
            });
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::sync::atomic::Ordering;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::kernel::page::tests::{alias, host_page};

    struct Back {
        ring: Page,
        pages: Vec<Page>,
        at: u32,
    }

    fn queue() -> (RxQueue<8>, Back) {
        let ring = host_page();
        let pages: [Page; 8] = core::array::from_fn(|_| host_page());
        let back = Back {
            ring: alias(&ring),
            pages: pages.iter().map(alias).collect(),
            at: 0,
        };
        let mut queue = RxQueue::new(ring, pages);
        queue.replay();
        let _ = queue.ring.publish();
        (queue, back)
    }

    impl Back {
        fn put(&mut self, bytes: &[u8]) {
            let at = 64 + self.at as usize % SLOTS * NETIF_RX_SLOT_SIZE;
            self.ring.write(at, bytes).expect("in the page");
            self.at += 1;
            let produced = self.ring.word(8).expect("in the page");
            produced.store(self.at, Ordering::SeqCst);
        }

        fn data(&mut self, offset: u16, flags: u16, status: i16) {
            let response = NetifRxResponse {
                id: 0xdead,
                offset,
                flags,
                status,
            };
            self.put(response.as_bytes());
        }
    }

    #[test]
    fn a_frame_over_three_slots_with_extra_information() {
        let (mut queue, mut back) = queue();
        back.pages[0].write(100, b"he").expect("in the page");
        back.pages[2].write(0, b"ll").expect("in the page");
        back.pages[3].write(4095, b"o").expect("in the page");
        let mut to = [0; 64];
        back.data(
            100,
            NETRXF_MORE_DATA | NETRXF_EXTRA_INFO | NETRXF_CSUM_BLANK,
            2,
        );
        assert_eq!(queue.receive(&mut to), Ok(None), "not whole yet");
        back.put(&[XEN_NETIF_EXTRA_TYPE_GSO, 0, 0xb4, 5, 1, 0, 0, 0]);
        back.data(0, NETRXF_MORE_DATA, 2);
        back.data(4095, 0, 1);
        let received = queue.receive(&mut to).expect("no lie").expect("whole");
        assert_eq!(&to[..received.length], b"hello");
        assert_eq!(received.checksum, Checksum::Blank);
        assert_eq!(
            received.gso,
            Some(Gso {
                size: 1460,
                kind: 1
            })
        );
        assert_eq!(queue.ring.under_way(), 8, "all buffers are back");
    }

    #[test]
    fn parts_outside_their_page_are_dropped() {
        for (offset, status) in [(4096, 1), (1, 4096), (u16::MAX, i16::MAX), (0, 0), (0, -1)] {
            let (mut queue, mut back) = queue();
            back.data(offset, 0, status);
            back.data(0, 0, 5);
            let received = queue.receive(&mut [0; 64]).expect("no lie");
            assert_eq!(received.expect("the good one").length, 5);
            assert_eq!((queue.dropped, queue.ring.under_way()), (1, 8));
        }
    }

    #[test]
    fn a_frame_that_does_not_fit_or_never_ends_is_dropped() {
        let (mut queue, mut back) = queue();
        back.data(0, 0, 65);
        assert_eq!(queue.receive(&mut [0; 64]), Ok(None));
        assert_eq!(queue.dropped, 1);
        for _ in 0..40 {
            back.data(0, NETRXF_MORE_DATA, 4096);
            let _ = queue.receive(&mut [0; 64]);
            queue.post();
            let _ = queue.ring.publish();
            if queue.ring.under_way() == 0 {
                break;
            }
        }
        assert!(queue.frame.count <= XEN_NETIF_NR_SLOTS_MIN);
    }

    proptest! {
        /// Slots of anything: no panic, and no buffer is lost or used twice.
        #[test]
        fn a_hostile_back_end(slots in proptest::collection::vec(any::<[u8; 8]>(), 0..300)) {
            let (mut queue, mut back) = queue();
            for slot in slots {
                if queue.ring.under_way() == 0 {
                    break;
                }
                back.put(&slot);
                let _ = queue.receive(&mut [0; 9000]);
                queue.post();
                let _ = queue.ring.publish();
                let held = queue.frame.count;
                let idle = queue.idle.iter().filter(|&&idle| idle).count();
                prop_assert_eq!(queue.ring.under_way() as usize + held + idle, 8);
            }
        }
    }
}
