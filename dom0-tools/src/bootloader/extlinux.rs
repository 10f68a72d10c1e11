//! `extlinux.conf` and `syslinux.cfg`, as far as they name kernels.

use super::{
    files::{FileError, Files, join},
    menu::{Entry, Menu, key_and_value},
};

/// Where it lies, below the root of a file system.
pub const PLACES: [&str; 6] = [
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
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
    let dir = path.rsplit_once('/').map_or("/", |(dir, _)| dir);
    let (entries, default) = parse(&text, dir);
    let default = entries.iter().position(|e| e.is_called(&default));
    Ok(Menu::new(path, entries, default.unwrap_or(0)))
}

fn parse(text: &str, dir: &str) -> (Vec<Entry>, String) {
    let (mut entries, mut default, mut append) =
        (Vec::<Entry>::new(), String::new(), String::new());
    for line in text.lines() {
        let (key, value) = key_and_value(line);
        let current = entries.last_mut();
        match (key.to_ascii_lowercase().as_str(), current) {
            ("default", None) => default = value.to_owned(),
            ("ontimeout", None) if default.is_empty() => default = value.to_owned(),
            ("append", None) => append = value.to_owned(),
            ("label", _) => entries.push(Entry {
                id: value.to_owned(),
                title: value.to_owned(),
                options: append.clone(),
                ..Entry::default()
            }),
            ("kernel" | "linux", Some(entry)) => entry.kernel = join(dir, value),
            ("append", Some(entry)) => entry.options = value.to_owned(),
            ("initrd", Some(entry)) => {
                entry.ramdisks = value.split(',').map(|path| join(dir, path)).collect();
            }
            ("menu", Some(entry)) => match key_and_value(value) {
                (word, title) if word.eq_ignore_ascii_case("label") => {
                    entry.title = title.replace('^', "");
                }
                (word, _) if word.eq_ignore_ascii_case("default") => default = entry.id.clone(),
                _ => {}
            },
            _ => {}
        }
    }
    entries.iter_mut().for_each(|entry| take_initrd(entry, dir));
    // COM32 programs and boot sectors are no kernels.
    entries.retain(|e| {
        !e.kernel.is_empty() && !e.kernel.ends_with(".c32") && !e.kernel.ends_with(".bin")
    });
    (entries, default)
}

/// syslinux takes the ramdisk also as `initrd=` on the command line.
fn take_initrd(entry: &mut Entry, dir: &str) {
    let mut kept = Vec::new();
    for word in entry.options.split_whitespace() {
        match word.strip_prefix("initrd=") {
            Some(paths) if entry.ramdisks.is_empty() => {
                entry.ramdisks = paths.split(',').map(|path| join(dir, path)).collect();
            }
            _ => kept.push(word),
        }
    }
    entry.options = kept.join(" ");
}
