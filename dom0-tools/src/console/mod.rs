//! The PV console: from a ring in the guest's memory to a terminal.
//!
//! ```text
//! guest  <-ring page->  xenconsoled  <-pty->  xm console  <->  a person
//!                           |
//!                       log file    <- also what the hypervisor says of the domain
//! ```
//!
//! Reading order: [`ring`] (the shared page), [`pty`], [`backlog`], [`log`] and
//! [`rate`] (what limits a guest), [`domain`] (one console made of them),
//! [`daemon`] (all consoles), [`attach`] (a person's side).

pub mod attach;
pub mod backlog;
pub mod daemon;
pub mod domain;
pub mod log;
pub mod pty;
pub mod rate;
pub mod ring;
mod sayings;
mod store;
