//! What a disk's image must be, looked at before anything is created.
//!
//! Law: nothing in an image is changed by looking. What the back end will find
//! wrong, the operator hears here, with the file and the remedy; the back end
//! looks again, since a file can change in between.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::config::{
    DomainConfig,
    disk::{Access, Disk, Format},
    name::DOM0_NAME,
    vif::Vif,
};

const QCOW2_MAGIC: &[u8] = b"QFI\xfb";
const SECTOR: u64 = 512;

/// Why an image can't be a disk, or a device can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not there.
    #[error(
        "disk {vdev}: there is no {path}. Make it (as with 'qemu-img create -f {format} {path} 4G'), or correct 'disk'"
    )]
    Missing {
        /// The device.
        vdev: String,
        /// The image.
        path: PathBuf,
        /// Its format.
        format: &'static str,
    },
    /// It can't be opened as the disk wants it.
    #[error("disk {vdev}: {path} can't be opened {how}: {source}{}", hint(source, *writes))]
    Open {
        /// The device.
        vdev: String,
        /// The image.
        path: PathBuf,
        /// For what.
        how: &'static str,
        /// Whether writing was wanted.
        writes: bool,
        /// What the system said.
        source: io::Error,
    },
    /// Not something that holds blocks.
    #[error("disk {vdev}: {path} is {what}; a disk is a regular file or a block device")]
    Kind {
        /// The device.
        vdev: String,
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Not of the format.
    #[error(
        "disk {vdev}: {path} is no qcow2 image (it does not begin with QFI\\xfb). Write 'raw' as its format, or \
         convert it ('qemu-img convert -O qcow2')"
    )]
    NotQcow2 {
        /// The device.
        vdev: String,
        /// The image.
        path: PathBuf,
    },
    /// A format that no back end of ours reads.
    #[error(
        "disk {vdev}: the format {format} is not supported, raw and qcow2 are. Convert {path} with 'qemu-img convert \
         -O qcow2'"
    )]
    Format {
        /// The device.
        vdev: String,
        /// The image.
        path: PathBuf,
        /// The format.
        format: &'static str,
    },
    /// Nothing in it.
    #[error("disk {vdev}: {path} is empty. Give it a size ('truncate -s 4G {path}')")]
    Empty {
        /// The device.
        vdev: String,
        /// The image.
        path: PathBuf,
    },
    /// A driver domain.
    #[error("{device}: 'backend={backend}' is not supported: Domain-0 serves all devices")]
    Backend {
        /// The device.
        device: String,
        /// The domain.
        backend: String,
    },
    /// A script of a disk's.
    #[error(
        "disk {vdev}: 'script={script}' is not supported: name a file or a block device as the target"
    )]
    Script {
        /// The device.
        vdev: String,
        /// The script.
        script: String,
    },
    /// A script that isn't there.
    #[error("vif: there is no script {0}; correct 'script', or leave it out")]
    NoScript(PathBuf),
}

fn hint(source: &io::Error, writes: bool) -> &'static str {
    match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem if writes => ". Make the disk read-only (access 'r')",
        io::ErrorKind::PermissionDenied if writes => {
            ". Change its permissions, or make the disk read-only (access 'r')"
        }
        io::ErrorKind::PermissionDenied => ". Change its permissions, or run as root",
        io::ErrorKind::ResourceBusy => ". Somebody else on this host holds it",
        _ => "",
    }
}

/// Looks at all that the devices of a configuration need of the host. Gives
/// what should be said although it is no error.
///
/// # Errors
/// See [`ImageError`].
pub fn check_all(config: &DomainConfig) -> Result<Vec<String>, ImageError> {
    let mut warnings = Vec::new();
    for disk in &config.disks {
        warnings.extend(check(disk)?);
    }
    for vif in &config.vifs {
        check_vif(vif)?;
    }
    Ok(warnings)
}

/// Looks at a network interface.
///
/// # Errors
/// See [`ImageError`].
pub fn check_vif(vif: &Vif) -> Result<(), ImageError> {
    served_by_dom0("vif".to_owned(), vif.backend.as_deref())?;
    // The default location may be filled later; a path is meant as it stands.
    let script = vif.script.as_deref().filter(|s| s.starts_with('/'));
    match script.map(Path::new) {
        Some(path) if !path.is_file() => Err(ImageError::NoScript(path.to_owned())),
        _ => Ok(()),
    }
}

/// Looks at a disk's image.
///
/// # Errors
/// See [`ImageError`].
pub fn check(disk: &Disk) -> Result<Option<String>, ImageError> {
    let vdev = || disk.vdev.name.clone();
    served_by_dom0(format!("disk {}", disk.vdev.name), disk.backend.as_deref())?;
    if let Some(script) = disk.script.clone() {
        return Err(ImageError::Script {
            vdev: vdev(),
            script,
        });
    }
    let Some(path) = &disk.target else {
        return Ok(None);
    };
    if !matches!(disk.format, Format::Raw | Format::Qcow2) {
        return Err(ImageError::Format {
            vdev: vdev(),
            path: path.clone(),
            format: disk.format.word(),
        });
    }
    let metadata = look(disk, path)?;
    let mut file = open(disk, path)?;
    let mut start = [0; 4];
    let found = file.read(&mut start).map_or(0, |n| n);
    let is_qcow2 = &start[..found] == QCOW2_MAGIC;
    let (path, vdev) = (path.clone(), vdev());
    match disk.format {
        Format::Qcow2 if !is_qcow2 => Err(ImageError::NotQcow2 { vdev, path }),
        Format::Qcow2 => Ok(None),
        _ if found == 0 => Err(ImageError::Empty { vdev, path }),
        _ => Ok(oddity(&vdev, &path, &metadata, is_qcow2)),
    }
}

