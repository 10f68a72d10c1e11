//! `public/event_channel.h`: event channels, the interrupts of a PV guest.
//!
//! A **port** is a domain's end of a channel. It is bound to the port of
//! another domain (interdomain), to a virtual interrupt, to a physical one or
//! to one of the domain's own vCPUs (IPI). An event carries no data: it sets
//! the port's pending bit, and a bit that is set already stays set.
//!
//! With the 2-level layout of this module a domain has 4096 ports: a bit each
//! in `shared_info.evtchn_pending` and `evtchn_mask`, and a selector bit per
//! word in each `vcpu_info`.
//!
//! ```
//! use guest_abi::event_channel::{EVTCHN_2L_NR_CHANNELS, EvtchnSend};
//!
//! let send = EvtchnSend { port: 5 };
//! // The port's bit: which word of evtchn_pending, and which bit of it.
//! assert_eq!((send.port / 64, send.port % 64), (0, 5));
//! assert_eq!(EVTCHN_2L_NR_CHANNELS, 4096);
//! ```

use crate::layout::layout;

/// Connects to a port that another domain left unbound for us.
pub const EVTCHNOP_BIND_INTERDOMAIN: u32 = 0;
/// Binds a port to a virtual interrupt.
pub const EVTCHNOP_BIND_VIRQ: u32 = 1;
/// Binds a port to a physical interrupt.
pub const EVTCHNOP_BIND_PIRQ: u32 = 2;
/// Closes a port; its other end becomes unbound.
pub const EVTCHNOP_CLOSE: u32 = 3;
/// Sends an event to the other end.
pub const EVTCHNOP_SEND: u32 = 4;
/// Tells a port's state.
pub const EVTCHNOP_STATUS: u32 = 5;
/// Makes a port for another domain to connect to.
pub const EVTCHNOP_ALLOC_UNBOUND: u32 = 6;
/// Makes a port that interrupts a vCPU of one's own.
pub const EVTCHNOP_BIND_IPI: u32 = 7;
/// Chooses the vCPU to which a port's events go.
pub const EVTCHNOP_BIND_VCPU: u32 = 8;
/// Clears a port's mask and delivers what is pending.
pub const EVTCHNOP_UNMASK: u32 = 9;
/// Closes all ports.
pub const EVTCHNOP_RESET: u32 = 10;
/// Changes to the FIFO layout.
pub const EVTCHNOP_INIT_CONTROL: u32 = 11;
/// Adds a page to the FIFO layout's event array.
pub const EVTCHNOP_EXPAND_ARRAY: u32 = 12;
/// Sets a port's priority (FIFO layout).
pub const EVTCHNOP_SET_PRIORITY: u32 = 13;

/// [`EvtchnStatus::status`]: not in use.
pub const EVTCHNSTAT_CLOSED: u32 = 0;
/// [`EvtchnStatus::status`]: waits for a domain to connect.
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
/// [`EvtchnStatus::status`]: connected.
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
/// [`EvtchnStatus::status`]: bound to a physical interrupt.
pub const EVTCHNSTAT_PIRQ: u32 = 3;
/// [`EvtchnStatus::status`]: bound to a virtual interrupt.
pub const EVTCHNSTAT_VIRQ: u32 = 4;
/// [`EvtchnStatus::status`]: bound to a vCPU of its own.
pub const EVTCHNSTAT_IPI: u32 = 5;

/// [`EvtchnBindPirq::flags`]: others may bind the interrupt too.
pub const BIND_PIRQ_WILL_SHARE: u32 = 1;

/// Ports of a domain with the 2-level layout.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;
/// The most urgent priority of the FIFO layout.
pub const EVTCHN_FIFO_PRIORITY_MAX: u32 = 0;
/// The priority that a port starts with.
pub const EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7;
/// The least urgent priority.
pub const EVTCHN_FIFO_PRIORITY_MIN: u32 = 15;

