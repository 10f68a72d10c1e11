//! The ELF file of a kernel: what to load, and what it says about itself.
//!
//! Law: every offset and size in the file is a claim. The `object` crate
//! checks each against the file before it reads; sums are checked here; nothing
//! is allocated by a size that the file does not back with bytes.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use object::{
    Endianness, ReadCache, ReadRef,
    elf::{self, FileHeader64},
    read::elf::{FileHeader, NoteIterator, ProgramHeader, SectionHeader, SectionTable},
};
use thiserror::Error;

use super::symbols::SymbolTable;

/// The most that the segments' file contents may be together.
pub const MAX_CONTENT: u64 = 512 << 20;
/// Physical addresses have 46 bits at most in a PV guest.
const MAX_PHYSICAL: u64 = 1 << 46;
const MAX_NOTES: usize = 1 << 16;

type Header = FileHeader64<Endianness>;

/// An ELF file that can't be a kernel of ours.
#[derive(Debug, Error, PartialEq)]
pub enum ElfError {
    /// Class or machine of a 32-bit kernel.
    #[error("a 32-bit kernel: Domus runs 64-bit PV kernels only; use the amd64 build")]
    Bits32,
    /// Another architecture.
    #[error("built for another machine (ELF machine {0}, x86-64 is 62)")]
    Machine(u16),
    /// Not an executable.
    #[error("an ELF file of type {0}, not an executable (2) or a position-independent one (3)")]
    Type(u16),
    /// A header or table that does not fit the file.
    #[error("the ELF file is corrupt or cut short: {0}")]
    Malformed(String),
    /// No `PT_LOAD`.
    #[error("the ELF file has no segment to load")]
    NothingToLoad,
    /// Sizes that can't be.
    #[error(
        "ELF segment {index} claims {filesz:#x} bytes of file and {memsz:#x} of memory at \
         physical address {paddr:#x}: refused"
    )]
    BadSegment {
        /// Its program header.
        index: usize,
        /// `p_paddr`.
        paddr: u64,
        /// `p_filesz`.
        filesz: u64,
        /// `p_memsz`.
        memsz: u64,
    },
    /// Two segments want the same bytes.
    #[error(
        "ELF segments overlap: one ends at physical address {end:#x}, the next starts at \
         {start:#x}"
    )]
    Overlap {
        /// End of the lower one.
        end: u64,
        /// Start of the upper one.
        start: u64,
    },
    /// More than [`MAX_CONTENT`].
    #[error("the ELF segments hold {0} bytes, more than the {MAX_CONTENT} that are accepted")]
    TooLarge(u64),
}

/// Where an ELF file is read from: its headers piece by piece, its content at once.
pub trait Source<'data>: ReadRef<'data> {
    /// `len` bytes from `offset` on; `None` if the file does not have them.
    fn content(self, offset: u64, len: u64) -> Option<Vec<u8>>;
}

impl<'data> Source<'data> for &'data [u8] {
    fn content(self, offset: u64, len: u64) -> Option<Vec<u8>> {
        self.read_bytes_at(offset, len).ok().map(<[u8]>::to_vec)
    }
}

/// An ELF file on the disk, which may have gigabytes that are of no interest.
pub struct ElfFile {
    headers: ReadCache<File>,
    file: File,
}

impl ElfFile {
    /// Of an open file.
    ///
    /// # Errors
    /// The system's.
    pub fn new(file: File) -> io::Result<Self> {
        let headers = ReadCache::new(file.try_clone()?);
        Ok(Self { headers, file })
    }
}

impl<'data> ReadRef<'data> for &'data ElfFile {
    fn len(self) -> Result<u64, ()> {
        self.headers.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        self.headers.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        self.headers.read_bytes_at_until(range, delimiter)
    }
}

