//! Disks: one string of the `disk` list.
//!
//! Two forms. xm's old one is `UNAME,VDEV,MODE[,BACKDOM]`, where the uname
//! carries the kind: `phy:/dev/vg/x`, `file:/p`, `tap:qcow2:/p`. xl's is
//! `TARGET,FORMAT,VDEV,ACCESS` with any of it as `key=value` in front. A
//! known prefix before the first `:` tells the old form.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    throttle::{self, Throttle},
    vdev::{Vdev, VdevError},
};

/// What a guest sees as a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file or device that holds the data. `None`: an empty CD drive.
    pub target: Option<PathBuf>,
    /// How the data lies in it.
    pub format: Format,
    /// What the guest sees.
    pub vdev: Vdev,
    /// What the guest may do.
    pub access: Access,
    /// A CD drive.
    pub cdrom: bool,
    /// The domain that serves it, if not Domain-0.
    pub backend: Option<String>,
    /// The script that prepares the target.
    pub script: Option<String>,
    /// Whether the guest may discard blocks.
    pub discard: Option<bool>,
    /// The most that the guest may do.
    #[serde(default)]
    pub throttle: Throttle,
}

/// How a disk's data lies in its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's first image format.
    Qcow,
    /// QEMU's image format.
    Qcow2,
    /// Virtual PC's image format.
    Vhd,
    /// QED.
    Qed,
}

impl Format {
    /// As the configuration spells it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow => "qcow",
            Format::Qcow2 => "qcow2",
            Format::Vhd => "vhd",
            Format::Qed => "qed",
        }
    }
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write, alone.
    ReadWrite,
    /// Read and write, although others do too (`w!`).
    SharedWrite,
}

/// Why a text describes no disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Nothing.
    #[error("a disk can't be empty: write \"phy:/dev/vg/x,xvda,w\" or \"/p,raw,xvda,rw\"")]
    Empty,
    /// No file or device.
    #[error("disk '{0}' names no file or device")]
    NoTarget(String),
    /// No virtual device.
    #[error("disk '{0}' names no virtual device, such as xvda")]
    NoVdev(String),
    /// A wrong virtual device.
    #[error(transparent)]
    Vdev(#[from] VdevError),
    /// No such access.
    #[error("'{0}' is no disk access: write r (read only), w (read and write) or w! (shared)")]
    Access(String),
    /// No such format.
    #[error("'{0}' is no disk format: raw, qcow, qcow2, vhd and qed are known")]
    Format(String),
    /// No such parameter.
    #[error(
        "Invalid disk option: {0}; there are target=, format=, vdev=, access=, bps=, iops=, backend=, script=, \
         backendtype=, devtype=disk, devtype=cdrom, and the words cdrom, discard and no-discard"
    )]
    Option(String),
    /// Said twice.
    #[error("disk option '{0}' is given twice")]
    Twice(&'static str),
    /// Too much.
    #[error("'{0}' is one field too many in a disk")]
    TooMany(String),
    /// No such kind.
    #[error("'{0}:' is no kind of disk: phy, file, tap, tap2, aio, raw, qcow2 and vhd are known")]
    Kind(String),
    /// A limit that is none.
    #[error(
        "'{0}' is no limit for a disk: write a number above 0, as in bps=10M or iops=500 (K, M, G: thousands)"
    )]
    Throttle(String),
    /// A path that isn't one.
    #[error("disk target '{0}' must be an absolute path")]
    Relative(String),
    /// A control character.
    #[error("a disk can't hold control characters")]
    Control,
}

/// The fields as far as they are known.
#[derive(Default)]
struct Fields {
    target: Option<String>,
    format: Option<Format>,
    vdev: Option<String>,
    access: Option<Access>,
    cdrom: bool,
    backend: Option<String>,
    script: Option<String>,
    discard: Option<bool>,
    throttle: Throttle,
    phy: bool,
}

impl Disk {
    /// Parses one disk.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, DiskError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(DiskError::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(DiskError::Control);
        }
        let mut fields = Fields::default();
        let first = text.split(',').next().unwrap_or(text);
        match kind_prefix(first) {
            Some(rest) => {
                fields.kind(&first[..rest])?;
                old_form(&mut fields, &text[rest..])?;
            }
            None => new_form(&mut fields, text)?,
        }
        fields.finish(text)
    }
}