fn served_by_dom0(device: String, backend: Option<&str>) -> Result<(), ImageError> {
    match backend {
        None | Some("" | "0" | DOM0_NAME) => Ok(()),
        Some(backend) => Err(ImageError::Backend {
            device,
            backend: backend.to_owned(),
        }),
    }
}

fn look(disk: &Disk, path: &Path) -> Result<fs::Metadata, ImageError> {
    let vdev = disk.vdev.name.clone();
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ImageError::Missing {
            vdev: vdev.clone(),
            path: path.to_owned(),
            format: disk.format.word(),
        },
        _ => open_error(disk, path, source),
    })?;
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(metadata),
        () if kind.is_dir() => "a directory",
        () if kind.is_char_device() => "a character device",
        () if kind.is_fifo() => "a pipe",
        () => "a socket",
    };
    Err(ImageError::Kind {
        vdev,
        path: path.to_owned(),
        what,
    })
}

fn writes(disk: &Disk) -> bool {
    disk.access != Access::ReadOnly
}

fn open(disk: &Disk, path: &Path) -> Result<File, ImageError> {
    OpenOptions::new()
        .read(true)
        .write(writes(disk))
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| open_error(disk, path, source))
}

fn open_error(disk: &Disk, path: &Path, source: io::Error) -> ImageError {
    let writes = writes(disk);
    ImageError::Open {
        vdev: disk.vdev.name.clone(),
        path: path.to_owned(),
        how: if writes { "for writing" } else { "for reading" },
        writes,
        source,
    }
}

/// What is legal and most likely not meant.
fn oddity(vdev: &str, path: &Path, metadata: &fs::Metadata, is_qcow2: bool) -> Option<String> {
    let path = path.display();
    if is_qcow2 {
        return Some(format!(
            "disk {vdev}: {path} looks like a qcow2 image and is used as raw; write 'qcow2' as its format if it is one"
        ));
    }
    let rest = metadata.size() % SECTOR;
    (metadata.is_file() && rest != 0).then(|| {
        format!(
            "disk {vdev}: {path} ends in the middle of a sector; the guest does not see its last {rest} bytes"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(text: &str) -> Result<Option<String>, ImageError> {
        check(&Disk::parse(text).expect(text))
    }

    #[test]
    fn what_is_wrong_is_said_with_its_remedy() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("raw"), [0; 1024]).expect("write");
        fs::write(at("odd"), [0; 700]).expect("write");
        fs::write(at("empty"), []).expect("write");
        fs::write(at("qcow2"), b"QFI\xfb\0\0\0\x03").expect("write");
        for (disk, message) in [
            (format!("{},raw,xvda,w", at("none")), "Make it"),
            (format!("{},raw,xvda,w", at("")), "is a directory"),
            ("/dev/null,raw,xvda,w".to_owned(), "a character device"),
            (format!("{},qcow2,xvda,w", at("raw")), "is no qcow2 image"),
            (format!("{},vhd,xvda,w", at("raw")), "qemu-img convert"),
            (format!("{},raw,xvda,w", at("empty")), "truncate -s"),
            (
                format!("file:{},xvda,w,store", at("raw")),
                "'backend=store' is not supported",
            ),
            (
                format!("script=x,vdev=xvda,target={}", at("raw")),
                "'script=x' is not supported",
            ),
        ] {
            let error = check_text(&disk).expect_err(&disk).to_string();
            assert!(error.contains(message), "{disk}: {error}");
        }
        for (disk, warning) in [
            (format!("{},raw,xvda,w", at("raw")), None),
            (format!("file:{},xvda,w,0", at("raw")), None),
            (format!("{},qcow2,xvda,r", at("qcow2")), None),
            (",raw,hdc,cdrom".to_owned(), None),
            (
                format!("{},raw,xvda,w", at("qcow2")),
                Some("looks like a qcow2 image"),
            ),
            (
                format!("{},raw,xvda,w", at("odd")),
                Some("its last 188 bytes"),
            ),
        ] {
            let found = check_text(&disk).unwrap_or_else(|e| panic!("{disk}: {e}"));
            match (found, warning) {
                (None, None) => {}
                (Some(found), Some(warning)) if found.contains(warning) => {}
                (found, _) => panic!("{disk}: {found:?}"),
            }
        }
    }

    #[test]
    fn only_dom0_serves() {
        let vif = |text: &str| check_vif(&Vif::parse(text).expect(text)).map_err(|e| e.to_string());
        assert_eq!(vif("bridge=br0,backend=0"), Ok(()));
        assert!(vif("backend=net").is_err_and(|e| e.contains("Domain-0 serves all")));
        assert!(vif("script=/nonexistent/script").is_err_and(|e| e.contains("there is no script")));
    }
}
