//! `xm image list` and `xm image delete`.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use super::{
    ImageCommandError,
    error::at,
    store::{self, Place},
};
use crate::{
    config::disk::Format,
    image::{self, Mode},
    xm::{error::XmError, output, record::Record},
};

const MIB: u64 = 1 << 20;

/// List the images of the directory of images.
#[derive(Debug, Args)]
pub struct List {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Delete images and their configuration files.
#[derive(Debug, Args)]
pub struct Delete {
    /// Names or files of images
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Also where a domain or another image uses it
    #[arg(short, long)]
    force: bool,
}

/// An image, as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    format: &'static str,
    size_mib: Option<u64>,
    used_mib: u64,
    base: Option<PathBuf>,
    domain: Option<String>,
    path: PathBuf,
}

impl List {
    /// Does it.
    ///
    /// # Errors
    /// The output's.
    pub fn run(self) -> Result<(), XmError> {
        let shown: Vec<Shown> = store::all().iter().map(shown).collect();
        if self.json {
            return output::json(&shown);
        }
        let mut lines = vec![format!(
            "{:<24} {:<6} {:>8} {:>8}  {:<12} {}",
            "Name", "Format", "Size/MiB", "Used/MiB", "Domain", "Base"
        )];
        lines.extend(shown.iter().map(|one| {
            let size = one.size_mib.map_or("?".to_owned(), |size| size.to_string());
            let base = one
                .base
                .as_ref()
                .map_or("-".to_owned(), |base| base.display().to_string());
            let domain = one.domain.as_deref().unwrap_or("-");
            format!(
                "{:<24} {:<6} {size:>8} {:>8}  {domain:<12} {base}",
                one.name, one.format, one.used_mib
            )
        }));
        output::lines(&lines)
    }
}

fn shown(place: &Place) -> Shown {
    let opened = image::open(&place.image, place.format, Mode::default()).ok();
    let used = fs::metadata(&place.image).map_or(0, |m| m.blocks() * 512);
    Shown {
        name: place.name.clone(),
        format: match place.format {
            Format::Qcow2 => "qcow2",
            _ => "raw",
        },
        size_mib: opened.map(|image| image.size() / MIB),
        used_mib: used.div_ceil(MIB),
        base: base_of(place),
        domain: user_of(&place.image),
        path: place.image.clone(),
    }
}

/// The file that a qcow2 image reads where it was not written to.
fn base_of(place: &Place) -> Option<PathBuf> {
    match place.format {
        Format::Qcow2 => image::create::backing_of(&place.image).ok().flatten(),
        _ => None,
    }
}

/// The domain that has an image as a disk.
fn user_of(image: &Path) -> Option<String> {
    let image = fs::canonicalize(image).ok()?;
    let is_it = |target: &PathBuf| fs::canonicalize(target).is_ok_and(|target| target == image);
    let mut records = Record::all().into_iter();
    let record = records.find(|r| {
        r.config
            .disks
            .iter()
            .filter_map(|d| d.target.as_ref())
            .any(is_it)
    })?;
    Some(record.config.name.to_string())
}

impl Delete {
    /// Does it.
    ///
    /// # Errors
    /// One is missing or in use: nothing is deleted then.
    pub fn run(self) -> Result<(), XmError> {
        let places: Vec<Place> = self
            .names
            .iter()
            .map(|n| Place::find(n))
            .collect::<Result<_, _>>()?;
        if !self.force {
            places
                .iter()
                .try_for_each(|place| refuse_used(place, &places))?;
        }
        for place in &places {
            fs::remove_file(&place.image).map_err(at(&place.image))?;
            // Maybe its owner has put it elsewhere.
            let _ = fs::remove_file(place.config());
        }
        Ok(())
    }
}

fn refuse_used(place: &Place, also_deleted: &[Place]) -> Result<(), ImageCommandError> {
    let name = place.name.clone();
    if let Some(domain) = user_of(&place.image) {
        let by = format!("it is a disk of the domain {domain}; shut that down first");
        return Err(ImageCommandError::InUse { name, by });
    }
    let image = fs::canonicalize(&place.image).map_err(at(&place.image))?;
    let child = store::all().into_iter().find(|other| {
        !also_deleted.contains(other)
            && base_of(other)
                .and_then(|base| fs::canonicalize(base).ok())
                .as_ref()
                == Some(&image)
    });
    match child {
        None => Ok(()),
        Some(child) => {
            let by = format!(
                "{} is a copy-on-write child of it; delete that first",
                child.name
            );
            Err(ImageCommandError::InUse { name, by })
        }
    }
}
