//! What the interpreter needs to know of the domain's machine memory.

use super::host::FramePtr;
use guest_abi::addr::Mfn;

/// What guest code may do with a frame, whatever its page tables say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameUse {
    /// Nothing: the frame holds tables of the hypervisor's, to be walked only.
    Walk,
    /// Read and execute: the machine-to-phys table, frames granted read-only.
    Read,
    /// Everything.
    Write,
}

/// One frame, as the hypervisor process sees it.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Where it is mapped.
    pub ptr: FramePtr,
    /// What guest code may do with it.
    pub usage: FrameUse,
}

/// The domain's frames.
///
/// The interpreter keeps what it learns here in its caches:
/// [`translation_epoch`](Self::translation_epoch) says when to drop it. This is
/// the second wall: a page-table entry that names a frame not given out here
/// cannot be used, however it came to be.
pub trait GuestPhys: Send + Sync {
    /// The frame `mfn`; `None` if the domain has no such memory. (Making a
    /// [`FramePtr`] is what needs `unsafe`, and the promise that it lasts.)
    fn frame(&self, mfn: Mfn) -> Option<Frame>;

    /// Guest code is about to write to this frame, and may go on doing so
    /// until the translations are dropped. Called once per translation, not
    /// once per write.
    fn wrote(&self, mfn: Mfn);

    /// A number that changes whenever a translation may have become stale: a
    /// page-table entry was changed or a frame went away. Looked at when
    /// `run` begins.
    fn translation_epoch(&self) -> u64;

    /// Asks for a frame's bytes to hold still: if so,
    /// [`still_epoch`](Self::still_epoch) changes before they do, or, if the hypervisor itself
    /// writes them, right after that. May say no at any time, and does not wait.
    fn hold_still(&self, mfn: Mfn) -> bool;

    /// A number that changes whenever a frame that was to hold still may change. Looked
    /// at when `run` begins.
    fn still_epoch(&self) -> u64;
}
