//! `public/callback.h`: `callback_op`, the guest's entry points.
//!
//! The hypervisor calls the **event** entry when an event is pending and
//! unmasked, the **failsafe** entry when a return to the guest faulted on a
//! segment or selector, and the **syscall** entry when user mode executes
//! `syscall`. Each call pushes a bounce frame on the kernel's stack.
//!
//! ```
//! use guest_abi::callback::{CALLBACKF_MASK_EVENTS, CALLBACKTYPE_SYSCALL, CallbackRegister};
//!
//! let syscall = CallbackRegister {
//!     kind: CALLBACKTYPE_SYSCALL,
//!     flags: CALLBACKF_MASK_EVENTS,
//!     address: 0xffff_ffff_8000_1000,
//!     ..Default::default()
//! };
//! assert_eq!(size_of_val(&syscall), 16);
//! ```

use crate::layout::layout;

/// Events.
pub const CALLBACKTYPE_EVENT: u16 = 0;
/// A return to the guest that failed.
pub const CALLBACKTYPE_FAILSAFE: u16 = 1;
/// `syscall` of 64-bit user mode.
pub const CALLBACKTYPE_SYSCALL: u16 = 2;
/// `sysenter`, by its old number.
pub const CALLBACKTYPE_SYSENTER_DEPRECATED: u16 = 3;
/// Non-maskable interrupts.
pub const CALLBACKTYPE_NMI: u16 = 4;
/// `sysenter`.
pub const CALLBACKTYPE_SYSENTER: u16 = 5;
/// `syscall` of 32-bit user mode.
pub const CALLBACKTYPE_SYSCALL32: u16 = 7;

/// The entry masks events.
pub const CALLBACKF_MASK_EVENTS: u16 = 1 << 0;

/// Registers an entry point ([`CallbackRegister`]).
pub const CALLBACKOP_REGISTER: u32 = 0;
/// Takes it back ([`CallbackUnregister`]).
pub const CALLBACKOP_UNREGISTER: u32 = 1;

layout! {
    /// Argument of [`CALLBACKOP_REGISTER`].
    struct CallbackRegister [16] {
        /// `CALLBACKTYPE_*`.
        0 => kind: u16,
        /// [`CALLBACKF_MASK_EVENTS`] or 0.
        2 => flags: u16,
        /// Padding.
        4 => _pad: u32,
        /// The entry point.
        8 => address: u64,
    }

    /// Argument of [`CALLBACKOP_UNREGISTER`].
    struct CallbackUnregister [4] {
        /// `CALLBACKTYPE_*`.
        0 => kind: u16,
        /// Padding.
        2 => _unused: u16,
    }
}
