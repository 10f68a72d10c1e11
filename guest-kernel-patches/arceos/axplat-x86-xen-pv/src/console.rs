//! The PV console; before it is found, and in a domain that has none, the
//! hypervisor's.

use axplat::console::ConsoleIf;
use guest_abi::kernel::{console, hypercall, sched::SpinLock};

/// One vCPU at a time.
static WRITER: SpinLock = SpinLock::new();
static READER: SpinLock = SpinLock::new();

struct Console;

#[impl_plat_interface]
impl ConsoleIf for Console {
    /// Lines end with `\r\n`, as on ArceOS' serial lines.
    fn write_bytes(bytes: &[u8]) {
        let _guard = WRITER.lock();
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            match line.split_last() {
                Some((b'\n', rest)) => {
                    write(rest);
                    write(b"\r\n");
                }
                _ => write(line),
            }
        }
    }

    fn read_bytes(bytes: &mut [u8]) -> usize {
        let _guard = READER.lock();
        console::ring_read(bytes)
    }

    #[cfg(feature = "irq")]
    fn irq_num() -> Option<usize> {
        console::port().map(|port| port.0 as usize)
    }
}

fn write(bytes: &[u8]) {
    if console::ring().is_null() {
        // Guests may be kept off the hypervisor's console.
        let _ = hypercall::console_io_write(bytes);
    } else {
        console::ring_write(bytes);
    }
}
