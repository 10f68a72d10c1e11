//! The file's headers: ELF64, little-endian, as `elf.h` has them.

use super::{Format, Source, XenVersion, walk::Run};
use guest_abi::{addr::PAGE_SIZE, arch_x86::VcpuGuestContext};
use std::io::{self, Write};
use zerocopy::IntoBytes;

const EHDR: u64 = 64;
const PHDR: u64 = 56;
const SHDR: u64 = 64;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const SHT_PROGBITS: u32 = 1;
const SHT_STRTAB: u32 = 3;
const SHT_NOTE: u32 = 7;
/// More program headers than the header's field holds: section 0 says how many.
const PN_XNUM: u64 = 0xffff;
const NT_PRSTATUS: u32 = 1;

/// Xen's notes (`XEN_ELFNOTE_DUMPCORE_*`).
const NOTE_NONE: u32 = 0x0200_0000;
const NOTE_HEADER: u32 = 0x0200_0001;
const NOTE_XEN_VERSION: u32 = 0x0200_0002;
const NOTE_FORMAT_VERSION: u32 = 0x0200_0003;
/// `XC_CORE_MAGIC` of a PV domain.
const MAGIC: u64 = 0xf00f_ebed;
const FORMAT_VERSION: u64 = 1;

/// Names of the sections, as they stand in `.shstrtab`.
const NAMES: [&str; 7] = [
    "",
    ".note.Xen",
    ".xen_prstatus",
    ".xen_shared_info",
    ".xen_p2m",
    ".xen_pages",
    ".shstrtab",
];

/// Where each part of the file is.
pub(super) struct Layout {
    core_notes: Vec<u8>,
    xen_notes: Vec<u8>,
    /// Offset and bytes of the sections 1 to 6.
    sections: [(u64, u64); 6],
    core_notes_at: u64,
    phdrs: u64,
}

impl Layout {
    pub(super) fn new(source: &dyn Source, format: Format, runs: &[Run]) -> Self {
        let for_gdb = format == Format::Gdb;
        let core_notes: Vec<u8> = (1u32..)
            .zip(source.vcpus())
            .filter(|_| for_gdb)
            .flat_map(|(id, context)| note(b"CORE\0", NT_PRSTATUS, &prstatus(id, context)))
            .collect();
        let xen_notes = xen_notes(source);
        let phdrs = if for_gdb { runs.len() as u64 + 1 } else { 0 };
        let core_notes_at = EHDR + phdrs * PHDR + NAMES.len() as u64 * SHDR;
        let pages = source.frames().len() as u64;
        let sizes = [
            xen_notes.len() as u64,
            (source.vcpus().len() * size_of::<VcpuGuestContext>()) as u64,
            source.shared_info().len() as u64,
            pages * 16,
            pages * PAGE_SIZE,
            NAMES.iter().map(|name| name.len() as u64 + 1).sum(),
        ];
        let mut at = (core_notes_at + core_notes.len() as u64).next_multiple_of(16);
        let mut sections = [(0, 0); 6];
        for (index, size) in sizes.into_iter().enumerate() {
            let align = if NAMES[index + 1] == ".xen_pages" {
                PAGE_SIZE
            } else {
                16
            };
            at = at.next_multiple_of(align);
            sections[index] = (at, size);
            at += size;
        }
        Layout {
            core_notes,
            xen_notes,
            sections,
            core_notes_at,
            phdrs,
        }
    }

    fn pages_at(&self) -> u64 {
        self.sections[4].0
    }

    /// All that comes before the pages.
    pub(super) fn write_headers(
        &self,
        source: &dyn Source,
        runs: &[Run],
        out: &mut impl Write,
    ) -> io::Result<()> {
        let mut head = self.header();
        let notes = (self.core_notes_at, self.core_notes.len() as u64);
        if self.phdrs != 0 {
            head.extend(program_header(PT_NOTE, 0, notes, (0, 0), 0, 4));
        }
        for run in runs {
            let bytes = run.pages * PAGE_SIZE;
            let at = self.pages_at() + run.first * PAGE_SIZE;
            let first = usize::try_from(run.first).unwrap_or(usize::MAX);
            let phys = source.frames().get(first).map_or(0, |(_, pfn)| pfn.0);
            let flags = 4 | u32::from(run.writable) << 1 | u32::from(run.executable);
            let place = (run.virt, phys * PAGE_SIZE);
            let header = program_header(PT_LOAD, flags, (at, bytes), place, bytes, PAGE_SIZE);
            head.extend(header);
        }
        head.extend(self.section_headers());
        head.extend(&self.core_notes);
        self.pad(&mut head, 0);
        head.extend(&self.xen_notes);
        self.pad(&mut head, 1);
        for context in source.vcpus() {
            head.extend(context.as_bytes());
        }
        self.pad(&mut head, 2);
        head.extend(source.shared_info());
        self.pad(&mut head, 3);
        for (mfn, pfn) in source.frames() {
            head.extend(pfn.0.to_le_bytes());
            head.extend(mfn.0.to_le_bytes());
        }
        self.pad(&mut head, 4);
        out.write_all(&head)
    }

    /// Up to where section `index` (from 0) begins.
    fn pad(&self, head: &mut Vec<u8>, index: usize) {
        head.resize(usize::try_from(self.sections[index].0).unwrap_or(0), 0);
    }

    /// What comes behind the pages.
    pub(super) fn write_names(&self, out: &mut impl Write) -> io::Result<()> {
        NAMES
            .iter()
            .try_for_each(|name| out.write_all(format!("{name}\0").as_bytes()))
    }

