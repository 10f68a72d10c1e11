//! `public/vcpu.h`: `vcpu_op`, the operations on one vCPU.
//!
//! A domain starts with vCPU 0 up. Another one is given its state with
//! [`VCPUOP_INITIALISE`] and set going with [`VCPUOP_UP`]. Memory areas that a
//! guest registers (vcpu_info, runstate, time) are written by the hypervisor
//! from then on; `vcpu_info` can be moved once and never back.
//!
//! ```
//! use guest_abi::vcpu::VcpuRegisterVcpuInfo;
//!
//! // A vcpu_info must not cross the end of its frame: an alignment of 64 sees to it.
//! let place = VcpuRegisterVcpuInfo {
//!     mfn: 0x1234,
//!     offset: 64,
//!     ..Default::default()
//! };
//! assert_eq!(place.offset % 64, 0);
//! ```

use crate::layout::layout;

/// Gives a vCPU its first state ([`VcpuGuestContext`](crate::arch_x86::VcpuGuestContext)).
pub const VCPUOP_INITIALISE: u32 = 0;
/// Sets an initialised vCPU going.
pub const VCPUOP_UP: u32 = 1;
/// Takes a vCPU down; its state is kept.
pub const VCPUOP_DOWN: u32 = 2;
/// 1 if the vCPU is up.
pub const VCPUOP_IS_UP: u32 = 3;
/// Copies out a [`VcpuRunstateInfo`].
pub const VCPUOP_GET_RUNSTATE_INFO: u32 = 4;
/// Registers where runstate is written ([`VcpuRegisterMemoryArea`]).
pub const VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA: u32 = 5;
/// Starts the periodic timer ([`VcpuSetPeriodicTimer`]).
pub const VCPUOP_SET_PERIODIC_TIMER: u32 = 6;
/// Stops the periodic timer.
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
/// Sets the single-shot timer ([`VcpuSetSingleshotTimer`]); `VIRQ_TIMER` follows.
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
/// Stops the single-shot timer.
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;
/// Moves the vCPU's `vcpu_info` ([`VcpuRegisterVcpuInfo`]).
pub const VCPUOP_REGISTER_VCPU_INFO: u32 = 10;
/// Sends an NMI.
pub const VCPUOP_SEND_NMI: u32 = 11;
/// Physical identity of a pinned vCPU ([`VcpuGetPhysid`]).
pub const VCPUOP_GET_PHYSID: u32 = 12;
/// Registers a second place where the vCPU's clock is written
/// ([`VcpuRegisterMemoryArea`]), for the guest's user mode to read.
pub const VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA: u32 = 13;

/// The vCPU has a CPU.
pub const RUNSTATE_RUNNING: u32 = 0;
/// It waits for a CPU.
pub const RUNSTATE_RUNNABLE: u32 = 1;
/// It waits for an event.
pub const RUNSTATE_BLOCKED: u32 = 2;
/// It is down, paused or shut down.
pub const RUNSTATE_OFFLINE: u32 = 3;

/// Set in [`VcpuRunstateInfo::state_entry_time`] while the area is being
/// updated (with `VMASST_TYPE_runstate_update_flag`).
pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;

/// [`VcpuSetSingleshotTimer::flags`]: `-ETIME` if the time is past already.
pub const VCPU_SSHOTTMR_FUTURE: u32 = 1 << 0;

layout! {
    /// Where a vCPU's time went.
    struct VcpuRunstateInfo [48] {
        /// `RUNSTATE_*`.
        0 => state: u32,
        /// Padding.
        4 => _pad: u32,
        /// System time at which the vCPU entered `state`.
        8 => state_entry_time: u64,
        /// ns spent in each state.
        16 => time: [u64; 4],
    }

    /// Argument of the two operations that register a memory area.
    struct VcpuRegisterMemoryArea [8] {
        /// Its virtual address; 0 ends the registration.
        0 => addr: u64,
    }

    /// Argument of [`VCPUOP_SET_PERIODIC_TIMER`].
    struct VcpuSetPeriodicTimer [8] {
        /// At least 1 ms.
        0 => period_ns: u64,
    }

    /// Argument of [`VCPUOP_SET_SINGLESHOT_TIMER`].
    struct VcpuSetSingleshotTimer [16] {
        /// Absolute system time.
        0 => timeout_abs_ns: u64,
        /// [`VCPU_SSHOTTMR_FUTURE`] or 0.
        8 => flags: u32,
        /// Padding.
        12 => _pad: u32,
    }

    /// Argument of [`VCPUOP_REGISTER_VCPU_INFO`].
    struct VcpuRegisterVcpuInfo [16] {
        /// The frame.
        0 => mfn: u64,
        /// Byte offset in it; the structure must not cross its end.
        8 => offset: u32,
        /// Unused.
        12 => rsvd: u32,
    }

    /// Argument of [`VCPUOP_GET_PHYSID`].
    struct VcpuGetPhysid [8] {
        /// APIC id in the low half, ACPI id in the high half.
        0 => phys_id: u64,
    }
}