/// The length of `phy:`, `tap:aio:` and so on at the start of a target.
fn kind_prefix(target: &str) -> Option<usize> {
    let mut length = 0;
    while let Some((kind, _)) = target[length..].split_once(':') {
        let word = kind
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if kind.is_empty() || !word || target[..length + kind.len()].contains(['/', '=']) {
            break;
        }
        length += kind.len() + 1;
    }
    (length > 0).then_some(length)
}

fn old_form(fields: &mut Fields, text: &str) -> Result<(), DiskError> {
    let mut parts = text.split(',').map(str::trim);
    fields.set_target(parts.next().unwrap_or_default())?;
    let rest: Vec<&str> = parts.collect();
    // xl takes a format behind a prefix too: "file:/p,raw,xvda,w" never was
    // valid, so a format there is an error of its own.
    for (index, part) in rest.into_iter().enumerate() {
        match index {
            0 => fields.set_vdev(part)?,
            1 => fields.set_access(part)?,
            2 => fields.backend = (!part.is_empty()).then(|| part.to_owned()),
            _ => return Err(DiskError::TooMany(part.to_owned())),
        }
    }
    Ok(())
}

fn new_form(fields: &mut Fields, text: &str) -> Result<(), DiskError> {
    let mut rest = text;
    let mut positions = [Field::Target, Field::Format, Field::Vdev, Field::Access].into_iter();
    loop {
        rest = rest.trim_start();
        if let Some(target) = rest.strip_prefix("target=") {
            // Takes all that is left, commas too.
            return fields.set_target(target.strip_suffix(',').unwrap_or(target));
        }
        let (part, more) = match rest.split_once(',') {
            Some((part, more)) => (part.trim_end(), Some(more)),
            None => (rest.trim_end(), None),
        };
        if let Some((key, value)) = part.split_once('=').filter(|(key, _)| is_option(key)) {
            fields.option(key, value)?;
        } else if !fields.flag(part) {
            let left = positions.find(|field| fields.lacks(*field));
            match left {
                _ if part.is_empty() && more.is_none() => {}
                Some(field) => fields.set(field, part)?,
                None => return Err(DiskError::TooMany(part.to_owned())),
            }
        }
        match more {
            Some(more) => rest = more,
            None => return Ok(()),
        }
    }
}

