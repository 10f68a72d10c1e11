//! Whether a qcow2 file is as long as it was: one that was cut off, by a copy that broke
//! off or a disk that was full, must not be used.
//!
//! Past the end of a file its driver reads zeroes. So a file that was cut off would be a
//! disk with holes in it, and its guest would see zeroes where it had data. What the
//! file must hold is told by its own tables:
//!
//! ```text
//!   header --> L1 table --> L2 tables --> clusters of data
//!         \--> refcount table
//! ```
//!
//! Law: all of a table is there, and the first byte of each cluster of data. (QEMU's
//! files may end within their last cluster.) Counts are not looked at: a back end that
//! was killed may have counted a cluster that it did not come to write. What is wrong
//! in other ways is for the driver to find.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};

use super::Fault;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Where an entry points to.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of an L2 entry: compressed data, which are found otherwise.
const COMPRESSED: u64 = 1 << 62;
/// Of an L2 entry: zeroes, whatever it points to.
const ZERO: u64 = 1;
/// Incompatible features that change what entries mean: data in another file, L2
/// entries of 16 bytes.
const OTHER_ENTRIES: u64 = 1 << 2 | 1 << 4;
/// QEMU takes no larger L1 table.
const LARGEST_L1: u64 = 32 << 20;
/// L2 tables are read up to this, all together: a disk of 2 TiB. The others only have
/// to be there.
const READ_AT_MOST: u64 = 256 << 20;

/// What of the header matters here.
struct Header {
    cluster_bits: u32,
    l1: u64,
    l1_bytes: u64,
    refcounts: u64,
    refcount_bytes: u64,
}

/// That a qcow2 file has all that its tables name.
///
/// # Errors
/// [`Fault::CutOff`]; the file can't be read.
pub fn check(path: &Path) -> Result<(), Fault> {
    let mut file = File::open(path)?;
    // Of a block device this is its size.
    let length = file.seek(SeekFrom::End(0))?;
    let Some(header) = Header::read(&file)? else {
        return Ok(());
    };
    match needed(&file, &header, length)? {
        needed if needed > length => Err(Fault::CutOff { needed, length }),
        _ => Ok(()),
    }
}

impl Header {
    /// `None` if it is none that is known here.
    fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; 104];
        if read_part(file, &mut bytes, 0)? < 72 || bytes[..4] != MAGIC {
            return Ok(None);
        }
        let half = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let (version, cluster_bits) = (half(4), half(20));
        let features = if version < 3 { 0 } else { word(72) };
        let header = Self {
            cluster_bits,
            l1: word(40),
            l1_bytes: u64::from(half(36)) * 8,
            refcounts: word(48),
            refcount_bytes: u64::from(half(56)).checked_shl(cluster_bits).unwrap_or(0),
        };
        let known = (2..=3).contains(&version)
            && (9..=21).contains(&cluster_bits)
            && features & OTHER_ENTRIES == 0
            && header.l1_bytes <= LARGEST_L1;
        Ok(known.then_some(header))
    }
}

/// How long the file has to be at least.
fn needed(file: &File, header: &Header, length: u64) -> io::Result<u64> {
    let cluster = 1_u64 << header.cluster_bits;
    let l1_end = header.l1.saturating_add(header.l1_bytes);
    let refcounts_end = header.refcounts.saturating_add(header.refcount_bytes);
    let mut needed = l1_end.max(refcounts_end);
    if needed > length {
        return Ok(needed);
    }
    let mut left = READ_AT_MOST;
    let tables = entries(file, header.l1, header.l1_bytes)?;
    for table in tables.map(|entry| entry & OFFSET).filter(|at| *at != 0) {
        needed = needed.max(table.saturating_add(cluster));
        if needed > length {
            break;
        }
        if let Some(rest) = left.checked_sub(cluster) {
            left = rest;
            let last = entries(file, table, cluster)?.filter_map(data).max();
            needed = needed.max(last.map_or(0, |at| at.saturating_add(1)));
        }
    }
    Ok(needed)
}

/// Where an L2 entry has its data, if that is a whole cluster of the file.
fn data(entry: u64) -> Option<u64> {
    let at = entry & OFFSET;
    (entry & (COMPRESSED | ZERO) == 0 && at != 0).then_some(at)
}

fn entries(file: &File, at: u64, bytes: u64) -> io::Result<impl Iterator<Item = u64> + use<>> {
    let mut table = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
    read_part(file, &mut table, at)?;
    let count = table.len() / 8;
    Ok((0..count).map(move |n| {
        let entry = &table[n * 8..n * 8 + 8];
        u64::from_be_bytes(entry.try_into().expect("8 bytes"))
    }))
}

/// Reads what is there; how much.
fn read_part(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
