//! A console's log file.
//!
//! Law: it never takes more of the disk than two times its limit (the file and
//! one older generation), and trouble with the disk never stops a console: what
//! can't be written is lost, and said once.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tracing::warn;

/// The size at which a log is set aside.
pub const LIMIT: u64 = 4 << 20;

/// An open log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    limit: u64,
    file: Option<File>,
    size: u64,
    complained: bool,
}

impl Log {
    /// Goes on with the log of the domain `name` in `dir`, or begins it.
    #[must_use]
    pub fn open(dir: &Path, name: &str) -> Self {
        Self::with_limit(dir, name, LIMIT)
    }

    fn with_limit(dir: &Path, name: &str, limit: u64) -> Self {
        let mut log = Self {
            path: dir.join(file_name(name)),
            limit,
            file: None,
            size: 0,
            complained: false,
        };
        log.reopen();
        log
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file again: after somebody else has moved it away.
    pub fn reopen(&mut self) {
        match open(&self.path) {
            Ok((file, size)) => (self.file, self.size) = (Some(file), size),
            Err(error) => self.complain(&error),
        }
    }

    /// Adds `bytes` at the end.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.size >= self.limit {
            self.rotate();
        }
        let Some(file) = &mut self.file else {
            return;
        };
        match file.write_all(bytes) {
            Ok(()) => {
                self.size += bytes.len() as u64;
                self.complained = false;
            }
            Err(error) => self.complain(&error),
        }
    }

    fn rotate(&mut self) {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        if let Err(error) = std::fs::rename(&self.path, older) {
            self.complain(&error);
        }
        // Where the old name could not be moved away the file would grow on.
        self.file = None;
        self.reopen();
        if self.size >= self.limit {
            self.file = None;
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !self.complained {
            warn!(log = %self.path.display(), %error, "console output is not logged");
            self.complained = true;
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// A file's name for any domain's name: what is not plain becomes `_`.
fn file_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let mut file: String = name
        .chars()
        .take(200)
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    if file.is_empty() || file.starts_with('.') {
        file.insert(0, '_');
    }
    file + ".log"
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        Log::open(&dir.path().join("console"), "web").write(b"one\n");
        let mut log = Log::open(&dir.path().join("console"), "web");
        log.write(b"two\n");
        assert_eq!(fs::read(log.path()).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn it_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::with_limit(dir.path(), "loud", 1000);
        for i in 0..500 {
            log.write(format!("line {i:04}\n").as_bytes());
        }
        let now = fs::read_to_string(dir.path().join("loud.log")).unwrap();
        let before = fs::read_to_string(dir.path().join("loud.log.1")).unwrap();
        assert!(now.ends_with("line 0499\n"));
        assert!(before.len() <= 1010 && now.len() <= 1010);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        assert_eq!(file_name("../../etc/passwd"), "_.._.._etc_passwd.log");
        assert_eq!(file_name(""), "_.log");
        assert_eq!(file_name("web-1.example"), "web-1.example.log");
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, dir.path().join("x.log")).unwrap();
        Log::open(dir.path(), "x").write(b"text");
        assert!(!target.exists());
    }
}
