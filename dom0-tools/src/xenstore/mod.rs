//! Xenstore: the tree of names and values through which domains find each
//! other's devices, the daemon that serves it, and its clients.
//!
//! Reading order: [`wire`] and [`path`] say what travels; [`node`], [`tree`]
//! and [`transaction`] hold it; [`watch`] and [`peers`] tell of it; [`core`]
//! puts these together without touching the world.

pub mod change;
pub mod cli;
pub mod client;
pub mod core;
pub mod fairness;
pub mod hypervisor;
pub mod journal;
pub mod node;
pub mod path;
pub mod peers;
pub mod perms;
pub mod quota;
pub mod ring;
pub mod server;
pub mod transaction;
pub mod tree;
pub mod watch;
pub mod wire;
