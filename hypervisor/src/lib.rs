//! The Domus hypervisor: domains, direct paging, event channels, grant tables,
//! traps and time, over a CPU seam with KVM behind it.
//!
//! See `docs/architecture.md` for who owns which state and for the lock order.

pub mod console;
pub mod control;
pub mod counts;
pub mod cpu;
pub mod debug;
pub mod domain;
pub mod emulate;
pub mod engine;
pub mod events;
pub mod fpu;
pub mod grants;
pub mod guest_access;
pub mod hypercall;
pub mod hypervisor;
pub mod interp;
pub mod memory;
pub mod mistakes;
pub mod paging;
pub mod populate;
pub mod privcmd;
pub mod shared_words;
pub mod space;
pub mod time;
pub mod trace;
pub mod vcpu;
pub mod version;
pub mod window;
