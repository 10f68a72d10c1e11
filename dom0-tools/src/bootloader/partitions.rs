//! Partition tables: MBR with logical partitions, and GPT.
//!
//! The crates for GPT believe the number and size of entries that the header
//! claims (an assertion, or gigabytes), so the few fields are read here.

use std::io;

use super::disk::Section;

const SECTOR: u64 = 512;
/// More than anybody has; the usual GPT has room for 128.
const MAX_PARTITIONS: usize = 256;
const MBR_ENTRIES: usize = 446;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;

/// A stretch of the disk in which a file system may lie.
#[derive(Clone)]
pub struct Partition {
    /// As Linux numbers it; `None`: the whole disk.
    pub number: Option<u32>,
    /// The table says that it is to be booted from.
    pub active: bool,
    /// Its bytes.
    pub section: Section,
}

/// The partitions of a disk, or the disk itself if it has no table.
///
/// # Errors
/// The disk can't be read. A table that makes no sense is no error: what it
/// says of stretches outside the disk is left out.
pub fn find(disk: &Section) -> io::Result<Vec<Partition>> {
    let mut found = Vec::new();
    if let Some(first) = disk.bytes::<512>(0)?
        && first[510..] == [0x55, 0xaa]
    {
        let entries = mbr_entries(&first);
        found = if entries.iter().any(|e| e.kind == PROTECTIVE) {
            gpt(disk)?
        } else {
            mbr(disk, &entries)?
        };
    }
    // A file system's own boot sector has the mark, too, and no partitions.
    found.retain(|p| !p.section.is_empty());
    if found.is_empty() {
        found.push(Partition {
            number: None,
            active: true,
            section: disk.clone(),
        });
    }
    Ok(found)
}

#[derive(Clone, Copy)]
struct MbrEntry {
    active: bool,
    kind: u8,
    start: u64,
    sectors: u64,
}

fn mbr_entries(sector: &[u8; 512]) -> [MbrEntry; 4] {
    std::array::from_fn(|i| {
        let at = &sector[MBR_ENTRIES + 16 * i..][..16];
        let word =
            |o: usize| u64::from(u32::from_le_bytes([at[o], at[o + 1], at[o + 2], at[o + 3]]));
        MbrEntry {
            active: at[0] == 0x80,
            kind: at[4],
            start: word(8),
            sectors: word(12),
        }
    })
}

fn mbr(disk: &Section, entries: &[MbrEntry; 4]) -> io::Result<Vec<Partition>> {
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        if EXTENDED.contains(&entry.kind) {
            logical(disk, entry.start, &mut found)?;
        } else if entry.kind != 0 && entry.start != 0 {
            found.push(partition(disk, number, entry, 0));
        }
    }
    found.sort_by_key(|p| (!p.active, p.number));
    Ok(found)
}

/// Follows the chain of an extended partition.
fn logical(disk: &Section, extended: u64, found: &mut Vec<Partition>) -> io::Result<()> {
    let mut at = extended;
    for number in 5..5 + u32::try_from(MAX_PARTITIONS).unwrap_or(0) {
        let Some(sector) = disk.bytes::<512>(at.saturating_mul(SECTOR))? else {
            return Ok(());
        };
        if sector[510..] != [0x55, 0xaa] {
            return Ok(());
        }
        let [own, next, ..] = mbr_entries(&sector);
        if own.kind != 0 {
            found.push(partition(disk, number, &own, at));
        }
        if !EXTENDED.contains(&next.kind) {
            return Ok(());
        }
        at = extended + next.start;
    }
    Ok(())
}

fn partition(disk: &Section, number: u32, entry: &MbrEntry, base: u64) -> Partition {
    Partition {
        number: Some(number),
        active: entry.active,
        section: disk.part((base + entry.start) * SECTOR, entry.sectors * SECTOR),
    }
}

fn gpt(disk: &Section) -> io::Result<Vec<Partition>> {
    // Disks with sectors of 4 KiB have the header at their second sector.
    for sector in [SECTOR, 4096] {
        let last = (disk.len() / sector).saturating_sub(1);
        for header in [1, last] {
            let found = gpt_at(disk, sector, header * sector)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    Ok(Vec::new())
}

fn gpt_at(disk: &Section, sector: u64, at: u64) -> io::Result<Vec<Partition>> {
    let Some(header) = disk.bytes::<92>(at)? else {
        return Ok(Vec::new());
    };
    let word =
        |o: usize| u32::from_le_bytes([header[o], header[o + 1], header[o + 2], header[o + 3]]);
    let (count, size) = (word(80), u64::from(word(84)));
    if header[..8] != *b"EFI PART" || !(128..=4096).contains(&size) {
        return Ok(Vec::new());
    }
    let table = long(&header, 72).saturating_mul(sector);
    let count = count.min(u32::try_from(MAX_PARTITIONS).unwrap_or(0));
    let mut found = Vec::new();
    for index in 0..count {
        let Some(entry) = disk.bytes::<128>(table.saturating_add(u64::from(index) * size))? else {
            break;
        };
        found.extend(gpt_partition(disk, sector, index + 1, &entry));
    }
    Ok(found)
}

fn gpt_partition(disk: &Section, sector: u64, number: u32, entry: &[u8; 128]) -> Option<Partition> {
    let (first, last) = (long(entry, 32), long(entry, 40));
    if entry[..16] == [0; 16] || first == 0 || last < first {
        return None;
    }
    let len = (last - first).checked_add(1)?.checked_mul(sector)?;
    Some(Partition {
        number: Some(number),
        active: false,
        section: disk.part(first.checked_mul(sector)?, len),
    })
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
