//! The Linux boot header, as far as it says where the kernel proper lies.
//!
//! From protocol 2.08 on a bzImage names its payload: the (mostly compressed)
//! ELF file, followed by its unpacked size in 32 bits.

use thiserror::Error;

use super::notes::printable;

/// A bzImage's payload and what its header says for people.
#[derive(Debug, PartialEq)]
pub struct BzImage<'a> {
    /// The boot protocol: 0x20f is 2.15.
    pub protocol: u16,
    /// `uname -r` and more, where the image has it.
    pub version: Option<String>,
    /// The payload, with the four bytes of its unpacked size at the end.
    pub payload: &'a [u8],
}

/// A boot header that can't be used.
#[derive(Debug, Error, PartialEq)]
pub enum BzImageError {
    /// Before 2.08 there was no payload to be found.
    #[error(
        "boot protocol {}.{:02} is too old: 2.08 (Linux 2.6.26) is the first that says where the \
         kernel lies in the image; use the vmlinux file of the same build",
        .0 >> 8, .0 & 0xff
    )]
    OldProtocol(u16),
    /// The payload lies past the file's end.
    #[error(
        "cut short: its boot header promises {promised} bytes, the file has {actual}; \
         copy or download it again"
    )]
    Truncated {
        /// Where the payload ends.
        promised: u64,
        /// The file's size.
        actual: usize,
    },
}

const BOOT_FLAG: usize = 0x1fe;
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const HEADER_END: usize = 0x250;

impl<'a> BzImage<'a> {
    /// Reads the header; `None` if `image` is not a Linux boot image at all.
    ///
    /// # Errors
    /// A boot image whose payload can't be found or is not all there.
    pub fn parse(image: &'a [u8]) -> Result<Option<Self>, BzImageError> {
        if u16_at(image, BOOT_FLAG) != Some(0xaa55)
            || image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS")
        {
            return Ok(None);
        }
        let truncated = |promised| BzImageError::Truncated {
            promised,
            actual: image.len(),
        };
        let protocol = u16_at(image, PROTOCOL).ok_or(truncated(HEADER_END as u64))?;
        if protocol < 0x0208 {
            return Err(BzImageError::OldProtocol(protocol));
        }
        let header = image
            .get(..HEADER_END)
            .ok_or(truncated(HEADER_END as u64))?;
        let offset = u32_at(header, PAYLOAD_OFFSET);
        let length = u32_at(header, PAYLOAD_LENGTH);
        // 0 means 4 to every boot loader.
        let sectors = match header[SETUP_SECTS] {
            0 => 4,
            n => u64::from(n),
        };
        let start = (sectors + 1) * 512 + u64::from(offset);
        let end = start + u64::from(length);
        let payload = slice(image, start, end).ok_or(truncated(end))?;
        Ok(Some(Self {
            protocol,
            version: version(image),
            payload,
        }))
    }
}

fn version(image: &[u8]) -> Option<String> {
    let pointer = u16_at(image, KERNEL_VERSION).filter(|&pointer| pointer != 0)?;
    let start = usize::from(pointer) + 0x200;
    let text = image.get(start..)?.split(|&byte| byte == 0).next()?;
    let text = &text[..text.len().min(256)];
    Some(printable(text))
}

fn slice(image: &[u8], start: u64, end: u64) -> Option<&[u8]> {
    image.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

fn u16_at(image: &[u8], at: usize) -> Option<u16> {
    let bytes = image.get(at..at + 2)?;
    Some(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn u32_at(header: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[at..at + 4]);
    u32::from_le_bytes(bytes)
}
