//! The privcmd socket: Dom0's way into the hypervisor.
//!
//! Law: this crate knows the ABI and nothing else of ours. The hypervisor's
//! server and the tools' client both use [`protocol`], so a message has one
//! definition; [`wire`] alone knows how it travels.
//!
//! Reading order: [`protocol`] (what is said), [`wire`] (how it travels),
//! [`client`] (how a Dom0 process says it), [`trace`] (what a trace records), [`debug`] (what a debugger asks). [`pidfile`] is how every service
//! of an installation makes sure that it is the only one.

pub mod client;
pub mod debug;
pub mod pidfile;
pub mod protocol;
mod socket;
pub mod trace;
pub mod wire;
