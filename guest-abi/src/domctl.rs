//! `public/domctl.h`: how the tools speak of a domain's state.
//!
//! Only the values that our tools and the hypervisor share; the operations
//! themselves travel over the control socket in typed form.
//!
//! ```
//! use guest_abi::domctl::{XEN_DOMINF_PAUSED, XEN_DOMINF_SHUTDOWN};
//!
//! let flags = XEN_DOMINF_PAUSED;
//! assert_eq!(flags & XEN_DOMINF_SHUTDOWN, 0);
//! ```

/// Flag: being destroyed.
pub const XEN_DOMINF_DYING: u32 = 1 << 0;
/// Flag: an HVM guest.
pub const XEN_DOMINF_HVM_GUEST: u32 = 1 << 1;
/// Flag: shut down; the reason is in [`XEN_DOMINF_SHUTDOWNMASK`].
pub const XEN_DOMINF_SHUTDOWN: u32 = 1 << 2;
/// Flag: paused by the tools.
pub const XEN_DOMINF_PAUSED: u32 = 1 << 3;
/// Flag: all vCPUs wait for events.
pub const XEN_DOMINF_BLOCKED: u32 = 1 << 4;
/// Flag: some vCPU runs.
pub const XEN_DOMINF_RUNNING: u32 = 1 << 5;
/// Flag: under a debugger.
pub const XEN_DOMINF_DEBUGGED: u32 = 1 << 6;
/// Flag: the domain is the xenstore.
pub const XEN_DOMINF_XS_DOMAIN: u32 = 1 << 7;
/// Flag: hardware-assisted paging.
pub const XEN_DOMINF_HAP: u32 = 1 << 8;
/// The reason's bits, after the shift.
pub const XEN_DOMINF_SHUTDOWNMASK: u32 = 255;
/// Where the reason stands.
pub const XEN_DOMINF_SHUTDOWNSHIFT: u32 = 16;

/// "No vCPU yet."
pub const XEN_INVALID_MAX_VCPU_ID: u32 = u32::MAX;
