//! A user space that loads the front ends of Debian's kernel, which are modules
//! there.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::{Apt, Guest, KERNEL_PACKAGE, PrepareError, cache_dir, io_error, lock, prepare};
use super::{kernel_package, make_initramfs};

/// Rises when the user space changes, so that an old one is not used.
const INITRAMFS: &str = "initramfs-drivers-2.gz";

/// The modules, in the order in which they are loaded.
const MODULES: [&str; 2] = ["xen-blkfront.ko", "xen-netfront.ko"];

/// Where they are in a package.
pub(super) const PATTERNS: [&str; 2] = ["*/xen-blkfront.ko*", "*/xen-netfront.ko*"];

/// A module's file name and content.
pub(super) type Module = (String, Vec<u8>);

/// As [`prepare`], with the drivers of disks and network interfaces. A kernel
/// of one's own (`DOMUS_KERNEL`) is taken to have them built in.
///
/// # Errors
/// See [`PrepareError`].
pub fn prepare_with_drivers() -> Result<Guest, PrepareError> {
    let guest = prepare()?;
    if env::var_os("DOMUS_KERNEL").is_some() {
        return Ok(guest);
    }
    let dir = cache_dir();
    let _one_at_a_time = lock(&dir.join("lock"))?;
    let package = env::var("DOMUS_KERNEL_PACKAGE").unwrap_or_else(|_| KERNEL_PACKAGE.into());
    let initramfs = dir.join(format!("{package}-{INITRAMFS}"));
    if !initramfs.exists() {
        let apt = Apt::new(dir.join("apt"));
        let modules = modules(&dir, &apt, &package)?;
        make_initramfs(&dir, &apt, &initramfs, &modules)?;
    }
    Ok(Guest { initramfs, ..guest })
}

/// From the cache of the kernel, or else from the package once more. None
/// where they are built in.
fn modules(dir: &Path, apt: &Apt, package: &str) -> Result<Vec<Module>, PrepareError> {
    let at = dir.join(package);
    if find_below(&at, MODULES[0]).is_none() {
        kernel_package(dir, apt, package)?;
    }
    let paths = MODULES.iter().filter_map(|name| find_below(&at, name));
    paths.map(|path| read_module(&path)).collect()
}

fn read_module(path: &Path) -> Result<Module, PrepareError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let content = fs::read(path).map_err(io_error(path))?;
    Ok((name.into_owned(), content))
}

/// The file below a directory whose name begins so.
pub(super) fn find_below(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    entries.map(|entry| entry.path()).find_map(|path| {
        if path.is_dir() {
            return find_below(&path, prefix);
        }
        let name = path.file_name()?.to_string_lossy().into_owned();
        name.starts_with(prefix).then_some(path)
    })
}