    fn header(&self) -> Vec<u8> {
        let mut to = Vec::new();
        to.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        to.extend(ET_CORE.to_le_bytes());
        to.extend(EM_X86_64.to_le_bytes());
        to.extend(1u32.to_le_bytes());
        to.extend(0u64.to_le_bytes());
        to.extend((if self.phdrs == 0 { 0 } else { EHDR }).to_le_bytes());
        to.extend((EHDR + self.phdrs * PHDR).to_le_bytes());
        to.extend(0u32.to_le_bytes());
        let phnum = self.phdrs.min(PN_XNUM);
        let last = NAMES.len() as u64 - 1;
        for half in [EHDR, PHDR, phnum, SHDR, NAMES.len() as u64, last] {
            to.extend(u16::try_from(half).unwrap_or(u16::MAX).to_le_bytes());
        }
        to
    }

    fn section_headers(&self) -> Vec<u8> {
        let many = if self.phdrs >= PN_XNUM { self.phdrs } else { 0 };
        let mut to = section_header(0, 0, (0, 0), low(many), 0);
        let mut name = 1;
        for (index, place) in self.sections.iter().enumerate() {
            let kind = match NAMES[index + 1] {
                ".note.Xen" => SHT_NOTE,
                ".shstrtab" => SHT_STRTAB,
                _ => SHT_PROGBITS,
            };
            let element = match NAMES[index + 1] {
                ".xen_prstatus" => size_of::<VcpuGuestContext>() as u64,
                ".xen_p2m" => 16,
                ".xen_shared_info" | ".xen_pages" => PAGE_SIZE,
                _ => 0,
            };
            to.extend(section_header(name, kind, *place, 0, element));
            name += low(NAMES[index + 1].len() as u64 + 1);
        }
        to
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn program_header(
    kind: u32,
    flags: u32,
    (at, bytes): (u64, u64),
    (virt, phys): (u64, u64),
    memory: u64,
    align: u64,
) -> Vec<u8> {
    let mut to = Vec::new();
    to.extend(kind.to_le_bytes());
    to.extend(flags.to_le_bytes());
    for word in [at, virt, phys, bytes, memory, align] {
        to.extend(word.to_le_bytes());
    }
    to
}

fn section_header(
    name: u32,
    kind: u32,
    (at, bytes): (u64, u64),
    info: u32,
    element: u64,
) -> Vec<u8> {
    let mut to = Vec::new();
    to.extend(name.to_le_bytes());
    to.extend(kind.to_le_bytes());
    for word in [0, 0, at, bytes] {
        to.extend(u64::to_le_bytes(word));
    }
    to.extend(0u32.to_le_bytes());
    to.extend(info.to_le_bytes());
    to.extend(16u64.to_le_bytes());
    to.extend(element.to_le_bytes());
    to
}

fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
    let mut to = Vec::new();
    to.extend(low(name.len() as u64).to_le_bytes());
    to.extend(low(content.len() as u64).to_le_bytes());
    to.extend(kind.to_le_bytes());
    to.extend(name);
    to.resize(to.len().next_multiple_of(4), 0);
    to.extend(content);
    to.resize(to.len().next_multiple_of(4), 0);
    to
}

/// `struct elf_prstatus` of x86-64: 336 bytes, registers from byte 112 on.
fn prstatus(id: u32, context: &VcpuGuestContext) -> Vec<u8> {
    const PID: usize = 32;
    const REGISTERS: usize = 112;
    const SIZE: usize = 336;
    let r = &context.user_regs;
    let mut to = vec![0; REGISTERS];
    to[PID..PID + 4].copy_from_slice(&id.to_le_bytes());
    let registers = [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        u64::MAX,
        r.rip,
        r.cs.into(),
        r.rflags,
        r.rsp,
        r.ss.into(),
        context.fs_base,
        context.gs_base_kernel,
        0,
        0,
        0,
        0,
    ];
    registers
        .iter()
        .for_each(|register| to.extend(register.to_le_bytes()));
    to.resize(SIZE, 0);
    to
}

fn xen_notes(source: &dyn Source) -> Vec<u8> {
    let counts = [
        MAGIC,
        source.vcpus().len() as u64,
        source.frames().len() as u64,
        PAGE_SIZE,
    ];
    let counts: Vec<u8> = counts.iter().flat_map(|word| word.to_le_bytes()).collect();
    [
        note(b"Xen\0", NOTE_NONE, &[]),
        note(b"Xen\0", NOTE_HEADER, &counts),
        note(b"Xen\0", NOTE_XEN_VERSION, &version(source.version())),
        note(b"Xen\0", NOTE_FORMAT_VERSION, &FORMAT_VERSION.to_le_bytes()),
    ]
    .concat()
}

/// `struct xen_dumpcore_elfnote_xen_version_desc`.
fn version(of: &XenVersion) -> Vec<u8> {
    let mut to = Vec::new();
    to.extend(of.major.to_le_bytes());
    to.extend(of.minor.to_le_bytes());
    to.extend(text::<16>(&of.extra));
    let [compiler, by, domain, date] = &of.compile_info;
    to.extend(text::<64>(compiler));
    to.extend(text::<16>(by));
    to.extend(text::<32>(domain));
    to.extend(text::<32>(date));
    to.extend(text::<1024>(&of.capabilities));
    to.extend(text::<64>(&of.changeset));
    to.extend(of.virt_start.to_le_bytes());
    to.extend(PAGE_SIZE.to_le_bytes());
    to
}

/// A text in `N` bytes, the last of them 0.
fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut to = [0; N];
    let bytes = text.as_bytes();
    let count = bytes.len().min(N - 1);
    to[..count].copy_from_slice(&bytes[..count]);
    to
}
