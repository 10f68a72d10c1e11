//! What is behind a disk: a raw file, a block device, or a qcow2 image.
//!
//! Law: no two writers, and no writer beside a reader: the image is locked
//! ([`lock`](super::lock)) as long as any thread may still use it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::Instant,
};

use guest_abi::blkif::BLKIF_SECTOR_SIZE;
use nix::libc;

use super::{BlkError, lock, request::Rules, spec::Spec, throttle::Throttle};
use crate::{
    config::disk::Format,
    image::{self, Image, Mode},
};

nix::ioctl_read_bad!(logical_sector_size, libc::BLKSSZGET, libc::c_int);

/// An open disk, which all its rings share.
pub struct Disk {
    /// What is behind it; nothing in an empty drive.
    pub source: Option<Source>,
    /// What requests are checked against.
    pub rules: Rules,
    /// The unit in which it is best written.
    pub physical_sector: u32,
    /// Its rate limits.
    pub throttle: std::sync::Mutex<Throttle>,
}

/// Where the bytes are.
pub enum Source {
    /// In a file or block device.
    Raw(RawFile),
    /// In a qcow2 image and what it is based on.
    Qcow2(Qcow2),
}

/// A file or block device that holds the disk's bytes as they are.
pub struct RawFile {
    /// For I/O past the host's page cache, if the file allows it.
    direct: Option<File>,
    /// For what is not aligned to that; holds the lock.
    buffered: File,
    /// What offsets, lengths and addresses of direct I/O are multiples of.
    align: usize,
}

/// A qcow2 image. Discarding changes mappings that other requests may be
/// using, so it has the image for itself.
pub struct Qcow2 {
    image: RwLock<Image>,
    _lock: File,
}

impl Disk {
    /// Opens and locks a disk's image.
    pub fn open(spec: &Spec, now: Instant) -> Result<Self, BlkError> {
        let throttle = Throttle::new(spec.limits, now);
        let mut disk = Self {
            source: None,
            rules: Rules {
                sectors: 0,
                write: spec.write,
                discard: spec.discard,
            },
            physical_sector: 512,
            throttle: throttle.into(),
        };
        let Some((format, path)) = &spec.image else {
            return Ok(disk);
        };
        let (file, is_device) = open_file(path, spec.write, 0)?;
        let free = if spec.shared {
            Ok(true)
        } else {
            lock::lock(&file, spec.write)
        };
        match free {
            Ok(true) => {}
            Ok(false) => {
                return Err(BlkError::Busy {
                    path: path.clone(),
                    holder: String::new(),
                });
            }
            Err(source) => return Err(failed(path, source)),
        }
        let (source, bytes) = match format {
            Format::Qcow2 => qcow2(path, file, spec.write)?,
            _ => raw(path, file, is_device, spec.write)?,
        };
        if bytes < BLKIF_SECTOR_SIZE {
            let path = path.clone();
            return Err(BlkError::Empty { path, bytes });
        }
        if let Source::Raw(file) = &source {
            disk.physical_sector = u32::try_from(file.align).unwrap_or(512);
        }
        disk.rules.sectors = bytes / BLKIF_SECTOR_SIZE;
        disk.source = Some(source);
        Ok(disk)
    }
}

fn raw(path: &Path, mut file: File, device: bool, write: bool) -> Result<(Source, u64), BlkError> {
    let io = |source| failed(path, source);
    let bytes = file.seek(SeekFrom::End(0)).map_err(io)?;
    // A file system that knows no direct I/O is used without.
    let direct = open_file(path, write, libc::O_DIRECT).ok();
    let raw = RawFile {
        direct: direct.map(|(file, _)| file),
        align: if device { device_sector(&file) } else { 512 },
        buffered: file,
    };
    Ok((Source::Raw(raw), bytes))
}

fn qcow2(path: &Path, lock: File, write: bool) -> Result<(Source, u64), BlkError> {
    let mode = Mode {
        write,
        direct: false,
    };
    let image = image::open(path, Format::Qcow2, mode)?;
    let bytes = image.size();
    let image = RwLock::new(image);
    Ok((Source::Qcow2(Qcow2 { image, _lock: lock }), bytes))
}

/// Opens a file or block device; whether it is a device.
fn open_file(path: &Path, write: bool, flags: i32) -> Result<(File, bool), BlkError> {
    let io = |source| failed(path, source);
    // Not to wait for the other end if it is a pipe.
    let flags = flags | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)
        .map_err(io)?;
    let kind = file.metadata().map_err(io)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(BlkError::Kind(path.into()));
    }
    Ok((file, kind.is_block_device()))
}

fn failed(path: &Path, source: io::Error) -> BlkError {
    let hint = match source.kind() {
        io::ErrorKind::NotFound => "; has the image been moved?",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; a read-only image needs mode r in the disk's configuration"
        }
        _ => "",
    };
    BlkError::Open {
        path: path.into(),
        source,
        hint,
    }
}

fn device_sector(file: &File) -> usize {
    let mut size = 0;
    // SAFETY: the descriptor is open, and the call writes one integer.
    let outcome = unsafe { logical_sector_size(file.as_raw_fd(), &mut size) };
    let size = usize::try_from(size).unwrap_or(0);
    if outcome.is_ok() && size.is_power_of_two() {
        size
    } else {
        4096
    }
}

impl RawFile {
    /// For buffered I/O, flushes and discards.
    pub fn buffered(&self) -> BorrowedFd<'_> {
        self.buffered.as_fd()
    }

    /// The descriptor to use for a transfer of these parts: the direct one if
    /// all is aligned.
    pub fn for_transfer(&self, offset: u64, parts: &[libc::iovec]) -> BorrowedFd<'_> {
        let mask = self.align - 1;
        let aligned = |part: &libc::iovec| (part.iov_base.addr() | part.iov_len) & mask == 0;
        match &self.direct {
            Some(direct)
                if offset.is_multiple_of(self.align as u64) && parts.iter().all(aligned) =>
            {
                direct.as_fd()
            }
            _ => self.buffered.as_fd(),
        }
    }
}

impl Qcow2 {
    /// Reads all of `buf`.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        image.read(buf, offset)
    }

    /// Writes all of `buf`. When this returns, the next process finds it in the
    /// file: also the tables that say where it is.
    pub fn write(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        image.write(buf, offset)?;
        image.flush()
    }

    /// Makes all that was written durable.
    pub fn sync(&self) -> io::Result<()> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        image.flush()?;
        image.sync()
    }

    /// Forgets a range, which reads as zeroes then.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        image.discard_to_zero(offset, len)?;
        image.flush()
    }
}

/// The file that two paths may both name.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) else {
        return false;
    };
    let device = |file: &std::fs::Metadata| {
        let is_device = file.file_type().is_block_device();
        if is_device {
            (file.rdev(), 0)
        } else {
            (file.dev(), file.ino())
        }
    };
    a.file_type() == b.file_type() && device(&a) == device(&b)
}

/// The path of a disk's image.
pub fn path_of(spec: &Spec) -> Option<&PathBuf> {
    spec.image.as_ref().map(|(_, path)| path)
}

#[cfg(test)]
mod tests;
