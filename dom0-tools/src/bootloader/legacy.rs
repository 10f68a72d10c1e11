//! `menu.lst`: GRUB before version 2, and what xen-tools and old images write
//! for pygrub.

use super::{
    files::{FileError, Files},
    menu::{Entry, Menu, key_and_value},
};

/// Where it lies, below the root of a file system.
pub const PLACES: [&str; 4] = [
    "/boot/grub/menu.lst",
    "/boot/grub/grub.conf",
    "/grub/menu.lst",
    "/grub/grub.conf",
];

/// Reads the one at `path`.
///
/// # Errors
/// The file system's.
pub fn find(files: &dyn Files, path: &str) -> Result<Option<Menu>, FileError> {
    let text = match files.text(path) {
        Err(FileError::Missing) => return Ok(None),
        text => text?,
    };
    let (entries, default) = parse(&text);
    // The number counts all entries, also those that are no kernels.
    let default = entries[..default.min(entries.len())]
        .iter()
        .filter(|e| !e.kernel.is_empty())
        .count();
    let entries = entries.into_iter().filter(|e| !e.kernel.is_empty());
    Ok(Menu::new(path, entries.collect(), default))
}

fn parse(text: &str) -> (Vec<Entry>, usize) {
    let (mut entries, mut default, mut modules) = (Vec::<Entry>::new(), 0, 0);
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        // "default=0" is as good as "default 0".
        let (key, value) = match key_and_value(line) {
            (word, "") => word.split_once('=').unwrap_or((word, "")),
            pair => pair,
        };
        match (key, entries.last_mut()) {
            ("default", None) => {
                default = value.trim_start_matches('=').trim().parse().unwrap_or(0)
            }
            ("title", _) => {
                modules = 0;
                entries.push(Entry {
                    title: value.to_owned(),
                    ..Entry::default()
                });
            }
            ("kernel", Some(entry)) => set_kernel(entry, value),
            ("initrd", Some(entry)) => entry.ramdisks.push(plain(key_and_value(value).0)),
            // Under Xen's own image the modules are the kernel and its ramdisk.
            ("module", Some(entry)) => {
                modules += 1;
                match modules {
                    1 => set_kernel(entry, value),
                    _ => entry.ramdisks.push(plain(key_and_value(value).0)),
                }
            }
            _ => {}
        }
    }
    (entries, default)
}

fn set_kernel(entry: &mut Entry, value: &str) {
    let (path, options) = key_and_value(value);
    entry.kernel = plain(path);
    entry.options = options.to_owned();
}

/// A path without GRUB's `(hd0,0)` before it.
#[must_use]
pub fn plain(path: &str) -> String {
    match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((_, path)) => path.to_owned(),
        None => path.to_owned(),
    }
}
