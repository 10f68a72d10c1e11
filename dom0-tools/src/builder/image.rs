//! A kernel image file, read and understood before any domain is created.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use thiserror::Error;

use super::{
    bzimage::{BzImage, BzImageError},
    decompress::{Compression, DecompressError},
    elf::{ElfError, ElfFile, ElfKernel, Segment},
    kallsyms,
    kept::{KeptKernels, Key},
    notes::{NotesError, XenNotes},
    placement::{Placement, PlacementError},
    symbols::SymbolTable,
};

/// The most that a kernel may unpack to, and the largest compressed file.
pub const MAX_UNPACKED: usize = 512 << 20;

/// A kernel image that can't be used: which file, and why.
#[derive(Debug, Error)]
#[error("kernel image {}: {fault}", path.display())]
pub struct KernelError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub fault: KernelFault,
}

/// What is wrong with a kernel image.
#[derive(Debug, Error)]
pub enum KernelFault {
    /// Missing, or not readable.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A directory, a device.
    #[error("not a regular file")]
    NotAFile,
    /// No bytes.
    #[error("the file is empty")]
    Empty,
    /// Neither a bzImage nor ELF, nor a compressed ELF.
    #[error(
        "not a kernel: neither a bzImage nor an ELF file, nor one that is compressed (it starts \
         with {0:02x?})"
    )]
    NotAKernel(Vec<u8>),
    /// A compressed file larger than what may come out of it.
    #[error("{size} bytes are too many for a compressed kernel (at most {MAX_UNPACKED})")]
    FileTooLarge {
        /// The file's size.
        size: u64,
    },
    /// The unpacked size that the image states is refused.
    #[error(
        "claims to unpack to {claimed} bytes, more than the {MAX_UNPACKED} that are accepted: \
         corrupt, or hostile"
    )]
    ClaimTooLarge {
        /// The stated size.
        claimed: u32,
    },
    /// The unpacked size is not the one that the image states.
    #[error("unpacks to {actual} bytes where it promises {claimed}: corrupt; copy it again")]
    SizeMismatch {
        /// The stated size.
        claimed: u32,
        /// The real one.
        actual: usize,
    },
    /// A boot image with a payload that is no kernel.
    #[error("the bzImage's payload is neither compressed nor ELF (it starts with {0:02x?})")]
    UnknownPayload(Vec<u8>),
    /// See [`BzImageError`].
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// See [`DecompressError`].
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// See [`ElfError`].
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// See [`NotesError`].
    #[error(transparent)]
    Notes(#[from] NotesError),
    /// See [`PlacementError`].
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

/// How an image file is made.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// A Linux boot image.
    BzImage {
        /// The boot protocol: 0x20f is 2.15.
        protocol: u16,
        /// As `file` shows it.
        version: Option<String>,
    },
    /// An ELF file, as it is or compressed.
    Elf,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BzImage { protocol, .. } => {
                write!(
                    f,
                    "bzImage (boot protocol {}.{:02})",
                    protocol >> 8,
                    protocol & 0xff
                )
            }
            Self::Elf => f.write_str("ELF"),
        }
    }
}

/// What reading an image is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Reading a file of so many bytes.
    Reading(u64),
    /// Unpacking so many bytes.
    Decompressing(Compression, usize),
    /// Looking at an ELF file of so many bytes.
    Parsing(u64),
}

/// How to read an image.
#[derive(Default)]
pub struct Reading<'a> {
    /// Is told what takes time.
    pub progress: Option<&'a mut dyn FnMut(Progress)>,
    /// Where unpacked kernels are kept.
    pub kept: Option<&'a KeptKernels>,
}

/// A PV kernel, ready to be put into a domain.
#[derive(Debug)]
pub struct KernelImage {
    path: PathBuf,
    format: Format,
    compression: Option<Compression>,
    elf: ElfKernel,
    notes: XenNotes,
    placement: Placement,
    map: Option<SymbolTable>,
    found: OnceLock<Option<SymbolTable>>,
}

