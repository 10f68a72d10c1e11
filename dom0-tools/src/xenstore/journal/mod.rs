//! The file that a daemon leaves to the next one.
//!
//! ```text
//! +-------------------+---------+----------+-------------------+- - -
//! | magic and version | length  | checksum | changes           | next record
//! |                   | u32     | u32      | of one round      |
//! +-------------------+---------+----------+-------------------+- - -
//! ```
//!
//! Law: one round of the daemon's work is one record, and a record counts
//! whole or not at all: the last one of a daemon that was killed in the middle
//! of writing is cut off, and nothing of that round had been shown to anybody
//! yet. When the file has grown to a multiple of what it tells, it is written
//! anew beside the old one and takes its place by a rename.
//!
//! The file lives where nothing survives a boot of the host, as the domains
//! don't either; so it is never synced to a disk.

mod codec;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use self::codec::Field;
use super::change::Change;

const MAGIC: &[u8] = b"domus xenstored journal 2\n";
/// Bytes of a record's length and checksum.
const RECORD_HEAD: usize = 8;
/// A record of a snapshot is ended at this many bytes.
const SNAPSHOT_RECORD: usize = 64 * 1024;
/// A journal is never written anew below this many bytes.
const MIN_REWRITE: usize = 1024 * 1024;

/// A journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is something else, or of another version of the daemon.
    #[error(
        "{} was not written by this version of xenstored; to start without the state of \
         running domains, move it away",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Option<File>,
    len: usize,
    snapshot_len: usize,
}

/// What a journal tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// All changes, in order.
    pub changes: Vec<Change>,
    /// Bytes at the end that are no whole record.
    pub torn: usize,
}

impl Journal {
    /// Reads the journal at `path`; an absent one tells nothing. Nothing can
    /// be appended before [`Journal::rewrite`].
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path) -> Result<(Journal, Contents), JournalError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => MAGIC.to_vec(),
            Err(source) => {
                return Err(JournalError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let records = bytes.strip_prefix(MAGIC);
        let records = records.ok_or_else(|| JournalError::Foreign {
            path: path.to_owned(),
        })?;
        let journal = Journal {
            path: path.to_owned(),
            file: None,
            len: 0,
            snapshot_len: 0,
        };
        Ok((journal, read_records(records)))
    }

    /// Appends one round's changes. The caller shows their results to nobody
    /// before this returns. After an error the journal takes nothing more
    /// until it is written anew.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn append(&mut self, changes: &[Change]) -> Result<(), JournalError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let record = record_of(changes);
        match file.write_all(&record) {
            Ok(()) => self.len += record.len(),
            Err(source) => {
                self.file = None;
                return Err(JournalError::Io {
                    path: self.path.clone(),
                    source,
                });
            }
        }
        Ok(())
    }

    /// Whether the journal should be written anew: it has grown, or it could
    /// not be written.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.file.is_none() || self.len > MIN_REWRITE.max(4 * self.snapshot_len)
    }

    /// Puts a journal in place that tells `snapshot` and nothing else.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn rewrite(&mut self, snapshot: &[Change]) -> Result<(), JournalError> {
        let written = self.try_rewrite(snapshot);
        let (file, len) = written.map_err(|source| JournalError::Io {
            path: self.path.clone(),
            source,
        })?;
        self.file = Some(file);
        self.len = len;
        self.snapshot_len = len;
        Ok(())
    }

    fn try_rewrite(&self, snapshot: &[Change]) -> io::Result<(File, usize)> {
        let mut bytes = MAGIC.to_vec();
        let mut start = 0;
        while start < snapshot.len() {
            let end = end_of_record(snapshot, start);
            bytes.extend(record_of(&snapshot[start..end]));
            start = end;
        }
        let beside = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&bytes)?;
        fs::rename(&beside, &self.path)?;
        Ok((file, bytes.len()))
    }
}

/// Where a record of a snapshot that begins at `start` ends.
fn end_of_record(snapshot: &[Change], start: usize) -> usize {
    let mut size = Vec::new();
    for (at, change) in snapshot.iter().enumerate().skip(start) {
        change.put(&mut size);
        if size.len() >= SNAPSHOT_RECORD {
            return at + 1;
        }
    }
    snapshot.len()
}

fn record_of(changes: &[Change]) -> Vec<u8> {
    let mut record = vec![0; RECORD_HEAD];
    changes.iter().for_each(|change| change.put(&mut record));
    let body = &record[RECORD_HEAD..];
    let mut head = Vec::with_capacity(RECORD_HEAD);
    u32::try_from(body.len()).unwrap_or(u32::MAX).put(&mut head);
    checksum(body).put(&mut head);
    record[..RECORD_HEAD].copy_from_slice(&head);
    record
}

fn read_records(mut input: &[u8]) -> Contents {
    let mut contents = Contents::default();
    while !input.is_empty() {
        let Some((changes, rest)) = read_record(input) else {
            contents.torn = input.len();
            break;
        };
        contents.changes.extend(changes);
        input = rest;
    }
    contents
}

fn read_record(input: &[u8]) -> Option<(Vec<Change>, &[u8])> {
    let mut head = input;
    let len = u32::take(&mut head)? as usize;
    let sum = u32::take(&mut head)?;
    let (mut body, rest) = head.split_at_checked(len)?;
    if checksum(body) != sum {
        return None;
    }
    let mut changes = Vec::new();
    while !body.is_empty() {
        changes.push(Change::take(&mut body)?);
    }
    Some((changes, rest))
}

/// FNV-1a: it need only tell a torn record from a whole one.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| {
        (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::{codec::tests::samples, *};

    fn reopen(path: &Path) -> Contents {
        Journal::open(path).unwrap().1
    }

    #[test]
    fn records_come_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, contents) = Journal::open(&path).unwrap();
        assert_eq!(contents, Contents::default());
        assert!(journal.is_due());
        let (first, second) = (&samples()[..5], &samples()[5..]);
        journal.rewrite(first).unwrap();
        assert!(!journal.is_due());
        journal.append(second).unwrap();
        assert_eq!(reopen(&path).changes, samples());
        journal.rewrite(second).unwrap();
        assert_eq!(reopen(&path).changes, second);
    }

    #[test]
    fn a_torn_record_is_left_out_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.rewrite(&samples()).unwrap();
        let whole = fs::read(&path).unwrap().len();
        journal.append(&samples()[..3]).unwrap();
        let bytes = fs::read(&path).unwrap();
        for len in whole..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            let contents = reopen(&path);
            assert_eq!((contents.changes, contents.torn), (samples(), len - whole));
        }
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(reopen(&path).changes, samples());
    }

    #[test]
    fn another_file_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        fs::write(&path, "something else").unwrap();
        assert!(matches!(
            Journal::open(&path),
            Err(JournalError::Foreign { .. })
        ));
    }
}
