//! The control domain of Domus: the programs of domid 0 and what they share.

pub mod backend;
pub mod background;
pub mod blkback;
pub mod bootloader;
pub mod builder;
pub mod config;
pub mod console;
pub mod contained;
pub mod coredump;
pub mod gdb;
pub mod image;
pub mod netback;
pub mod paths;
pub mod services;
pub mod trace;
pub mod xenstore;
pub mod xm;
