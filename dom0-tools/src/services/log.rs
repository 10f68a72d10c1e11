//! A service's log: where it writes, and what it said last.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 16 * 1024;

/// Opens a log to append to it; gives its length so far too.
pub(super) fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// The last lines that were written to a log after byte `from`, indented.
pub(super) fn tail(path: &Path, from: u64) -> String {
    let Ok(bytes) = read_end(path, from) else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    let shown: Vec<String> = shown.iter().map(|l| format!("  {}", plain(l))).collect();
    shown.join("\n")
}

fn read_end(path: &Path, from: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Without the colours and other controls that a log may hold.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else if !c.is_control() || c == '\t' {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_tail_is_what_this_start_wrote() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("a.log");
        let (mut first, _) = open(&path).expect("open");
        writeln!(first, "old").expect("write");
        let (mut second, from) = open(&path).expect("open");
        assert_eq!(tail(&path, from), "");
        for i in 0..30 {
            writeln!(second, "\x1b[31mline {i}\x1b[0m").expect("write");
        }
        let tail = tail(&path, from);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.starts_with("  line 15\n") && tail.ends_with("  line 29"));
    }

    #[test]
    fn no_log_no_tail() {
        assert_eq!(tail(Path::new("/nonexistent/log"), 0), "");
    }
}
