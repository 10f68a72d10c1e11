//! What a slot asks for, checked against the protocol and the disk.
//!
//! Law: this is all that is ever concluded from a slot; the slot itself is not
//! looked at again. A request that is not sound becomes its answer.

use guest_abi::blkif::{
    BLKIF_DISCARD_SECURE, BLKIF_MAX_SEGMENTS_PER_REQUEST, BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_INDIRECT, BLKIF_OP_READ, BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_SECTOR_SIZE, BlkifRequest,
    BlkifRequestDiscard, BlkifRequestIndirect, BlkifRequestSegment,
};
use zerocopy::{FromBytes, IntoBytes};

/// Segments that an indirect request may have: as Linux' back end offers.
pub const MAX_INDIRECT_SEGMENTS: usize = 256;
/// Segment descriptors in a page of an indirect request.
pub const SEGMENTS_PER_PAGE: usize = 4096 / size_of::<BlkifRequestSegment>();

/// What a disk allows.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Its length.
    pub sectors: u64,
    /// Whether it may be written.
    pub write: bool,
    /// Whether it may be discarded.
    pub discard: bool,
}

/// A slot's copy, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// For the response.
    pub id: u64,
    /// For the response: of an indirect request, what it does.
    pub operation: u8,
    /// What to do, or the status to answer with.
    pub work: Result<Work, i16>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Move data.
    Transfer(Transfer),
    /// As [`Work::Transfer`], where the list of segments is in granted pages.
    Indirect {
        /// What will be moved, without its segments.
        transfer: Transfer,
        /// The list's length.
        count: usize,
        /// The list's pages.
        pages: Vec<u32>,
    },
    /// Make durable what was written.
    Flush,
    /// Forget a range.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// Data to be moved between granted pages and the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// To the disk.
    pub write: bool,
    /// After all before it and before all after it, and durable.
    pub barrier: bool,
    /// First byte on the disk.
    pub offset: u64,
    /// The pages' parts, in order.
    pub segments: Vec<Segment>,
}

/// A part of a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The page.
    pub gref: u32,
    /// First byte in it.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

impl Transfer {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.segments.iter().map(|part| part.len as u64).sum()
    }

    /// Takes a list of segments and checks it against the disk.
    pub fn with_segments(
        mut self,
        list: &[BlkifRequestSegment],
        rules: &Rules,
    ) -> Result<Self, i16> {
        self.segments = list
            .iter()
            .map(segment)
            .collect::<Option<_>>()
            .ok_or(ERROR)?;
        in_range(self.offset, self.len(), rules).ok_or(ERROR)?;
        Ok(self)
    }
}

const ERROR: i16 = BLKIF_RSP_ERROR;

impl Request {
    /// Understands a slot's copy.
    pub fn of(slot: &BlkifRequest, rules: &Rules) -> Self {
        let bytes = slot.as_bytes();
        match slot.operation {
            BLKIF_OP_INDIRECT => {
                let (slot, _) = BlkifRequestIndirect::read_from_prefix(bytes).expect("it fits");
                Self {
                    id: slot.id,
                    operation: slot.indirect_op,
                    work: indirect(&slot, rules),
                }
            }
            BLKIF_OP_DISCARD => {
                let (slot, _) = BlkifRequestDiscard::read_from_prefix(bytes).expect("it fits");
                Self {
                    id: slot.id,
                    operation: slot.operation,
                    work: discard(&slot, rules),
                }
            }
            operation => Self {
                id: slot.id,
                operation,
                work: direct(slot, rules),
            },
        }
    }
}

