//! A domain's memory, copied frame by frame when it is first used.

use crate::{
    interp::{Frame, FramePtr, GuestPhys},
    space::Space,
};
use guest_abi::addr::{MachineAddr, Mfn};
use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bytes of a frame.
const BYTES: usize = 4096;

/// A frame's bytes, as aligned as the frame: aligned operands of the guest's are
/// executed in place.
#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; BYTES]);

/// One frame: what it held at first, and what was made of it.
struct Copied {
    before: Box<Page>,
    now: NonNull<Page>,
    written: bool,
}

impl Drop for Copied {
    fn drop(&mut self) {
        // SAFETY: `now` came from `Box::into_raw` and is freed nowhere else; the
        // interpreter that used it has dropped its translations.
        drop(unsafe { Box::from_raw(self.now.as_ptr()) });
    }
}

/// See the module.
pub struct CopiedPhys {
    space: Arc<Space>,
    frames: Mutex<HashMap<u64, Copied>>,
}

// SAFETY: the frames' pointers are used by one interpreter, on the thread that
// owns it and this.
unsafe impl Send for CopiedPhys {}
// SAFETY: as above; the map is behind a lock.
unsafe impl Sync for CopiedPhys {}

impl CopiedPhys {
    /// Of this memory, nothing of it copied.
    pub fn new(space: Arc<Space>) -> Self {
        CopiedPhys {
            space,
            frames: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Copied>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all copies. The interpreter has no translations any more.
    pub fn reset(&self) {
        self.lock().clear();
    }

    /// Whether these bytes of a frame, if it was copied, are those of memory.
    pub fn agrees(&self, bytes: &Range<u64>) -> bool {
        let frames = self.lock();
        let Some(frame) = frames.get(&(bytes.start >> 12)) else {
            return true;
        };
        // SAFETY: a live box; the interpreter is not running.
        let now = &unsafe { frame.now.as_ref() }.0;
        bytes.clone().all(|at| {
            let mut theirs = [0];
            let ours = usize::try_from(at & 0xfff).ok().and_then(|n| now.get(n));
            self.space
                .memory
                .read(MachineAddr(at), &mut theirs)
                .is_none()
                || ours == theirs.first()
        })
    }

    /// A byte that was changed here to something else than memory holds, other than one
    /// that somebody else writes at any time.
    pub fn first_difference(&self, others: impl Fn(MachineAddr) -> bool) -> Option<String> {
        let frames = self.lock();
        frames
            .iter()
            .filter(|(_, frame)| frame.written)
            .find_map(|(mfn, frame)| {
                // SAFETY: a live box; the interpreter is not running.
                let now = &unsafe { frame.now.as_ref() }.0;
                let bytes = now.iter().zip(&frame.before.0);
                (0u64..).zip(bytes).find_map(|(offset, (now, before))| {
                    if now == before {
                        return None;
                    }
                    let at = MachineAddr((mfn << 12) + offset);
                    let mut theirs = [0];
                    self.space.memory.read(at, &mut theirs)?;
                    (*now != theirs[0] && !others(at)).then(|| {
                        format!(
                            "frame {mfn:#x} offset {offset:#x}: {now:#x} interpreted, {:#x} on KVM",
                            theirs[0]
                        )
                    })
                })
            })
    }
}

impl GuestPhys for CopiedPhys {
    fn frame(&self, mfn: Mfn) -> Option<Frame> {
        let usage = self.space.frame(mfn)?.usage;
        let mut frames = self.lock();
        let now = match frames.entry(mfn.0) {
            Entry::Occupied(copied) => copied.get().now,
            Entry::Vacant(place) => {
                let mut before = Box::new(Page([0; BYTES]));
                self.space.memory.read(mfn.addr()?, &mut before.0)?;
                let now = NonNull::new(Box::into_raw(before.clone()))?;
                let written = false;
                place
                    .insert(Copied {
                        before,
                        now,
                        written,
                    })
                    .now
            }
        };
        // SAFETY: the box lasts until `reset`, before which the interpreter drops
        // its translations, and nobody refers to it while the interpreter runs.
        let ptr = unsafe { FramePtr::new(now.cast()) };
        Some(Frame { ptr, usage })
    }

    fn wrote(&self, mfn: Mfn) {
        if let Some(frame) = self.lock().get_mut(&mfn.0) {
            frame.written = true;
        }
    }

    fn translation_epoch(&self) -> u64 {
        self.space.translation_epoch()
    }
}