impl<'data> Source<'data> for &'data ElfFile {
    fn content(self, offset: u64, len: u64) -> Option<Vec<u8>> {
        let size = self.file.metadata().ok()?.len();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return None;
        }
        let mut content = vec![0; usize::try_from(len).ok()?];
        self.file.read_exact_at(&mut content, offset).ok()?;
        Some(content)
    }
}

/// A part of the kernel that goes to memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// `p_paddr`.
    pub paddr: u64,
    /// `p_vaddr`. Not used for loading (Linux has a segment at 0).
    pub vaddr: u64,
    /// Size in memory: what `data` does not cover is zero.
    pub memsz: u64,
    /// `p_flags`.
    pub flags: u32,
    /// The bytes from the file.
    pub data: Vec<u8>,
}

impl Segment {
    /// The physical addresses that it takes.
    #[must_use]
    pub fn physical(&self) -> Range<u64> {
        self.paddr..self.paddr + self.memsz
    }
}

/// What a kernel's ELF file holds that matters to us.
#[derive(Debug)]
pub struct ElfKernel {
    /// `e_entry`.
    pub entry: u64,
    /// By physical address, not overlapping.
    pub segments: Vec<Segment>,
    /// Type and content of every note named "Xen".
    pub notes: Vec<(u32, Vec<u8>)>,
    /// The string in section `__xen_guest`.
    pub guest_section: Option<Vec<u8>>,
    /// The symbol table, where the file was not stripped.
    pub symbols: Option<SymbolTable>,
}

impl ElfKernel {
    /// Whether `head` starts an ELF file.
    #[must_use]
    pub fn detect(head: &[u8]) -> bool {
        head.starts_with(&elf::ELFMAG)
    }

    /// Reads all that matters.
    ///
    /// # Errors
    /// See [`ElfError`].
    pub fn parse<'data, R: Source<'data>>(data: R) -> Result<Self, ElfError> {
        check_identity(data)?;
        let header = Header::parse(data).map_err(malformed)?;
        let endian = header.endian().map_err(malformed)?;
        check_kind(header, endian)?;
        let sections = header.sections(endian, data).ok();
        let mut notes = segment_notes(header, endian, data);
        if let (true, Some(sections)) = (notes.is_empty(), &sections) {
            notes = section_notes(sections, endian, data);
        }
        Ok(Self {
            entry: header.e_entry(endian),
            segments: load_segments(header, endian, data)?,
            notes,
            guest_section: sections
                .as_ref()
                .and_then(|sections| guest_section(sections, endian, data)),
            symbols: sections
                .as_ref()
                .and_then(|sections| SymbolTable::from_elf(sections, endian, data)),
        })
    }

    /// From the lowest to the highest physical address to load.
    #[must_use]
    pub fn physical(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |s| s.paddr);
        let end = self.segments.last().map_or(0, |s| s.physical().end);
        start..end
    }
}

/// Class and byte order, from the identification alone, so that a 32-bit
/// kernel is called that and not "malformed".
fn check_identity<'data, R: ReadRef<'data>>(data: R) -> Result<(), ElfError> {
    let short = || ElfError::Malformed("no complete ELF header".into());
    let identity = data.read_bytes_at(0, 20).map_err(|()| short())?;
    let machine = u16::from_le_bytes([identity[18], identity[19]]);
    match (identity[4], identity[5], machine) {
        (1, 1, 3 | 62) => Err(ElfError::Bits32),
        (2, 1, 62) => Ok(()),
        (1 | 2, 1, other) => Err(ElfError::Machine(other)),
        (1 | 2, 2, other) => Err(ElfError::Machine(other.swap_bytes())),
        _ => Err(ElfError::Malformed("unknown class or byte order".into())),
    }
}

fn check_kind(header: &Header, endian: Endianness) -> Result<(), ElfError> {
    match header.e_type(endian) {
        elf::ET_EXEC | elf::ET_DYN => Ok(()),
        other => Err(ElfError::Type(other.0)),
    }
}

