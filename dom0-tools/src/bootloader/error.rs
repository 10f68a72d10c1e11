//! Why no kernel could be had from a guest's disk.

use std::{io, path::PathBuf};

use super::files::FileError;
use crate::image::ImageError;

/// Why no kernel could be had from a guest's disk.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The disk's image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The domain has no disk.
    #[error(
        "'bootloader' takes the kernel from the domain's first disk, and 'disk' names none with a file or device of \
         this host; set disk = [\"...\"], or kernel = \"...\" instead of the boot loader"
    )]
    NoDisk,
    /// The disk can't be read.
    #[error("disk {}: {source}", disk.display())]
    Read {
        /// The disk.
        disk: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Nothing that can be looked into.
    #[error(
        "disk {}: no file system that the boot loader can read: {found}. It reads ext2, ext3 and ext4; copy the \
         kernel out of the disk and set kernel = \"...\", or use a separate /boot of such a kind", disk.display()
    )]
    NoFileSystem {
        /// The disk.
        disk: PathBuf,
        /// "partition 1 is btrfs, partition 2 is swap space".
        found: String,
    },
    /// File systems, but no kernel.
    #[error(
        "disk {}: no kernel: neither grub.cfg, loader/entries, extlinux.conf, menu.lst nor a /boot/vmlinuz-* was \
         found{also}", disk.display()
    )]
    NoKernel {
        /// The disk.
        disk: PathBuf,
        /// What was found instead; may be empty.
        also: String,
    },
    /// The entry that was asked for.
    #[error("disk {}: {source_file} has no entry '{wanted}'; 'domus-boot --list' shows what it has", disk.display())]
    NoEntry {
        /// The disk.
        disk: PathBuf,
        /// Where the entries are from.
        source_file: String,
        /// What was asked for.
        wanted: String,
    },
    /// A file of the guest's that is needed.
    #[error("disk {}: {path}: {fault}", disk.display())]
    File {
        /// The disk.
        disk: PathBuf,
        /// The guest's path.
        path: String,
        /// What is wrong.
        fault: FileError,
    },
    /// A bug in a parser.
    #[error("disk {}: the boot loader failed on what it holds (a bug in it): {what}", disk.display())]
    Bug {
        /// The disk.
        disk: PathBuf,
        /// The panic's message.
        what: String,
    },
    /// A boot loader of somebody else's.
    #[error("the boot loader {}: {what}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What went wrong.
        what: String,
    },
}