fn direct(slot: &BlkifRequest, rules: &Rules) -> Result<Work, i16> {
    let (write, barrier) = match slot.operation {
        BLKIF_OP_READ => (false, false),
        BLKIF_OP_WRITE => (true, false),
        BLKIF_OP_FLUSH_DISKCACHE if slot.nr_segments == 0 => return Ok(Work::Flush),
        BLKIF_OP_WRITE_BARRIER if slot.nr_segments == 0 => {
            return Ok(Work::Transfer(transfer(true, true, 0)));
        }
        BLKIF_OP_WRITE_BARRIER | BLKIF_OP_FLUSH_DISKCACHE => (true, true),
        _ => return Err(BLKIF_RSP_EOPNOTSUPP),
    };
    let count = usize::from(slot.nr_segments);
    if count == 0 || count > BLKIF_MAX_SEGMENTS_PER_REQUEST || (write && !rules.write) {
        return Err(ERROR);
    }
    let offset = byte_offset(slot.sector_number).ok_or(ERROR)?;
    transfer(write, barrier, offset)
        .with_segments(&slot.seg[..count], rules)
        .map(Work::Transfer)
}

fn indirect(slot: &BlkifRequestIndirect, rules: &Rules) -> Result<Work, i16> {
    let write = match slot.indirect_op {
        BLKIF_OP_READ => false,
        BLKIF_OP_WRITE => true,
        _ => return Err(ERROR),
    };
    let count = usize::from(slot.nr_segments);
    if count == 0 || count > MAX_INDIRECT_SEGMENTS || (write && !rules.write) {
        return Err(ERROR);
    }
    let offset = byte_offset(slot.sector_number).ok_or(ERROR)?;
    let pages = slot.indirect_grefs[..count.div_ceil(SEGMENTS_PER_PAGE)].to_vec();
    Ok(Work::Indirect {
        transfer: transfer(write, false, offset),
        count,
        pages,
    })
}

fn discard(slot: &BlkifRequestDiscard, rules: &Rules) -> Result<Work, i16> {
    if !rules.discard || slot.flag & BLKIF_DISCARD_SECURE != 0 {
        return Err(BLKIF_RSP_EOPNOTSUPP);
    }
    let offset = byte_offset(slot.sector_number).ok_or(ERROR)?;
    let len = byte_offset(slot.nr_sectors).ok_or(ERROR)?;
    in_range(offset, len, rules).ok_or(ERROR)?;
    Ok(Work::Discard { offset, len })
}

fn transfer(write: bool, barrier: bool, offset: u64) -> Transfer {
    Transfer {
        write,
        barrier,
        offset,
        segments: Vec::new(),
    }
}

fn byte_offset(sector: u64) -> Option<u64> {
    sector.checked_mul(BLKIF_SECTOR_SIZE)
}

fn in_range(offset: u64, len: u64, rules: &Rules) -> Option<()> {
    let end = byte_offset(rules.sectors)?;
    (offset.checked_add(len)? <= end).then_some(())
}

