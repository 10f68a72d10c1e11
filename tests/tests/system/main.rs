//! Whole systems: real kernels, real sockets, real processes.

mod arceos;
mod bad_disks;
mod bad_input;
mod boot;
mod devices;
mod disks;
mod dump_core;
mod engines;
mod gdb;
mod grants;
mod hostile;
mod images;
mod kernels;
mod labs;
mod leaks;
mod machine;
mod mistakes;
mod network;
mod observers;
mod ordinary_user;
mod real_xen;
mod services;
mod trace;
mod unikernel;
mod xen_tools;
