//! `public/physdev.h`: `physdev_op`, physical interrupts and I/O privilege.
//!
//! A domain without hardware uses few of these: the I/O privilege level of
//! its user mode, and the probes that Linux makes at boot.
//!
//! ```
//! use guest_abi::physdev::PhysdevSetIopl;
//!
//! // What PHYSDEVOP_SET_IOPL takes: user mode may use ports from level 3 on.
//! let level = PhysdevSetIopl { iopl: 3 };
//! assert_eq!(size_of_val(&level), 4);
//! ```

use crate::layout::layout;

/// Old name for "interrupt unmasked".
pub const PHYSDEVOP_IRQ_UNMASK_NOTIFY: u32 = 4;
/// [`PhysdevIrqStatusQuery`].
pub const PHYSDEVOP_IRQ_STATUS_QUERY: u32 = 5;
/// Sets the vCPU's virtual IOPL ([`PhysdevSetIopl`]).
pub const PHYSDEVOP_SET_IOPL: u32 = 6;
/// Sets the vCPU's I/O port bitmap ([`PhysdevSetIobitmap`]).
pub const PHYSDEVOP_SET_IOBITMAP: u32 = 7;
/// Reads an I/O APIC register ([`PhysdevApic`]).
pub const PHYSDEVOP_APIC_READ: u32 = 8;
/// Writes an I/O APIC register ([`PhysdevApic`]).
pub const PHYSDEVOP_APIC_WRITE: u32 = 9;
/// Gives an interrupt a vector.
pub const PHYSDEVOP_ALLOC_IRQ_VECTOR: u32 = 10;
/// Takes it back.
pub const PHYSDEVOP_FREE_IRQ_VECTOR: u32 = 11;
/// End of interrupt.
pub const PHYSDEVOP_EOI: u32 = 12;
/// Maps a physical interrupt.
pub const PHYSDEVOP_MAP_PIRQ: u32 = 13;
/// Unmaps it.
pub const PHYSDEVOP_UNMAP_PIRQ: u32 = 14;
/// A PCI device came.
pub const PHYSDEVOP_MANAGE_PCI_ADD: u32 = 15;
/// A PCI device went.
pub const PHYSDEVOP_MANAGE_PCI_REMOVE: u32 = 16;
/// Registers a page of end-of-interrupt bits, first form.
pub const PHYSDEVOP_PIRQ_EOI_GMFN_V1: u32 = 17;
/// Restores a device's message-signalled interrupts.
pub const PHYSDEVOP_RESTORE_MSI: u32 = 19;
/// [`PHYSDEVOP_MANAGE_PCI_ADD`] with more to tell.
pub const PHYSDEVOP_MANAGE_PCI_ADD_EXT: u32 = 20;
/// Sets up a global system interrupt.
pub const PHYSDEVOP_SETUP_GSI: u32 = 21;
/// Reserves a physical interrupt's number.
pub const PHYSDEVOP_GET_FREE_PIRQ: u32 = 23;
/// A PCI configuration region's state.
pub const PHYSDEVOP_PCI_MMCFG_RESERVED: u32 = 24;
/// A PCI device came.
pub const PHYSDEVOP_PCI_DEVICE_ADD: u32 = 25;
/// A PCI device went.
pub const PHYSDEVOP_PCI_DEVICE_REMOVE: u32 = 26;
/// [`PHYSDEVOP_RESTORE_MSI`] with a segment.
pub const PHYSDEVOP_RESTORE_MSI_EXT: u32 = 27;
/// Registers a page of end-of-interrupt bits ([`PhysdevPirqEoiGmfn`]).
pub const PHYSDEVOP_PIRQ_EOI_GMFN_V2: u32 = 28;
/// Debug port.
pub const PHYSDEVOP_DBGP_OP: u32 = 29;
/// Reserves a device's MSI-X table.
pub const PHYSDEVOP_PREPARE_MSIX: u32 = 30;
/// Releases it.
pub const PHYSDEVOP_RELEASE_MSIX: u32 = 31;

/// [`PhysdevIrqStatusQuery::flags`]: the interrupt needs an end-of-interrupt.
pub const XENIRQSTAT_NEEDS_EOI: u32 = 1 << 0;
/// [`PhysdevIrqStatusQuery::flags`]: others have it too.
pub const XENIRQSTAT_SHARED: u32 = 1 << 1;

layout! {
    /// Argument of [`PHYSDEVOP_EOI`].
    struct PhysdevEoi [4] {
        /// The interrupt.
        0 => irq: u32,
    }

    /// Argument of [`PHYSDEVOP_PIRQ_EOI_GMFN_V2`].
    struct PhysdevPirqEoiGmfn [8] {
        /// The frame.
        0 => gmfn: u64,
    }

    /// Argument of [`PHYSDEVOP_IRQ_STATUS_QUERY`].
    struct PhysdevIrqStatusQuery [8] {
        /// In: the interrupt.
        0 => irq: u32,
        /// Out: `XENIRQSTAT_*`.
        4 => flags: u32,
    }

    /// Argument of [`PHYSDEVOP_SET_IOPL`].
    struct PhysdevSetIopl [4] {
        /// 0 to 3.
        0 => iopl: u32,
    }

    /// Argument of [`PHYSDEVOP_SET_IOBITMAP`].
    struct PhysdevSetIobitmap [16] {
        /// Address of the bitmap.
        0 => bitmap: u64,
        /// Ports in it.
        8 => nr_ports: u32,
        /// Padding.
        12 => _pad: u32,
    }

    /// Argument of [`PHYSDEVOP_APIC_READ`] and [`PHYSDEVOP_APIC_WRITE`].
    struct PhysdevApic [16] {
        /// In: which I/O APIC.
        0 => apic_physbase: u64,
        /// In: which register.
        8 => reg: u32,
        /// In or out.
        12 => value: u32,
    }
}
