//! What all back ends share: the halves of the split drivers that run in Dom0.
//!
//! A back end is a process of its own, one for each guest and kind of device
//! (`blkback --domain 3` serves all disks of domain 3, and nothing else), so
//! that one guest's back end can neither disturb nor see another's.
//!
//! Law:
//! - **The guest is hostile.** It writes the rings, the granted pages and its
//!   own nodes in xenstore whenever it likes. Each slot is copied once and
//!   the copy is checked ([`ring`]); indices of the shared page are compared
//!   with private ones; a broken ring ends the device, not the process.
//! - **A back end may be killed at any time.** Responses go out in the order
//!   of the requests, and no request is answered before its effect is there.
//!   So the slots from `rsp_prod` to `req_prod` are exactly the requests that
//!   nobody has answered, and the next process does them again
//!   ([`BackRing::attach`]). What a device's state was is in xenstore.
//! - **Only the main thread talks to xenstore.** It runs the state machine
//!   ([`machine`]); threads that serve rings ([`Worker`]) touch shared
//!   memory, ports and their device's files.
//!
//! ```text
//!          xenstore                       a guest's memory
//!             |  nodes, watches              |  rings, pages (granted)
//!    +--------v--------+  connect   +--------v--------+
//!    | Service         |----------->| Worker: a ring  |----> file, tap
//!    | (main thread)   | disconnect | BackRing, Port  |
//!    +-----------------+            +-----------------+
//! ```

pub mod bus;
pub mod machine;
pub mod memory;
pub mod nudge;
mod port;
pub mod ring;
pub mod service;
mod sole;
pub mod worker;

#[cfg(test)]
pub mod testing;

pub use bus::{Attention, Bus, BusError, Store};
pub use machine::Attach;
pub use memory::{PlainMemory, SharedMemory};
pub use nudge::{Heard, Nudges};
pub use port::Port;
pub use ring::{BackRing, RingError};
pub use service::{Driver, Service, ServiceError};
pub use sole::only_one;
pub use worker::{Stop, Worker};
