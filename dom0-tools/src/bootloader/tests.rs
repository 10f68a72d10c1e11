//! Menus of all kinds in disks of all kinds, and hostile ones.

mod disks;
mod hostile;
mod menus;

use std::collections::BTreeMap;

use super::{
    files::{FileError, Files},
    menu::Menu,
};

/// Files in memory.
#[derive(Default)]
struct Memory(BTreeMap<String, String>);

impl Memory {
    fn with(files: &[(&str, &str)]) -> Self {
        let files = files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        Self(files.collect())
    }
}

impl Files for Memory {
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, FileError> {
        let text = self.0.get(path).ok_or(FileError::Missing)?;
        if text.len() as u64 > limit {
            return Err(FileError::TooLarge(limit));
        }
        Ok(text.clone().into_bytes())
    }

    fn names(&self, dir: &str) -> Result<Vec<String>, FileError> {
        let dir = format!("{}/", dir.trim_end_matches('/'));
        let below = self.0.keys().filter_map(|path| path.strip_prefix(&dir));
        let names: Vec<String> = below
            .filter(|n| !n.contains('/'))
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            Err(FileError::Missing)
        } else {
            Ok(names)
        }
    }

    fn exists(&self, path: &str) -> bool {
        self.0
            .keys()
            .any(|p| p == path || p.starts_with(&format!("{path}/")))
    }
}

fn kernels_of(menu: &Menu) -> Vec<&str> {
    menu.entries.iter().map(|e| e.kernel.as_str()).collect()
}
