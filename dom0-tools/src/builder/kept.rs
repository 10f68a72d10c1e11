//! Unpacked kernels, kept from one `xm create` to the next: unpacking xz takes
//! longer than all else that a domain's start needs of Dom0.
//!
//! Law: a kept kernel is found by the SHA-256 of the packed bytes, so a changed
//! image is never mixed up with an older one, and is checked as any image is.
//! The directory and its files are the user's own, writable by nobody else. A
//! file counts only within the boot of the host that wrote it: then nothing
//! has to be flushed to disk to be believed. What can't be kept is no error.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::PathBuf,
    time::SystemTime,
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    unistd::{Uid, linkat},
};
use sha2::{Digest, Sha256};

/// Kernels kept; the one that was not used for longest goes first.
const MOST: usize = 4;
/// The name's end, so that nothing else in the directory is touched.
const SUFFIX: &str = ".kernel";
/// A new one for each boot of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Others' writing.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A directory of unpacked kernels.
#[derive(Debug, Clone)]
pub struct KeptKernels {
    dir: PathBuf,
    boot: String,
}

/// What packed bytes unpack to is kept under this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl KeptKernels {
    /// Kernels in this directory, which is made when there is something to
    /// keep; none if it can't be told when the host was booted.
    #[must_use]
    pub fn open(dir: PathBuf) -> Option<Self> {
        let boot = fs::read_to_string(BOOT_ID).ok()?.trim().to_owned();
        Some(Self { dir, boot })
    }

    /// Whether the directory exists and is this user's alone.
    fn is_usable(&self) -> bool {
        fs::symlink_metadata(&self.dir).is_ok_and(|found| found.is_dir() && is_own(&found))
    }

    /// The name of what `packed` unpacks to.
    #[must_use]
    pub fn key(&self, packed: &[u8]) -> Key {
        let digest = Sha256::digest(packed);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Key(format!("{hex}-{}{SUFFIX}", self.boot))
    }

    /// The unpacked kernel of that name, if it is kept.
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<File> {
        if !self.is_usable() {
            return None;
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(self.dir.join(&key.0))
            .ok()?;
        let found = file.metadata().ok()?;
        if !found.is_file() || !is_own(&found) {
            return None;
        }
        // The order of use; a file that can't be marked is only forgotten sooner.
        file.set_modified(SystemTime::now()).ok();
        Some(file)
    }

    /// Keeps `unpacked`, and lets go of what is too much.
    pub fn keep(&self, key: &Key, unpacked: &[u8]) {
        match self.write(key, unpacked) {
            Ok(()) => self.forget_surplus(),
            Err(error) => {
                tracing::debug!(dir = %self.dir.display(), %error, "an unpacked kernel is not kept");
            }
        }
    }

    /// The file has no name before it is whole, so that whoever dies here
    /// leaves nothing.
    fn write(&self, key: &Key, unpacked: &[u8]) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        if !self.is_usable() {
            return Err(io::Error::other("others may write there"));
        }
        let mut file = OpenOptions::new()
            .write(true)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .mode(0o600)
            .open(&self.dir)?;
        file.write_all(unpacked)?;
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        let named = self.dir.join(&key.0);
        // What was of no use before.
        fs::remove_file(&named).ok();
        Ok(linkat(
            AT_FDCWD,
            nameless.as_str(),
            AT_FDCWD,
            &named,
            AtFlags::AT_SYMLINK_FOLLOW,
        )?)
    }

    /// Removes kernels of earlier boots, and those above [`MOST`] that were not
    /// used for longest.
    fn forget_surplus(&self) {
        let mut ours = self.kernels();
        ours.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
        let (now, before): (Vec<_>, Vec<_>) = ours
            .into_iter()
            .map(|(name, _)| name)
            .partition(|name| name.contains(&self.boot));
        for name in now.iter().skip(MOST).chain(&before) {
            fs::remove_file(self.dir.join(name)).ok();
        }
    }

    /// The names of all kernels here, and when each was used.
    fn kernels(&self) -> Vec<(String, Option<SystemTime>)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let used = entry.metadata().and_then(|found| found.modified()).ok();
                name.ends_with(SUFFIX).then_some((name, used))
            })
            .collect()
    }
}

/// Whether it belongs to this user, and nobody else may write to it.
fn is_own(found: &fs::Metadata) -> bool {
    found.uid() == Uid::effective().as_raw() && found.mode() & WRITABLE_BY_OTHERS == 0
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::PermissionsExt, path::Path, time::Duration};

    use super::*;

    fn content(kept: &KeptKernels, packed: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = kept.find(&kept.key(packed))?;
        file.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    #[test]
    fn a_kernel_is_found_by_the_bytes_that_it_was_unpacked_from() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("of/its/own");
        let kept = KeptKernels::open(own.clone()).unwrap();
        assert_eq!(content(&kept, b"packed"), None);
        assert!(!own.exists());
        kept.keep(&kept.key(b"packed"), b"unpacked");
        kept.keep(&kept.key(b"packed"), b"unpacked");
        assert_eq!(content(&kept, b"packed").unwrap(), b"unpacked");
        assert_eq!(content(&kept, b"Packed"), None);
    }

    #[test]
    fn only_the_latest_stay_and_none_of_another_boot() {
        let dir = tempfile::tempdir().unwrap();
        let before = KeptKernels {
            boot: "another boot".into(),
            ..KeptKernels::open(dir.path().into()).unwrap()
        };
        before.keep(&before.key(b"0"), b"old");
        fs::write(dir.path().join("somebody else's"), "").unwrap();
        let kept = KeptKernels::open(dir.path().into()).unwrap();
        assert_eq!(content(&kept, b"0"), None);
        for packed in [b"0", b"1", b"2", b"3"] {
            kept.keep(&kept.key(packed), packed);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(content(&kept, b"0").is_some(), "used again");
        kept.keep(&kept.key(b"4"), b"4");
        let stay = [b"0", b"1", b"2", b"3", b"4"].map(|packed| content(&kept, packed).is_some());
        assert_eq!(stay, [true, false, true, true, true]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MOST + 1);
    }

    #[test]
    fn what_others_may_write_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptKernels::open(dir.path().into()).unwrap();
        let key = kept.key(b"packed");
        kept.keep(&key, b"unpacked");
        let open_to_all = |path: &Path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        };
        assert!(kept.find(&key).is_some());
        open_to_all(&dir.path().join(&key.0));
        assert!(kept.find(&key).is_none());
        kept.keep(&key, b"unpacked");
        open_to_all(dir.path());
        assert!(kept.find(&key).is_none());
        kept.keep(&kept.key(b"another"), b"unpacked");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptKernels::open(dir.path().into()).unwrap();
        let key = kept.key(b"packed");
        std::os::unix::fs::symlink("/proc/version", dir.path().join(&key.0)).unwrap();
        assert!(kept.find(&key).is_none());
    }
}
