//! Virtual block devices: `xvda1` and the number that the guest knows it by.
//!
//! ```text
//! xvdX, dNpM    disk < 16 and partition < 16:  202 << 8 | disk << 4 | partition
//!               otherwise:                     1 << 28  | disk << 8 | partition
//! sdX           majors 8, 65..=71, 16 disks each, 15 partitions
//! hdX           majors 3 22 33 34 56 57 88 89 90 91, 2 disks each, 63 partitions
//! ```

use serde::{Deserialize, Serialize};

/// A virtual block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vdev {
    /// As the configuration names it, without `/dev/`.
    pub name: String,
    /// The number in xenstore paths: `device/vbd/51712`.
    pub number: u32,
}

/// Why a text names no virtual block device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VdevError {
    /// Of no known form.
    #[error("'{0}' is no virtual device: write xvda, xvda1, sda1, hda or a number")]
    Unknown(String),
    /// More partitions than the form has.
    #[error("'{name}' has too high a partition number: the last one is {last}")]
    Partition {
        /// The name.
        name: String,
        /// The highest partition.
        last: u32,
    },
    /// More disks than the form has.
    #[error("'{0}' is beyond the last disk of its kind")]
    Disk(String),
}

const HD_MAJORS: [u32; 10] = [3, 22, 33, 34, 56, 57, 88, 89, 90, 91];
const MAX_EXTENDED_DISK: u32 = (1 << 20) - 1;
const MAX_EXTENDED_PARTITION: u32 = 255;

impl Vdev {
    /// Parses a device's name or number.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, VdevError> {
        let name = text.strip_prefix("/dev/").unwrap_or(text);
        let number = number(name)?;
        Ok(Self {
            name: name.to_owned(),
            number,
        })
    }
}

fn number(name: &str) -> Result<u32, VdevError> {
    let unknown = || VdevError::Unknown(name.to_owned());
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        let value = super::syntax::number_value(name).map_err(|_| unknown())?;
        return u32::try_from(value)
            .ok()
            .filter(|number| *number < 1 << 29)
            .ok_or_else(unknown);
    }
    if let Some(rest) = name.strip_prefix("xvd") {
        let (disk, partition) = lettered(rest).ok_or_else(unknown)?;
        xvd(name, disk, partition)
    } else if let Some(rest) = name.strip_prefix("sd") {
        let (disk, partition) = lettered(rest).ok_or_else(unknown)?;
        sd(name, disk, partition)
    } else if let Some(rest) = name.strip_prefix("hd") {
        let (disk, partition) = lettered(rest).ok_or_else(unknown)?;
        hd(name, disk, partition)
    } else if let Some(rest) = name.strip_prefix('d') {
        let (disk, partition) = numbered(rest).ok_or_else(unknown)?;
        xvd(name, disk, partition)
    } else {
        Err(unknown())
    }
}

fn xvd(name: &str, disk: u32, partition: u32) -> Result<u32, VdevError> {
    if disk > MAX_EXTENDED_DISK {
        return Err(VdevError::Disk(name.to_owned()));
    }
    check_partition(name, partition, MAX_EXTENDED_PARTITION)?;
    Ok(if disk < 16 && partition < 16 {
        202 << 8 | disk << 4 | partition
    } else {
        1 << 28 | disk << 8 | partition
    })
}

fn sd(name: &str, disk: u32, partition: u32) -> Result<u32, VdevError> {
    check_partition(name, partition, 15)?;
    let major = match disk / 16 {
        0 => 8,
        bank @ 1..=7 => 64 + bank,
        _ => return Err(VdevError::Disk(name.to_owned())),
    };
    Ok(major << 8 | (disk % 16) << 4 | partition)
}

fn hd(name: &str, disk: u32, partition: u32) -> Result<u32, VdevError> {
    check_partition(name, partition, 63)?;
    let index = usize::try_from(disk / 2).unwrap_or(usize::MAX);
    let major = HD_MAJORS
        .get(index)
        .ok_or_else(|| VdevError::Disk(name.to_owned()))?;
    Ok(major << 8 | (disk % 2) << 6 | partition)
}

fn check_partition(name: &str, partition: u32, last: u32) -> Result<(), VdevError> {
    if partition <= last {
        return Ok(());
    }
    Err(VdevError::Partition {
        name: name.to_owned(),
        last,
    })
}

/// `a1`: disk 0, partition 1. `aa`: disk 26.
fn lettered(text: &str) -> Option<(u32, u32)> {
    let letters = text.bytes().take_while(u8::is_ascii_lowercase).count();
    let (disk, partition) = text.split_at(letters);
    if disk.is_empty() {
        return None;
    }
    let count = disk.bytes().try_fold(0u32, |sum, letter| {
        sum.checked_mul(26)?
            .checked_add(u32::from(letter - b'a') + 1)
    });
    let partition = match partition {
        "" => 0,
        digits => decimal(digits).filter(|n| *n > 0)?,
    };
    Some((count.unwrap_or(u32::MAX) - 1, partition))
}

/// `0p1`: disk 0, partition 1.
fn numbered(text: &str) -> Option<(u32, u32)> {
    match text.split_once('p') {
        Some((disk, partition)) => Some((decimal(disk)?, decimal(partition)?)),
        None => Some((decimal(text)?, 0)),
    }
}

fn decimal(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    (plain && canonical).then(|| text.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices() {
        for (name, expected) in [
            ("xvda", 51712),
            ("/dev/xvda", 51712),
            ("xvda1", 51713),
            ("xvdb", 51728),
            ("xvdp15", 51967),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvdq1", 1 << 28 | 16 << 8 | 1),
            ("xvda16", 1 << 28 | 16),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("d0", 51712),
            ("d1p2", 51730),
            ("d16", 1 << 28 | 16 << 8),
            ("sda", 2048),
            ("sda1", 2049),
            ("sdp15", 2048 + 255),
            ("sdq", 65 << 8),
            ("hda", 768),
            ("hdb1", 833),
            ("hdc", 5632),
            ("hdd", 5696),
            ("51712", 51712),
            ("0x301", 769),
        ] {
            assert_eq!(Vdev::parse(name).map(|v| v.number), Ok(expected), "{name}");
        }
    }

    #[test]
    fn no_devices() {
        for wrong in [
            "",
            "xvd",
            "xvda0",
            "xvda01",
            "xvdA",
            "xvda1x",
            "xvda256",
            "sda16",
            "hda64",
            "hdu",
            "sdzz",
            "d",
            "dp1",
            "d1p",
            "vda",
            "xvda-1",
            "xvdzzzzzzzzzz",
            "99999999999",
            "1x",
            "é",
        ] {
            assert!(Vdev::parse(wrong).is_err(), "{wrong}");
        }
    }
}
