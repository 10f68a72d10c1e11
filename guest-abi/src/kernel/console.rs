//! Two consoles: the hypervisor's (`console_io`), there from the first
//! instruction, and the PV console's ring, which a person reads.
//!
//! ```no_run
//! use guest_abi::{kernel::console, kprintln};
//!
//! kprintln!("{} and {}", "both consoles", 2);
//! let mut keys = [0; 16];
//! let typed = console::ring_read(&mut keys);
//! assert!(typed <= keys.len());
//! ```

use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicPtr, AtomicU32, Ordering},
};

use super::{boot, event, hypercall, sched, time};
use crate::{
    addr::{Mfn, Port},
    console::{XENCONS_IN_SIZE, XENCONS_OUT_SIZE, XenconsInterface},
    xen::SIF_INITDOMAIN,
};

static RING: AtomicPtr<XenconsInterface> = AtomicPtr::new(core::ptr::null_mut());
static PORT: AtomicU32 = AtomicU32::new(0);
/// One writer at a time, so that lines of several vCPUs do not mix.
static WRITER: sched::SpinLock = sched::SpinLock::new();

/// How long a full ring is waited for before bytes are dropped, in ns.
const PATIENCE: u64 = 2_000_000_000;

/// Finds the console ring; without one, only the hypervisor's console is written.
pub fn attach_ring(boot: &super::Boot) {
    let info = boot.start_info();
    if info.flags & SIF_INITDOMAIN != 0 {
        return; // The initial domain's console is the hypervisor's.
    }
    if let Some(pfn) = boot::mfn_to_pfn(Mfn(info.console_mfn)) {
        PORT.store(info.console_evtchn, Ordering::Relaxed);
        RING.store(boot::pfn_to_virt(pfn).0 as *mut _, Ordering::Release);
    }
}

/// The console's event channel; `None` without a ring.
#[must_use]
pub fn port() -> Option<Port> {
    let port = PORT.load(Ordering::Relaxed);
    (port != 0).then_some(Port(port))
}

/// The ring's page; null without one. Nothing in it may be borrowed.
#[must_use]
pub fn ring() -> *mut XenconsInterface {
    RING.load(Ordering::Acquire)
}

/// Writes to the ring, waiting for room for at most two seconds. Returns how
/// many bytes went in.
pub fn ring_write(bytes: &[u8]) -> usize {
    let ring = RING.load(Ordering::Acquire);
    if ring.is_null() {
        return 0;
    }
    let deadline = time::system_time().saturating_add(PATIENCE);
    let mut written = 0;
    while written < bytes.len() {
        // SAFETY: the ring's page is mapped for good.
        match unsafe { ring_put(ring, &bytes[written..]) } {
            0 if time::system_time() >= deadline => break,
            0 => sched::yield_now(),
            count => {
                written += count;
                notify();
            }
        }
    }
    written
}

/// Puts in what there is room for.
///
/// # Safety
/// `ring` must be the console's page.
unsafe fn ring_put(ring: *mut XenconsInterface, bytes: &[u8]) -> usize {
    // SAFETY: the fields lie in the page; the daemon changes `out_cons` only.
    unsafe {
        let cons = AtomicU32::from_ptr(&raw mut (*ring).out_cons).load(Ordering::Acquire);
        let prod = AtomicU32::from_ptr(&raw mut (*ring).out_prod);
        let start = prod.load(Ordering::Relaxed);
        let used = start.wrapping_sub(cons) as usize;
        let count = XENCONS_OUT_SIZE.saturating_sub(used).min(bytes.len());
        let data = (&raw mut (*ring).output).cast::<u8>();
        let mut at = start;
        for &byte in &bytes[..count] {
            data.add(at as usize % XENCONS_OUT_SIZE)
                .write_volatile(byte);
            at = at.wrapping_add(1);
        }
        prod.store(at, Ordering::Release);
        count
    }
}

/// Takes what has come in on the ring, as much as fits into `buffer`.
pub fn ring_read(buffer: &mut [u8]) -> usize {
    let ring = RING.load(Ordering::Acquire);
    if ring.is_null() {
        return 0;
    }
    // SAFETY: the ring's page is mapped for good.
    let count = unsafe { ring_take(ring, buffer) };
    if count > 0 {
        notify();
    }
    count
}

