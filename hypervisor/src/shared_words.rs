//! Atomic words of memory that the hypervisor shares with a guest.
//!
//! Law: `shared_info`, `vcpu_info` and grant frames are written by every vCPU
//! of the guest at any moment. They are touched one aligned word at a time,
//! atomically, and every read-modify-write is one host instruction or a loop
//! with a bound (XSA-295). No reference into them outlives one access.

use guest_abi::addr::MachineAddr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

macro_rules! word_operations {
    ($with:ident, $atomic:ty, $word:ty, $load:ident, $store:ident, $swap:ident, $or:ident, $and:ident, $cas:ident) => {
        /// Reads the word; 0 where there is no memory.
        fn $load(&self, at: MachineAddr) -> $word {
            let mut value = 0;
            self.$with(at, &mut |word| value = word.load(Ordering::SeqCst));
            value
        }
        /// Writes the word.
        fn $store(&self, at: MachineAddr, value: $word) {
            self.$with(at, &mut |word| word.store(value, Ordering::SeqCst));
        }
        /// Writes the word and gives the old value.
        fn $swap(&self, at: MachineAddr, value: $word) -> $word {
            let mut old = 0;
            self.$with(at, &mut |word| old = word.swap(value, Ordering::SeqCst));
            old
        }
        /// Sets `bits` and gives the old value.
        fn $or(&self, at: MachineAddr, bits: $word) -> $word {
            let mut old = 0;
            self.$with(at, &mut |word| old = word.fetch_or(bits, Ordering::SeqCst));
            old
        }
        /// Keeps only `bits` and gives the old value.
        fn $and(&self, at: MachineAddr, bits: $word) -> $word {
            let mut old = 0;
            self.$with(at, &mut |word| old = word.fetch_and(bits, Ordering::SeqCst));
            old
        }
        /// Writes `new` if the word holds `old`.
        ///
        /// # Errors
        /// The value found instead; 0 where there is no memory.
        fn $cas(&self, at: MachineAddr, old: $word, new: $word) -> Result<(), $word> {
            let mut outcome = Err(0);
            self.$with(at, &mut |word| {
                outcome = word
                    .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                    .map(|_| ());
            });
            outcome
        }
    };
}

/// A domain's machine memory, as atomic words.
///
/// An implementation calls `op` once with the word at `at`, or not at all if
/// no memory is there or `at` is not aligned to the word's size. Users of this
/// trait have checked both beforehand; the silence is a second wall, not an
/// answer.
pub trait SharedWords: Send + Sync {
    /// Gives `op` the byte at `at`.
    fn with_u8(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU8));
    /// Gives `op` the 2-byte word at `at`.
    fn with_u16(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU16));
    /// Gives `op` the 4-byte word at `at`.
    fn with_u32(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU32));
    /// Gives `op` the 8-byte word at `at`.
    fn with_u64(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU64));

    word_operations!(
        with_u8,
        AtomicU8,
        u8,
        load_u8,
        store_u8,
        swap_u8,
        fetch_or_u8,
        fetch_and_u8,
        compare_exchange_u8
    );
    word_operations!(
        with_u16,
        AtomicU16,
        u16,
        load_u16,
        store_u16,
        swap_u16,
        fetch_or_u16,
        fetch_and_u16,
        compare_exchange_u16
    );
    word_operations!(
        with_u32,
        AtomicU32,
        u32,
        load_u32,
        store_u32,
        swap_u32,
        fetch_or_u32,
        fetch_and_u32,
        compare_exchange_u32
    );
    word_operations!(
        with_u64,
        AtomicU64,
        u64,
        load_u64,
        store_u64,
        swap_u64,
        fetch_or_u64,
        fetch_and_u64,
        compare_exchange_u64
    );
}

#[cfg(test)]
pub(crate) mod test_memory {
    //! Anonymous memory from machine address 0 on, for tests.

    use super::*;
    use vm_memory::{MmapRegion, VolatileMemory};

    /// Some pages of memory.
    pub(crate) struct Pages(MmapRegion<()>);

    impl Pages {
        pub(crate) fn new(pages: usize) -> Self {
            Pages(MmapRegion::new(pages * 4096).expect("anonymous memory"))
        }
        fn word<A: vm_memory::AtomicInteger>(&self, at: MachineAddr, op: &mut dyn FnMut(&A)) {
            let offset = usize::try_from(at.0).unwrap();
            if let Ok(word) = self.0.as_volatile_slice().get_atomic_ref::<A>(offset) {
                op(word);
            }
        }
    }

    impl SharedWords for Pages {
        fn with_u8(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU8)) {
            self.word(at, op);
        }
        fn with_u16(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU16)) {
            self.word(at, op);
        }
        fn with_u32(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU32)) {
            self.word(at, op);
        }
        fn with_u64(&self, at: MachineAddr, op: &mut dyn FnMut(&AtomicU64)) {
            self.word(at, op);
        }
    }

    #[test]
    fn no_memory_reads_zero_and_never_compares_equal() {
        let pages = Pages::new(1);
        pages.store_u64(MachineAddr(4096), 1);
        assert_eq!(pages.load_u64(MachineAddr(4096)), 0);
        assert_eq!(pages.compare_exchange_u64(MachineAddr(4096), 0, 1), Err(0));
        assert_eq!(pages.compare_exchange_u64(MachineAddr(8), 0, 1), Ok(()));
        assert_eq!(pages.fetch_or_u8(MachineAddr(8), 2), 1);
        assert_eq!(pages.fetch_and_u16(MachineAddr(8), 1), 3);
        assert_eq!(pages.swap_u32(MachineAddr(8), 9), 1);
    }
}
