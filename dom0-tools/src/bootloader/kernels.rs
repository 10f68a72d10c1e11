//! Versions of kernels, and a disk without any boot configuration: the newest
//! kernel in its `/boot`.

use std::{cmp::Ordering, iter::Peekable, str::Chars};

use super::{
    files::{FileError, Files, join},
    menu::{Entry, Menu},
};

const PREFIXES: [&str; 3] = ["vmlinuz-", "vmlinux-", "kernel-"];
const RAMDISKS: [&str; 5] = [
    "initrd.img-V",
    "initramfs-V.img",
    "initrd-V",
    "initrd-V.img",
    "initramfs-V",
];
/// What a kernel's package leaves beside it, and what isn't for every day.
const NOT_KERNELS: [&str; 6] = [".old", ".bak", ".hmac", ".dpkg-", "rescue", ".sig"];

/// The kernels of a directory, the newest first.
///
/// # Errors
/// The file system's.
pub fn find(files: &dyn Files, dir: &str) -> Result<Option<Menu>, FileError> {
    let names = match files.names(dir) {
        Err(FileError::Missing) => return Ok(None),
        names => names?,
    };
    let mut versions: Vec<(&str, &str)> = names
        .iter()
        .filter(|name| !NOT_KERNELS.iter().any(|no| name.contains(no)))
        .filter_map(|name| {
            let version = PREFIXES.iter().find_map(|p| name.strip_prefix(p));
            version.map(|version| (version, name.as_str()))
        })
        .collect();
    versions.sort_by(|(a, _), (b, _)| compare(b, a));
    let options = files.text("/etc/kernel/cmdline").unwrap_or_default();
    let options = options.split_whitespace().collect::<Vec<_>>().join(" ");
    let entries = versions.into_iter().map(|(version, name)| Entry {
        id: version.to_owned(),
        title: format!("Linux {version}"),
        kernel: join(dir, name),
        ramdisks: ramdisk_of(&names, version)
            .map(|name| join(dir, name))
            .into_iter()
            .collect(),
        options: options.clone(),
    });
    Ok(Menu::new(dir, entries.collect(), 0))
}

fn ramdisk_of<'a>(names: &'a [String], version: &str) -> Option<&'a String> {
    let wanted = RAMDISKS.map(|form| form.replace('V', version));
    wanted
        .iter()
        .find_map(|wanted| names.iter().find(|name| *name == wanted))
}

/// Orders versions as people do: numbers by their value, `~` before the end.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.chars().peekable(), b.chars().peekable());
    loop {
        match (a.peek().copied(), b.peek().copied()) {
            (None, None) => return Ordering::Equal,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let order = number(&mut a).cmp(&number(&mut b));
                if order.is_ne() {
                    return order;
                }
            }
            (x, y) => {
                let order = weight(x).cmp(&weight(y));
                if order.is_ne() {
                    return order;
                }
                a.next();
                b.next();
            }
        }
    }
}

/// A number of any length: without leading zeros, the longer is the larger.
fn number(chars: &mut Peekable<Chars<'_>>) -> (usize, String) {
    let mut digits = String::new();
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        if digit != '0' || !digits.is_empty() {
            digits.push(digit);
        }
    }
    (digits.len(), digits)
}

fn weight(c: Option<char>) -> (u8, Option<char>) {
    match c {
        Some('~') => (0, None),
        None => (1, None),
        Some(c) if c.is_ascii_digit() => (2, None),
        Some(c) if c.is_alphabetic() => (4, Some(c)),
        Some(c) => (3, Some(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_people_do() {
        let sorted = [
            "5.10.0-9-amd64",
            "6.1.0~rc1-1",
            "6.1.0-2-amd64",
            "6.1.0-10-amd64",
            "6.1.0-10-cloud-amd64",
            "6.12",
            "6.12.1",
            "10.0",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }
}