/// Takes what is there, never more than a ring holds.
///
/// # Safety
/// `ring` must be the console's page.
unsafe fn ring_take(ring: *mut XenconsInterface, buffer: &mut [u8]) -> usize {
    // SAFETY: the fields lie in the page; the daemon changes `in_prod` and the
    // bytes, and nothing here is believed of them.
    unsafe {
        let prod = AtomicU32::from_ptr(&raw mut (*ring).in_prod).load(Ordering::Acquire);
        let cons = AtomicU32::from_ptr(&raw mut (*ring).in_cons);
        let start = cons.load(Ordering::Relaxed);
        let waiting = (prod.wrapping_sub(start) as usize).min(XENCONS_IN_SIZE);
        let count = waiting.min(buffer.len());
        let data = (&raw const (*ring).input).cast::<u8>();
        let mut at = start;
        for slot in &mut buffer[..count] {
            *slot = data.add(at as usize % XENCONS_IN_SIZE).read_volatile();
            at = at.wrapping_add(1);
        }
        cons.store(at, Ordering::Release);
        count
    }
}

/// Tells the daemon to look at the ring.
pub fn notify() {
    if let Some(port) = port() {
        // A daemon that is gone is no reason to stop.
        let _ = event::send(port);
    }
}

/// Both consoles as one [`Write`], a line at a time to the hypervisor's.
struct Both {
    line: [u8; 120],
    used: usize,
}

impl Both {
    fn flush(&mut self) {
        // Guests may be kept off the hypervisor's console: the ring has it all.
        let _ = hypercall::console_io_write(&self.line[..self.used]);
        ring_write(&self.line[..self.used]);
        self.used = 0;
    }
}

impl Write for Both {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == self.line.len() {
                self.flush();
            }
            self.line[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// Prints on both consoles; what [`kprintln!`](crate::kprintln) calls.
pub fn print(args: fmt::Arguments<'_>) {
    let _guard = WRITER.lock();
    print_unlocked(args);
}

/// Prints without waiting for another writer, for a kernel that is going down.
pub fn print_unlocked(args: fmt::Arguments<'_>) {
    let mut both = Both {
        line: [0; 120],
        used: 0,
    };
    let _ = both.write_fmt(args);
    both.flush();
}

/// Prints a line on both consoles.
#[macro_export]
macro_rules! kprintln {
    ($($arg:tt)*) => {
        $crate::kernel::console::print(::core::format_args!(
            "{}\n", ::core::format_args!($($arg)*)
        ))
    };
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    proptest! {
        /// Whatever the indices are: no byte outside the rings, never more than
        /// a ring holds, and our indices move by what was moved.
        #[test]
        fn a_daemon_whose_indices_are_anything(
            indices in any::<[u32; 4]>(), bytes in 0usize..5000, room in 0usize..5000,
        ) {
            let mut page = XenconsInterface::new_zeroed();
            [page.in_cons, page.in_prod, page.out_cons, page.out_prod] = indices;
            let [in_cons, in_prod, out_cons, out_prod] = indices;
            let (text, mut buffer) = (std::vec![b'x'; bytes], std::vec![0; room]);
            let ring = &raw mut page;
            // SAFETY: a page of this test's.
            let (put, taken) = unsafe { (ring_put(ring, &text), ring_take(ring, &mut buffer)) };
            let free = XENCONS_OUT_SIZE.saturating_sub(out_prod.wrapping_sub(out_cons) as usize);
            prop_assert_eq!(put, bytes.min(free));
            let waiting = in_prod.wrapping_sub(in_cons) as usize;
            prop_assert_eq!(taken, waiting.min(XENCONS_IN_SIZE).min(room));
            prop_assert_eq!(page.out_prod.wrapping_sub(out_prod) as usize, put);
            prop_assert_eq!(page.in_cons.wrapping_sub(in_cons) as usize, taken);
            prop_assert_eq!((page.out_cons, page.in_prod), (out_cons, in_prod));
            prop_assert_eq!(page.output.iter().filter(|&&byte| byte == b'x').count(), put);
        }
    }
}
