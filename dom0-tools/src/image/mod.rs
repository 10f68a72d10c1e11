//! Disk images: opening and creating them. What lies inside is the guest's.
//!
//! ```text
//!   open(path, format) --Gate--> FormatAccess     raw | qcow2
//!                        ^            |
//!                        +-- backing <+           at most MAX_CHAIN layers
//! ```
//!
//! Law: the format is what the operator says and is never guessed from a raw
//! image's first bytes, because its guest wrote those: a guest could make
//! itself a qcow2 header that names any file of the host. Every layer is a
//! regular file or a block device, as long as its own tables say, and layers below
//! the first are opened for reading only.

pub mod create;
pub mod error;
pub mod gate;
pub mod whole;

use std::path::Path;

use imago::{
    FormatAccess, FormatDriverBuilder, StorageOpenOptions, file::File, format::Format as Driver,
    qcow2::Qcow2, raw::Raw,
};

use crate::{config::disk::Format, contained::contained};
pub use create::{Backing, create_qcow2, create_raw};
pub use error::{Fault, ImageError};
use gate::Gate;

/// An open image, with all its layers.
pub type Image = FormatAccess<File>;

/// The most layers of a backing chain, the first one included.
pub const MAX_CHAIN: usize = 64;

/// How to open an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mode {
    /// For writing too.
    pub write: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

/// Opens an image and its backing chain.
///
/// # Errors
/// See [`Fault`].
pub fn open(path: &Path, format: Format, mode: Mode) -> Result<Image, ImageError> {
    let opened = contained(|| open_layers(path, format, mode));
    let opened = opened.unwrap_or_else(|what| Err(Fault::Damaged(what)));
    opened.map_err(|fault| ImageError {
        path: path.to_owned(),
        fault,
    })
}

fn open_layers(path: &Path, format: Format, mode: Mode) -> Result<Image, Fault> {
    gate::check_layer(path)?;
    let storage = StorageOpenOptions::new().direct(mode.direct);
    let gate = Gate::default();
    match driver(format)? {
        Driver::Raw => {
            let raw = Raw::<File>::builder_path(path).write(mode.write);
            Ok(FormatAccess::new(
                raw.storage_open_options(storage).open(gate)?,
            ))
        }
        _ => {
            whole::check(path)?;
            let qcow2 = Qcow2::<File>::builder_path(path).write(mode.write);
            Ok(FormatAccess::new(
                qcow2.storage_open_options(storage).open(gate)?,
            ))
        }
    }
}

/// imago's name of a format.
///
/// # Errors
/// [`Fault::Format`]: there is no code for it.
pub fn driver(format: Format) -> Result<Driver, Fault> {
    match format {
        Format::Raw => Ok(Driver::Raw),
        Format::Qcow2 => Ok(Driver::Qcow2),
        Format::Qcow | Format::Vhd | Format::Qed => Err(Fault::Format(format)),
    }
}

#[cfg(test)]
mod tests;
