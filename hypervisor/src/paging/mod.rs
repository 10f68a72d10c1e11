//! Direct paging: what a guest may write into its page tables.
//!
//! A PV guest's page tables are the ones that the processor walks. The guest
//! reads them freely, names real frames in them, and may not write them: each
//! change is a request, checked here before it is made.
//!
//! # The two counts of a frame
//!
//! Every frame of the domain carries two counts. They answer two questions.
//!
//! The **reference count** answers *may this frame be given away?* It counts
//! whoever would be surprised to find another owner's data in the frame: the
//! domain itself, for as long as the frame is part of its reservation (the
//! *allocated* reference), each present page-table entry that names the frame,
//! each vCPU that has it as a root, a pin, a descriptor table in use, a grant
//! that is mapped. At zero the frame is free, and not a moment before.
//!
//! The **type count** answers *may this frame be used otherwise?* A frame has
//! one type at a time: writable, a page table of one level, a descriptor
//! table. The count tells how many uses rely on that: each writable mapping
//! relies on *writable*, each entry in an L2 relies on its target being a
//! checked L1, and so on. While it is above zero the type stands and a use of
//! another kind is refused; at zero the next use may choose. Since *writable*
//! and *page table* are different types, no frame is ever both, and that is
//! the whole safety argument of direct paging. A type reference is always
//! accompanied by a reference, so a frame with a type in use is never free.
//!
//! A frame becomes a page table by **validation**: the type is taken, stale
//! translations are flushed, and then, since the guest can now write it no
//! more, each entry is checked and its own references are taken, down to the
//! leaves. When the last type reference goes, **devalidation** returns them.
//! A **pin** is one reference of both kinds that the guest asks for, so that a
//! table stays checked while no vCPU uses it.
//!
//! # Laws
//!
//! - The levels bound the recursion: an L*n* refers to L*n-1* only. A table
//!   that refers to its own level (a "linear" mapping) is refused, as by a Xen
//!   with `pv-linear-pt=off`.
//! - There is no half-validated table. Validation runs to its end or undoes
//!   itself, and long work is cut between tables (`work.rs`).
//! - An operation that fails leaves all counts, and all types in use, as it
//!   found them. (Entries of a table whose validation failed may have gained
//!   the user bit, as on Xen.)
//! - All memory behind [`TableStore`] may have been changed by an attacker who
//!   broke a wall elsewhere. Then counts may become wrong, for that domain
//!   alone; an impossible decrement is reported and ignored. No value read from
//!   memory is used as an index without a range check.
//! - The caller holds the domain's `mm` lock around each call.
//!
//! # Reading order
//!
//! An entry's bits in `pte.rs`, the frame table in `frame.rs`, the counts in
//! `counts.rs`, validation in `validate.rs`; then the operations: `update.rs`,
//! `mmuext.rs`, `ptwr.rs`, `descriptor.rs`, `reserve.rs`, `relinquish.rs`;
//! `foreign.rs` for grants; `walk.rs` reads what the others wrote, `work.rs` keeps it all bounded,
//! `audit.rs` recounts it.

mod audit;
mod counts;
mod descriptor;
mod foreign;
mod frame;
mod low;
mod mmuext;
mod pte;
mod ptwr;
mod refusal;
mod relinquish;
mod reserve;
mod update;
mod validate;
mod walk;
mod work;

#[cfg(test)]
mod tests;

use guest_abi::{
    addr::{Mfn, VcpuId},
    errno::Errno,
};

pub use audit::{AuditError, HeldRef};
pub use foreign::GrantSlot;
pub use frame::FrameType;
pub use low::LowAccess;
pub use mmuext::VcpuRoots;
pub use pte::{Level, Pte};
pub use ptwr::{PtWrite, PtWriteOutcome};
pub use refusal::Refusal;
pub use relinquish::Relinquish;
pub use reserve::Released;
pub use update::UpdateMode;
pub use walk::{Slot, Translation};

use frame::FrameTable;
use mmuext::VcpuTables;
use work::Work;

/// Entries in a table.
pub const ENTRIES: usize = 512;

/// The first of the L4 slots that belong to the hypervisor.
pub const FIRST_HYPERVISOR_SLOT: usize = 256;
/// The last of the L4 slots that belong to the hypervisor.
pub const LAST_HYPERVISOR_SLOT: usize = 271;

/// The most frames of one domain (1 TiB).
pub const MAX_FRAMES: u64 = 1 << 28;

/// What the paging rules need from the world below them: the domain's memory
/// as tables of 512 entries, and the vCPUs' cached translations.
///
/// Law: the rules above this trait are pure; only an implementation of it
/// touches memory or a CPU. What it loads may have been written by an
/// attacker at any time, page-table frame or not: no caller may rest a check
/// on a value that it loaded earlier.
///
/// All methods are called with the domain's `mm` lock held: none may wait for
/// a vCPU that itself waits for that lock.
pub trait TableStore {
    /// One entry, read atomically. The caller has checked that `table` is RAM
    /// of the domain and `index < 512`.
    fn load(&self, table: Mfn, index: usize) -> u64;

