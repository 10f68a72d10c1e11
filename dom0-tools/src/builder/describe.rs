//! What the builder knows of an image, for people.

use std::fmt::{self, Write};

use super::image::{Format, KernelImage};

/// A page of text: format, notes, segments, addresses.
#[must_use]
pub fn describe(image: &KernelImage) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write_all(&mut text, image);
    text
}

fn write_all(out: &mut String, image: &KernelImage) -> fmt::Result {
    let notes = image.notes();
    let placement = image.placement();
    let mut row = |name: &str, value: &dyn fmt::Display| writeln!(out, "{name:<16}: {value}");
    row("file", &image.path().display())?;
    row("format", image.format())?;
    if let Format::BzImage {
        version: Some(version),
        ..
    } = image.format()
    {
        row("version", version)?;
    }
    match image.compression() {
        Some(method) => row("compression", &method)?,
        None => row("compression", &"none")?,
    }
    row("guest_os", &notes.guest_os)?;
    row("guest_version", &notes.guest_version)?;
    row("xen_version", &notes.xen_version)?;
    row("loader", &notes.loader)?;
    if notes.legacy {
        row("notes", &"none: __xen_guest section")?;
    }
    row("supported", &notes.supported)?;
    row("required", &notes.required)?;
    row("virt_base", &Hex(placement.virt_base))?;
    row("entry", &Hex(placement.entry))?;
    row("paddr_offset", &Hex(placement.paddr_offset))?;
    match placement.hypercall_page {
        Some(page) => row("hypercall_page", &Hex(placement.virt_base + page))?,
        None => row("hypercall_page", &"none: the kernel has its own stubs")?,
    }
    if let Some(base) = placement.init_p2m {
        row("init_p2m", &Hex(base))?;
    }
    row("mod_start_pfn", &yes(notes.mod_start_pfn))?;
    row("suspend_cancel", &yes(notes.suspend_cancel))?;
    let symbols = image.symbols().map_or(0, |table| table.len());
    row("symbols", &symbols)?;
    write_segments(out, image)
}

fn write_segments(out: &mut String, image: &KernelImage) -> fmt::Result {
    writeln!(
        out,
        "segments        :   physical            memory      file  flags"
    )?;
    for segment in image.segments() {
        let flag = |bit: u32, letter: char| {
            if segment.flags & bit == 0 {
                '-'
            } else {
                letter
            }
        };
        writeln!(
            out,
            "  {:#018x}  {:>12} {:>12}  {}{}{}",
            segment.paddr - image.placement().paddr_offset,
            segment.memsz,
            segment.data.len(),
            flag(4, 'r'),
            flag(2, 'w'),
            flag(1, 'x'),
        )?;
    }
    Ok(())
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

struct Hex(u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
