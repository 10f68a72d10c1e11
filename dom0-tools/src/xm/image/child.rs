//! `xm image clone`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{create::publish, error::at, store::Place, workshop::Workshop};
use crate::{
    config::disk::Format,
    image::{Backing, create::create_child},
    xm::{error::XmError, output, signals::Held},
};

/// Make a copy-on-write child of an image: at once, and small. The base must
/// not be written to as long as it has children.
#[derive(Debug, Args)]
pub struct Clone {
    /// The base: an image's name or file
    #[arg(value_name = "BASE")]
    base: String,
    /// The child's name; its host name, too
    #[arg(value_name = "NAME")]
    name: String,
    /// The file [default: NAME.qcow2 in the directory of images]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The domain's memory, in MiB, for the configuration file
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u64,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

impl Clone {
    /// Does it.
    ///
    /// # Errors
    /// See [`ImageCommandError`](super::ImageCommandError).
    pub fn run(self) -> Result<(), XmError> {
        let base = Place::find(&self.base)?;
        let place = Place::new(&self.name, self.output.as_deref(), Format::Qcow2)?;
        let dir = place.image.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(at(dir))?;
        let backing = Backing {
            path: base.image.clone(),
            format: base.format,
        };
        {
            let _held = Held::hold();
            let shop = Workshop::open(&place.image)?;
            let child = shop.path("child");
            create_child(&backing, &child).map_err(super::ImageCommandError::from)?;
            // The host name lies in the base; systemd takes another from here.
            let extra = format!("systemd.hostname={}", self.name);
            publish(&child, &place, self.memory, &extra)?;
        }
        if self.quiet {
            return Ok(());
        }
        output::line(&format!(
            "Made {} on {}",
            place.image.display(),
            base.image.display()
        ))?;
        output::line(&format!(
            "Start it with: xm create -c {}",
            place.config().display()
        ))
    }
}
