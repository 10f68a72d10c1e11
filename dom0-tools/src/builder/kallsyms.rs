//! The symbol table that Linux keeps for itself (`CONFIG_KALLSYMS`), found in
//! a kernel that was stripped of its ELF symbols, as distributions' are.
//!
//! It is a handful of arrays in `.rodata`, each aligned to 8. Until 6.3:
//!
//! ```text
//!   offsets       u32 each symbol: its address, relative to the base
//!   base          u64
//!   count         u32
//!   names         each: length, then so many token numbers; the first letter
//!                 of the text is the symbol's type
//!   markers       u32 for every 256th name: where it starts in `names`
//!   (order by name, since 6.2)
//!   token table   256 strings, NUL-terminated
//!   token index   u16 each: where the string starts in the token table
//! ```
//!
//! Since 6.4 `offsets` and `base` come behind the token index. Nothing says
//! where the arrays are; but the token table has the ten digits in a row, the
//! token index must fit it, and the markers must fit the names.
//!
//! Law: this is guesswork over hostile bytes for the sake of a readable crash
//! report. It may find nothing; it reads in bounds, takes bounded time, and
//! what it returns is checked to be consistent.

use super::{
    elf::Segment,
    symbols::{Kind, SymbolTable},
};

const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";
const TOKENS: usize = 256;
/// Names between two markers.
const STRIDE: usize = 256;
/// Names have 2 to about 130 bytes in compressed form, 2 to 513 in all.
const MARKER_STEP: std::ops::Range<usize> = STRIDE * 2..STRIDE * 140;
/// How far before the token table the markers are sought: the order by name is
/// 3 bytes a symbol.
const MARKERS_WITHIN: usize = 2 << 20;
/// More symbols than any kernel has.
const MAX_SYMBOLS: usize = 1 << 20;
/// Fewer markers would fit by chance.
const MIN_MARKERS: usize = 4;
/// Candidates that are looked at closely, at most.
const MAX_CANDIDATES: usize = 64;

/// Looks for the table in the segments' contents.
#[must_use]
pub fn find(segments: &[Segment]) -> Option<SymbolTable> {
    segments.iter().find_map(|segment| in_data(&segment.data))
}

fn in_data(data: &[u8]) -> Option<SymbolTable> {
    positions(data, DIGITS)
        .take(MAX_CANDIDATES)
        .filter_map(|digits| Tokens::around(data, digits))
        .find_map(|tokens| tokens.table())
}

fn positions<'a>(data: &'a [u8], what: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let ends = data.windows(what.len());
    ends.enumerate()
        .filter(move |(_, window)| window[0] == what[0] && *window == what)
        .map(|(at, _)| at)
}

/// The token table and its index.
struct Tokens<'a> {
    data: &'a [u8],
    table: usize,
    index: usize,
}

impl<'a> Tokens<'a> {
    /// Checks that the digits at `digits` are those of a token table.
    fn around(data: &'a [u8], digits: usize) -> Option<Self> {
        let digit = usize::from(b'0');
        let mut end = digits;
        for _ in digit..TOKENS {
            end += data.get(end..)?.iter().position(|&byte| byte == 0)? + 1;
        }
        let index = end.next_multiple_of(8);
        let back = usize::from(u16_at(data, index + 2 * digit)?);
        let table = digits.checked_sub(back)?;
        let tokens = Self { data, table, index };
        let mut at = table;
        for token in 0..TOKENS {
            if table + tokens.offset(token)? != at {
                return None;
            }
            at += data.get(at..)?.iter().position(|&byte| byte == 0)? + 1;
        }
        (at == end).then_some(tokens)
    }

    fn offset(&self, token: usize) -> Option<usize> {
        u16_at(self.data, self.index + 2 * token).map(usize::from)
    }

