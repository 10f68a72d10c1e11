//! Memory that the guest writes too.
//!
//! Law: no reference into it exists, ever. It is read and written by value,
//! through [`SharedMemory::slice`], whose accesses are volatile or atomic.

use std::{alloc::Layout, fmt, ptr::NonNull};

use vm_memory::VolatileSlice;

/// Memory shared with a guest: a mapping of granted pages, or plain memory in
/// a test.
///
/// # Safety
/// `as_ptr()` points to `len()` bytes that stay mapped and readable (and
/// writable, if that is what the mapping was made for) while `self` lives, at
/// the same address, and that nobody makes Rust references to.
pub unsafe trait SharedMemory: Send + Sync {
    /// Where it is mapped; page-aligned.
    fn as_ptr(&self) -> *mut u8;

    /// Its bytes.
    fn len(&self) -> usize;

    /// Whether there is none of it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Volatile, atomic and bounds-checked access.
    fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the trait promises that the bytes are mapped while `self`
        // lives, and the slice can't outlive the borrow.
        unsafe { VolatileSlice::new(self.as_ptr(), self.len()) }
    }
}

// SAFETY: the box keeps its content where it is.
unsafe impl<M: SharedMemory + ?Sized> SharedMemory for Box<M> {
    fn as_ptr(&self) -> *mut u8 {
        (**self).as_ptr()
    }
    fn len(&self) -> usize {
        (**self).len()
    }
}

// SAFETY: the counted pointer keeps its content where it is.
unsafe impl<M: SharedMemory + ?Sized> SharedMemory for std::sync::Arc<M> {
    fn as_ptr(&self) -> *mut u8 {
        (**self).as_ptr()
    }
    fn len(&self) -> usize {
        (**self).len()
    }
}

/// Zeroed pages of this process, which play a guest's in tests.
pub struct PlainMemory {
    start: NonNull<u8>,
    layout: Layout,
}

impl PlainMemory {
    /// So many pages.
    ///
    /// # Panics
    /// When there is no memory.
    #[must_use]
    pub fn pages(count: usize) -> Self {
        let layout = Layout::from_size_align(count.max(1) * 4096, 4096).expect("a small size");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).expect("memory for a test");
        Self { start, layout }
    }
}

impl Drop for PlainMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `pages` with the same layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for PlainMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlainMemory({} bytes)", self.layout.size())
    }
}

// SAFETY: it is plain memory, reached only through volatile slices.
unsafe impl Send for PlainMemory {}
// SAFETY: as above.
unsafe impl Sync for PlainMemory {}

// SAFETY: allocated in `pages`, freed in `drop`.
unsafe impl SharedMemory for PlainMemory {
    fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    fn len(&self) -> usize {
        self.layout.size()
    }
}
