//! The drivers of QEMU's disks and interfaces, of the same kernel: to compare
//! with.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::{Apt, KERNEL_PACKAGE, PrepareError, cache_dir, io_error, lock, modules};

/// Where they are in the kernel's package.
const PATTERNS: [&str; 5] = [
    "*/kernel/drivers/virtio/*.ko",
    "*/kernel/drivers/block/virtio_blk.ko",
    "*/kernel/drivers/net/virtio_net.ko",
    "*/kernel/drivers/net/net_failover.ko",
    "*/kernel/net/core/failover.ko",
];

/// An archive of them for the kernel in the cache, as
/// [`Guest::modules`](super::Guest::modules) is one of the front ends. `None` for a kernel of
/// one's own.
///
/// # Errors
/// See [`PrepareError`].
pub fn prepare_virtio() -> Result<Option<PathBuf>, PrepareError> {
    if env::var_os("DOMUS_KERNEL").is_some() || env::var_os("DOMUS_KERNEL_PACKAGE").is_some() {
        return Ok(None);
    }
    let kernel = super::prepare()?.kernel;
    let version = kernel.file_name().unwrap_or_default().to_string_lossy();
    let version = version.trim_start_matches("vmlinuz-").to_owned();
    let dir = cache_dir();
    let _one_at_a_time = lock(&dir.join("lock"))?;
    let to = dir.join(format!("virtio-{version}.cpio"));
    if !to.exists() {
        let part = dir.join("virtio.part");
        make(&dir, &version, &part, &to)?;
        fs::remove_dir_all(&part).map_err(io_error(&part))?;
    }
    Ok(Some(to))
}

fn make(dir: &Path, version: &str, part: &Path, to: &Path) -> Result<(), PrepareError> {
    let apt = Apt::new(dir.join("apt"));
    let package = apt.resolve(KERNEL_PACKAGE, "linux-image-")?;
    if !package.ends_with(version) {
        // The archive has a newer kernel than the cache.
        return Err(PrepareError::Missing {
            package,
            what: "driver for the kernel in the cache: remove .domus/guest",
        });
    }
    apt.unpack_all(&package, &PATTERNS, part)?;
    let fresh = to.with_extension("part");
    fs::write(&fresh, modules::archive(part)?).map_err(io_error(&fresh))?;
    fs::rename(&fresh, to).map_err(io_error(to))
}