    fn text(&self, token: u8) -> Option<&'a [u8]> {
        let start = self.table + self.offset(usize::from(token))?;
        self.data.get(start..)?.split(|&byte| byte == 0).next()
    }

    fn table(&self) -> Option<SymbolTable> {
        let lowest = self.table.saturating_sub(MARKERS_WITHIN);
        let candidates = (lowest..self.table).rev().filter(|at| at % 8 == 0);
        candidates
            .filter_map(|at| Markers::at(self.data, at, self.table))
            .take(MAX_CANDIDATES)
            .find_map(|markers| self.with_markers(&markers))
    }

    fn with_markers(&self, markers: &Markers) -> Option<SymbolTable> {
        // The last chunk's length is not known: the names may start anywhere
        // in so many bytes.
        let highest = markers.at.checked_sub(*markers.offsets.last()?)?;
        let lowest = highest.saturating_sub(MARKER_STEP.end + 8);
        let starts = (lowest..=highest).rev().filter(|at| at % 8 == 0);
        starts
            .filter_map(|start| self.names(start, markers))
            .find_map(|names| self.resolve(&names))
    }

    /// The names at `start`, if their count and the markers agree with them.
    fn names(&self, start: usize, markers: &Markers) -> Option<Names> {
        let count_at = start.checked_sub(8)?;
        let count = to_usize(u32_at(self.data, count_at)?)?;
        if count > MAX_SYMBOLS || count.div_ceil(STRIDE) != markers.offsets.len() {
            return None;
        }
        let mut at = start;
        let mut positions = Vec::new();
        for number in 0..count {
            if number % STRIDE == 0 && start + markers.offsets[number / STRIDE] != at {
                return None;
            }
            positions.push(at);
            let (head, len) = self.name_length(at)?;
            at += head + len;
        }
        (at <= markers.at && markers.at - at < 8).then_some(Names {
            count_at,
            positions,
        })
    }

    /// One byte, or since 6.1 two where the first has its top bit set.
    fn name_length(&self, at: usize) -> Option<(usize, usize)> {
        let first = usize::from(*self.data.get(at)?);
        if first & 0x80 == 0 {
            return (first != 0).then_some((1, first));
        }
        let second = usize::from(*self.data.get(at + 1)?);
        Some((2, first & 0x7f | second << 7))
    }

    fn resolve(&self, names: &Names) -> Option<SymbolTable> {
        let size = (names.positions.len() * 4).next_multiple_of(8);
        let before = names
            .count_at
            .checked_sub(8 + size)
            .and_then(|at| Addresses::read(self.data, at, names.positions.len()));
        let behind = self.index + 2 * TOKENS;
        let addresses =
            before.or_else(|| Addresses::read(self.data, behind, names.positions.len()))?;
        let mut table = SymbolTable::default();
        let mut name = Vec::new();
        for (&at, address) in names.positions.iter().zip(addresses.0) {
            self.expand(at, &mut name)?;
            if let (Some(address), Some((&letter, text))) = (address, name.split_first()) {
                table.push(address, text, Kind::from_letter(letter));
            }
        }
        table.sorted()
    }

    fn expand(&self, at: usize, name: &mut Vec<u8>) -> Option<()> {
        let (head, len) = self.name_length(at)?;
        name.clear();
        for &token in self.data.get(at + head..at + head + len)? {
            name.extend_from_slice(self.text(token)?);
        }
        Some(())
    }
}

struct Markers {
    at: usize,
    offsets: Vec<usize>,
}

impl Markers {
    /// Words that start with 0 and rise as markers do.
    fn at(data: &[u8], at: usize, end: usize) -> Option<Self> {
        if u32_at(data, at)? != 0 {
            return None;
        }
        let mut offsets: Vec<usize> = vec![0];
        let mut last = 0;
        for word in (at + 4..end).step_by(4) {
            let next = to_usize(u32_at(data, word)?)?;
            if !next
                .checked_sub(last)
                .is_some_and(|step| MARKER_STEP.contains(&step))
            {
                break;
            }
            offsets.push(next);
            last = next;
        }
        (offsets.len() >= MIN_MARKERS).then_some(Self { at, offsets })
    }
}

struct Names {
    count_at: usize,
    positions: Vec<usize>,
}

/// `None` for what is no address but a number (per-CPU offsets).
struct Addresses(Vec<Option<u64>>);

impl Addresses {
    /// `count` offsets at `at` and the base behind them, if they make sense:
    /// a base in the upper half, and addresses in order.
    fn read(data: &[u8], at: usize, count: usize) -> Option<Self> {
        let base = u64_at(data, at + (count * 4).next_multiple_of(8))?;
        if base < 1 << 63 {
            return None;
        }
        let offsets: Option<Vec<u32>> = (0..count).map(|i| u32_at(data, at + 4 * i)).collect();
        let offsets = offsets?;
        // With per-CPU symbols apart, addresses are negative: -1 - offset.
        let apart = offsets.iter().any(|&offset| offset >> 31 == 1);
        let address = |offset: u32| match (apart, offset >> 31) {
            (true, 1) => base.checked_add(u64::from(!offset)),
            (true, _) => None,
            (false, _) => base.checked_add(offset.into()),
        };
        let addresses: Vec<_> = offsets.into_iter().map(address).collect();
        let sorted = addresses.iter().flatten().is_sorted();
        let enough = addresses.iter().flatten().count() > count / 2;
        (sorted && enough).then_some(Self(addresses))
    }
}

fn bytes_at<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    bytes_at(data, at).map(u16::from_le_bytes)
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    bytes_at(data, at).map(u32::from_le_bytes)
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    bytes_at(data, at).map(u64::from_le_bytes)
}

fn to_usize(value: u32) -> Option<usize> {
    usize::try_from(value).ok()
}

#[cfg(test)]
mod tests;
