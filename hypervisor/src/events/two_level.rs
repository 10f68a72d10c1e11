//! The 2-level ABI: 4096 ports as two bitmaps in `shared_info`, with a word of
//! selectors and a flag in each `vcpu_info`.
//!
//! ```text
//! vcpu_info.evtchn_upcall_pending   1 byte: look at the selectors
//!   evtchn_pending_sel              bit w: look at word w
//!     shared_info.evtchn_pending[w] bit b: port 64*w + b is pending,
//!     shared_info.evtchn_mask[w]      and is reported unless masked here
//! ```
//!
//! The hypervisor sets bits from the bottom up, the guest takes them from the
//! top down: whoever sets the topmost one that was clear kicks the vCPU.

use super::{EventError, EventSink, VcpuInfoArea, vcpu_info::VCPU_INFO_BYTES};
use crate::shared_words::SharedWords;
use guest_abi::{
    addr::{DomId, MachineAddr, Mfn, Port, VcpuId},
    event_channel::EVTCHN_2L_NR_CHANNELS,
    xen::{SharedInfo, VcpuInfo, XEN_LEGACY_MAX_VCPUS},
};
use std::{mem::offset_of, sync::Arc};

/// Ports that the bitmaps hold.
pub const MAX_PORTS: u32 = EVTCHN_2L_NR_CHANNELS;
const PENDING: u64 = offset_of!(SharedInfo, evtchn_pending) as u64;
const MASK: u64 = offset_of!(SharedInfo, evtchn_mask) as u64;
const UPCALL_MASK: u64 = offset_of!(VcpuInfo, evtchn_upcall_mask) as u64;

/// How a vCPU learns that somebody wants it.
///
/// Called with the lock of the domain's event table held, from any thread,
/// the vCPU's own included.
pub trait VcpuWaker: Send + Sync {
    /// The vCPU's `evtchn_upcall_pending` went from 0 to 1. If it sleeps (in
    /// block or in a poll) and does not mask its upcall, it shall wake; if it
    /// runs, it shall leave the guest and look. If it is about to sleep, it
    /// must not: the wake-up has to stick until the sleeper sees it.
    fn kick(&self, vcpu: VcpuId);
    /// As [`kick`](Self::kick), but a vCPU that runs may look when it next leaves
    /// the guest by itself.
    fn nudge(&self, vcpu: VcpuId) {
        self.kick(vcpu);
    }
    /// What a [nudge](Self::nudge) has left to wait waits no longer.
    fn hurry(&self, _vcpu: VcpuId) {}
    /// A port that the vCPU polls became pending: its poll ends, whatever it
    /// masks. This has to stick too.
    fn end_poll(&self, vcpu: VcpuId);
}

/// Event delivery to a guest.
pub struct TwoLevel {
    words: Arc<dyn SharedWords>,
    shared_info: MachineAddr,
    areas: Vec<VcpuInfoArea>,
    waker: Arc<dyn VcpuWaker>,
}

impl TwoLevel {
    /// Delivery to the `vcpus` vCPUs of a domain whose zeroed `shared_info`
    /// frame is given. Every slot's upcall starts masked.
    ///
    /// `waker` should not own the domain: the domain owns this.
    ///
    /// # Panics
    /// If `shared_info` is not a frame number below 2^40.
    #[must_use]
    pub fn new(
        words: Arc<dyn SharedWords>,
        shared_info: Mfn,
        vcpus: u32,
        waker: Arc<dyn VcpuWaker>,
    ) -> Self {
        let base = shared_info
            .addr()
            .expect("shared_info is a frame of the domain");
        let slot = |vcpu: u32| MachineAddr(base.0 + u64::from(vcpu) * VCPU_INFO_BYTES);
        let slots = u32::try_from(XEN_LEGACY_MAX_VCPUS).unwrap_or(0);
        for vcpu in 0..slots {
            words.store_u8(MachineAddr(slot(vcpu).0 + UPCALL_MASK), 1);
        }
        let area = |vcpu| VcpuInfoArea::new(VcpuId(vcpu), (vcpu < slots).then(|| slot(vcpu)));
        TwoLevel {
            words,
            shared_info: base,
            areas: (0..vcpus).map(area).collect(),
            waker,
        }
    }

    /// The `vcpu_info` of `vcpu`.
    #[must_use]
    pub fn area(&self, vcpu: VcpuId) -> Option<&VcpuInfoArea> {
        self.areas.get(usize::try_from(vcpu.0).ok()?)
    }

    /// The memory that the areas lie in.
    #[must_use]
    pub fn words(&self) -> &dyn SharedWords {
        &*self.words
    }

    /// Whether `vcpu` has events, masked or not.
    #[must_use]
    pub fn pending(&self, vcpu: VcpuId) -> bool {
        self.area(vcpu)
            .is_some_and(|area| area.pending(self.words()))
    }

    /// Whether `vcpu` masks its upcall.
    #[must_use]
    pub fn masked(&self, vcpu: VcpuId) -> bool {
        self.area(vcpu).is_none_or(|area| area.masked(self.words()))
    }

