//! The checkout, for tests of what it says.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Directories that hold nothing of ours: `patched` is what a port fetched.
const ELSEWHERE: [&str; 3] = ["target", "node_modules", "patched"];

/// Where it is.
///
/// # Panics
/// When it is gone.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the repository")
}

/// All its files whose names end so.
///
/// # Panics
/// When a directory can't be read.
#[must_use]
pub fn files(end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&root(), end, &mut found);
    found
}

fn collect(dir: &Path, end: &str, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    for entry in entries.map(|entry| entry.expect("a directory entry")) {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if path.is_dir() && !name.starts_with('.') && !ELSEWHERE.contains(&&*name) {
            collect(&path, end, found);
        } else if name.ends_with(end) {
            found.push(path);
        }
    }
}