impl KernelImage {
    /// Reads and checks the kernel at `path`.
    ///
    /// # Errors
    /// Anything that would keep the kernel from being started; see
    /// [`KernelFault`].
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        Self::open_with(path, &mut Reading::default())
    }

    /// [`open`](Self::open), with company.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: &Path, reading: &mut Reading<'_>) -> Result<Self, KernelError> {
        Self::read(path, reading).map_err(|fault| KernelError {
            path: path.to_owned(),
            fault,
        })
    }

    fn read(path: &Path, reading: &mut Reading<'_>) -> Result<Self, KernelFault> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(KernelFault::NotAFile);
        }
        let size = metadata.len();
        let mut file = File::open(path)?;
        let mut head = Vec::new();
        file.by_ref().take(16).read_to_end(&mut head)?;
        if ElfKernel::detect(&head) {
            // May be gigabytes of debug information: read what is needed.
            reading.tell(Progress::Parsing(size));
            let elf = ElfKernel::parse(&ElfFile::new(file)?)?;
            return Self::assemble(path, Format::Elf, None, elf);
        }
        if size > MAX_UNPACKED as u64 {
            return Err(KernelFault::FileTooLarge { size });
        }
        reading.tell(Progress::Reading(size));
        let mut image = head;
        file.take(MAX_UNPACKED as u64).read_to_end(&mut image)?;
        Self::from_bytes(path, &image, reading)
    }

    /// An image that is already in memory; `path` is for messages, and for
    /// finding a `System.map` beside it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(
        path: &Path,
        image: &[u8],
        reading: &mut Reading<'_>,
    ) -> Result<Self, KernelFault> {
        if image.is_empty() {
            return Err(KernelFault::Empty);
        }
        if let Some(boot) = BzImage::parse(image)? {
            let (compression, elf) = parse_payload(boot.payload, reading)?;
            let format = Format::BzImage {
                protocol: boot.protocol,
                version: boot.version,
            };
            return Self::assemble(path, format, compression, elf);
        }
        if ElfKernel::detect(image) {
            return Self::assemble(path, Format::Elf, None, ElfKernel::parse(image)?);
        }
        let Some(method) = Compression::detect(image) else {
            return Err(KernelFault::NotAKernel(head(image)));
        };
        let elf = reading.unpack(method, image, None, KernelFault::NotAKernel)?;
        Self::assemble(path, Format::Elf, Some(method), elf)
    }

    fn assemble(
        path: &Path,
        format: Format,
        compression: Option<Compression>,
        elf: ElfKernel,
    ) -> Result<Self, KernelFault> {
        let notes = XenNotes::parse(&elf.notes, elf.guest_section.as_deref())?;
        let placement = Placement::find(&notes, &elf)?;
        Ok(Self {
            path: path.to_owned(),
            format,
            compression,
            elf,
            notes,
            placement,
            map: None,
            found: OnceLock::new(),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the file is made.
    #[must_use]
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// How it is compressed, if it is.
    #[must_use]
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// The kernel's notes.
    #[must_use]
    pub fn notes(&self) -> &XenNotes {
        &self.notes
    }

    /// Where it lies.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// What is to be loaded, by physical address.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.elf.segments
    }

    /// Whether a virtual address lies in a segment with instructions.
    #[must_use]
    pub fn is_code(&self, address: u64) -> bool {
        const EXECUTABLE: u32 = 1;
        let physical = address
            .checked_sub(self.placement.virt_base)
            .and_then(|offset| offset.checked_add(self.placement.paddr_offset));
        physical.is_some_and(|physical| {
            let mut code = self.elf.segments.iter();
            code.any(|s| s.flags & EXECUTABLE != 0 && s.physical().contains(&physical))
        })
    }

    /// Takes symbols from a `System.map`; one beside the image is found by
    /// [`symbols`](Self::symbols) without this.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn load_system_map(&mut self, path: &Path) -> io::Result<()> {
        self.map = SymbolTable::from_map_file(path)?;
        Ok(())
    }

    /// The kernel's symbols: from a `System.map` that was given, from the
    /// image, or from a `System.map` beside it (`vmlinuz-X` and
    /// `System.map-X`, as distributions install them). Looked for once.
    #[must_use]
    pub fn symbols(&self) -> Option<&SymbolTable> {
        if let Some(table) = self.map.as_ref().or(self.elf.symbols.as_ref()) {
            return Some(table);
        }
        self.found
            .get_or_init(|| {
                self.map_beside()
                    .or_else(|| kallsyms::find(&self.elf.segments))
            })
            .as_ref()
    }

    fn map_beside(&self) -> Option<SymbolTable> {
        let name = self.path.file_name()?.to_str()?;
        let map = match name.split_once('-') {
            Some((_, version)) => format!("System.map-{version}"),
            None => "System.map".into(),
        };
        SymbolTable::from_map_file(&self.path.with_file_name(map)).ok()?
    }

    /// The name at or before `address`, and the distance from it.
    #[must_use]
    pub fn symbolise(&self, address: u64) -> Option<(&str, u64)> {
        let symbol = self.symbols()?.lookup(address)?;
        Some((symbol.name, symbol.offset))
    }
}

