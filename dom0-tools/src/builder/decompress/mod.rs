//! Undoing the compressions that a kernel image can have.
//!
//! Law: the output is bounded by the caller's limit, whatever the input
//! claims, and so is what a decoder allocates on the way (dictionaries,
//! windows, blocks). A decoder that reaches the limit stops there.

mod lz4;
mod lzo;

use std::{fmt, io::Read};

use thiserror::Error;

/// What a dictionary or window may take: 128 MiB, the largest that `zstd
/// --ultra -22` uses, and some room for the decoder's own tables.
const DECODER_MEMORY_KIB: u32 = 160 << 10;

/// A compression that a kernel image can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `CONFIG_KERNEL_GZIP`, and gzipped ELF files.
    Gzip,
    /// `CONFIG_KERNEL_BZIP2`.
    Bzip2,
    /// `CONFIG_KERNEL_LZMA`: the `.lzma` format of old.
    Lzma,
    /// `CONFIG_KERNEL_XZ`, with the x86 filter.
    Xz,
    /// `CONFIG_KERNEL_LZO`: an `lzop` file.
    Lzo,
    /// `CONFIG_KERNEL_LZ4`: the legacy frame of `lz4 -l`.
    Lz4,
    /// `CONFIG_KERNEL_ZSTD`.
    Zstd,
}

/// Why compressed data did not give its content.
#[derive(Debug, Error)]
pub enum DecompressError {
    /// The decoder met nonsense or the end of the data.
    #[error("the {method} data is corrupt or cut short: {why}")]
    Corrupt {
        /// The compression.
        method: Compression,
        /// What the decoder said.
        why: String,
    },
    /// A bomb, or a header that lies.
    #[error(
        "the {method} data unpacks to more than {limit} bytes: corrupt, or made to fill memory"
    )]
    TooLarge {
        /// The compression.
        method: Compression,
        /// The most that is accepted.
        limit: usize,
    },
}

impl Compression {
    /// The compression whose magic number `data` starts with.
    #[must_use]
    pub fn detect(data: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 7] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (&[0x5d, 0x00, 0x00], Compression::Lzma),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0x00], Compression::Xz),
            (&lzo::MAGIC, Compression::Lzo),
            (&lz4::MAGIC, Compression::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
        ];
        MAGICS
            .iter()
            .find(|(magic, _)| data.starts_with(magic))
            .map(|&(_, method)| method)
    }

    /// Unpacks `data`, which must be one stream with nothing behind it that
    /// matters, into at most `limit` bytes.
    ///
    /// # Errors
    /// Corrupt or truncated data, or more than `limit` bytes of content.
    pub fn decompress(self, data: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
        match self {
            Self::Gzip => self.drain(flate2::read::GzDecoder::new(data), limit),
            Self::Bzip2 => self.drain(bzip2::read::BzDecoder::new(data), limit),
            Self::Lzma => {
                let reader = lzma_rust2::LzmaReader::new_mem_limit(data, DECODER_MEMORY_KIB, None)
                    .map_err(|error| self.corrupt(error))?;
                self.drain(reader, limit)
            }
            Self::Xz => {
                let reader = lzma_rust2::XzReader::new_mem_limit(data, false, DECODER_MEMORY_KIB);
                self.drain(reader, limit)
            }
            Self::Lzo => self.finish(lzo::decompress(data, limit), limit),
            Self::Lz4 => self.finish(lz4::decompress(data, limit), limit),
            Self::Zstd => {
                let reader = ruzstd::decoding::StreamingDecoder::new(data)
                    .map_err(|error| self.corrupt(error))?;
                self.drain(reader, limit)
            }
        }
    }

    fn drain(self, reader: impl Read, limit: usize) -> Result<Vec<u8>, DecompressError> {
        let mut out = Vec::new();
        let probe = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        reader
            .take(probe)
            .read_to_end(&mut out)
            .map_err(|error| self.corrupt(error))?;
        if out.len() > limit {
            return Err(DecompressError::TooLarge {
                method: self,
                limit,
            });
        }
        Ok(out)
    }

    fn finish(
        self,
        result: Result<Vec<u8>, BlockError>,
        limit: usize,
    ) -> Result<Vec<u8>, DecompressError> {
        result.map_err(|error| match error {
            BlockError::TooLarge => DecompressError::TooLarge {
                method: self,
                limit,
            },
            BlockError::Corrupt(why) => self.corrupt(why),
        })
    }

    fn corrupt(self, why: impl fmt::Display) -> DecompressError {
        DecompressError::Corrupt {
            method: self,
            why: why.to_string(),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// What goes wrong in the block formats that we unpack ourselves.
#[derive(Debug, PartialEq)]
enum BlockError {
    TooLarge,
    Corrupt(&'static str),
}

/// A cursor over bytes that nobody vouches for.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], BlockError> {
        let (head, tail) = self
            .0
            .split_at_checked(len)
            .ok_or(BlockError::Corrupt("unexpected end of data"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BlockError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, BlockError> {
        self.array::<1>().map(|[byte]| byte)
    }
}

#[cfg(test)]
mod tests;
