//! `guest-abi`'s front ends as ArceOS' disk and network drivers.
//!
//! Nothing here is granted but static pages, which data is copied into and out
//! of: no memory of ArceOS' is ever shared with a back end.

#![no_std]

extern crate alloc;

mod blk;
mod bus;
mod net;

pub use blk::XenBlk;
pub use net::XenNet;
