//! What the tools want of a disk: the nodes that they wrote.

use std::path::PathBuf;

use super::{BlkError, throttle::Limits};
use crate::{backend::Bus, config::disk::Format};

/// A disk, as the tools describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What is behind it; nothing for an empty CD drive.
    pub image: Option<(Format, PathBuf)>,
    /// Whether the guest may write.
    pub write: bool,
    /// Whether others may write at the same time (`w!`): nobody is kept away, and
    /// nobody is asked. A qcow2 image can't have two writers.
    pub shared: bool,
    /// Whether it is a CD drive.
    pub cdrom: bool,
    /// Whether its medium can be taken out.
    pub removable: bool,
    /// Whether the guest may discard.
    pub discard: bool,
    /// Bytes and operations in a second.
    pub limits: Limits,
}

impl Spec {
    /// Reads a device's nodes.
    pub fn read(bus: &mut Bus<'_>) -> Result<Self, BlkError> {
        let cdrom = bus.find("device-type")?.as_deref() == Some("cdrom");
        let params = bus.find("params")?.unwrap_or_default();
        let image = parse_params(&params)?;
        if image.is_none() && !cdrom {
            return Err(BlkError::Params(params));
        }
        let mode = bus.find("mode")?.unwrap_or_default();
        let write = mode.starts_with('w') && !cdrom;
        let is_raw = matches!(image, Some((Format::Raw, _)));
        let limits = match bus.find("throttle")? {
            Some(text) => Limits::parse(&text).ok_or(BlkError::Limits(text))?,
            None => Limits::default(),
        };
        let yes = |node: Option<String>| node.is_some_and(|text| text.trim() == "1");
        Ok(Self {
            image,
            write,
            shared: write && is_raw && mode == "w!",
            cdrom,
            removable: yes(bus.find("removable")?),
            discard: write && yes(bus.find("discard-enable")?),
            limits,
        })
    }
}

/// `raw:/path`, `qcow2:/path`, `/path` (raw), or nothing (an empty drive). The
/// format is never guessed: the guest writes a raw image's first bytes.
fn parse_params(params: &str) -> Result<Option<(Format, PathBuf)>, BlkError> {
    let (format, path) = match params.split_once(':') {
        _ if params.starts_with('/') => (Format::Raw, params),
        Some(("raw" | "aio", path)) => (Format::Raw, path),
        Some(("qcow2", path)) => (Format::Qcow2, path),
        None if params.is_empty() => return Ok(None),
        _ => return Err(BlkError::Params(params.into())),
    };
    match path {
        "" => Ok(None),
        path if path.starts_with('/') => Ok(Some((format, path.into()))),
        _ => Err(BlkError::Params(params.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_name_a_format_and_a_path() {
        let parse = |text: &str| parse_params(text).map_err(|error| error.to_string());
        let raw = |path: &str| Ok(Some((Format::Raw, PathBuf::from(path))));
        assert_eq!(parse("raw:/a:b"), raw("/a:b"));
        assert_eq!(parse("/dev/loop0"), raw("/dev/loop0"));
        assert_eq!(
            parse("qcow2:/x"),
            Ok(Some((Format::Qcow2, PathBuf::from("/x"))))
        );
        assert_eq!((parse(""), parse("raw:")), (Ok(None), Ok(None)));
        for bad in ["raw:relative", "vhd:/x", "x"] {
            assert!(parse(bad).unwrap_err().contains(bad));
        }
    }
}
