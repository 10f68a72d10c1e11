//! Why an image could not be made, cloned or deleted.

use std::{io, path::PathBuf};

use crate::{builder::KernelError, image::ImageError, xm::error::XmError};

/// Why an image could not be made, cloned or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ImageCommandError {
    /// A program is missing.
    #[error("{program} is not installed: apt install {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// Nothing can bootstrap.
    #[error(
        "neither mmdebstrap nor debootstrap is installed: apt install mmdebstrap{}",
        if *root { "" } else { " fakeroot uidmap (debootstrap works for root only)" }
    )]
    NoBootstrap {
        /// Whether we are root.
        root: bool,
    },
    /// debootstrap without root.
    #[error(
        "debootstrap works for root only; without root use mmdebstrap: apt install mmdebstrap fakeroot uidmap"
    )]
    NotRoot,
    /// A program failed.
    #[error("{program} failed ({status}){remedy}\n{}", last.join("\n"))]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// What to do; may be empty.
        remedy: String,
        /// Its last lines.
        last: Vec<String>,
    },
    /// Not enough room on the host.
    #[error(
        "{} has {free_mib} MiB free, and {wanted_mib} MiB are needed to make the image; free some, or choose \
         another place with --output", dir.display()
    )]
    Room {
        /// Where.
        dir: PathBuf,
        /// What is free.
        free_mib: u64,
        /// What is needed.
        wanted_mib: u64,
    },
    /// Something has the name already.
    #[error("{} exists already; choose another name, or delete it: xm image delete {name}", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
        /// The image's name.
        name: String,
    },
    /// Somebody else is at it.
    #[error("{} is being made by another xm", .0.display())]
    Busy(PathBuf),
    /// Not a name.
    #[error(
        "'{0}' is no name for an image: letters, digits, '.', '_' and '-', with a letter or digit first"
    )]
    Name(String),
    /// Not there.
    #[error("there is no image '{name}' in {}; 'xm image list' shows what there is", dir.display())]
    NoImage {
        /// The name.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// In use.
    #[error("{name} is in use: {by}")]
    InUse {
        /// The image.
        name: String,
        /// Who uses it, and what to do.
        by: String,
    },
    /// No kernel came with it.
    #[error("the package {0} brought no kernel into /boot; choose another with --kernel")]
    NoKernel(String),
    /// A kernel that is none for us.
    #[error(
        "the kernel of {package} can't be started as a PV domain: {source}; choose another with --kernel"
    )]
    Kernel {
        /// The package.
        package: String,
        /// Why.
        source: KernelError,
    },
    /// An image that can't be opened or made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file.
    #[error("{}: {source}{}", path.display(), hint(source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Ctrl+C.
    #[error("interrupted; what was there of the image has been removed")]
    Interrupted,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; free some space, or choose another place with --output",
        io::ErrorKind::PermissionDenied => {
            "; be root, or choose another place with --output or DOMUS_IMAGE_DIR"
        }
        _ => "",
    }
}

impl From<ImageCommandError> for XmError {
    fn from(error: ImageCommandError) -> Self {
        XmError::Failed(error.to_string())
    }
}

/// Tells of which file an error is.
pub fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageCommandError {
    let path = path.into();
    move |source| ImageCommandError::File { path, source }
}
