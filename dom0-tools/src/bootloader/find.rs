//! From a disk to the kernel that it wants to be booted.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use super::{
    bls,
    config::Choice,
    disk::Section,
    error::BootError,
    extlinux,
    files::{FileError, Files},
    filesystem::{self, Content, Ext},
    grub, kernels, legacy,
    menu::{Entry, Menu},
    partitions,
};
use crate::{
    config::disk::Format,
    contained::contained,
    image::{self, Mode},
};

/// Larger than any kernel file.
const MAX_KERNEL: u64 = 256 << 20;
/// Larger than any ramdisk; all that an entry names, together.
const MAX_RAMDISK: u64 = 1 << 30;

/// A disk, as the domain's configuration has it.
#[derive(Debug, Clone, Copy)]
pub struct Disk<'a> {
    /// Its image.
    pub path: &'a Path,
    /// The image's format.
    pub format: Format,
    /// What the guest calls it: `xvda`.
    pub vdev: &'a str,
}

/// A menu, and on which partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// The partition; none: the whole disk.
    pub partition: Option<u32>,
    /// What it offers.
    #[serde(flatten)]
    pub menu: Menu,
}

/// What is to be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booted {
    /// Where the entry is from.
    pub source: String,
    /// The entry.
    pub entry: Entry,
    /// The kernel's file.
    pub kernel: Vec<u8>,
    /// The ramdisks' files, one behind the other.
    pub ramdisk: Option<Vec<u8>>,
}

/// Reads the kernel that a disk wants to be booted.
///
/// # Errors
/// See [`BootError`].
pub fn boot(disk: &Disk<'_>, choice: &Choice) -> Result<Booted, BootError> {
    guarded(disk, || {
        let volumes = Volumes::open(disk)?;
        match &choice.kernel {
            Some(kernel) => volumes.load_named(kernel, choice.ramdisk.as_deref()),
            None => volumes.load_chosen(choice.entry.as_deref()),
        }
    })
}

/// Lists what a disk offers.
///
/// # Errors
/// See [`BootError`].
pub fn list(disk: &Disk<'_>) -> Result<Listing, BootError> {
    guarded(disk, || {
        let volumes = Volumes::open(disk)?;
        let (index, menu) = volumes.menu()?;
        let partition = volumes.all[index].number;
        Ok(Listing { partition, menu })
    })
}

/// A parser that panics on what a guest wrote must not end the monitor.
fn guarded<T>(
    disk: &Disk<'_>,
    work: impl FnOnce() -> Result<T, BootError>,
) -> Result<T, BootError> {
    contained(work).unwrap_or_else(|what| {
        Err(BootError::Bug {
            disk: disk.path.to_owned(),
            what,
        })
    })
}

struct Volume {
    number: Option<u32>,
    files: Ext,
}

struct Volumes<'a> {
    disk: &'a Disk<'a>,
    all: Vec<Volume>,
    /// What can't be read: "partition 2 is btrfs".
    others: Vec<String>,
}

impl<'a> Volumes<'a> {
    fn open(disk: &'a Disk<'a>) -> Result<Self, BootError> {
        let image = image::open(disk.path, disk.format, Mode::default())?;
        let failed = |source| BootError::Read {
            disk: disk.path.to_owned(),
            source,
        };
        let (mut all, mut others) = (Vec::new(), Vec::new());
        for partition in partitions::find(&Section::whole(image)).map_err(failed)? {
            let place = match partition.number {
                Some(number) => format!("partition {number}"),
                None => "the disk".to_owned(),
            };
            match filesystem::open(&partition.section).map_err(failed)? {
                Content::Ext(files) => all.push(Volume {
                    number: partition.number,
                    files,
                }),
                Content::Other(name) => others.push(format!("{place} is {name}")),
                Content::Broken(why) => {
                    others.push(format!("{place} is a damaged ext file system: {why}"))
                }
                Content::Unknown => others.push(format!("{place} is of no known kind")),
            }
        }
        if all.is_empty() {
            return Err(BootError::NoFileSystem {
                disk: disk.path.to_owned(),
                found: others.join(", "),
            });
        }
        Ok(Self { disk, all, others })
    }

