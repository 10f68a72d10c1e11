//! The original: Debian's build of Xen, to run the same kernels on.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use flate2::read::GzDecoder;

use super::{Apt, PrepareError, cache_dir, find, io_error, lock};

/// Depends on the hypervisor of the release.
const PACKAGE: &str = "xen-system-amd64";
const HYPERVISOR: &str = "xen-hypervisor-";
const IMAGE: &str = "xen-image";

/// An image of Xen that QEMU can start, fetched through apt if it is not
/// there; nothing is installed.
///
/// # Errors
/// See [`PrepareError`].
pub fn xen() -> Result<PathBuf, PrepareError> {
    let dir = cache_dir();
    fs::create_dir_all(&dir).map_err(io_error(&dir))?;
    let _one_at_a_time = lock(&dir.join("lock"))?;
    let image = dir.join(IMAGE);
    if image.exists() {
        return Ok(image);
    }
    let apt = Apt::new(dir.join("apt"));
    let package = apt.resolve(PACKAGE, HYPERVISOR)?;
    let part = dir.join("xen.part");
    apt.unpack(&package, "./boot/xen-*.gz", &part)?;
    let packed = find(&part.join("boot"), "xen-").ok_or(PrepareError::Missing {
        package,
        what: "/boot/xen-*.gz",
    })?;
    let unpacked = part.join(IMAGE);
    let mut from = GzDecoder::new(File::open(&packed).map_err(io_error(&packed))?);
    let mut to = File::create(&unpacked).map_err(io_error(&unpacked))?;
    io::copy(&mut from, &mut to).map_err(io_error(&packed))?;
    fs::rename(&unpacked, &image).map_err(io_error(&image))?;
    fs::remove_dir_all(&part).map_err(io_error(&part))?;
    Ok(image)
}
