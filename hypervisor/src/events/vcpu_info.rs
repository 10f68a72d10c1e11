//! Where a vCPU's `vcpu_info` lies, and its event fields.
//!
//! The first 32 vCPUs of a domain start with a slot in `shared_info`; later
//! ones start with none. Once in its life a vCPU may name a place of its own
//! (`VCPUOP_register_vcpu_info`).
//!
//! Law: the place changes under the write side of a lock whose read side every
//! access holds. So an event goes to the old place, and is copied, or to the
//! new one.

use super::EventError;
use crate::shared_words::SharedWords;
use guest_abi::{
    addr::{MachineAddr, Mfn, PAGE_SIZE, VcpuId},
    arch_x86_64::ArchVcpuInfo,
    xen::VcpuInfo,
};
use std::{
    mem::offset_of,
    sync::{PoisonError, RwLock},
};

/// The size of a `vcpu_info`.
pub const VCPU_INFO_BYTES: u64 = size_of::<VcpuInfo>() as u64;

const UPCALL_PENDING: u64 = offset_of!(VcpuInfo, evtchn_upcall_pending) as u64;
const UPCALL_MASK: u64 = offset_of!(VcpuInfo, evtchn_upcall_mask) as u64;
const PENDING_SEL: u64 = offset_of!(VcpuInfo, evtchn_pending_sel) as u64;
const CR2: u64 = (offset_of!(VcpuInfo, arch) + offset_of!(ArchVcpuInfo, cr2)) as u64;
const TIME: u64 = offset_of!(VcpuInfo, time) as u64;

#[derive(Debug, Clone, Copy)]
struct Place {
    at: Option<MachineAddr>,
    registered: bool,
}

/// The place of one vCPU's `vcpu_info`.
#[derive(Debug)]
pub struct VcpuInfoArea {
    vcpu: VcpuId,
    place: RwLock<Place>,
}

impl VcpuInfoArea {
    /// The area of `vcpu`, in its slot of the `shared_info` at that address if
    /// it has one.
    #[must_use]
    pub fn new(vcpu: VcpuId, slot: Option<MachineAddr>) -> Self {
        VcpuInfoArea {
            vcpu,
            place: RwLock::new(Place {
                at: slot,
                registered: false,
            }),
        }
    }

    /// Calls `op` with the area's address, which stays the area's meanwhile.
    pub fn with<R>(&self, op: impl FnOnce(MachineAddr) -> R) -> Option<R> {
        let place = self.place.read().unwrap_or_else(PoisonError::into_inner);
        place.at.map(op)
    }

    /// The vCPU's pvclock: the `time` field.
    pub fn with_time<R>(&self, op: impl FnOnce(MachineAddr) -> R) -> Option<R> {
        self.with(|at| op(field(at, TIME)))
    }

    /// Marks events of selector word `word` pending; `true` if the vCPU did
    /// not know yet that it has any.
    pub(super) fn select(&self, words: &dyn SharedWords, word: u32) -> bool {
        self.with(|at| {
            let bit = 1u64 << (word & 63);
            words.fetch_or_u64(field(at, PENDING_SEL), bit) & bit == 0
                && words.fetch_or_u8(field(at, UPCALL_PENDING), 1) & 1 == 0
        })
        .unwrap_or(false)
    }

    /// Whether events are pending, masked or not.
    #[must_use]
    pub fn pending(&self, words: &dyn SharedWords) -> bool {
        self.with(|at| words.load_u8(field(at, UPCALL_PENDING)) != 0)
            .unwrap_or(false)
    }

    /// Whether the vCPU has masked its upcall. One without an area has.
    #[must_use]
    pub fn masked(&self, words: &dyn SharedWords) -> bool {
        self.with(|at| words.load_u8(field(at, UPCALL_MASK)) != 0)
            .unwrap_or(true)
    }

    /// Sets the upcall mask and gives the old one, as the byte that a bounce
    /// frame saves.
    pub fn set_mask(&self, words: &dyn SharedWords, mask: u8) -> u8 {
        self.with(|at| words.swap_u8(field(at, UPCALL_MASK), mask))
            .unwrap_or(1)
    }

    /// Tells the guest the address of a page fault.
    pub fn set_cr2(&self, words: &dyn SharedWords, cr2: u64) {
        self.with(|at| words.store_u64(field(at, CR2), cr2));
    }

    /// Moves the area to `offset` in `frame`, where the caller holds a writable
    /// reference, and marks everything pending: a spurious event is harmless,
    /// a lost one is not.
    ///
    /// # Errors
    /// `EINVAL` for a second time, and for a place that crosses the frame's end
    /// or is not aligned to 8 bytes.
    pub fn register(
        &self,
        words: &dyn SharedWords,
        frame: Mfn,
        offset: u32,
    ) -> Result<(), EventError> {
        let bad = EventError::InfoMisplaced(offset);
        if u64::from(offset) > PAGE_SIZE - VCPU_INFO_BYTES || !offset.is_multiple_of(8) {
            return Err(bad);
        }
        let Some(to) = frame.addr().and_then(|at| at.checked_add(offset.into())) else {
            return Err(bad);
        };
        let mut place = self.place.write().unwrap_or_else(PoisonError::into_inner);
        if place.registered {
            return Err(EventError::InfoRegistered(self.vcpu));
        }
        fill(words, place.at, to);
        words.store_u64(field(to, PENDING_SEL), u64::MAX);
        words.store_u8(field(to, UPCALL_PENDING), 1);
        *place = Place {
            at: Some(to),
            registered: true,
        };
        Ok(())
    }
}

/// Copies the old area, or starts a new one with its upcall masked.
fn fill(words: &dyn SharedWords, from: Option<MachineAddr>, to: MachineAddr) {
    for offset in (0..VCPU_INFO_BYTES).step_by(8) {
        let value = from.map_or(0, |from| words.load_u64(field(from, offset)));
        words.store_u64(field(to, offset), value);
    }
    if from.is_none() {
        words.store_u8(field(to, UPCALL_MASK), 1);
    }
}

fn field(at: MachineAddr, offset: u64) -> MachineAddr {
    // No frame's address comes near the end of the number.
    MachineAddr(at.0.wrapping_add(offset))
}
