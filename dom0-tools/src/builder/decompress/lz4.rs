//! The legacy LZ4 frame, which `lz4 -l` writes and kernels use: a magic
//! number, then blocks, each with its compressed size in front (32 bits,
//! little endian) and at most 8 MiB of content. A size of 0 or the end of the
//! data ends it; the magic number in place of a size starts another frame.

use super::{BlockError, Input};

/// 0x184c2102, little endian.
pub const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

const BLOCK: usize = 8 << 20;

/// Unpacks a legacy frame into at most `limit` bytes.
pub fn decompress(data: &[u8], limit: usize) -> Result<Vec<u8>, BlockError> {
    let mut input = Input(data);
    if input.array()? != MAGIC {
        return Err(BlockError::Corrupt("not a legacy frame"));
    }
    let mut out = Vec::new();
    let mut block = vec![0; BLOCK];
    while !input.0.is_empty() {
        let word: [u8; 4] = input.array()?;
        if word == MAGIC {
            continue;
        }
        let size = u32::from_le_bytes(word);
        if size == 0 {
            break;
        }
        let size = usize::try_from(size).map_err(|_| BlockError::Corrupt("block size"))?;
        let filled = lz4_flex::block::decompress_into(input.take(size)?, &mut block)
            .map_err(|_| BlockError::Corrupt("bad block"))?;
        if filled > limit - out.len() {
            return Err(BlockError::TooLarge);
        }
        out.extend_from_slice(&block[..filled]);
    }
    Ok(out)
}
