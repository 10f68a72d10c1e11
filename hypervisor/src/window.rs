//! The foreign window: where a VM finds the pages that others granted it.
//!
//! ```text
//! machine frames of the mapping VM        this process
//! window's first  +------------------+    +------------------+
//!                 | one slot a grant | == | page of the      |  <- memory file of
//!                 +------------------+    | granting domain  |     the granting domain
//!                 | unused           | == | no access        |
//!                 +------------------+    +------------------+
//! ```
//!
//! It is one memory slot of the VM, made when the domain first maps a grant and
//! never changed: a change of slots makes a KVM that shadows page tables forget
//! them all. What changes is what lies behind a frame of it: KVM follows the
//! mappings of this process, and on return of the system call that takes a page
//! away no vCPU reaches it any more. So the second wall holds for grants as well: the VM
//! holds the granted page, read-only if it was granted so, for as long as it is
//! mapped, and nothing else of the other domain.
//!
//! Laws:
//! - Nobody in this process accesses the window: it belongs to KVM. The
//!   process reaches the pages through the granting domain's own memory, while
//!   it holds the use of the grant.
//! - A frame's use of the grant ends after the page has left the window.

use crate::grants::Granted;
use guest_abi::addr::{Mfn, PAGE_SIZE};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::{
    collections::HashMap,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Frames of a window.
pub const WINDOW_FRAMES: usize = 2048;

/// Pages in the windows of all domains. Each is a mapping of its own in this
/// process, which may have some 65530 of them.
const MOST_OPEN: usize = 16_384;

static OPEN: AtomicUsize = AtomicUsize::new(0);

const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// Why a page could not be put into a window.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// All frames are in use.
    #[error("all {WINDOW_FRAMES} frames for mapped grants are in use")]
    Full,
    /// All domains together have too many.
    #[error("all domains together have {MOST_OPEN} grants mapped")]
    TooManyOpen,
    /// The frame cannot be mapped into another VM.
    #[error("{0:?} of the granting domain lies in no file")]
    NoPlace(Mfn),
    /// The kernel refused.
    #[error("a granted page cannot be mapped: {0}")]
    Map(#[from] nix::Error),
}

#[derive(Default)]
struct Frames {
    open: HashMap<usize, Arc<Granted>>,
    free: Vec<usize>,
    /// Frames from here on were never used.
    fresh: usize,
}

/// See the [module](self).
pub struct ForeignWindow {
    first: Mfn,
    host: NonNull<u8>,
    frames: Mutex<Frames>,
}

impl std::fmt::Debug for ForeignWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.frames().open.len();
        write!(f, "{open} of {WINDOW_FRAMES} frames from {:?}", self.first)
    }
}

// SAFETY: the range belongs to this object until it is dropped; this process
// does not access it.
unsafe impl Send for ForeignWindow {}
// SAFETY: as above; what is mapped where is guarded by `frames`.
unsafe impl Sync for ForeignWindow {}

