//! A domain's memory, copied frame by frame when it is first used.

use crate::{
    interp::{Frame, FramePtr, GuestPhys},
    space::Space,
};
use guest_abi::addr::{MachineAddr, Mfn};
use std::{
    collections::{HashMap, hash_map::Entry},
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Bytes of a frame.
const BYTES: usize = 4096;

/// A frame's bytes, as aligned as the frame: aligned operands of the guest's are
/// executed in place.
#[derive(Clone, PartialEq, Eq)]
#[repr(align(4096))]
struct Page([u8; BYTES]);

/// One frame: what it held at first, and what was made of it.
struct Copied {
    before: Box<Page>,
    now: NonNull<Page>,
    written: bool,
}

impl Copied {
    fn new(before: Box<Page>) -> Option<Self> {
        let now = NonNull::new(Box::into_raw(before.clone()))?;
        Some(Copied {
            before,
            now,
            written: false,
        })
    }

    /// What was made of it.
    fn now(&self) -> &[u8; BYTES] {
        // SAFETY: a live box, and no interpreter is running.
        &unsafe { self.now.as_ref() }.0
    }

    /// Offset, the byte now, and before.
    fn bytes(&self) -> impl Iterator<Item = (u64, u8, u8)> {
        let bytes = self.now().iter().zip(&self.before.0);
        (0u64..)
            .zip(bytes)
            .map(|(offset, (now, before))| (offset, *now, *before))
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // SAFETY: `now` came from `Box::into_raw` and is freed nowhere else; the
        // interpreter that used it has dropped its translations.
        drop(unsafe { Box::from_raw(self.now.as_ptr()) });
    }
}

/// See the module. Its methods but those of [`GuestPhys`] are not called while an
/// interpreter runs on it.
pub struct CopiedPhys {
    space: Arc<Space>,
    /// Where a frame's first contents come from, if they are there.
    source: Option<Arc<CopiedPhys>>,
    frames: Mutex<HashMap<u64, Copied>>,
    /// A frame of another domain's was asked for.
    foreign: AtomicBool,
}

// SAFETY: the frames' pointers are used by one interpreter, on the thread that
// owns it and this.
unsafe impl Send for CopiedPhys {}
// SAFETY: as above; the map is behind a lock.
unsafe impl Sync for CopiedPhys {}

impl CopiedPhys {
    /// Of this memory, nothing of it copied. What `source` has copied is as it
    /// found it.
    pub fn new(space: Arc<Space>, source: Option<Arc<CopiedPhys>>) -> Self {
        CopiedPhys {
            space,
            source,
            frames: Mutex::default(),
            foreign: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Copied>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all copies. The interpreter has no translations any more.
    pub fn reset(&self) {
        self.lock().clear();
        self.foreign.store(false, Relaxed);
    }

    /// Undoes what was made of the copies. The interpreter has no translations any
    /// more.
    pub fn rewind(&self) {
        for frame in self.lock().values_mut() {
            // SAFETY: two live boxes, and no interpreter is running.
            unsafe { frame.now.write((*frame.before).clone()) };
            frame.written = false;
        }
    }

    /// Puts a byte there, as if it had been there.
    pub fn plant(&self, at: MachineAddr, byte: u8) -> bool {
        if self.frame(at.frame()).is_none() {
            return false;
        }
        let offset = usize::try_from(at.0 & 0xfff).unwrap_or(0);
        if let Some(frame) = self.lock().get_mut(&(at.0 >> 12)) {
            // SAFETY: within a live box, and no interpreter is running.
            unsafe { frame.now.cast::<u8>().add(offset).write(byte) };
            frame.before.0[offset] = byte;
        }
        true
    }

    /// Whether a frame was needed that is not the domain's own: such are not copied.
    pub fn met_foreign(&self) -> bool {
        self.foreign.load(Relaxed)
    }

    /// Whether one of these bytes, which nothing here has changed, is no longer what it
    /// was when it was copied.
    pub fn changed_behind(&self, others: impl Fn(MachineAddr) -> bool) -> bool {
        self.lock().iter().any(|(mfn, frame)| {
            let mut theirs = Page([0; BYTES]);
            let base = MachineAddr(mfn << 12);
            if self.space.memory.read(base, &mut theirs.0).is_none() || theirs == *frame.before {
                return false;
            }
            frame
                .bytes()
                .zip(theirs.0)
                .any(|((offset, now, before), theirs)| {
                    now == before && theirs != before && others(MachineAddr(base.0 + offset))
                })
        })
    }

    /// Whether what both have copied was the same at first.
    pub fn began_as(&self, other: &CopiedPhys, but: Option<MachineAddr>) -> bool {
        let (ours, theirs) = (self.lock(), other.lock());
        ours.iter().all(|(mfn, frame)| {
            let Some(other) = theirs.get(mfn) else {
                return true;
            };
            frame.before == other.before
                || (0u64..)
                    .zip(frame.before.0.iter().zip(&other.before.0))
                    .all(|(offset, (a, b))| {
                        a == b || but == Some(MachineAddr((mfn << 12) + offset))
                    })
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
                let mut theirs = Page([0; BYTES]);
                self.space
                    .memory
                    .read(MachineAddr(mfn << 12), &mut theirs.0)?;
                frame
                    .bytes()
                    .zip(theirs.0)
                    .find_map(|((offset, now, before), theirs)| {
                        let at = MachineAddr((mfn << 12) + offset);
                        (now != before && now != theirs && !others(at)).then(|| {
                            format!(
                                "frame {mfn:#x} offset {offset:#x}: {now:#x} here, {theirs:#x} on KVM"
                            )
                        })
                    })
            })
    }

    /// A byte that was changed, and not as another copy has changed it.
    pub fn differs_from(&self, other: &CopiedPhys) -> Option<String> {
        let (ours, theirs) = (self.lock(), other.lock());
        ours.keys().chain(theirs.keys()).find_map(|mfn| {
            let frame = |frames: &HashMap<u64, Copied>, default: &HashMap<u64, Copied>| {
                let unused = |frame: &Copied| (frame.before.clone(), frame.before.0);
                let used = |frame: &Copied| (frame.before.clone(), *frame.now());
                let found = frames.get(mfn).map(used);
                found.or_else(|| default.get(mfn).map(unused))
            };
            let (before_a, a) = frame(&ours, &theirs)?;
            let (before_b, b) = frame(&theirs, &ours)?;
            (0..BYTES).find_map(|n| {
                let changed = a[n] != before_a.0[n] || b[n] != before_b.0[n];
                (changed && a[n] != b[n]).then(|| {
                    format!(
                        "frame {mfn:#x} offset {n:#x}: {:#x} here, {:#x} there",
                        a[n], b[n]
                    )
                })
            })
        })
    }

    /// What a frame held at first, if it is here.
    fn first_contents(&self, mfn: Mfn) -> Option<Box<Page>> {
        Some(self.lock().get(&mfn.0)?.before.clone())
    }

    fn copy(&self, mfn: Mfn) -> Option<Box<Page>> {
        if let Some(page) = self.source.as_ref().and_then(|it| it.first_contents(mfn)) {
            return Some(page);
        }
        let mut page = Box::new(Page([0; BYTES]));
        self.space.memory.read(mfn.addr()?, &mut page.0)?;
        Some(page)
    }
}

impl GuestPhys for CopiedPhys {
    fn frame(&self, mfn: Mfn) -> Option<Frame> {
        let usage = self.space.frame(mfn)?.usage;
        let mut frames = self.lock();
        let now = match frames.entry(mfn.0) {
            Entry::Occupied(copied) => copied.get().now,
            Entry::Vacant(place) => {
                let Some(page) = self.copy(mfn) else {
                    self.foreign.store(true, Relaxed);
                    return None;
                };
                place.insert(Copied::new(page)?).now
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

    fn hold_still(&self, _: Mfn) -> bool {
        // A copy is as old as its stretch.
        false
    }

    fn still_epoch(&self) -> u64 {
        0
    }

    fn translation_epoch(&self) -> u64 {
        self.space.translation_epoch()
    }
}
