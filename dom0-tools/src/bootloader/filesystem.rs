//! Which file system lies in a section, and reading ext2, ext3 and ext4.

use std::io;

use ext4_view::{Ext4, Ext4Error};

use super::{
    disk::Section,
    files::{FileError, Files, MAX_NAMES},
};

/// A file system that can be read.
pub struct Ext(Ext4);

/// What lies in a section.
pub enum Content {
    /// Files.
    Ext(Ext),
    /// Something with a name that can't be read here.
    Other(&'static str),
    /// An ext file system that can't be read.
    Broken(String),
    /// Nothing that is known.
    Unknown,
}

/// Where which bytes tell what; what can be read is not among them.
const MARKS: &[(u64, &[u8], &str)] = &[
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (512, b"LABELONE", "LVM"),
    (0, b"hsqs", "squashfs"),
    (0x8001, b"CD001", "ISO 9660"),
    (0x52, b"FAT32", "FAT"),
    (0x36, b"FAT1", "FAT"),
    (3, b"NTFS", "NTFS"),
    (3, b"EXFAT", "exFAT"),
    (0x400, &[0x10, 0x20, 0xf5, 0xf2], "F2FS"),
    (0x10034, b"ReIsEr", "ReiserFS"),
    (0x8000, b"JFS1", "JFS"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (0x400, &[0xe2, 0xe1, 0xf5, 0xe0], "EROFS"),
];

/// Tells what lies in a section and opens it if it can be read.
///
/// # Errors
/// The disk's.
pub fn open(section: &Section) -> io::Result<Content> {
    if section.bytes(0x438)? == Some([0x53, 0xef]) {
        return Ok(match Ext4::load(Box::new(section.clone())) {
            Ok(fs) => Content::Ext(Ext(fs)),
            Err(error) => Content::Broken(error.to_string()),
        });
    }
    for (at, mark, name) in MARKS {
        let mut there = vec![0; mark.len()];
        if section.read(*at, &mut there).is_ok() && there == *mark {
            return Ok(Content::Other(name));
        }
    }
    Ok(Content::Unknown)
}

impl Files for Ext {
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, FileError> {
        let mut file = self.0.open(path).map_err(said)?;
        let size = file.metadata().len();
        if size > limit {
            return Err(FileError::TooLarge(limit));
        }
        let size = usize::try_from(size).map_err(|_| FileError::TooLarge(limit))?;
        let mut bytes = vec![0; size];
        let mut filled = 0;
        while filled < size {
            match file.read_bytes(&mut bytes[filled..]).map_err(said)? {
                0 => break,
                n => filled += n,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn names(&self, dir: &str) -> Result<Vec<String>, FileError> {
        let mut names = Vec::new();
        for entry in self.0.read_dir(dir).map_err(said)?.take(MAX_NAMES) {
            let entry = entry.map_err(said)?;
            if let Ok(name) = entry.file_name().as_str() {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &str) -> bool {
        self.0.exists(path).unwrap_or(false)
    }
}

fn said(error: Ext4Error) -> FileError {
    match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory => FileError::Missing,
        other => FileError::Damaged(other.to_string()),
    }
}
