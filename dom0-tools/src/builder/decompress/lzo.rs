//! `lzop` files: a header, then blocks of LZO1X.
//!
//! A block is its content's size and its compressed size (32 bits, big
//! endian), the checksums that the header's flags promise, and the data; equal
//! sizes mean that it is stored. A content size of 0 ends the file.
//!
//! LZO1X is a string of instructions. Each copies a match from the output so
//! far (at a distance, of a length) and up to three literals after it; what an
//! instruction byte below 16 means depends on how many literals came before
//! it.

use super::{BlockError, Input};

/// The file's first bytes.
pub const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0x00, 0x0d, 0x0a, 0x1a, 0x0a];

const MAX_BLOCK: u32 = 64 << 20;

mod flag {
    pub const ADLER32_CONTENT: u32 = 0x001;
    pub const ADLER32_DATA: u32 = 0x002;
    pub const CRC32_CONTENT: u32 = 0x100;
    pub const CRC32_DATA: u32 = 0x200;
    pub const FILTER: u32 = 0x800;
}

/// Unpacks an `lzop` file into at most `limit` bytes.
pub fn decompress(data: &[u8], limit: usize) -> Result<Vec<u8>, BlockError> {
    let mut input = Input(data);
    let flags = header(&mut input)?;
    let mut out = Vec::new();
    loop {
        let content = input.be32()?;
        if content == 0 {
            return Ok(out);
        }
        block(&mut input, &mut out, content, flags, limit)?;
    }
}

/// Skips the header; returns its flags.
fn header(input: &mut Input<'_>) -> Result<u32, BlockError> {
    if input.array()? != MAGIC {
        return Err(BlockError::Corrupt("not an lzop file"));
    }
    let version = u16::from_be_bytes(input.array()?);
    let modern = version >= 0x0940;
    input.take(2)?; // library version
    if modern {
        input.take(2)?; // version needed
    }
    input.u8()?; // method
    if modern {
        input.u8()?; // level
    }
    let flags = input.be32()?;
    if flags & flag::FILTER != 0 {
        input.take(4)?;
    }
    input.take(if modern { 12 } else { 8 })?; // mode, mtime
    let name = input.u8()?;
    input.take(usize::from(name))?;
    input.take(4)?; // header checksum
    Ok(flags)
}

fn block(
    input: &mut Input<'_>,
    out: &mut Vec<u8>,
    content: u32,
    flags: u32,
    limit: usize,
) -> Result<(), BlockError> {
    if content > MAX_BLOCK {
        return Err(BlockError::Corrupt("a block of more than 64 MiB"));
    }
    let size = input.be32()?;
    let stored = size == content;
    let adler = checksum(input, flags, flag::ADLER32_CONTENT)?;
    checksum(input, flags, flag::CRC32_CONTENT)?;
    if !stored {
        checksum(input, flags, flag::ADLER32_DATA)?;
        checksum(input, flags, flag::CRC32_DATA)?;
    }
    let content = to_usize(content)?;
    if content > limit - out.len() {
        return Err(BlockError::TooLarge);
    }
    let data = input.take(to_usize(size)?)?;
    let start = out.len();
    if stored {
        out.extend_from_slice(data);
    } else {
        lzo1x(data, out, start + content)?;
    }
    if adler.is_some_and(|sum| sum != adler32(&out[start..])) {
        return Err(BlockError::Corrupt("a block's checksum is wrong"));
    }
    Ok(())
}

fn checksum(input: &mut Input<'_>, flags: u32, which: u32) -> Result<Option<u32>, BlockError> {
    if flags & which == 0 {
        return Ok(None);
    }
    input.be32().map(Some)
}

