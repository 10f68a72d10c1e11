//! The kernel that lies inside a guest's own disk, as pygrub finds it: without
//! mounting anything, and without running anything of the guest's.
//!
//! ```text
//!   image --partitions--> Section --filesystem--> Files
//!                                                   |
//!       grub.cfg | loader/entries | extlinux.conf | menu.lst | /boot/vmlinuz-*
//!                                                   |
//!                                     Menu --Choice--> Booted: kernel, ramdisk, options
//! ```
//!
//! Law: the disk is written by the guest, all of it, to harm us. So nothing of
//! it is executed, every read is bounded in size and all reads together are
//! bounded by [`disk::BUDGET`], every parser's work is linear in what it has
//! read, and a fault of a parser becomes an error ([`find`]), because xm's
//! monitor, which reads the disk again at each reboot, has to live on. Paths
//! are looked up in the guest's file system only.

pub mod bls;
pub mod command;
pub mod config;
pub mod disk;
pub mod error;
pub mod extlinux;
pub mod files;
pub mod filesystem;
pub mod find;
pub mod grub;
pub mod kernels;
pub mod legacy;
pub mod menu;
pub mod partitions;
pub mod program;

pub use config::{Bootloader, Choice};
pub use error::BootError;
pub use find::{Booted, Disk, boot, list};
pub use menu::{Entry, Menu};

#[cfg(test)]
mod tests;
