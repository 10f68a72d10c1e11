//! `physdev_op`.

use super::{OK, Outcome};
use crate::{guest_access::GuestAccessExt, vcpu::Vcpu};
use guest_abi::{
    addr::GuestVirt,
    errno::Errno,
    physdev::{PHYSDEVOP_SET_IOBITMAP, PHYSDEVOP_SET_IOPL, PhysdevSetIopl},
};

/// `HYPERVISOR_physdev_op(cmd, arg)`. A guest has no physical device: what is
/// left is the I/O privilege level, which is the guest's own affair, and the
/// I/O bitmap, which opens no port.
///
/// # Errors
/// `EINVAL` for an IOPL above 3; `EFAULT`; `ENOSYS` for all others.
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
