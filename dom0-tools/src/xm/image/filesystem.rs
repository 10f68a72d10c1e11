//! From a tree to an image: `mke2fs -d`, without mounting.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, PermissionsExt},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

use super::{
    ImageCommandError,
    bootstrap::{Tree, search_path},
    error::at,
    job::Job,
};
use crate::{
    config::disk::Format,
    image::{self, Mode},
};

const CHUNK: usize = 1 << 20;

/// Makes a file system of `size` bytes with a tree in it.
///
/// # Errors
/// mke2fs's: the tree does not fit, say.
pub fn make_ext4(
    tree: &Tree,
    path: &Path,
    size: u64,
    job: Job<'_>,
) -> Result<(), ImageCommandError> {
    let mut command = tree.command("mke2fs");
    command
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-L",
            "root",
            "-E",
            "root_owner=0:0",
            "-d",
        ])
        .arg(&tree.root)
        .arg(path)
        .arg(format!("{}k", size / 1024))
        .env("PATH", search_path());
    job.run("Writing the file system", command)
}

/// Copies a raw image into a new qcow2 image; what was never written stays so.
///
/// # Errors
/// The file system's, or an interruption.
pub fn to_qcow2(raw: &Path, qcow2: &Path, job: Job<'_>) -> Result<(), ImageCommandError> {
    let source = File::open(raw).map_err(at(raw))?;
    let size = source.metadata().map_err(at(raw))?.len();
    image::create_qcow2(qcow2, size, None)?;
    let mode = Mode {
        write: true,
        direct: false,
    };
    let target = image::open(qcow2, Format::Qcow2, mode)?;
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while let Some((start, end)) = data_after(&source, offset).map_err(at(raw))? {
        offset = start;
        while offset < end {
            job.go_on()?;
            let len = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
            source
                .read_exact_at(&mut buffer[..len], offset)
                .map_err(at(raw))?;
            target.write(&buffer[..len], offset).map_err(at(qcow2))?;
            offset += len as u64;
        }
    }
    target
        .flush()
        .and_then(|()| target.sync())
        .map_err(at(qcow2))
}

/// The next stretch with data in it.
fn data_after(file: &File, offset: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |from: u64, whence| -> io::Result<Option<u64>> {
        let from = i64::try_from(from).map_err(io::Error::other)?;
        match lseek(file.as_fd(), from, whence) {
            Ok(at) => Ok(u64::try_from(at).ok()),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    };
    let Some(start) = seek(offset, Whence::SeekData)? else {
        return Ok(None);
    };
    let end = seek(start, Whence::SeekHole)?;
    Ok(end.map(|end| (start, end)))
}

/// Puts a finished file where it belongs, without ever replacing another.
///
/// # Errors
/// It exists, or the file system's.
pub fn publish(from: &Path, to: &Path) -> Result<(), ImageCommandError> {
    // Root's password is in it, as a hash, and maybe more.
    fs::set_permissions(from, fs::Permissions::from_mode(0o600)).map_err(at(from))?;
    File::open(from)
        .and_then(|f| f.sync_all())
        .map_err(at(from))?;
    fs::hard_link(from, to).map_err(at(to))
}
