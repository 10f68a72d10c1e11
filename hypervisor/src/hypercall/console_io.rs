//! `console_io`.

use super::{Done, Outcome};
use crate::{guest_access::GuestAccess, vcpu::Vcpu};
use guest_abi::{
    addr::GuestVirt,
    errno::Errno,
    xen::{CONSOLEIO_READ, CONSOLEIO_WRITE},
};

/// Bytes copied at a time.
const CHUNK: usize = 1024;
/// Bytes that one call may write: a guest can't keep us copying.
const MOST: u32 = 64 << 10;

/// `HYPERVISOR_console_io(cmd, count, buffer)`: the hypervisor's console, which `xm dmesg` shows.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `count`: bytes.
/// - `buffer`: their address.
///
/// # Operations
/// ## `CONSOLEIO_WRITE`
/// Appends to the console's ring, each line marked with the domain. Printable ASCII and tabs come through.
///
/// Errors: `E2BIG`: more than 64 KiB. `EFAULT`: what could be read before is written.
/// ## `CONSOLEIO_READ`
/// The control domain's.
///
/// Errors: `EPERM`: always.
///
/// # Errors
/// - `ENOSYS`: an unknown operation.
/// - `E2BIG`, `EPERM`, `EFAULT`: see the operations.
///
/// # Left out
/// - Reading.
///
/// # Guards against
/// - A flood: the ring is bounded, and a call copies at most 64 KiB.
/// - Escape sequences on the operator's terminal.
///
/// # Source
/// - Xen: `public/xen.h`
/// - Here: `console.rs`
pub(super) fn console_io(vcpu: &mut Vcpu, cmd: u32, count: u32, buffer: GuestVirt) -> Outcome {
    match cmd {
        CONSOLEIO_WRITE if count > MOST => Err(Errno::E2BIG),
        CONSOLEIO_WRITE => write(vcpu, count, buffer),
        CONSOLEIO_READ => Err(Errno::EPERM),
        _ => Err(Errno::ENOSYS),
    }
}

fn write(vcpu: &mut Vcpu, count: u32, buffer: GuestVirt) -> Outcome {
    let mut chunk = [0; CHUNK];
    let mut done = 0;
    while done < count as usize {
        let part = &mut chunk[..CHUNK.min(count as usize - done)];
        let from = buffer.checked_add(done as u64).ok_or(Errno::EFAULT)?;
        vcpu.access().read_bytes(from, part)?;
        vcpu.domain.host.console.guest_write(vcpu.domain.id, part);
        done += part.len();
    }
    Ok(Done::Value(0))
}
