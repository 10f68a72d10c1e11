//! The privcmd socket: Dom0's way into the hypervisor.
//!
//! Law: this crate knows the ABI and nothing else of ours. The hypervisor's
//! server and the tools' client both use [`protocol`], so a message has one
//! definition; [`wire`] alone knows how it travels.

pub mod protocol;
