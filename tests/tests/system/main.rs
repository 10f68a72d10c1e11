//! Whole systems: real kernels, real sockets, real processes.

mod boot;
mod kernels;