layout! {
    /// Argument of [`EVTCHNOP_ALLOC_UNBOUND`].
    struct EvtchnAllocUnbound [8] {
        /// In: whose port it is to be (`DOMID_SELF`, or a domain that one controls).
        0 => dom: u16,
        /// In: who may connect.
        2 => remote_dom: u16,
        /// Out.
        4 => port: u32,
    }

    /// Argument of [`EVTCHNOP_BIND_INTERDOMAIN`].
    struct EvtchnBindInterdomain [12] {
        /// In: whose port to connect to.
        0 => remote_dom: u16,
        /// Padding.
        2 => _pad: u16,
        /// In: that port.
        4 => remote_port: u32,
        /// Out: ours.
        8 => local_port: u32,
    }

    /// Argument of [`EVTCHNOP_BIND_VIRQ`].
    struct EvtchnBindVirq [12] {
        /// In: `VIRQ_*`.
        0 => virq: u32,
        /// In: the vCPU; 0 for the interrupts that exist once a domain.
        4 => vcpu: u32,
        /// Out.
        8 => port: u32,
    }

    /// Argument of [`EVTCHNOP_BIND_PIRQ`].
    struct EvtchnBindPirq [12] {
        /// In: the interrupt.
        0 => pirq: u32,
        /// In: [`BIND_PIRQ_WILL_SHARE`] or 0.
        4 => flags: u32,
        /// Out.
        8 => port: u32,
    }

    /// Argument of [`EVTCHNOP_BIND_IPI`].
    struct EvtchnBindIpi [8] {
        /// In: the vCPU to interrupt.
        0 => vcpu: u32,
        /// Out.
        4 => port: u32,
    }

    /// Argument of [`EVTCHNOP_CLOSE`].
    struct EvtchnClose [4] {
        /// In.
        0 => port: u32,
    }

    /// Argument of [`EVTCHNOP_SEND`].
    struct EvtchnSend [4] {
        /// In: our end.
        0 => port: u32,
    }

    /// Argument of [`EVTCHNOP_STATUS`].
    struct EvtchnStatus [24] {
        /// In: whose port.
        0 => dom: u16,
        /// Padding.
        2 => _pad: u16,
        /// In.
        4 => port: u32,
        /// Out: `EVTCHNSTAT_*`.
        8 => status: u32,
        /// Out: the vCPU that gets its events.
        12 => vcpu: u32,
        /// Out: the remote domid (low 16 bits) of an unbound or interdomain
        /// port; the number of a virtual or physical interrupt.
        16 => u: u32,
        /// Out: the remote port of an interdomain port.
        20 => u_port: u32,
    }

    /// Argument of [`EVTCHNOP_BIND_VCPU`].
    struct EvtchnBindVcpu [8] {
        /// In.
        0 => port: u32,
        /// In.
        4 => vcpu: u32,
    }

    /// Argument of [`EVTCHNOP_UNMASK`].
    struct EvtchnUnmask [4] {
        /// In.
        0 => port: u32,
    }

    /// Argument of [`EVTCHNOP_RESET`].
    struct EvtchnReset [2] {
        /// In: whose ports.
        0 => dom: u16,
    }

    /// Argument of [`EVTCHNOP_INIT_CONTROL`].
    struct EvtchnInitControl [24] {
        /// In: frame of the control block.
        0 => control_gfn: u64,
        /// In: its offset in the frame.
        8 => offset: u32,
        /// In: its vCPU.
        12 => vcpu: u32,
        /// Out: bits of a link field.
        16 => link_bits: u8,
        /// Padding.
        17 => _pad: [u8; 7],
    }

    /// Argument of [`EVTCHNOP_EXPAND_ARRAY`].
    struct EvtchnExpandArray [8] {
        /// In: the frame to add.
        0 => array_gfn: u64,
    }

    /// Argument of [`EVTCHNOP_SET_PRIORITY`].
    struct EvtchnSetPriority [8] {
        /// In.
        0 => port: u32,
        /// In.
        4 => priority: u32,
    }

    /// Argument of the first form of the hypercall
    /// (`event_channel_op_compat`): the command and its argument in one.
    struct EvtchnOp [28] {
        /// `EVTCHNOP_*`.
        0 => cmd: u32,
        /// The command's own structure.
        4 => u: [u8; 24],
    }
}