    /// Sets the upcall mask of `vcpu` and gives the old one: 1 when an event
    /// is bounced to the guest, the saved byte on `iret`.
    pub fn set_mask(&self, vcpu: VcpuId, mask: u8) -> u8 {
        self.area(vcpu)
            .map_or(1, |area| area.set_mask(self.words(), mask))
    }

    /// Writes the fault address that `vcpu` reads.
    pub fn set_cr2(&self, vcpu: VcpuId, cr2: u64) {
        if let Some(area) = self.area(vcpu) {
            area.set_cr2(self.words(), cr2);
        }
    }

    /// `VCPUOP_register_vcpu_info`: see [`VcpuInfoArea::register`]. The caller
    /// has checked that `vcpu` is the calling one or down, and holds a writable
    /// reference on `frame` for as long as the domain lives.
    ///
    /// # Errors
    /// `ENOENT` for an unknown vCPU, `EINVAL` as `VcpuInfoArea::register`.
    pub fn register(&self, vcpu: VcpuId, frame: Mfn, offset: u32) -> Result<(), EventError> {
        let area = self.area(vcpu).ok_or(EventError::NoSuchVcpu {
            dom: DomId::SELF,
            vcpu,
        })?;
        area.register(self.words(), frame, offset)?;
        self.waker.kick(vcpu);
        Ok(())
    }

    /// The lowest ports, at most `max`, that are pending and not masked.
    #[must_use]
    pub fn reported(&self, max: usize) -> Vec<u32> {
        let ports = (0..MAX_PORTS / 64).flat_map(|word| {
            let (pending, _) = self.bitmap_word(PENDING, Port(word * 64));
            let (mask, _) = self.bitmap_word(MASK, Port(word * 64));
            let bits = self.words.load_u64(pending) & !self.words.load_u64(mask);
            (0..64)
                .filter(move |bit| bits >> bit & 1 != 0)
                .map(move |bit| word * 64 + bit)
        });
        ports.take(max).collect()
    }

    /// The lowest port that is pending and masked.
    #[must_use]
    pub fn masked_pending(&self) -> Option<Port> {
        (0..MAX_PORTS / 64).find_map(|word| {
            let (pending, _) = self.bitmap_word(PENDING, Port(word * 64));
            let (mask, _) = self.bitmap_word(MASK, Port(word * 64));
            let bits = self.words.load_u64(pending) & self.words.load_u64(mask);
            (bits != 0).then(|| Port(word * 64 + bits.trailing_zeros()))
        })
    }

    fn bitmap_word(&self, bitmap: u64, port: Port) -> (MachineAddr, u64) {
        debug_assert!(port.0 < MAX_PORTS);
        let word = u64::from(port.0 % MAX_PORTS / 64);
        (
            MachineAddr(self.shared_info.0 + bitmap + word * 8),
            1 << (port.0 % 64),
        )
    }

    fn is_masked(&self, port: Port) -> bool {
        let (at, bit) = self.bitmap_word(MASK, port);
        self.words.load_u64(at) & bit != 0
    }

    /// Whether this is news to the vCPU.
    fn report(&self, port: Port, vcpu: VcpuId) -> bool {
        self.area(vcpu)
            .is_some_and(|area| area.select(self.words(), port.0 / 64))
    }

    /// Marks `port` pending and calls `tell` if that is news to `vcpu`.
    /// `false` if the port was pending already.
    fn mark(&self, port: Port, vcpu: VcpuId, tell: impl FnOnce()) -> bool {
        let (at, bit) = self.bitmap_word(PENDING, port);
        if self.words.fetch_or_u64(at, bit) & bit != 0 {
            return false;
        }
        if !self.is_masked(port) && self.report(port, vcpu) {
            tell();
        }
        true
    }
}

impl EventSink for TwoLevel {
    fn max_ports(&self) -> u32 {
        MAX_PORTS
    }

    fn set_pending(&self, port: Port, vcpu: VcpuId) -> bool {
        let marked = self.mark(port, vcpu, || self.waker.kick(vcpu));
        // No news, perhaps, because of a mark that was not urgent. This is.
        self.waker.hurry(vcpu);
        marked
    }

    fn set_pending_soon(&self, port: Port, vcpu: VcpuId) -> bool {
        self.mark(port, vcpu, || self.waker.nudge(vcpu))
    }

    fn clear_pending(&self, port: Port) {
        let (at, bit) = self.bitmap_word(PENDING, port);
        self.words.fetch_and_u64(at, !bit);
    }

    fn is_pending(&self, port: Port) -> bool {
        let (at, bit) = self.bitmap_word(PENDING, port);
        self.words.load_u64(at) & bit != 0
    }

    fn unmask(&self, port: Port, vcpu: VcpuId) {
        let (at, bit) = self.bitmap_word(MASK, port);
        let was_masked = self.words.fetch_and_u64(at, !bit) & bit != 0;
        if was_masked && self.is_pending(port) && self.report(port, vcpu) {
            self.waker.kick(vcpu);
        }
    }

    fn deliverable(&self, vcpu: VcpuId) -> bool {
        self.pending(vcpu) && !self.masked(vcpu)
    }

    fn wake_poller(&self, vcpu: VcpuId) {
        self.waker.end_poll(vcpu);
    }
}
