//! ArceOS' platform crate for Xen PV domains: what [`axplat`] asks of a
//! platform, by `guest-abi`.
//!
//! | `axplat`'s interface | here |
//! |---|---|
//! | entry | [`entry`]: the notes of the ELF image, `_start` |
//! | `ConsoleIf` | the PV console's ring |
//! | `MemIf` | `start_info`; all memory mapped at [`VIRT_BASE`](guest_abi::kernel::VIRT_BASE) |
//! | `TimeIf` | the hypervisor's clock, `VIRQ_TIMER` |
//! | `IrqIf` | event channels: the number of an interrupt is its port; `EVTCHNOP_bind_ipi` |
//! | `PowerIf` | more vCPUs by `VCPUOP_initialise` and `VCPUOP_up`; `SCHEDOP_shutdown` |
//!
//! An application links it by `extern crate axplat_x86_xen_pv`.

#![no_std]

#[macro_use]
extern crate axplat;

mod console;
pub mod entry;
mod init;
#[cfg(feature = "irq")]
mod irq;
#[cfg(feature = "irq")]
pub use irq::IPI_IRQ;
mod mem;
mod power;
mod runtime;
mod time;

// Only for its feature: see Cargo.toml.
use percpu_axcpu as _;
