//! Who else uses an image.
//!
//! Law: two disks that are the same file or device are both read-only, or one
//! of them says `w!`. The look at all domains and the record that claims the
//! image happen under one lock ([`lock`]), so that two `xm` at once can't both
//! find it free. A domain's claim ends with its record, which goes after its
//! back end has ended.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::{
    config::disk::{Access, Disk},
    paths, services,
};

/// Why a disk can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SharingError {
    /// Another disk is it.
    #[error(
        "disk {vdev}: {path} is disk {other} of domain {domain} already{}. Detach it there, make both read-only, or \
         say with 'w!' that both may write",
        if *writes { ", which may write to it" } else { "" }
    )]
    InUse {
        /// The device.
        vdev: String,
        /// The image.
        path: PathBuf,
        /// Which device it is already.
        other: String,
        /// Of whom.
        domain: String,
        /// Whether that one writes.
        writes: bool,
    },
    /// The host itself uses it.
    #[error(
        "disk {vdev}: {path} is mounted on this host at {mount}, and a guest that writes to it would damage the file \
         system. Unmount it, make the disk read-only, or say 'w!'"
    )]
    Mounted {
        /// The device.
        vdev: String,
        /// The image.
        path: PathBuf,
        /// Where.
        mount: String,
    },
    /// No lock.
    #[error("can't lock the list of devices, {path}: {source}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A domain's disks, and what to call it.
#[derive(Debug, Clone, Copy)]
pub struct Claims<'a> {
    /// The domain's name.
    pub domain: &'a str,
    /// Its disks.
    pub disks: &'a [Disk],
}

/// Held while disks are claimed or given up.
///
/// # Errors
/// The file system's.
pub fn lock() -> Result<Flock<File>, SharingError> {
    let path = paths::run_dir().join("devices.lock");
    let failed = |source: io::Error| SharingError::Lock {
        path: path.clone(),
        source,
    };
    services::make_dir(&paths::run_dir()).map_err(|e| failed(io::Error::other(e)))?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))
}

/// Whether `new` can have all its disks beside those of `others` and its own.
///
/// # Errors
/// See [`SharingError`].
pub fn check(new: Claims<'_>, others: &[Claims<'_>]) -> Result<(), SharingError> {
    for (index, disk) in new.disks.iter().enumerate() {
        let before = Claims {
            disks: &new.disks[..index],
            ..new
        };
        check_disk(disk, before, others)?;
    }
    Ok(())
}

fn check_disk(disk: &Disk, own: Claims<'_>, others: &[Claims<'_>]) -> Result<(), SharingError> {
    let Some(path) = disk.target.as_deref() else {
        return Ok(());
    };
    if disk.access == Access::SharedWrite {
        return Ok(());
    }
    let Some(identity) = Identity::of(path) else {
        return Ok(());
    };
    let claims = std::iter::once(&own).chain(others);
    for (domain, other) in claims.flat_map(|c| c.disks.iter().map(|d| (c.domain, d))) {
        let both_read = disk.access == Access::ReadOnly && other.access == Access::ReadOnly;
        let same = other.target.as_deref().and_then(Identity::of) == Some(identity);
        if same && !both_read {
            return Err(SharingError::InUse {
                vdev: disk.vdev.name.clone(),
                path: path.to_owned(),
                other: other.vdev.name.clone(),
                domain: domain.to_owned(),
                writes: other.access != Access::ReadOnly,
            });
        }
    }
    match mounted(identity).filter(|_| disk.access == Access::ReadWrite) {
        None => Ok(()),
        Some(mount) => Err(SharingError::Mounted {
            vdev: disk.vdev.name.clone(),
            path: path.to_owned(),
            mount,
        }),
    }
}

/// What makes two paths the same storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    File { dev: u64, inode: u64 },
    Device(u64),
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(if metadata.file_type().is_block_device() {
            Identity::Device(metadata.rdev())
        } else {
            Identity::File {
                dev: metadata.dev(),
                inode: metadata.ino(),
            }
        })
    }
}

/// Where the host has mounted a block device.
fn mounted(identity: Identity) -> Option<String> {
    let Identity::Device(device) = identity else {
        return None;
    };
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| mount_of(line, &number))
}

/// A line is "36 35 98:0 /mnt1 /mnt2 rw ...": the third field is the device,
/// the fifth the place.
fn mount_of(line: &str, number: &str) -> Option<String> {
    let mut fields = line.split(' ').skip(2);
    let found = fields.next() == Some(number);
    fields.nth(1).filter(|_| found).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &Path, access: &str) -> Disk {
        Disk::parse(&format!("{},raw,xvda,{access}", path.display())).expect("disk")
    }

    #[test]
    fn writers_are_alone_unless_they_say_otherwise() {
        let dir = tempfile::tempdir().expect("dir");
        let (path, link) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&path, [0; 512]).expect("write");
        fs::hard_link(&path, &link).expect("link");
        for (there, new, free) in [
            ("r", "r", true),
            ("r", "w", false),
            ("w", "r", false),
            ("w", "w", false),
            ("w!", "w", false),
            ("w!", "r", false),
            ("w", "w!", true),
            ("w!", "w!", true),
        ] {
            let (there, new) = ([disk(&path, there)], [disk(&link, new)]);
            let other = Claims {
                domain: "other",
                disks: &there,
            };
            let claim = Claims {
                domain: "new",
                disks: &new,
            };
            let result = check(claim, &[other]);
            assert_eq!(result.is_ok(), free, "{there:?} {new:?}: {result:?}");
        }
        let twice = [disk(&path, "w"), disk(&link, "w")];
        let claim = Claims {
            domain: "new",
            disks: &twice,
        };
        let error = check(claim, &[]).expect_err("twice").to_string();
        assert!(error.contains("of domain new already"), "{error}");
    }

    #[test]
    fn mounts() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_of(line, "98:0").as_deref(), Some("/mnt2"));
        assert_eq!(mount_of(line, "98:1"), None);
        assert_eq!(mount_of("", "98:0"), None);
    }
}
