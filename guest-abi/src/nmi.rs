//! `public/nmi.h`: `nmi_op`, non-maskable interrupts for the guest.
//!
//! ```
//! use guest_abi::nmi::XennmiCallback;
//!
//! let callback = XennmiCallback {
//!     handler_address: 0xffff_ffff_8000_1000,
//!     ..Default::default()
//! };
//! assert_eq!(size_of_val(&callback), 16);
//! ```

use crate::layout::layout;

/// Registers vCPU 0's handler ([`XennmiCallback`]).
pub const XENNMI_REGISTER_CALLBACK: u32 = 0;
/// Takes it back.
pub const XENNMI_UNREGISTER_CALLBACK: u32 = 1;

/// `ArchSharedInfo::nmi_reason`: an I/O error.
pub const XEN_NMIREASON_IO_ERROR: u64 = 1 << 0;
/// `ArchSharedInfo::nmi_reason`: a PCI system error.
pub const XEN_NMIREASON_PCI_SERR: u64 = 1 << 1;
/// `ArchSharedInfo::nmi_reason`: unknown.
pub const XEN_NMIREASON_UNKNOWN: u64 = 1 << 2;

layout! {
    /// Argument of [`XENNMI_REGISTER_CALLBACK`].
    struct XennmiCallback [16] {
        /// The handler.
        0 => handler_address: u64,
        /// Padding.
        8 => pad: u64,
    }
}
