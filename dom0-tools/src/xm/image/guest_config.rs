//! The configuration file that goes with an image.

use std::{fs::File, io::Write};

use super::{ImageCommandError, error::at, store::Place, tree::DEVICE};
use crate::config::disk::Format;

/// Writes it beside the image. `extra` are kernel options.
///
/// # Errors
/// It exists, or the file system's.
pub fn write(place: &Place, memory_mib: u64, extra: &str) -> Result<(), ImageCommandError> {
    let path = place.config();
    let mut file = File::create_new(&path).map_err(at(&path))?;
    file.write_all(text(place, memory_mib, extra).as_bytes())
        .map_err(at(&path))
}

fn text(place: &Place, memory_mib: u64, extra: &str) -> String {
    let format = match place.format {
        Format::Qcow2 => "qcow2",
        _ => "raw",
    };
    let image = place.image.display().to_string();
    let image = image.replace('\\', "\\\\").replace('"', "\\\"");
    let extra = match extra {
        "" => String::new(),
        extra => format!("extra      = \"{extra}\"\n"),
    };
    format!(
        "# Made by xm image. Start it with: xm create -c {}\n\
         name       = \"{}\"\n\
         memory     = {memory_mib}\n\
         vcpus      = 1\n\
         bootloader = \"pygrub\"        # the kernel in the image, as its boot entries say\n\
         disk       = [\"format={format}, vdev={DEVICE}, access=rw, target={image}\"]\n\
         {extra}\
         # A network interface on a bridge of the host; the guest asks it for an address by DHCP:\n\
         # vif      = [\"bridge=xenbr0\"]\n",
        place.config().display(),
        place.name,
    )
}