/// Appends one LZO1X stream to `out`, whose length must then be `end`. Matches
/// reach back to the block's own start only.
fn lzo1x(data: &[u8], out: &mut Vec<u8>, end: usize) -> Result<(), BlockError> {
    let mut stream = Stream {
        input: Input(data),
        start: out.len(),
        end,
        out,
    };
    let mut before = stream.first_literals()?;
    loop {
        let op = usize::from(stream.input.u8()?);
        let (distance, len, literals) = match op {
            0..=15 if before == Before::Nothing => {
                let run = stream.length(op, 15)? + 3;
                stream.literals(run)?;
                before = Before::Run;
                continue;
            }
            0..=15 => {
                let high = usize::from(stream.input.u8()?) << 2;
                if before == Before::Run {
                    (high + (op >> 2) + 2049, 3, op & 3)
                } else {
                    (high + (op >> 2) + 1, 2, op & 3)
                }
            }
            16..=31 => {
                let len = stream.length(op & 7, 7)? + 2;
                let tail = stream.le16()?;
                let distance = 16384 + ((op & 8) << 11) + (tail >> 2);
                if distance == 16384 {
                    return stream.finished();
                }
                (distance, len, tail & 3)
            }
            32..=63 => {
                let len = stream.length(op & 31, 31)? + 2;
                let tail = stream.le16()?;
                ((tail >> 2) + 1, len, tail & 3)
            }
            64..=127 => {
                let high = usize::from(stream.input.u8()?) << 3;
                (high + ((op >> 2) & 7) + 1, 3 + ((op >> 5) & 1), op & 3)
            }
            _ => {
                let high = usize::from(stream.input.u8()?) << 3;
                (high + ((op >> 2) & 7) + 1, 5 + ((op >> 5) & 3), op & 3)
            }
        };
        stream.copy_match(distance, len)?;
        stream.literals(literals)?;
        before = if literals == 0 {
            Before::Nothing
        } else {
            Before::Few
        };
    }
}

/// What the last instruction copied literally.
#[derive(PartialEq)]
enum Before {
    Nothing,
    /// One to three, behind a match.
    Few,
    /// Four or more.
    Run,
}

struct Stream<'a, 'out> {
    input: Input<'a>,
    out: &'out mut Vec<u8>,
    start: usize,
    end: usize,
}

impl Stream<'_, '_> {
    /// The first byte may be a literal count plus 17.
    fn first_literals(&mut self) -> Result<Before, BlockError> {
        let Some(&first) = self.input.0.first() else {
            return Err(BlockError::Corrupt("empty block"));
        };
        if first <= 17 {
            return Ok(Before::Nothing);
        }
        self.input.u8()?;
        let count = usize::from(first) - 17;
        self.literals(count)?;
        Ok(if count < 4 { Before::Few } else { Before::Run })
    }

    /// A length field: where its bits are zero it goes on in zero bytes of 255
    /// each and one last byte, on top of `full`.
    fn length(&mut self, bits: usize, full: usize) -> Result<usize, BlockError> {
        if bits != 0 {
            return Ok(bits);
        }
        let mut length = full;
        loop {
            let byte = self.input.u8()?;
            if byte != 0 {
                return Ok(length + usize::from(byte));
            }
            length += 255; // at most the input's length times 255
        }
    }

    fn le16(&mut self) -> Result<usize, BlockError> {
        Ok(usize::from(u16::from_le_bytes(self.input.array()?)))
    }

    fn room(&self, len: usize) -> Result<(), BlockError> {
        if len > self.end - self.out.len() {
            return Err(BlockError::Corrupt("a block overruns its size"));
        }
        Ok(())
    }

    fn literals(&mut self, count: usize) -> Result<(), BlockError> {
        self.room(count)?;
        self.out.extend_from_slice(self.input.take(count)?);
        Ok(())
    }

    fn copy_match(&mut self, distance: usize, len: usize) -> Result<(), BlockError> {
        self.room(len)?;
        if distance > self.out.len() - self.start {
            return Err(BlockError::Corrupt("a match before the block's start"));
        }
        let from = self.out.len() - distance;
        if distance >= len {
            self.out.extend_from_within(from..from + len);
        } else {
            for at in from..from + len {
                self.out.push(self.out[at]);
            }
        }
        Ok(())
    }

    fn finished(&self) -> Result<(), BlockError> {
        if self.out.len() == self.end {
            Ok(())
        } else {
            Err(BlockError::Corrupt("a block falls short of its size"))
        }
    }
}

impl Input<'_> {
    fn be32(&mut self) -> Result<u32, BlockError> {
        self.array().map(u32::from_be_bytes)
    }
}

fn to_usize(value: u32) -> Result<usize, BlockError> {
    usize::try_from(value).map_err(|_| BlockError::Corrupt("size"))
}

fn adler32(data: &[u8]) -> u32 {
    const BASE: u32 = 65521;
    let (mut low, mut high) = (1u32, 0u32);
    for chunk in data.chunks(5552) {
        for &byte in chunk {
            low += u32::from(byte);
            high += low;
        }
        low %= BASE;
        high %= BASE;
    }
    high << 16 | low
}