impl ForeignWindow {
    /// A window without pages, for machine frames from `first` on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(first: Mfn) -> Result<Self, WindowError> {
        let len = NonZeroUsize::new(WINDOW_FRAMES * PAGE).ok_or(WindowError::Full)?;
        // SAFETY: a new range, wherever the kernel finds room.
        let host = unsafe { mmap_anonymous(None, len, ProtFlags::PROT_NONE, hidden()) }?;
        Ok(ForeignWindow {
            first,
            host: host.cast(),
            frames: Mutex::default(),
        })
    }

    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first machine frame.
    #[must_use]
    pub fn first(&self) -> Mfn {
        self.first
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        WINDOW_FRAMES as u64 * PAGE_SIZE
    }

    /// Where it lies in this process, for KVM.
    #[must_use]
    pub fn host_address(&self) -> *mut u8 {
        self.host.as_ptr()
    }

    fn index(&self, mfn: Mfn) -> Option<usize> {
        let index = usize::try_from(mfn.checked_offset_from(self.first)?).ok()?;
        (index < WINDOW_FRAMES).then_some(index)
    }

    /// Whether `mfn` is one of its frames.
    #[must_use]
    pub fn contains(&self, mfn: Mfn) -> bool {
        self.index(mfn).is_some()
    }

    /// The grant that is mapped at a frame. Whoever drops the last of these
    /// must hold no lock.
    #[must_use]
    pub fn granted(&self, mfn: Mfn) -> Option<Arc<Granted>> {
        self.with_granted(mfn, Arc::clone)
    }

    /// Calls `f` with the grant that is mapped at a frame.
    pub fn with_granted<R>(&self, mfn: Mfn, f: impl FnOnce(&Arc<Granted>) -> R) -> Option<R> {
        let index = self.index(mfn)?;
        self.frames().open.get(&index).map(f)
    }

    /// Puts a granted page into the window.
    ///
    /// # Errors
    /// [`WindowError`]; then all is as before.
    pub fn open(self: &Arc<Self>, granted: &Arc<Granted>) -> Result<WindowPage, WindowError> {
        let quota = Quota::take()?;
        let mut frames = self.frames();
        let index = match frames.free.pop() {
            Some(index) => index,
            None if frames.fresh < WINDOW_FRAMES => {
                frames.fresh += 1;
                frames.fresh - 1
            }
            None => return Err(WindowError::Full),
        };
        if let Err(error) = self.show(index, granted) {
            frames.free.push(index);
            return Err(error);
        }
        frames.open.insert(index, Arc::clone(granted));
        drop(frames);
        Ok(WindowPage {
            window: Arc::clone(self),
            index,
            _quota: quota,
        })
    }

    fn address(&self, index: usize) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.host.as_ptr() as usize + index * PAGE)
    }

    fn show(&self, index: usize, granted: &Granted) -> Result<(), WindowError> {
        let no_place = || WindowError::NoPlace(granted.frame());
        let place = granted.granter().memory().place(granted.frame());
        let place = place.ok_or_else(no_place)?;
        let offset = i64::try_from(place.offset).map_err(|_| no_place())?;
        let rights = if granted.is_writable() {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        let length = NonZeroUsize::new(PAGE).ok_or(WindowError::Full)?;
        let how = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: replaces one page of our range, which nobody accesses but KVM.
        unsafe { mmap(self.address(index), length, rights, how, place.file, offset) }?;
        Ok(())
    }

    /// Takes the page away from KVM.
    fn hide(&self, index: usize) -> Result<(), WindowError> {
        let length = NonZeroUsize::new(PAGE).ok_or(WindowError::Full)?;
        let how = hidden() | MapFlags::MAP_FIXED;
        // SAFETY: as in `show`.
        unsafe { mmap_anonymous(self.address(index), length, ProtFlags::PROT_NONE, how) }?;
        Ok(())
    }
}

fn hidden() -> MapFlags {
    MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE
}

impl Drop for ForeignWindow {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and no vCPU runs that could reach it:
        // the VM goes with its domain, whose vCPU threads have ended.
        let _ = unsafe { munmap(self.host.cast(), WINDOW_FRAMES * PAGE) };
    }
}

/// A page in a window. Dropped, it leaves the window; only then may the use
/// of the grant end.
#[derive(Debug)]
pub struct WindowPage {
    window: Arc<ForeignWindow>,
    index: usize,
    _quota: Quota,
}

impl WindowPage {
    /// The machine frame.
    #[must_use]
    pub fn frame(&self) -> Mfn {
        Mfn(self.window.first.0 + self.index as u64)
    }
}

impl Drop for WindowPage {
    fn drop(&mut self) {
        let mut frames = self.window.frames();
        let hidden = self.window.hide(self.index);
        let granted = frames.open.remove(&self.index);
        match hidden {
            Ok(()) => frames.free.push(self.index),
            Err(error) => {
                // The page stays where the VM can reach it, so the use of the
                // grant may not end: it is kept for good, and so is the frame.
                tracing::error!(%error, "a granted page could not be taken out of its window");
                std::mem::forget(granted.clone());
            }
        }
        drop(frames);
        drop(granted);
    }
}

/// One of [`MOST_OPEN`].
#[derive(Debug)]
struct Quota;

impl Quota {
    fn take() -> Result<Self, WindowError> {
        let more = |open| (open < MOST_OPEN).then_some(open + 1);
        OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map(|_| Quota)
            .map_err(|_| WindowError::TooManyOpen)
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}
