//! netback.

pub mod credit;
pub mod offload;
pub mod packet;
