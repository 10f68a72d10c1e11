//! `grub.cfg`: as much of GRUB's script language as `grub-mkconfig` writes.
//!
//! ```text
//!   text --lex--> tokens --parse--> statements --run--> entries, default
//! ```
//!
//! Law: nothing loops. Functions are not called and loops not run, so the work
//! is linear in the text; values and words are bounded, so that doubling a
//! variable again and again ends.

pub mod lex;
pub mod parse;
pub mod run;
pub mod test;

use std::collections::BTreeMap;

use super::{
    bls,
    files::{FileError, Files},
    menu::{Entry, Menu},
};
use run::{Item, Runner};

/// Where it lies: the directory below the root of a file system.
pub const PLACES: [&str; 4] = ["/boot/grub", "/boot/grub2", "/grub", "/grub2"];

/// Reads the `grub.cfg` in `dir`.
///
/// # Errors
/// The file system's.
pub fn find(files: &dyn Files, dir: &str) -> Result<Option<Menu>, FileError> {
    let path = format!("{dir}/grub.cfg");
    let text = match files.text(&path) {
        Err(FileError::Missing) => return Ok(None),
        text => text?,
    };
    let statements = parse::parse(&lex::lex(&text));
    let mut runner = Runner::new(files, dir);
    runner.run(&statements);
    let mut entries = Vec::new();
    flatten(&runner.items, "", &mut entries);
    let mut default = chosen(&runner.items, runner.variable("default"));
    if runner.wants_bls
        && let Some(menu) = bls::find(files, root_of(dir), &runner.variables)?
    {
        let saved = menu.named(runner.variable("default"));
        default = default.or(saved.map(|n| entries.len() + n));
        entries.extend(menu.entries);
    }
    Ok(Menu::new(&path, entries, default.unwrap_or(0)))
}

/// `/boot/grub` belongs to `/boot`, `/grub` to `/`.
fn root_of(dir: &str) -> &str {
    match dir.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((root, _)) => root,
    }
}

/// All entries with a kernel, in the order of the menu.
fn flatten(items: &[Item], titles: &str, entries: &mut Vec<Entry>) {
    for item in items {
        let title = match titles {
            "" => item.title.clone(),
            titles => format!("{titles}>{}", item.title),
        };
        if let Some(entry) = item.bootable() {
            entries.push(Entry {
                id: item.id.clone(),
                title: title.clone(),
                ..entry
            });
        }
        flatten(&item.items, &title, entries);
    }
}

/// The number among the flattened entries of what `default` says: numbers,
/// ids or titles, one for each level of the menu, with `>` between.
fn chosen(items: &[Item], default: &str) -> Option<usize> {
    let whole = items.iter().position(|item| item.is_called(default));
    let (first, rest) = match whole {
        Some(_) => (default, ""),
        None => default.split_once('>').unwrap_or((default, "")),
    };
    let by_number = || first.parse().ok().filter(|n| *n < items.len());
    let position = items
        .iter()
        .position(|item| item.is_called(first))
        .or_else(by_number)?;
    let before: usize = items[..position].iter().map(Item::count).sum();
    let item = &items[position];
    if item.bootable().is_some() {
        return Some(before);
    }
    // A submenu, opened at what is left of the default, or at its first entry.
    let within = chosen(&item.items, rest).unwrap_or(0);
    (item.count() > 0).then_some(before + within)
}

/// `grubenv`: lines of `name=value`.
#[must_use]
pub fn environment(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}
