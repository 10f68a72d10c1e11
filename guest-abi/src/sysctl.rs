//! `public/sysctl.h`: how the tools speak of the host's capabilities.
//!
//! ```
//! use guest_abi::sysctl::{XEN_SYSCTL_PHYSCAP_HVM, XEN_SYSCTL_PHYSCAP_PV};
//!
//! let capabilities = XEN_SYSCTL_PHYSCAP_PV;
//! assert_eq!(capabilities & XEN_SYSCTL_PHYSCAP_HVM, 0);
//! ```

/// Runs HVM guests.
pub const XEN_SYSCTL_PHYSCAP_HVM: u32 = 1 << 0;
/// Runs PV guests.
pub const XEN_SYSCTL_PHYSCAP_PV: u32 = 1 << 1;
/// Gives devices to guests.
pub const XEN_SYSCTL_PHYSCAP_DIRECTIO: u32 = 1 << 2;
/// Has hardware-assisted paging.
pub const XEN_SYSCTL_PHYSCAP_HAP: u32 = 1 << 3;
/// Has shadow paging for HVM guests.
pub const XEN_SYSCTL_PHYSCAP_SHADOW: u32 = 1 << 4;
/// Has grant tables of version 1.
pub const XEN_SYSCTL_PHYSCAP_GNTTAB_V1: u32 = 1 << 8;
/// Has grant tables of version 2.
pub const XEN_SYSCTL_PHYSCAP_GNTTAB_V2: u32 = 1 << 9;
