//! What a guest's boot configuration offers.

use serde::Serialize;

/// More than anybody chooses from; the rest is left out.
const MAX_ENTRIES: usize = 512;

/// One kernel to boot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Entry {
    /// Its name for programs: GRUB's `--id`, a file's name; may be empty.
    pub id: String,
    /// Its name for people; of a submenu's entry with the submenu's before it.
    pub title: String,
    /// The kernel's path.
    pub kernel: String,
    /// The ramdisks' paths, to be put behind each other.
    pub ramdisks: Vec<String>,
    /// The kernel's command line.
    pub options: String,
}

/// What a boot configuration offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Menu {
    /// The file or directory that says so.
    pub source: String,
    /// The entries, in the order of the menu.
    pub entries: Vec<Entry>,
    /// The one that is booted if nobody chooses.
    pub default: usize,
}

impl Menu {
    /// A menu, if it has entries.
    #[must_use]
    pub fn new(source: &str, mut entries: Vec<Entry>, default: usize) -> Option<Self> {
        entries.truncate(MAX_ENTRIES);
        if entries.is_empty() {
            return None;
        }
        Some(Self {
            source: source.to_owned(),
            default: default.min(entries.len() - 1),
            entries,
        })
    }

    /// The entry that a word names: by its number, its id or its title.
    #[must_use]
    pub fn named(&self, word: &str) -> Option<usize> {
        let by_number = word.parse().ok().filter(|n| *n < self.entries.len());
        by_number.or_else(|| self.entries.iter().position(|e| e.is_called(word)))
    }
}

impl Entry {
    /// Whether a word is its id or its title.
    #[must_use]
    pub fn is_called(&self, word: &str) -> bool {
        !word.is_empty() && (self.id == word || self.title == word)
    }
}

/// A line's first word and the rest of it.
#[must_use]
pub fn key_and_value(line: &str) -> (&str, &str) {
    let line = line.trim();
    match line.split_once(|c: char| c.is_whitespace()) {
        Some((key, value)) => (key, value.trim()),
        None => (line, ""),
    }
}
