//! Xen's public PV interface, written once for all three sides of it: the
//! hypervisor, the control domain's tools, and guest kernels.
//!
//! One module per public header, for 64-bit x86. Names are Xen's: a constant
//! in capitals (`SCHEDOP_block` is [`sched::SCHEDOP_BLOCK`]), a structure in
//! camel case without `xen_` and `_t` (`xen_memory_reservation_t` is
//! [`memory::MemoryReservation`]). A C union is a plain number, and its doc
//! says what the number means when. Numbers that a guest supplies are plain
//! integers here; who uses them wraps them in the types of [`addr`].
//!
//! ```
//! use guest_abi::{addr::Mfn, errno::Errno, xen::hypercall_name};
//!
//! // A frame number is not a machine address, and does not wrap.
//! let frame = Mfn(0x1234);
//! assert_eq!(frame.addr().unwrap().0, 0x123_4000);
//! assert_eq!(Mfn(u64::MAX).checked_add(1), None);
//!
//! // What a hypercall returns: a value, or an errno negated.
//! assert_eq!(Errno::from_return(-22), Err(Errno::EINVAL));
//! assert_eq!(hypercall_name(1), Some("mmu_update"));
//! ```
#![no_std]

pub mod addr;
pub mod arch_x86;
pub mod arch_x86_64;
pub mod blkif;
pub mod callback;
pub mod console;
pub mod cpuid;
pub mod domctl;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod features;
pub mod grant_table;
#[cfg(feature = "kernel")]
pub mod kernel;
mod layout;
pub mod memory;
pub mod netif;
pub mod nmi;
pub mod physdev;
pub mod ring;
pub mod sched;
pub mod sysctl;
pub mod vcpu;
pub mod version;
pub mod xen;
pub mod xenbus;
pub mod xs_wire;
