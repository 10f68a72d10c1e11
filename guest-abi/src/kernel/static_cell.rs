//! Static memory, handed out once: large buffers without an allocator and
//! without a large stack.

use core::{
    cell::UnsafeCell,
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

/// A static value that one taker gets for good.
///
/// ```
/// use guest_abi::kernel::static_cell::StaticCell;
/// static BUFFER: StaticCell<[u8; 65536]> = StaticCell::new([0; 65536]);
/// let buffer: &'static mut [u8; 65536] = BUFFER.take().expect("taken once");
/// buffer[0] = 1;
/// assert!(BUFFER.take().is_none());
/// ```
pub struct StaticCell<T> {
    value: UnsafeCell<T>,
    taken: AtomicBool,
}

// SAFETY: the one reference that is ever made goes to one taker.
unsafe impl<T: Send> Sync for StaticCell<T> {}

impl<T> StaticCell<T> {
    /// A value that nobody has taken.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self {
            value: UnsafeCell::new(value),
            taken: AtomicBool::new(false),
        }
    }

    /// The value, the first time.
    #[allow(clippy::mut_from_ref)] // Only ever one, by the flag.
    #[must_use]
    pub fn take(&'static self) -> Option<&'static mut T> {
        let first = !self.taken.swap(true, Ordering::Acquire);
        // SAFETY: once in the static's life, by the flag.
        first.then(|| unsafe { &mut *self.value.get() })
    }
}

impl<T> fmt::Debug for StaticCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = self.taken.load(Ordering::Relaxed);
        write!(f, "StaticCell(taken: {taken})")
    }
}
