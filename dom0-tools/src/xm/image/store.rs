//! Where images lie and what they are called.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::{ImageCommandError, bootstrap::is_root};
use crate::config::disk::Format;

/// The endings of images.
const ENDINGS: [(&str, Format); 2] = [("img", Format::Raw), ("qcow2", Format::Qcow2)];

/// The directory of images: `DOMUS_IMAGE_DIR`, else root's or the user's own.
#[must_use]
pub fn dir() -> PathBuf {
    if let Some(dir) = env::var_os("DOMUS_IMAGE_DIR").filter(|dir| !dir.is_empty()) {
        return dir.into();
    }
    if is_root() {
        return "/var/lib/domus/images".into();
    }
    let data = env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".local/share");
    data.unwrap_or_else(home).join("domus/images")
}

/// An image, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The name.
    pub name: String,
    /// The image's file.
    pub image: PathBuf,
    /// Its format.
    pub format: Format,
}

impl Place {
    /// Where a new image lies.
    ///
    /// # Errors
    /// The name is none, or there is such an image already.
    pub fn new(
        name: &str,
        output: Option<&Path>,
        format: Format,
    ) -> Result<Self, ImageCommandError> {
        check(name)?;
        let image = match output {
            Some(output) => std::path::absolute(output).map_err(super::error::at(output))?,
            None => dir().join(format!("{name}.{}", ending(format))),
        };
        let place = Self {
            name: name.to_owned(),
            image,
            format,
        };
        for path in [place.image.clone(), place.config()] {
            if fs::symlink_metadata(&path).is_ok() {
                let name = name.to_owned();
                return Err(ImageCommandError::Exists { path, name });
            }
        }
        if output.is_none()
            && let Ok(other) = Self::find(name)
        {
            let (path, name) = (other.image, name.to_owned());
            return Err(ImageCommandError::Exists { path, name });
        }
        Ok(place)
    }

    /// An image that is there, by its name or its path.
    ///
    /// # Errors
    /// There is none.
    pub fn find(word: &str) -> Result<Self, ImageCommandError> {
        let all = if word.contains('/') {
            vec![PathBuf::from(word)]
        } else {
            ENDINGS
                .iter()
                .map(|(end, _)| dir().join(format!("{word}.{end}")))
                .collect()
        };
        let found = all.into_iter().find(|path| path.is_file());
        let Some(image) = found.and_then(|path| std::path::absolute(path).ok()) else {
            return Err(ImageCommandError::NoImage {
                name: word.to_owned(),
                dir: dir(),
            });
        };
        Self::of(&image).ok_or_else(|| ImageCommandError::Name(word.to_owned()))
    }

    /// The image in a file, if it is one by its name.
    #[must_use]
    pub fn of(image: &Path) -> Option<Self> {
        let end = image.extension()?.to_str()?;
        let (_, format) = ENDINGS.iter().find(|(known, _)| *known == end)?;
        Some(Self {
            name: image.file_stem()?.to_str()?.to_owned(),
            image: image.to_owned(),
            format: *format,
        })
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.image.with_file_name(format!("{}.cfg", self.name))
    }
}

/// All images of the directory, by name.
#[must_use]
pub fn all() -> Vec<Place> {
    let entries = fs::read_dir(dir()).into_iter().flatten().flatten();
    let mut all: Vec<Place> = entries
        .filter_map(|e| Place::of(&e.path()))
        .filter(|p| check(&p.name).is_ok())
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn ending(format: Format) -> &'static str {
    let found = ENDINGS.iter().find(|(_, known)| *known == format);
    found.map_or("img", |(end, _)| end)
}

fn check(name: &str) -> Result<(), ImageCommandError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if first && name.len() <= 63 && name.chars().all(fine) {
        return Ok(());
    }
    Err(ImageCommandError::Name(name.to_owned()))
}
