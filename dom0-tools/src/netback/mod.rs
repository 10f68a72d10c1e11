//! netback.

pub mod credit;
pub mod frames;
pub mod grants;
pub mod link;
pub mod offload;
pub mod packet;
pub mod queue;
pub mod rx;
pub mod tap;
pub mod tx;
pub mod user;
pub mod wire;
