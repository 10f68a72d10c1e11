//! Which files an image may bring in as its backing files.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use imago::{
    FormatAccess, FormatDriverBuilder, Storage, StorageOpenOptions,
    file::File,
    format::{Format, gate::ImplicitOpenGate},
};

use super::{Fault, MAX_CHAIN, whole};

/// Lets a backing chain be opened as far as [`MAX_CHAIN`] layers.
#[derive(Debug, Default)]
pub struct Gate {
    /// Those opened so far, from the first on.
    layers: Vec<PathBuf>,
}

impl ImplicitOpenGate<File> for Gate {
    fn open_format<B: FormatDriverBuilder<File>>(
        &mut self,
        builder: B,
    ) -> io::Result<FormatAccess<File>> {
        if B::FORMAT == Format::Qcow2
            && let Some(path) = builder.get_image_path()
        {
            whole::check(&path).map_err(|fault| {
                io::Error::other(format!("its backing file {}: {fault}", path.display()))
            })?;
        }
        let inner = Self {
            layers: self.layers.clone(),
        };
        Ok(FormatAccess::new(builder.open(inner)?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<File> {
        if self.layers.len() >= MAX_CHAIN {
            return Err(io::Error::other(Fault::Chain));
        }
        let path = options.get_filename().unwrap_or(Path::new("")).to_owned();
        check_layer(&path).map_err(io::Error::other)?;
        let real = fs::canonicalize(&path)?;
        if self.layers.contains(&real) {
            return Err(io::Error::other(Fault::Chain));
        }
        self.layers.push(real);
        File::open(options)
    }
}

/// Opening a pipe would wait for its other end; a directory has no bytes.
///
/// # Errors
/// [`Fault::Kind`], or the path can't be looked at.
pub fn check_layer(path: &Path) -> Result<(), Fault> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(Fault::Kind(path.to_owned()))
}
