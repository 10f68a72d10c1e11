//! `physdev_op`.

use super::{OK, Outcome};
use crate::{guest_access::GuestAccessExt, vcpu::Vcpu};
use guest_abi::{
    addr::GuestVirt,
    errno::Errno,
    physdev::{PHYSDEVOP_SET_IOBITMAP, PHYSDEVOP_SET_IOPL, PhysdevSetIopl},
};

/// `HYPERVISOR_physdev_op(cmd, arg)`: a guest has no physical device. What is left is the I/O privilege level,
/// which is the guest's own affair, and the I/O bitmap, which opens no port.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `arg`: address of its structure.
///
/// # Operations
/// ## `PHYSDEVOP_SET_IOPL` `PhysdevSetIopl`
/// The I/O privilege level that the guest finds in its flags.
///
/// Errors: `EINVAL`: above 3. `EFAULT`.
/// ## `PHYSDEVOP_SET_IOBITMAP` `PhysdevSetIobitmap`
/// Accepted, and opens no port.
///
/// Errors: none.
///
/// # Errors
/// - `ENOSYS`: all other operations.
/// - `EINVAL`, `EFAULT`: see the operations.
///
/// # Left out
/// - Physical interrupts, PCI, I/O APICs.
///
/// # Guards against
/// - A port of the host in a guest's hands: no guest reaches one.
///
/// # Source
/// - Xen: `public/physdev.h`
pub(super) fn physdev_op(vcpu: &mut Vcpu, cmd: u32, arg: GuestVirt) -> Outcome {
    match cmd {
        PHYSDEVOP_SET_IOPL => {
            let arg: PhysdevSetIopl = vcpu.access().read_obj(arg)?;
            vcpu.state.iopl = u8::try_from(arg.iopl)
                .ok()
                .filter(|iopl| *iopl <= 3)
                .ok_or(Errno::EINVAL)?;
            OK
        }
        PHYSDEVOP_SET_IOBITMAP => OK,
        _ => Err(Errno::ENOSYS),
    }
}
