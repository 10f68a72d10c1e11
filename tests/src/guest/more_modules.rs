//! More modules of the same kernel: the drivers of QEMU's disks and interfaces, to
//! compare with, and KVM, for a host that QEMU emulates.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::{Apt, KERNEL_PACKAGE, PrepareError, cache_dir, io_error, lock, modules};

/// Where they are in the kernel's package.
const VIRTIO: [&str; 5] = [
    "*/kernel/drivers/virtio/*.ko",
    "*/kernel/drivers/block/virtio_blk.ko",
    "*/kernel/drivers/net/virtio_net.ko",
    "*/kernel/drivers/net/net_failover.ko",
    "*/kernel/net/core/failover.ko",
];
const KVM: [&str; 4] = [
    "*/kernel/arch/x86/kvm/kvm.ko",
    "*/kernel/arch/x86/kvm/kvm-amd.ko",
    "*/kernel/virt/lib/irqbypass.ko",
    "*/kernel/drivers/crypto/ccp/ccp.ko",
];

/// An archive of QEMU's drivers for the kernel in the cache, as
/// [`Guest::modules`](super::Guest::modules) is one of the front ends. `None` for a kernel of
/// one's own.
///
/// # Errors
/// See [`PrepareError`].
pub fn prepare_virtio() -> Result<Option<PathBuf>, PrepareError> {
    prepare("virtio", &VIRTIO)
}

/// The same of KVM for AMD's processors.
///
/// # Errors
/// See [`PrepareError`].
pub fn prepare_kvm() -> Result<Option<PathBuf>, PrepareError> {
    prepare("kvm", &KVM)
}

fn prepare(name: &str, patterns: &[&str]) -> Result<Option<PathBuf>, PrepareError> {
    if env::var_os("DOMUS_KERNEL").is_some() || env::var_os("DOMUS_KERNEL_PACKAGE").is_some() {
        return Ok(None);
    }
    let kernel = super::prepare()?.kernel;
    let version = kernel.file_name().unwrap_or_default().to_string_lossy();
    let version = version.trim_start_matches("vmlinuz-").to_owned();
    let dir = cache_dir();
    let _one_at_a_time = lock(&dir.join("lock"))?;
    let to = dir.join(format!("{name}-{version}.cpio"));
    if !to.exists() {
        let part = dir.join(format!("{name}.part"));
        make(&dir, &version, patterns, &part, &to)?;
        fs::remove_dir_all(&part).map_err(io_error(&part))?;
    }
    Ok(Some(to))
}

fn make(
    dir: &Path,
    version: &str,
    patterns: &[&str],
    part: &Path,
    to: &Path,
) -> Result<(), PrepareError> {
    let apt = Apt::new(dir.join("apt"));
    let package = apt.resolve(KERNEL_PACKAGE, "linux-image-")?;
    if !package.ends_with(version) {
        // The archive has a newer kernel than the cache.
        return Err(PrepareError::Missing {
            package,
            what: "driver for the kernel in the cache: remove .domus/guest",
        });
    }
    apt.unpack_all(&package, patterns, part)?;
    let fresh = to.with_extension("part");
    fs::write(&fresh, modules::archive(part)?).map_err(io_error(&fresh))?;
    fs::rename(&fresh, to).map_err(io_error(to))
}
