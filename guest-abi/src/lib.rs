//! Xen's public PV interface, written once for all three sides of it: the
//! hypervisor, the control domain's tools, and guest kernels.
#![no_std]

pub mod addr;
pub mod errno;
