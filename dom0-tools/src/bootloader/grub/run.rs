//! Runs a `grub.cfg` as far as menus, variables and conditions go.

use std::collections::BTreeMap;

use super::{
    environment,
    lex::{Part, Word},
    parse::Statement,
    test,
};
use crate::bootloader::{files::Files, legacy::plain, menu::Entry};

/// The words of a command together: longer than any line that a kernel takes.
const MAX_WORDS: usize = 4096;
/// More than any menu has.
const MAX_ITEMS: usize = 512;
/// More than any configuration sets.
const MAX_VARIABLES: usize = 512;

/// An entry of a menu, or a submenu.
#[derive(Debug, Default)]
pub struct Item {
    /// What `--id` says.
    pub id: String,
    /// What people read.
    pub title: String,
    entry: Entry,
    /// What a submenu holds.
    pub items: Vec<Item>,
}

impl Item {
    /// What it boots, if it boots a kernel.
    #[must_use]
    pub fn bootable(&self) -> Option<Entry> {
        (!self.entry.kernel.is_empty()).then(|| self.entry.clone())
    }

    /// Whether a word of `default` means it.
    #[must_use]
    pub fn is_called(&self, word: &str) -> bool {
        !word.is_empty() && (self.id == word || self.title == word)
    }

    /// How many entries with a kernel it and its submenu have.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.bootable().is_some()) + self.items.iter().map(Item::count).sum::<usize>()
    }
}

/// The state of GRUB while it reads its configuration.
pub struct Runner<'a> {
    files: &'a dyn Files,
    dir: &'a str,
    /// The variables.
    pub variables: BTreeMap<String, String>,
    /// The menu so far.
    pub items: Vec<Item>,
    /// `blscfg` was called: entries of the Boot Loader Specification too.
    pub wants_bls: bool,
    /// What the entry in whose body we are boots.
    entry: Option<Entry>,
    made: usize,
}

impl<'a> Runner<'a> {
    /// As GRUB starts.
    #[must_use]
    pub fn new(files: &'a dyn Files, dir: &'a str) -> Self {
        let known = [
            ("prefix", dir),
            ("config_directory", dir),
            ("feature_menuentry_id", "y"),
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
        ];
        let known = known.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            files,
            dir,
            variables: known.into(),
            items: Vec::new(),
            wants_bls: false,
            entry: None,
            made: 0,
        }
    }

    /// A variable's value; one that is not set is empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// Runs statements; the last one's result.
    pub fn run(&mut self, statements: &[Statement]) -> bool {
        let mut result = true;
        for statement in statements {
            result = match statement {
                Statement::Command { words, body } => self.command(words, body.as_deref()),
                Statement::If(branches) => {
                    let taken = branches.iter().find(|branch| match &branch.condition {
                        Some(condition) => self.run(condition),
                        None => true,
                    });
                    taken.is_none_or(|branch| self.run(&branch.body))
                }
            };
        }
        result
    }

    fn command(&mut self, words: &[Word], body: Option<&[Statement]>) -> bool {
        let words = self.expand(words);
        let Some((name, arguments)) = words.split_first() else {
            return true;
        };
        match (name.as_str(), arguments) {
            ("[" | "test", words) => {
                let words = words.strip_suffix(&["]".to_owned()]).unwrap_or(words);
                return test::holds(words, self.files);
            }
            ("!", words) if !words.is_empty() => return words[0] == "false",
            ("false", _) => return false,
            ("set", [assignment, ..]) => self.assign(assignment),
            ("unset", [name, ..]) => {
                self.variables.remove(name);
            }
            ("load_env", _) => self.load_environment(),
            ("menuentry" | "submenu", words) => self.item(words, body.unwrap_or_default()),
            ("linux" | "linux16" | "linuxefi", [path, options @ ..]) => {
                if let Some(entry) = &mut self.entry {
                    entry.kernel = plain(path);
                    entry.options = options.join(" ");
                }
            }
            ("initrd" | "initrd16" | "initrdefi", paths) => {
                if let Some(entry) = &mut self.entry {
                    entry.ramdisks = paths.iter().map(|path| plain(path)).collect();
                }
            }
            ("blscfg", _) => self.wants_bls = true,
            (assignment, []) if assignment.contains('=') => self.assign(assignment),
            // What draws, waits and loads modules: it went well.
            _ => {}
        }
        true
    }

    fn assign(&mut self, assignment: &str) {
        if let Some((name, value)) = assignment.split_once('=')
            && (self.variables.len() < MAX_VARIABLES || self.variables.contains_key(name))
        {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }

    /// `next_entry` is for one boot, after which GRUB would erase it. Nothing
    /// is written to the disk from here, so it is not followed either.
    fn load_environment(&mut self) {
        let text = self.files.text(&format!("{}/grubenv", self.dir));
        let mut loaded = environment(&text.unwrap_or_default());
        loaded.remove("next_entry");
        // 1 KiB by its format, whatever the file has.
        self.variables
            .extend(loaded.into_iter().take(MAX_VARIABLES));
    }

    fn item(&mut self, words: &[String], body: &[Statement]) {
        self.made += 1;
        if self.made > MAX_ITEMS {
            return;
        }
        let (title, id) = title_and_id(words);
        // The body is run when the entry is chosen: with the variables of the
        // menu, and its own assignments end with it.
        let outer_items = std::mem::take(&mut self.items);
        let outer_entry = self.entry.replace(Entry::default());
        let variables = self.variables.clone();
        self.run(body);
        self.variables = variables;
        let items = std::mem::replace(&mut self.items, outer_items);
        let entry = std::mem::replace(&mut self.entry, outer_entry).unwrap_or_default();
        self.items.push(Item {
            id,
            title,
            entry,
            items,
        });
    }

    fn expand(&self, words: &[Word]) -> Vec<String> {
        let mut room = MAX_WORDS;
        let mut expanded = Vec::new();
        for word in words {
            if room == 0 {
                break;
            }
            expanded.extend(self.expand_word(word, &mut room));
            room = room.saturating_sub(1);
        }
        expanded
    }

    /// A word that is empty, and was not quoted, is none; a variable that was
    /// not quoted may become several.
    fn expand_word(&self, word: &Word, room: &mut usize) -> Vec<String> {
        let mut words = vec![String::new()];
        for part in &word.parts {
            let (text, whole) = match part {
                Part::Text(text) => (text.as_str(), true),
                Part::Variable { name, quoted } => (self.variable(name), *quoted),
            };
            let text = cut(text, *room);
            *room -= text.len();
            let mut pieces = text.split(' ');
            if whole {
                append(&mut words, text);
                continue;
            }
            append(&mut words, pieces.next().unwrap_or_default());
            words.extend(pieces.map(str::to_owned));
        }
        if !word.quoted {
            words.retain(|word| !word.is_empty());
        }
        words
    }
}

fn append(words: &mut [String], text: &str) {
    if let Some(last) = words.last_mut() {
        last.push_str(text);
    }
}

/// The first bytes of a text, as many as there is room for.
fn cut(text: &str, room: usize) -> &str {
    let mut end = room.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn title_and_id(words: &[String]) -> (String, String) {
    let (mut title, mut id) = (None, String::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--id" => id = words.next().cloned().unwrap_or_default(),
            "--class" | "--users" | "--hotkey" | "--source" => {
                words.next();
            }
            option if option.starts_with("--") => {
                if let Some(value) = option.strip_prefix("--id=") {
                    id = value.to_owned();
                }
            }
            _ => title = title.or_else(|| Some(word.clone())),
        }
    }
    (title.unwrap_or_default(), id)
}
