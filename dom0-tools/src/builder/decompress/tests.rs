//! Against what the ordinary tools write (`fixtures`), made with
//! `gzip -n -9`, `bzip2 -9`, `xz --format=lzma -9`, `xz --check=crc32 --x86
//! --lzma2=dict=32MiB`, `lzop -9`, `lz4 -l -9` and `zstd -22 --ultra`.

use proptest::prelude::*;

use super::*;

const FIXTURES: [(Compression, &[u8]); 7] = [
    (Compression::Gzip, include_bytes!("fixtures/plain.gz")),
    (Compression::Bzip2, include_bytes!("fixtures/plain.bz2")),
    (Compression::Lzma, include_bytes!("fixtures/plain.lzma")),
    (Compression::Xz, include_bytes!("fixtures/plain.xz")),
    (Compression::Lzo, include_bytes!("fixtures/plain.lzo")),
    (Compression::Lz4, include_bytes!("fixtures/plain.lz4")),
    (Compression::Zstd, include_bytes!("fixtures/plain.zst")),
];

const LEN: usize = 20_000;

/// What is in the fixtures: text with x86 calls in it, for the x86 filter.
fn plain() -> Vec<u8> {
    let mut plain = Vec::new();
    for n in 0u64.. {
        plain.extend_from_slice(format!("{n} squared is {}\n", n * n).as_bytes());
        let to = 0x1000u32.wrapping_sub(u32::try_from(plain.len()).unwrap());
        plain.push(0xe8);
        plain.extend_from_slice(&to.to_le_bytes());
        if plain.len() >= LEN {
            break;
        }
    }
    plain.truncate(LEN);
    plain
}

#[test]
fn what_the_tools_wrote_is_unpacked() {
    for (method, packed) in FIXTURES {
        assert_eq!(Compression::detect(packed), Some(method));
        let unpacked = method.decompress(packed, LEN).unwrap();
        assert!(unpacked == plain(), "{method}");
    }
}

#[test]
fn one_byte_more_than_the_limit_is_too_large() {
    for (method, packed) in FIXTURES {
        let refused = method.decompress(packed, LEN - 1).unwrap_err();
        assert!(
            matches!(refused, DecompressError::TooLarge { limit, .. } if limit == LEN - 1),
            "{method}: {refused}"
        );
    }
}

#[test]
fn truncated_data_is_never_taken_for_the_whole() {
    for (method, packed) in FIXTURES {
        for len in (0..packed.len()).step_by(97) {
            // A stream that ends between two blocks can look complete (lz4):
            // the size that the kernel appends tells.
            if let Ok(part) = method.decompress(&packed[..len], LEN) {
                assert!(part.len() < LEN, "{method} cut to {len}");
            }
        }
    }
}

#[test]
fn an_lzo_match_can_overlap_itself() {
    // 18 - 17 = 1 literal, then "copy 33 from distance 1", then the end.
    let stream = [18, b'x', 0x20, 0x00, 0x00, 0x00, 0x11, 0x00, 0x00];
    // Length 0 in the instruction goes on: 31 + 0 needs a byte that is not 0.
    let block = |data: &[u8], content: u32| {
        let mut file = lzo::MAGIC.to_vec();
        file.extend([0x10, 0x30, 0x20, 0xa0, 0x09, 0x40, 1, 5, 0, 0, 0, 0]);
        file.extend([0; 12]);
        file.extend([0, 0, 0, 0, 0]);
        file.extend(content.to_be_bytes());
        file.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        file.extend_from_slice(data);
        file.extend([0; 4]);
        file
    };
    assert!(lzo::decompress(&block(&stream, 34), 100).is_err());
    let stream = [18, b'x', 0x20, 0x01, 0x00, 0x00, 0x11, 0x00, 0x00];
    assert_eq!(
        lzo::decompress(&block(&stream, 35), 100).unwrap(),
        vec![b'x'; 35]
    );
    assert!(lzo::decompress(&block(&stream, 34), 100).is_err());
    assert_eq!(
        lzo::decompress(&block(&stream, 35), 34),
        Err(BlockError::TooLarge)
    );
    let far = [18, b'x', 0x21, 0x04, 0x00, 0x11, 0x00, 0x00];
    assert!(lzo::decompress(&block(&far, 4), 100).is_err());
    let stored = block(b"stored", 6);
    assert_eq!(lzo::decompress(&stored, 100).unwrap(), b"stored");
}

#[test]
fn an_lzo_blocks_checksum_is_checked() {
    let (_, packed) = FIXTURES[4];
    let mut packed = packed.to_vec();
    // The first block: content size, size, checksum, behind a header of 38.
    packed[38 + 8] ^= 1;
    assert_eq!(
        lzo::decompress(&packed, LEN),
        Err(BlockError::Corrupt("a block's checksum is wrong"))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_data_gives_an_error_or_bounded_output(
        which in 0..FIXTURES.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let (method, packed) = FIXTURES[which];
        let mut packed = packed.to_vec();
        for (at, value) in damage {
            let at = at.index(packed.len());
            packed[at] = value;
        }
        packed.truncate(cut.index(packed.len()) + 1);
        if let Ok(out) = method.decompress(&packed, LEN) {
            prop_assert!(out.len() <= LEN);
        }
    }

    #[test]
    fn lzo_survives_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_, packed) = FIXTURES[4];
        let mut file = packed[..38 + 12].to_vec();
        file.extend(bytes);
        let _ = lzo::decompress(&file, LEN);
    }
}