fn load_segments<'data, R: Source<'data>>(
    header: &Header,
    endian: Endianness,
    data: R,
) -> Result<Vec<Segment>, ElfError> {
    let headers = header.program_headers(endian, data).map_err(malformed)?;
    let mut segments = Vec::new();
    let mut total = 0u64;
    for (index, program) in headers.iter().enumerate() {
        if program.p_type(endian) != elf::PT_LOAD || program.p_memsz(endian) == 0 {
            continue;
        }
        let filesz = program.p_filesz(endian);
        let memsz = program.p_memsz(endian);
        let paddr = program.p_paddr(endian);
        // An offset in the legacy form (paddr = vaddr) is far above
        // MAX_PHYSICAL: only the sum is bounded here, the frame later.
        if filesz > memsz || memsz > MAX_PHYSICAL || paddr.checked_add(memsz).is_none() {
            return Err(ElfError::BadSegment {
                index,
                paddr,
                filesz,
                memsz,
            });
        }
        total += filesz.min(MAX_CONTENT + 1);
        if total > MAX_CONTENT {
            return Err(ElfError::TooLarge(total));
        }
        let content = data.content(program.p_offset(endian), filesz);
        let content = content.ok_or_else(|| {
            ElfError::Malformed(format!("segment {index} lies past the end of the file"))
        })?;
        segments.push(Segment {
            paddr,
            vaddr: program.p_vaddr(endian),
            memsz,
            flags: program.p_flags(endian).0,
            data: content,
        });
    }
    sorted(segments)
}

fn sorted(mut segments: Vec<Segment>) -> Result<Vec<Segment>, ElfError> {
    segments.sort_by_key(|segment| segment.paddr);
    for pair in segments.windows(2) {
        let (end, start) = (pair[0].physical().end, pair[1].paddr);
        if end > start {
            return Err(ElfError::Overlap { end, start });
        }
    }
    if segments.is_empty() {
        return Err(ElfError::NothingToLoad);
    }
    Ok(segments)
}

fn segment_notes<'data, R: ReadRef<'data>>(
    header: &Header,
    endian: Endianness,
    data: R,
) -> Vec<(u32, Vec<u8>)> {
    let mut notes = Vec::new();
    for program in header.program_headers(endian, data).unwrap_or_default() {
        // Some linkers left the offset 0, which would be the ELF header.
        if program.p_offset(endian) == 0 {
            continue;
        }
        if let Ok(Some(found)) = program.notes(endian, data) {
            collect_notes(found, endian, &mut notes);
        }
    }
    notes
}

fn section_notes<'data, R: ReadRef<'data>>(
    sections: &SectionTable<'data, Header, R>,
    endian: Endianness,
    data: R,
) -> Vec<(u32, Vec<u8>)> {
    let mut notes = Vec::new();
    for section in sections.iter() {
        if let Ok(Some(found)) = section.notes(endian, data) {
            collect_notes(found, endian, &mut notes);
        }
    }
    notes
}

fn collect_notes(
    mut found: NoteIterator<'_, Header>,
    endian: Endianness,
    notes: &mut Vec<(u32, Vec<u8>)>,
) {
    for _ in 0..MAX_NOTES {
        let Ok(Some(note)) = found.next() else { return };
        if note.name() == b"Xen" && notes.len() < 64 {
            notes.push((note.n_type(endian).0, note.desc().to_vec()));
        }
    }
}

fn guest_section<'data, R: ReadRef<'data>>(
    sections: &SectionTable<'data, Header, R>,
    endian: Endianness,
    data: R,
) -> Option<Vec<u8>> {
    let (_, section) = sections.section_by_name(endian, b"__xen_guest")?;
    let bytes = section.data(endian, data).ok()?;
    let text = bytes.split(|&byte| byte == 0).next()?;
    Some(text[..text.len().min(4096)].to_vec())
}

fn malformed(error: object::read::Error) -> ElfError {
    ElfError::Malformed(error.to_string())
}