    /// The first menu that has a kernel which is there: those that say what to
    /// boot before those that only are in a directory.
    fn menu(&self) -> Result<(usize, Menu), BootError> {
        let mut notes = Vec::new();
        for find in [configured, unconfigured] {
            for (index, volume) in self.all.iter().enumerate() {
                for menu in find(&volume.files, &mut notes) {
                    if let Some(menu) = self.usable(index, menu) {
                        return Ok((index, menu));
                    }
                }
            }
        }
        let also: Vec<&String> = notes.iter().chain(&self.others).collect();
        let also = match also[..] {
            [] => String::new(),
            _ => format!(
                " ({})",
                also.iter()
                    .map(|s| s.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        };
        Err(BootError::NoKernel {
            disk: self.disk.path.to_owned(),
            also,
        })
    }

    /// A menu whose default is an entry with a kernel that exists.
    fn usable(&self, index: usize, mut menu: Menu) -> Option<Menu> {
        let there = |entry: &Entry| self.place(index, &entry.kernel).is_some();
        if !there(&menu.entries[menu.default]) {
            menu.default = menu.entries.iter().position(there)?;
        }
        Some(menu)
    }

    fn load_chosen(&self, wanted: Option<&str>) -> Result<Booted, BootError> {
        let (index, menu) = self.menu()?;
        let number = match wanted {
            None => menu.default,
            Some(word) => menu.named(word).ok_or_else(|| BootError::NoEntry {
                disk: self.disk.path.to_owned(),
                source_file: menu.source.clone(),
                wanted: word.to_owned(),
            })?,
        };
        self.load(index, &menu.source, menu.entries[number].clone())
    }

    fn load_named(&self, kernel: &str, ramdisk: Option<&str>) -> Result<Booted, BootError> {
        let entry = Entry {
            title: kernel.to_owned(),
            kernel: kernel.to_owned(),
            ramdisks: ramdisk.map(str::to_owned).into_iter().collect(),
            ..Entry::default()
        };
        self.load(0, kernel, entry)
    }

    fn load(&self, index: usize, source: &str, mut entry: Entry) -> Result<Booted, BootError> {
        let kernel = self.read(index, &entry.kernel, MAX_KERNEL)?;
        let mut ramdisk = Vec::new();
        for path in &entry.ramdisks {
            let room = MAX_RAMDISK.saturating_sub(ramdisk.len() as u64);
            ramdisk.extend(self.read(index, path, room)?);
            // The kernel finds the next archive at a multiple of four bytes.
            ramdisk.resize(ramdisk.len().next_multiple_of(4), 0);
        }
        if entry.options.is_empty() {
            entry.options = self.root_option(index);
        }
        Ok(Booted {
            source: source.to_owned(),
            entry,
            kernel,
            ramdisk: (!ramdisk.is_empty()).then_some(ramdisk),
        })
    }

    /// Where no configuration says it: the root file system is the one with an
    /// fstab.
    fn root_option(&self, index: usize) -> String {
        let root = self.all.iter().find(|v| v.files.exists("/etc/fstab"));
        let number = root.unwrap_or(&self.all[index]).number;
        let number = number.map(|n| n.to_string()).unwrap_or_default();
        format!("root=/dev/{}{number} ro", self.disk.vdev)
    }

    fn read(&self, index: usize, path: &str, limit: u64) -> Result<Vec<u8>, BootError> {
        let failed = |fault| BootError::File {
            disk: self.disk.path.to_owned(),
            path: path.to_owned(),
            fault,
        };
        let (volume, path) = self
            .place(index, path)
            .ok_or_else(|| failed(FileError::Missing))?;
        volume.files.read(&path, limit).map_err(failed)
    }

    /// Where a path of a boot configuration leads: to a file of its own file
    /// system, whether that is `/` or `/boot`, or of another one.
    fn place(&self, index: usize, path: &str) -> Option<(&Volume, String)> {
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        let mut forms = vec![path.clone(), format!("/boot{path}")];
        forms.extend(path.strip_prefix("/boot/").map(|rest| format!("/{rest}")));
        let others = (0..self.all.len()).filter(|other| *other != index);
        std::iter::once(index).chain(others).find_map(|at| {
            let volume = &self.all[at];
            let form = forms.iter().find(|form| volume.files.exists(form))?;
            Some((volume, form.clone()))
        })
    }
}

/// The menus that somebody configured, the most telling first.
fn configured(files: &Ext, notes: &mut Vec<String>) -> Vec<Menu> {
    let none = BTreeMap::new();
    let mut found = Vec::new();
    let mut note = |what: &str, menu: Result<Option<Menu>, FileError>| match menu {
        Ok(menu) => found.extend(menu),
        Err(error) => notes.push(format!("{what}: {error}")),
    };
    for dir in grub::PLACES {
        note(dir, grub::find(files, dir));
    }
    for root in ["/boot", "/"] {
        note(root, bls::find(files, root, &none));
    }
    for path in extlinux::PLACES {
        note(path, extlinux::find(files, path));
    }
    for path in legacy::PLACES {
        note(path, legacy::find(files, path));
    }
    found
}

/// The kernels that lie about.
fn unconfigured(files: &Ext, notes: &mut Vec<String>) -> Vec<Menu> {
    let mut found = Vec::new();
    for dir in ["/boot", "/"] {
        match kernels::find(files, dir) {
            Ok(menu) => found.extend(menu),
            Err(error) => notes.push(format!("{dir}: {error}")),
        }
    }
    found
}
