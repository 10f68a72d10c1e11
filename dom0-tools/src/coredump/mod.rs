//! Core dumps of domains: `xm dump-core`, and `on_crash = "coredump-..."`.
//!
//! There are two readers, and crash takes a file with program headers for one of
//! another kind. So there are two formats, which differ in what stands before the
//! pages:
//!
//! ```text
//! +------------------+
//! | ELF header       |
//! | program headers  |  for gdb only: a note with registers, and one PT_LOAD for
//! | section headers  |    each run of virtual addresses  ---------------------+
//! | CORE notes       |  for gdb only            Xen's own sections:           |
//! | .note.Xen        |    magic, counts, version                              |
//! | .xen_prstatus    |    a vcpu_guest_context for each vCPU                   |
//! | .xen_shared_info |                                                        |
//! | .xen_p2m         |    (pfn, mfn) of each page, in the pages' order        |
//! | .xen_pages       |    the pages  <----------------------------------------+
//! | .shstrtab        |
//! +------------------+
//! ```
//!
//! The format of the sections is that of Xen's `docs/misc/dump-core-format`,
//! version 1, for PV domains. Virtual addresses are those of the first vCPU's
//! kernel page tables.
//!
//! Law: page tables are the guest's and may say anything. The walk is bounded,
//! and what it finds outside the domain's memory is left out.

mod elf;
mod living;
mod walk;

pub use living::Living;

use elf::Layout;
use guest_abi::{
    addr::{Mfn, PAGE_SIZE, Pfn},
    arch_x86::VcpuGuestContext,
    arch_x86_64::cr3_to_pfn,
};
use std::{
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

/// For whom a dump is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// With program headers: virtual addresses, for gdb
    Gdb,
    /// As Xen's own tools write it, for crash
    Xen,
}

/// What is dumped.
pub trait Source {
    /// The registers of the vCPUs that have any.
    fn vcpus(&self) -> &[Box<VcpuGuestContext>];

    /// The shared info page.
    fn shared_info(&self) -> &[u8];

    /// The domain's frames with their pseudo-physical numbers, by which they rise.
    fn frames(&self) -> &[(Mfn, Pfn)];

    /// What Xen is.
    fn version(&self) -> &XenVersion;

    /// The bytes of a frame.
    ///
    /// # Errors
    /// What the system says.
    fn read(&self, mfn: Mfn, page: &mut [u8; PAGE]) -> io::Result<()>;
}

const PAGE: usize = 4096;

/// `XENVER_*`, as the dump's reader wants to know it.
#[derive(Debug, Clone, Default)]
pub struct XenVersion {
    /// 4 in 4.17.
    pub major: u64,
    /// 17 in 4.17.
    pub minor: u64,
    /// `XENVER_extraversion`.
    pub extra: String,
    /// `XENVER_capabilities`.
    pub capabilities: String,
    /// `XENVER_changeset`.
    pub changeset: String,
    /// Compiler, by, domain, date.
    pub compile_info: [String; 4],
    /// `XENVER_platform_parameters`.
    pub virt_start: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Pages of the domain.
    pub pages: u64,
    /// Of them so many that are all zero are holes in the file.
    pub holes: u64,
    /// Runs of virtual addresses.
    pub runs: u64,
    /// The page tables had more than is worth following.
    pub cut_off: bool,
}

/// Writes a dump. `progress` is told the pages written so far.
///
/// # Errors
/// What the system says of the file or of the domain's memory.
pub fn write(
    source: &dyn Source,
    format: Format,
    out: &mut (impl Write + Seek),
    mut progress: impl FnMut(u64),
) -> io::Result<Written> {
    let root = source
        .vcpus()
        .first()
        .filter(|_| format == Format::Gdb)
        .map(|context| Mfn(cr3_to_pfn(context.ctrlreg[3])));
    let walked = walk::runs(source, root)?;
    let layout = Layout::new(source, format, &walked.runs);
    layout.write_headers(source, &walked.runs, out)?;
    let mut page = [0; PAGE];
    let mut holes = 0;
    for (done, (mfn, _)) in (0u64..).zip(source.frames()) {
        source.read(*mfn, &mut page)?;
        if page.iter().all(|byte| *byte == 0) {
            holes += 1;
            out.seek(SeekFrom::Current(i64::try_from(PAGE_SIZE).unwrap_or(0)))?;
        } else {
            out.write_all(&page)?;
        }
        if done % 4096 == 0 {
            progress(done);
        }
    }
    layout.write_names(out)?;
    out.flush()?;
    Ok(Written {
        pages: source.frames().len() as u64,
        holes,
        runs: walked.runs.len() as u64,
        cut_off: walked.cut_off,
    })
}

/// Writes a dump to a new file, which is not left behind half written.
///
/// # Errors
/// As [`write()`]; there is such a file already.
pub fn write_file(
    source: &dyn Source,
    format: Format,
    path: &Path,
    progress: impl FnMut(u64),
) -> io::Result<Written> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?;
    let written = write(source, format, &mut io::BufWriter::new(&file), progress)
        .and_then(|written| file.sync_all().map(|()| written));
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests;