fn is_option(key: &str) -> bool {
    let mut bytes = key.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[derive(Clone, Copy)]
enum Field {
    Target,
    Format,
    Vdev,
    Access,
}

impl Fields {
    /// The old form's prefix, such as `tap:qcow2:`.
    fn kind(&mut self, prefix: &str) -> Result<(), DiskError> {
        for kind in prefix.split_terminator(':') {
            match kind {
                "phy" => self.phy = true,
                "file" | "tap" | "tap2" | "tapdisk" | "aio" | "ioemu" | "sync" => {}
                "raw" | "qcow" | "qcow2" | "vhd" | "qed" => self.set(Field::Format, kind)?,
                _ => return Err(DiskError::Kind(kind.to_owned())),
            }
        }
        Ok(())
    }

    fn lacks(&self, field: Field) -> bool {
        match field {
            Field::Target => self.target.is_none(),
            Field::Format => self.format.is_none(),
            Field::Vdev => self.vdev.is_none(),
            Field::Access => self.access.is_none(),
        }
    }

    fn set(&mut self, field: Field, value: &str) -> Result<(), DiskError> {
        match field {
            Field::Target => self.set_target(value),
            Field::Format => self.set_format(value),
            Field::Vdev => self.set_vdev(value),
            Field::Access => self.set_access(value),
        }
    }

    fn set_target(&mut self, value: &str) -> Result<(), DiskError> {
        once(&mut self.target, "target", value.trim().to_owned())
    }

    fn set_format(&mut self, value: &str) -> Result<(), DiskError> {
        let format = match value {
            "" | "raw" => Format::Raw,
            "qcow" => Format::Qcow,
            "qcow2" => Format::Qcow2,
            "vhd" => Format::Vhd,
            "qed" => Format::Qed,
            _ => return Err(DiskError::Format(value.to_owned())),
        };
        once(&mut self.format, "format", format)
    }

    fn set_vdev(&mut self, value: &str) -> Result<(), DiskError> {
        let (vdev, kind) = value.rsplit_once(':').unwrap_or((value, "disk"));
        match kind {
            "disk" => {}
            "cdrom" => self.cdrom = true,
            _ => return Err(DiskError::Option(kind.to_owned())),
        }
        once(&mut self.vdev, "vdev", vdev.to_owned())
    }

    fn set_access(&mut self, value: &str) -> Result<(), DiskError> {
        let access = match value {
            "r" | "ro" => Access::ReadOnly,
            "" | "w" | "rw" => Access::ReadWrite,
            "w!" | "rw!" | "!" => Access::SharedWrite,
            _ => return Err(DiskError::Access(value.to_owned())),
        };
        once(&mut self.access, "access", access)
    }

    fn option(&mut self, key: &str, value: &str) -> Result<(), DiskError> {
        match key {
            "format" => self.set_format(value),
            "vdev" => self.set_vdev(value),
            "access" => self.set_access(value),
            "backend" => once(&mut self.backend, "backend", value.to_owned()),
            "script" => once(&mut self.script, "script", value.to_owned()),
            // "throttle=bps=10M,iops=500" comes as two options.
            "throttle" => match value.split_once('=') {
                Some((key @ ("bps" | "iops"), value)) => self.option(key, value),
                _ => Err(DiskError::Option(format!("{key}={value}"))),
            },
            "bps" => limit(&mut self.throttle.bytes_per_second, "bps", value),
            "iops" => limit(&mut self.throttle.operations_per_second, "iops", value),
            "backendtype" if matches!(value, "phy" | "tap" | "qdisk") => Ok(()),
            "devtype" if value == "disk" => Ok(()),
            "devtype" if value == "cdrom" => {
                self.cdrom = true;
                Ok(())
            }
            _ => Err(DiskError::Option(format!("{key}={value}"))),
        }
    }

    fn flag(&mut self, word: &str) -> bool {
        match word {
            "cdrom" => self.cdrom = true,
            "discard" => self.discard = Some(true),
            "no-discard" => self.discard = Some(false),
            "direct-io-safe" => {}
            _ => return false,
        }
        true
    }

    fn finish(self, text: &str) -> Result<Disk, DiskError> {
        let vdev = self.vdev.filter(|vdev| !vdev.is_empty());
        let vdev = Vdev::parse(&vdev.ok_or_else(|| DiskError::NoVdev(text.to_owned()))?)?;
        let target = match self.target.filter(|target| !target.is_empty()) {
            None if self.cdrom => None,
            None => return Err(DiskError::NoTarget(text.to_owned())),
            Some(path) if path.starts_with('/') => Some(PathBuf::from(path)),
            // As the block script did: "phy:vg/x" is /dev/vg/x.
            Some(name) if self.phy => Some(PathBuf::from("/dev").join(name)),
            Some(path) => return Err(DiskError::Relative(path)),
        };
        let default = if self.cdrom {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        Ok(Disk {
            target,
            format: self.format.unwrap_or(Format::Raw),
            vdev,
            access: self.access.unwrap_or(default),
            cdrom: self.cdrom,
            backend: self.backend,
            script: self.script,
            discard: self.discard,
            throttle: self.throttle,
        })
    }
}

fn limit(field: &mut Option<u64>, name: &'static str, value: &str) -> Result<(), DiskError> {
    let amount = throttle::amount(value).ok_or_else(|| DiskError::Throttle(value.to_owned()))?;
    once(field, name, amount)
}

fn once<T>(field: &mut Option<T>, name: &'static str, value: T) -> Result<(), DiskError> {
    if field.is_some() {
        return Err(DiskError::Twice(name));
    }
    *field = Some(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn disk(text: &str) -> Disk {
        Disk::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn old_forms() {
        for (text, target, format, access) in [
            (
                "phy:/dev/vg/x,xvda,w",
                "/dev/vg/x",
                Format::Raw,
                Access::ReadWrite,
            ),
            (
                "phy:vg/x,xvda,r",
                "/dev/vg/x",
                Format::Raw,
                Access::ReadOnly,
            ),
            ("file:/p,xvda,w!", "/p", Format::Raw, Access::SharedWrite),
            ("tap:aio:/p,xvda,rw", "/p", Format::Raw, Access::ReadWrite),
            (
                "tap:qcow2:/p,xvda,w",
                "/p",
                Format::Qcow2,
                Access::ReadWrite,
            ),
            (
                "tap2:aio:/p , xvda , w",
                "/p",
                Format::Raw,
                Access::ReadWrite,
            ),
            ("tap2:vhd:/p,xvda", "/p", Format::Vhd, Access::ReadWrite),
            ("vhd:/p,xvda,w", "/p", Format::Vhd, Access::ReadWrite),
        ] {
            let disk = disk(text);
            assert_eq!(disk.target, Some(target.into()), "{text}");
            assert_eq!((disk.format, disk.access), (format, access), "{text}");
            assert_eq!(disk.vdev.number, 51712, "{text}");
        }
        assert_eq!(
            disk("phy:/d,sda1,w,Storage").backend.as_deref(),
            Some("Storage")
        );
        assert!(disk("file:/iso,hdc:cdrom,r").cdrom);
    }

    #[test]
    fn new_forms() {
        let expected = disk("/p,raw,xvda,rw");
        for same in [
            "/p,,xvda",
            "vdev=xvda, target=/p",
            "format=raw, vdev=xvda, access=rw, target=/p",
            "raw:/p,xvda,rw",
            "/p,raw,vdev=xvda,w",
            "backendtype=qdisk,format=raw,vdev=xvda,target=/p",
        ] {
            assert_eq!(disk(same), expected, "{same}");
        }
        assert_eq!(
            disk("vdev=xvda,target=/a,b:c").target,
            Some("/a,b:c".into())
        );
        assert_eq!(disk("/p:1,qcow2,xvda,ro").format, Format::Qcow2);
        let cd = disk(",,hdc:cdrom");
        assert_eq!(
            (cd.target, cd.cdrom, cd.access),
            (None, true, Access::ReadOnly)
        );
        assert_eq!(disk("/p,raw,xvda,rw,discard").discard, Some(true));
        let cd = disk(",raw,hdc,cdrom");
        assert_eq!((cd.target, cd.cdrom, cd.vdev.number), (None, true, 5632));
    }

    #[test]
    fn limits() {
        for text in [
            "/p,raw,xvda,rw,bps=10M,iops=500",
            "throttle=bps=10M,iops=500,vdev=xvda,target=/p",
        ] {
            assert_eq!(
                disk(text).throttle,
                Throttle {
                    bytes_per_second: Some(10_000_000),
                    operations_per_second: Some(500),
                },
                "{text}"
            );
        }
        assert!(disk("/p,raw,xvda,rw").throttle.is_none());
    }

    #[test]
    fn wrong_ones_say_what_is_wrong() {
        for (text, message) in [
            ("", "a disk can't be empty"),
            ("phy:/dev/x", "names no virtual device"),
            ("phy:,xvda,w", "names no file or device"),
            ("phy:/dev/x,xvda,z", "'z' is no disk access"),
            ("phy:/dev/x,vda,w", "'vda' is no virtual device"),
            ("nbd:/dev/x,xvda,w", "'nbd:' is no kind of disk"),
            ("file:p,xvda,w", "'p' must be an absolute path"),
            ("phy:/d,xvda,w,0,x", "'x' is one field too many"),
            ("/p,zip,xvda,w", "'zip' is no disk format"),
            ("/p,raw,xvda,w,more", "'more' is one field too many"),
            ("color=red,/p,raw,xvda,w", "Invalid disk option: color=red"),
            (
                "acces=rw,/p,raw,xvda",
                "there are target=, format=, vdev=, access=",
            ),
            ("vdev=xvda,vdev=xvdb,target=/p", "'vdev' is given twice"),
            ("/p,raw,xvda,w,iops=0", "'0' is no limit"),
            (
                "/p,raw,xvda,w,throttle=5",
                "Invalid disk option: throttle=5",
            ),
            ("/p,raw,xvda,w,bps=1,bps=2", "'bps' is given twice"),
            ("/p\n,raw,xvda,w", "control characters"),
        ] {
            let error = Disk::parse(text).expect_err(text).to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = Disk::parse(&text);
        }
        #[test]
        fn never_panics_near_the_form(text in "(phy:|tap:|aio:|é|=|,|:|/p|xvda|target=|vdev=|r| ){0,12}") {
            let _ = Disk::parse(&text);
        }
    }
}