/// The payload of a bzImage: compressed or not, and its unpacked size behind
/// it.
fn parse_payload(
    payload: &[u8],
    reading: &mut Reading<'_>,
) -> Result<(Option<Compression>, ElfKernel), KernelFault> {
    if ElfKernel::detect(payload) {
        return Ok((None, ElfKernel::parse(payload)?));
    }
    let Some(method) = Compression::detect(payload) else {
        return Err(KernelFault::UnknownPayload(head(payload)));
    };
    let Some((mut data, &size)) = payload.split_last_chunk::<4>() else {
        return Err(KernelFault::UnknownPayload(head(payload)));
    };
    let claimed = u32::from_le_bytes(size);
    if u64::from(claimed) > MAX_UNPACKED as u64 {
        return Err(KernelFault::ClaimTooLarge { claimed });
    }
    if method == Compression::Gzip {
        data = payload; // its own last four bytes are that size
    }
    let elf = reading.unpack(method, data, Some(claimed), KernelFault::UnknownPayload)?;
    Ok((Some(method), elf))
}

impl Reading<'_> {
    fn tell(&mut self, step: Progress) {
        if let Some(tell) = &mut self.progress {
            tell(step);
        }
    }

    /// What `packed` holds, which must be ELF: from among the kept ones, or
    /// unpacked and then kept. `claimed` is the size that the image states.
    fn unpack(
        &mut self,
        method: Compression,
        packed: &[u8],
        claimed: Option<u32>,
        other: fn(Vec<u8>) -> KernelFault,
    ) -> Result<ElfKernel, KernelFault> {
        let key = self.kept.map(|kept| (kept, kept.key(packed)));
        if let Some(elf) = key.as_ref().and_then(|(kept, key)| kept_elf(kept, key)) {
            return Ok(elf);
        }
        self.tell(Progress::Decompressing(method, packed.len()));
        let limit = claimed.and_then(|claimed| usize::try_from(claimed).ok());
        let unpacked = method.decompress(packed, limit.unwrap_or(MAX_UNPACKED))?;
        if let Some(claimed) = claimed
            && limit != Some(unpacked.len())
        {
            return Err(KernelFault::SizeMismatch {
                claimed,
                actual: unpacked.len(),
            });
        }
        if !ElfKernel::detect(&unpacked) {
            return Err(other(head(&unpacked)));
        }
        self.tell(Progress::Parsing(unpacked.len() as u64));
        let elf = ElfKernel::parse(&unpacked[..])?;
        if let Some((kept, key)) = key {
            kept.keep(&key, &unpacked);
        }
        Ok(elf)
    }
}

/// A kept kernel; one that can't be read is unpacked anew.
fn kept_elf(kept: &KeptKernels, key: &Key) -> Option<ElfKernel> {
    ElfKernel::parse(&ElfFile::new(kept.find(key)?).ok()?).ok()
}

fn head(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len().min(8)].to_vec()
}

#[cfg(test)]
mod tests;
