//! The real xenstored, with real clients, guests on real rings, and a
//! hypervisor that only pretends.
//!
//! Limits: no guest kernel runs here; its side of the ring is played by the
//! test, with the habits of Linux.

#[allow(dead_code)] // shared with the test of xenconsoled
#[path = "../fake_hypervisor/mod.rs"]
mod fake_hypervisor;
mod guest;
mod installation;

mod clients;
mod guests;
mod process;
mod restart;