/// A segment of whole sectors within a page, or `None`.
fn segment(raw: &BlkifRequestSegment) -> Option<Segment> {
    let (first, last) = (usize::from(raw.first_sect), usize::from(raw.last_sect));
    (first <= last && last < 8).then(|| Segment {
        gref: raw.gref,
        offset: first * 512,
        len: (last - first + 1) * 512,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        sectors: 1000,
        write: true,
        discard: true,
    };

    fn slot(operation: u8, segments: &[(u8, u8)], sector_number: u64) -> BlkifRequest {
        let mut slot = BlkifRequest {
            operation,
            nr_segments: u8::try_from(segments.len()).unwrap(),
            id: 77,
            sector_number,
            ..Default::default()
        };
        for (seg, (first_sect, last_sect)) in slot.seg.iter_mut().zip(segments) {
            *seg = BlkifRequestSegment {
                gref: 8,
                first_sect: *first_sect,
                last_sect: *last_sect,
                _pad: 0,
            };
        }
        slot
    }

    fn work(operation: u8, segments: &[(u8, u8)], sector: u64) -> Result<Work, i16> {
        Request::of(&slot(operation, segments, sector), &RULES).work
    }

    #[test]
    fn a_read_names_its_bytes() {
        let Ok(Work::Transfer(read)) = work(BLKIF_OP_READ, &[(0, 7), (2, 3)], 10) else {
            panic!("not a transfer");
        };
        assert_eq!((read.write, read.offset, read.len()), (false, 5120, 5120));
        let second = Segment {
            gref: 8,
            offset: 1024,
            len: 1024,
        };
        assert_eq!(read.segments[1], second);
    }

    #[test]
    fn what_is_out_of_range_is_an_error() {
        let bad: [(&[(u8, u8)], u64); 7] = [
            (&[(0, 8)], 0),
            (&[(3, 2)], 0),
            (&[(0, 255)], 0),
            (&[], 0),
            (&[(0, 7)], 993),
            (&[(0, 7)], u64::MAX),
            (&[(0, 7)], u64::MAX / 512),
        ];
        for (segments, sector) in bad {
            assert_eq!(work(BLKIF_OP_WRITE, segments, sector), Err(ERROR));
        }
        assert!(work(BLKIF_OP_WRITE, &[(0, 7)], 992).is_ok());
        let mut many = slot(BLKIF_OP_READ, &[], 0);
        many.nr_segments = 12;
        assert_eq!(Request::of(&many, &RULES).work, Err(ERROR));
        assert_eq!(work(99, &[], 0), Err(BLKIF_RSP_EOPNOTSUPP));
    }

    #[test]
    fn a_read_only_disk_is_not_written() {
        let rules = Rules {
            write: false,
            discard: false,
            ..RULES
        };
        for (operation, status) in [
            (BLKIF_OP_WRITE, ERROR),
            (BLKIF_OP_WRITE_BARRIER, ERROR),
            (BLKIF_OP_DISCARD, BLKIF_RSP_EOPNOTSUPP),
        ] {
            let request = Request::of(&slot(operation, &[(0, 0)], 0), &rules);
            assert_eq!((request.work, request.id), (Err(status), 77));
        }
    }

    #[test]
    fn an_indirect_response_names_what_was_done() {
        let mut raw = BlkifRequestIndirect {
            operation: BLKIF_OP_INDIRECT,
            indirect_op: BLKIF_OP_WRITE,
            nr_segments: 256,
            id: 5,
            ..Default::default()
        };
        let parse = |raw: &BlkifRequestIndirect| {
            let mut slot = BlkifRequest::default();
            slot.as_mut_bytes()[..64].copy_from_slice(raw.as_bytes());
            Request::of(&slot, &RULES)
        };
        let request = parse(&raw);
        assert_eq!((request.id, request.operation), (5, BLKIF_OP_WRITE));
        let Ok(Work::Indirect { count, pages, .. }) = request.work else {
            panic!("not indirect");
        };
        assert_eq!((count, pages.len()), (256, 1));
        raw.nr_segments = 257;
        assert_eq!(parse(&raw).work, Err(ERROR));
        (raw.nr_segments, raw.indirect_op) = (1, BLKIF_OP_INDIRECT);
        assert_eq!(parse(&raw).work, Err(ERROR));
    }

    proptest! {
        /// Whatever the slot's bytes, what is to be done lies within the disk
        /// and within pages.
        #[test]
        fn any_bytes_stay_within_the_disk(
            operation in 0..8_u8, rest in prop::collection::vec(any::<u8>(), 111), small in any::<bool>()
        ) {
            let mut slot = BlkifRequest::default();
            slot.as_mut_bytes()[0] = operation;
            slot.as_mut_bytes()[1..].copy_from_slice(&rest);
            if small {
                (slot.sector_number, slot.nr_segments) = (slot.sector_number % 1000, slot.nr_segments % 12);
                for seg in &mut slot.seg {
                    (seg.first_sect, seg.last_sect) = (seg.first_sect % 8, seg.last_sect % 8);
                }
            }
            match Request::of(&slot, &RULES).work {
                Ok(Work::Transfer(it)) => {
                    prop_assert!(it.offset + it.len() <= 512_000);
                    prop_assert!(it.segments.iter().all(|s| s.offset + s.len <= 4096 && s.len > 0));
                    prop_assert!(it.segments.len() <= 11);
                }
                Ok(Work::Indirect { count, pages, .. }) => prop_assert!(count <= 256 && pages.len() == 1),
                Ok(Work::Discard { offset, len }) => prop_assert!(offset + len <= 512_000),
                Ok(Work::Flush) | Err(-2 | -1) => {}
                Err(other) => prop_assert!(false, "status {other}"),
            }
        }
    }
}
