//! Boot Loader Specification: one small file for each kernel in
//! `loader/entries`.

use std::collections::BTreeMap;

use super::{
    files::{FileError, Files, join},
    kernels::compare,
    menu::{Entry, Menu, key_and_value},
};

/// The entries below `root` (`/boot` or `/`), the newest first. `variables`
/// stand for `$name` in them, as Fedora's GRUB does it.
///
/// # Errors
/// The file system's.
pub fn find(
    files: &dyn Files,
    root: &str,
    variables: &BTreeMap<String, String>,
) -> Result<Option<Menu>, FileError> {
    let dir = join(root, "loader/entries");
    let names = match files.names(&dir) {
        Err(FileError::Missing) => return Ok(None),
        names => names?,
    };
    let mut found = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".conf")) {
        let text = files.text(&join(&dir, name))?;
        let id = name.trim_end_matches(".conf");
        found.extend(parse(id, &text, variables));
    }
    // As in the specification: those with a sort key first, by it; then the
    // newest version; then the name.
    found.sort_by(|a, b| {
        (a.sort_key.is_empty(), &a.sort_key)
            .cmp(&(b.sort_key.is_empty(), &b.sort_key))
            .then_with(|| compare(&b.version, &a.version))
            .then_with(|| compare(&b.entry.id, &a.entry.id))
    });
    let entries: Vec<Entry> = found.into_iter().map(|one| one.entry).collect();
    let default = default_of(files, root, &entries);
    Ok(Menu::new(&dir, entries, default))
}

struct Found {
    sort_key: String,
    version: String,
    entry: Entry,
}

fn parse(id: &str, text: &str, variables: &BTreeMap<String, String>) -> Option<Found> {
    let mut found = Found {
        sort_key: String::new(),
        version: String::new(),
        entry: Entry {
            id: id.to_owned(),
            title: id.to_owned(),
            ..Entry::default()
        },
    };
    let mut options = Vec::new();
    for line in text.lines() {
        let (key, value) = key_and_value(line);
        match key {
            "title" => found.entry.title = value.to_owned(),
            "version" => found.version = value.to_owned(),
            "sort-key" => found.sort_key = value.to_owned(),
            "linux" => found.entry.kernel = value.to_owned(),
            "initrd" => {
                let paths = value.split_whitespace().filter(|p| p.starts_with('/'));
                found.entry.ramdisks.extend(paths.map(str::to_owned));
            }
            "options" => options.push(expand(value, variables)),
            _ => {}
        }
    }
    found.entry.options = options.join(" ");
    (!found.entry.kernel.is_empty()).then_some(found)
}

/// `$name` becomes its value; a name without one goes.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let words = text
        .split_whitespace()
        .filter_map(|word| match word.strip_prefix('$') {
            Some(name) => variables.get(name).map(String::as_str),
            None => Some(word),
        });
    words.collect::<Vec<_>>().join(" ")
}

/// `default` of loader.conf: an id, with `*` for any letters.
fn default_of(files: &dyn Files, root: &str, entries: &[Entry]) -> usize {
    let config = files
        .text(&join(root, "loader/loader.conf"))
        .unwrap_or_default();
    let pattern = config
        .lines()
        .map(key_and_value)
        .find(|(key, _)| *key == "default");
    let Some((_, pattern)) = pattern else {
        return 0;
    };
    let pattern = pattern.trim_end_matches(".conf");
    let default = entries.iter().position(|entry| fits(pattern, &entry.id));
    default.unwrap_or(0)
}

/// Whether a name fits a pattern: each part between stars is taken where it
/// comes first, and the last one at the end.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(head) else {
        return false;
    };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return name.ends_with(part);
        }
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*", "", true),
            ("*b", "ab", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("ab*b", "ab", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