    /// Writes one entry atomically and sees to it that no vCPU uses the old
    /// one once the calling vCPU enters the guest again. (An engine on a
    /// shadow-paging KVM has to repeat the write from inside the VM.)
    fn store(&self, table: Mfn, index: usize, value: u64);

    /// Like [`store`](Self::store), if the entry still holds `old`.
    ///
    /// # Errors
    /// The value found instead.
    fn compare_exchange(&self, table: Mfn, index: usize, old: u64, new: u64) -> Result<(), u64>;

    /// Called when `frame`'s type changes while a translation of its former
    /// life may still be cached: **after** the new type is taken and
    /// **before** its content is validated (XSA-401). On return no vCPU of the
    /// domain has any translation that it cached before the call: neither a
    /// writable one of a frame that is to be a table, nor a walk through a
    /// former table that is to be writable. That is a flush of the whole TLB
    /// of every vCPU, and [`Paging`] relies on it: other frames whose type
    /// was given up before this call change it without asking again.
    fn flush_writable(&self, frame: Mfn);

    /// Called when `frame`, which nobody could write, gets its first use of a type: from
    /// now on its bytes may change.
    fn use_begins(&self, frame: Mfn);

    /// Called when `frame` becomes a page table of any level (content about to
    /// be validated) so that an engine can drop what it cached of the frame's
    /// former life as a table.
    fn table_promoted(&self, frame: Mfn);

    /// Writes the hypervisor's own L4 entries (slots 256..=271) into `l4`,
    /// which has just become a validated L4 table.
    fn install_hypervisor_slots(&self, l4: Mfn);
}

/// One domain's frames, and the rules of what its guest may do with them.
///
/// Operations named after hypercalls return the errno that Xen gives for the
/// same cause and trace why. With a budget ([`set_budget`](Self::set_budget))
/// every one of them can fail with `ERESTART` and is then to be repeated.
pub struct Paging {
    frames: FrameTable,
    vcpus: Box<[VcpuTables]>,
    relinquish: Relinquish,
    work: Work,
}

impl Paging {
    /// A domain with RAM frames `base..base + frames`, none allocated, and
    /// `vcpus` vCPUs without roots.
    ///
    /// # Errors
    /// `EINVAL` for no or more than [`MAX_FRAMES`] frames, or a `base` out of
    /// proportion.
    pub fn new(base: Mfn, frames: u64, vcpus: usize) -> Result<Self, Errno> {
        let table = FrameTable::new(base, frames).map_err(|r| r.traced("new"))?;
        Ok(Self {
            frames: table,
            vcpus: vec![VcpuTables::default(); vcpus].into_boxed_slice(),
            relinquish: Relinquish::Alive,
            work: Work::new(),
        })
    }

    /// The type of a RAM frame and how many uses rely on it; `None` outside
    /// the domain's RAM.
    #[must_use]
    pub fn frame_type(&self, mfn: Mfn) -> Option<(FrameType, u32)> {
        let frame = self.frames.at(self.frames.index(mfn)?);
        Some((frame.frame_type(), frame.type_count()))
    }

    /// Whether nobody can write to the domain's frame `mfn` before
    /// [`TableStore::use_begins`] was called for it: it has no use as any type, and no vCPU
    /// has a translation left of when it had.
    #[must_use]
    pub fn holds_still(&self, mfn: Mfn) -> bool {
        self.frames.index(mfn).is_some_and(|index| {
            let frame = self.frames.at(index);
            frame.refs() > 0 && frame.type_count() == 0 && !self.frames.is_stale(frame)
        })
    }

    /// Whether `mfn` is a RAM frame of the domain that somebody refers to.
    #[must_use]
    pub fn owns(&self, mfn: Mfn) -> bool {
        self.frames
            .index(mfn)
            .is_some_and(|i| self.frames.at(i).refs() > 0)
    }

    /// Tells that every vCPU's whole TLB has just been flushed for another
    /// reason, which may spare a [`TableStore::flush_writable`].
    pub fn note_full_flush(&mut self) {
        self.frames.advance_epoch();
    }

    fn alive(&self) -> Result<(), Refusal> {
        match self.relinquish {
            Relinquish::Alive => Ok(()),
            _ => Err(Refusal::Dying),
        }
    }

    fn vcpu(&mut self, vcpu: VcpuId) -> Result<&mut VcpuTables, Refusal> {
        usize::try_from(vcpu.0)
            .ok()
            .and_then(|i| self.vcpus.get_mut(i))
            .ok_or(Refusal::NoVcpu { vcpu })
    }
}
