//! New images. A file that is there already is never touched.

use std::{
    fs,
    path::{Path, PathBuf},
};

use imago::{
    FormatCreateBuilder, Storage, StorageCreateOptions,
    file::File,
    qcow2::{Qcow2, Qcow2CreateBuilder},
};

use super::{Fault, ImageError, Mode};
use crate::config::disk::Format;

/// What a copy-on-write child reads where it has not been written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Its file; not written to as long as there are children.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// Makes a raw image of `size` zero bytes, sparse.
///
/// # Errors
/// It exists, or the file system's.
pub fn create_raw(path: &Path, size: u64) -> Result<(), ImageError> {
    make(path, |path| {
        let file = fs::File::create_new(path)?;
        Ok(file.set_len(size)?)
    })
}

/// Makes a qcow2 image of `size` bytes; without `backing` they are zero.
///
/// # Errors
/// It exists, or the file system's; the base is not as said.
pub fn create_qcow2(path: &Path, size: u64, backing: Option<&Backing>) -> Result<(), ImageError> {
    make(path, |path| {
        let options = StorageCreateOptions::new().filename(path).overwrite(false);
        let file = File::create_open(options)?;
        let mut builder = Qcow2CreateBuilder::<File>::new(file).size(size);
        if let Some(base) = backing {
            let (name, format) = base.header_fields()?;
            builder = builder.backing(name, format);
        }
        Ok(builder.create()?)
    })
}

/// Makes a copy-on-write child of an image: of the same size, reading from it
/// what has not been written yet.
///
/// # Errors
/// The child exists, or the base can't be opened.
pub fn create_child(base: &Backing, child: &Path) -> Result<u64, ImageError> {
    let size = super::open(&base.path, base.format, Mode::default())?.size();
    create_qcow2(child, size, Some(base))?;
    Ok(size)
}

impl Backing {
    /// The name and format as a qcow2 header has them. The name is absolute, so
    /// that the child can be moved.
    fn header_fields(&self) -> Result<(String, String), Fault> {
        let refused = |why: &str| Fault::Base {
            path: self.path.clone(),
            why: why.to_owned(),
        };
        let format = match self.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            other => return Err(Fault::Format(other)),
        };
        let path = fs::canonicalize(&self.path)?;
        let path = path
            .to_str()
            .ok_or_else(|| refused("its path is not UTF-8"))?;
        if path.len() > 1023 {
            return Err(refused(
                "its path is longer than the 1023 bytes of a header",
            ));
        }
        Ok((path.to_owned(), format.to_owned()))
    }
}

/// The format of an image that Domus or somebody else made, by its first
/// bytes. Only for images that no guest has written to as raw disks: see the
/// module's law.
///
/// # Errors
/// The file can't be read.
pub fn looks_like(path: &Path) -> Result<Format, ImageError> {
    use std::io::Read;
    const QCOW2: [u8; 4] = *b"QFI\xfb";
    make_error(path, || {
        super::gate::check_layer(path)?;
        let mut head = Vec::new();
        fs::File::open(path)?.take(4).read_to_end(&mut head)?;
        Ok(if head == QCOW2 {
            Format::Qcow2
        } else {
            Format::Raw
        })
    })
}

/// The file below a qcow2 image, by its header.
///
/// # Errors
/// The file is no qcow2 image.
pub fn backing_of(path: &Path) -> Result<Option<PathBuf>, ImageError> {
    make_error(path, || {
        super::gate::check_layer(path)?;
        let options = imago::StorageOpenOptions::new().filename(path);
        let qcow2 = Qcow2::<File>::open_image(File::open(options)?, false)?;
        let Some(name) = qcow2.implicit_backing_file() else {
            return Ok(None);
        };
        // A relative name is meant from the image's directory.
        Ok(Some(path.parent().unwrap_or(Path::new("/")).join(name)))
    })
}

/// Runs `create`; a file that it made and could not complete is removed.
fn make(path: &Path, create: impl FnOnce(&Path) -> Result<(), Fault>) -> Result<(), ImageError> {
    let existed = fs::symlink_metadata(path).is_ok();
    let made = make_error(path, || create(path));
    if made.is_err() && !existed {
        // Already gone is as good.
        let _ = fs::remove_file(path);
    }
    made
}

fn make_error<T>(path: &Path, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, ImageError> {
    work().map_err(|fault| ImageError {
        path: path.to_owned(),
        fault,
    })
}
