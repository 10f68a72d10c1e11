//! `public/sched.h`: `sched_op`, how a vCPU gives up its CPU and a domain
//! its life.
//!
//! ```
//! use guest_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SchedShutdown};
//!
//! let end = SchedShutdown {
//!     reason: SHUTDOWN_POWEROFF,
//! };
//! assert_ne!(end.reason, SHUTDOWN_CRASH);
//! ```

use crate::layout::layout;

/// Lets another vCPU run; the caller stays runnable.
pub const SCHEDOP_YIELD: u32 = 0;
/// Unmasks events and sleeps until one is pending, without a gap between the two.
pub const SCHEDOP_BLOCK: u32 = 1;
/// Shuts the domain down ([`SchedShutdown`]).
pub const SCHEDOP_SHUTDOWN: u32 = 2;
/// Sleeps until one of some ports is pending or a time is reached
/// ([`SchedPoll`]); masks are not looked at.
pub const SCHEDOP_POLL: u32 = 3;
/// Shuts another domain down ([`SchedRemoteShutdown`]).
pub const SCHEDOP_REMOTE_SHUTDOWN: u32 = 4;
/// Tells the reason of the shutdown that the tools have already asked for.
pub const SCHEDOP_SHUTDOWN_CODE: u32 = 5;
/// Sets, renews or ends a watchdog ([`SchedWatchdog`]).
pub const SCHEDOP_WATCHDOG: u32 = 6;
/// Pins the caller to a physical CPU for a while ([`SchedPinOverride`]).
pub const SCHEDOP_PIN_OVERRIDE: u32 = 7;

/// The domain is done.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// It shall start again.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// It shall be saved; it may go on later.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// It failed.
pub const SHUTDOWN_CRASH: u32 = 3;
/// Its watchdog ran out.
pub const SHUTDOWN_WATCHDOG: u32 = 4;
/// It shall be reset, keeping its memory.
pub const SHUTDOWN_SOFT_RESET: u32 = 5;
/// The largest reason.
pub const SHUTDOWN_MAX: u32 = 5;

layout! {
    /// Argument of [`SCHEDOP_SHUTDOWN`] and [`SCHEDOP_SHUTDOWN_CODE`].
    struct SchedShutdown [4] {
        /// `SHUTDOWN_*`.
        0 => reason: u32,
    }

    /// Argument of [`SCHEDOP_POLL`].
    struct SchedPoll [24] {
        /// Address of an array of ports.
        0 => ports: u64,
        /// Its length, at most 128.
        8 => nr_ports: u32,
        /// Padding.
        12 => _pad: u32,
        /// System time (ns) at which to give up; 0 = never.
        16 => timeout: u64,
    }

    /// Argument of [`SCHEDOP_REMOTE_SHUTDOWN`].
    struct SchedRemoteShutdown [8] {
        /// The domain.
        0 => domain_id: u16,
        /// Padding.
        2 => _pad: u16,
        /// `SHUTDOWN_*`.
        4 => reason: u32,
    }

    /// Argument of [`SCHEDOP_WATCHDOG`].
    struct SchedWatchdog [8] {
        /// 0 asks for a new watchdog; its number is the result.
        0 => id: u32,
        /// Seconds; 0 ends it.
        4 => timeout: u32,
    }

    /// Argument of [`SCHEDOP_PIN_OVERRIDE`].
    struct SchedPinOverride [4] {
        /// The physical CPU; negative ends the override.
        0 => pcpu: i32,
    }
}
