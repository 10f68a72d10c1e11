//! For tests: kernels made by hand, and a domain in a box.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use domus_privcmd::client::ClientError;
use guest_abi::{
    addr::{DomId, MachineAddr, Mfn, Pfn},
    arch_x86::VcpuGuestContext,
    elfnote::{
        XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_GUEST_OS, XEN_ELFNOTE_HYPERCALL_PAGE, XEN_ELFNOTE_LOADER,
        XEN_ELFNOTE_VIRT_BASE, XEN_ELFNOTE_XEN_VERSION,
    },
};

use super::{
    domain::{BuildError, DomainControl},
    memory::{DomainMemory, MemoryError},
};

/// A kernel's usual VIRT_BASE.
pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// The first frame of RAM.
pub const BASE_MFN: u64 = 0x1000;
/// The frame of `shared_info`.
pub const SHARED_INFO: u64 = 7;

/// An ELF file in the making.
#[derive(Debug, Clone)]
pub struct Elf {
    pub class: u8,
    pub machine: u16,
    pub kind: u16,
    pub entry: u64,
    /// p_paddr, p_vaddr, p_memsz, content.
    pub segments: Vec<(u64, u64, u64, Vec<u8>)>,
    pub notes: Vec<(u32, Vec<u8>)>,
    pub guest_section: Option<String>,
    /// Address and name.
    pub symbols: Vec<(u64, String)>,
}

impl Elf {
    /// Two segments from 1 MiB on, VIRT_BASE, an entry and a hypercall page.
    pub fn pv() -> Self {
        let text = (0..=255).cycle().take(12_345).collect();
        Self {
            class: 2,
            machine: 62,
            kind: 2,
            entry: VIRT_BASE + 0x10_0000,
            segments: vec![
                (0x10_0000, VIRT_BASE + 0x10_0000, 0x4000, text),
                (0x20_0000, 0, 0x3000, vec![0xab; 0x1234]),
            ],
            notes: vec![
                string(XEN_ELFNOTE_GUEST_OS, "linux"),
                string(XEN_ELFNOTE_LOADER, "generic"),
                string(XEN_ELFNOTE_XEN_VERSION, "xen-3.0"),
                number(XEN_ELFNOTE_VIRT_BASE, VIRT_BASE),
                number(XEN_ELFNOTE_ENTRY, VIRT_BASE + 0x10_0100),
                number(XEN_ELFNOTE_HYPERCALL_PAGE, VIRT_BASE + 0x10_3000),
            ],
            guest_section: None,
            symbols: Vec::new(),
        }
    }

    pub fn note(mut self, note: (u32, Vec<u8>)) -> Self {
        self.notes.retain(|(kind, _)| *kind != note.0);
        self.notes.push(note);
        self
    }

    pub fn without(mut self, kind: u32) -> Self {
        self.notes.retain(|(other, _)| *other != kind);
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut parts = Parts::default();
        let notes = self.note_bytes();
        let count = self.segments.len() + usize::from(!notes.is_empty());
        let header_end = 64 + 56 * count as u64;
        let mut programs = Vec::new();
        for (paddr, vaddr, memsz, content) in &self.segments {
            let offset = header_end + parts.add(content, 8);
            programs.push((
                1u32,
                7u32,
                offset,
                *vaddr,
                *paddr,
                content.len() as u64,
                *memsz,
            ));
        }
        if !notes.is_empty() {
            let offset = header_end + parts.add(&notes, 4);
            let len = notes.len() as u64;
            programs.push((4, 4, offset, 0, 0, len, len));
        }
        let (sections, names) = self.sections(&mut parts, header_end);
        let names_at = header_end + parts.add(&names, 1);
        let section_at = header_end + parts.align(8);
        let mut out = vec![0x7f, b'E', b'L', b'F', self.class, 1, 1, 0];
        out.resize(16, 0);
        put(&mut out, &self.kind.to_le_bytes());
        put(&mut out, &self.machine.to_le_bytes());
        put(&mut out, &1u32.to_le_bytes());
        put64(&mut out, &[self.entry, 64, section_at]);
        put(&mut out, &0u32.to_le_bytes());
        for half in [64, 56, count, 64, sections.len() + 2, sections.len() + 1] {
            put(&mut out, &u16::try_from(half).unwrap().to_le_bytes());
        }
        for (kind, flags, offset, vaddr, paddr, filesz, memsz) in programs {
            put(&mut out, &kind.to_le_bytes());
            put(&mut out, &flags.to_le_bytes());
            put64(&mut out, &[offset, vaddr, paddr, filesz, memsz, 4]);
        }
        put(&mut out, &parts.0);
        put(&mut out, &[0; 64]);
        for (name, kind, offset, len, link, entsize) in sections {
            section(&mut out, name, kind, offset, len, link, entsize);
        }
        section(&mut out, 1, 3, names_at, names.len() as u64, 0, 0);
        out
    }

    /// Name, type, offset, length, link, entry size; and the section names.
    #[allow(clippy::type_complexity)]
    fn sections(
        &self,
        parts: &mut Parts,
        base: u64,
    ) -> (Vec<(u32, u32, u64, u64, u32, u64)>, Vec<u8>) {
        let names = b"\0.shstrtab\0__xen_guest\0.symtab\0.strtab\0".to_vec();
        let mut sections = Vec::new();
        if let Some(text) = &self.guest_section {
            let mut text = text.clone().into_bytes();
            text.push(0);
            let at = base + parts.add(&text, 1);
            sections.push((11, 1, at, text.len() as u64, 0, 0));
        }
        if !self.symbols.is_empty() {
            let (mut strings, mut symbols) = (vec![0u8], vec![0u8; 24]);
            for (address, name) in &self.symbols {
                put(
                    &mut symbols,
                    &u32::try_from(strings.len()).unwrap().to_le_bytes(),
                );
                put(&mut symbols, &[0x12, 0, 1, 0]);
                put64(&mut symbols, &[*address, 0]);
                put(&mut strings, name.as_bytes());
                strings.push(0);
            }
            let at = base + parts.add(&symbols, 8);
            let link = u32::try_from(sections.len() + 2).unwrap();
            sections.push((23, 2, at, symbols.len() as u64, link, 24));
            let at = base + parts.add(&strings, 1);
            sections.push((31, 3, at, strings.len() as u64, 0, 0));
        }
        (sections, names)
    }

    fn note_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, content) in &self.notes {
            let len = u32::try_from(content.len()).unwrap();
            for word in [4, len, *kind] {
                put(&mut out, &word.to_le_bytes());
            }
            put(&mut out, b"Xen\0");
            put(&mut out, content);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }
}

#[derive(Default)]
struct Parts(Vec<u8>);

impl Parts {
    fn align(&mut self, align: usize) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(align), 0);
        self.0.len() as u64
    }

    fn add(&mut self, bytes: &[u8], align: usize) -> u64 {
        let at = self.align(align);
        self.0.extend_from_slice(bytes);
        at
    }
}

fn section(out: &mut Vec<u8>, name: u32, kind: u32, offset: u64, len: u64, link: u32, entry: u64) {
    put(out, &name.to_le_bytes());
    put(out, &kind.to_le_bytes());
    put64(out, &[0, 0, offset, len]);
    put(out, &link.to_le_bytes());
    put(out, &0u32.to_le_bytes());
    put64(out, &[1, entry]);
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}

fn put64(out: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        put(out, &word.to_le_bytes());
    }
}

pub fn string(kind: u32, text: &str) -> (u32, Vec<u8>) {
    (kind, [text.as_bytes(), &[0]].concat())
}

pub fn number(kind: u32, value: u64) -> (u32, Vec<u8>) {
    (kind, value.to_le_bytes().to_vec())
}

/// A bzImage around `payload` (which has its size at the end).
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SECTORS: usize = 3;
    const OFFSET: usize = 0x140;
    let mut image = vec![0; (SECTORS + 1) * 512 + OFFSET];
    image[0x1f1] = u8::try_from(SECTORS).unwrap();
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    image[0x300..0x306].copy_from_slice(b"6.1.0\0");
    image[0x248..0x24c].copy_from_slice(&u32::try_from(OFFSET).unwrap().to_le_bytes());
    let len = u32::try_from(payload.len()).unwrap();
    image[0x24c..0x250].copy_from_slice(&len.to_le_bytes());
    image.extend_from_slice(payload);
    image.extend_from_slice(&[0; 100]);
    image
}

/// In which order frames are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
    /// Extents of three, from the middle outwards.
    Scattered,
}

impl Order {
    pub fn extents(self, count: u64) -> Vec<(Mfn, u64)> {
        match self {
            Self::Ascending => vec![(Mfn(BASE_MFN), count)],
            Self::Descending => (0..count).rev().map(|i| (Mfn(BASE_MFN + i), 1)).collect(),
            Self::Scattered => {
                let mut extents: Vec<_> = (0..count)
                    .step_by(3)
                    .map(|i| (Mfn(BASE_MFN + i), 3.min(count - i)))
                    .collect();
                let half = extents.len() / 2;
                extents.rotate_left(half);
                extents.chunks_mut(2).for_each(<[_]>::reverse);
                extents
            }
        }
    }
}

/// Machine memory, as far as it was written.
#[derive(Debug, Clone, Default)]
pub struct Machine(Rc<RefCell<HashMap<u64, Box<[u8; 4096]>>>>);

impl Machine {
    /// `len` bytes at `at`, all in one page.
    pub fn within_page(&self, at: u64, len: usize) -> Vec<u8> {
        let offset = usize::try_from(at & 0xfff).unwrap();
        let pages = self.0.borrow();
        match pages.get(&(at >> 12)) {
            Some(page) => page[offset..offset + len].to_vec(),
            None => vec![0; len],
        }
    }

    pub fn word(&self, at: u64) -> u64 {
        let pages = self.0.borrow();
        let offset = usize::try_from(at & 0xfff).unwrap();
        pages.get(&(at >> 12)).map_or(0, |page| {
            u64::from_le_bytes(page[offset..offset + 8].try_into().unwrap())
        })
    }
}

impl DomainMemory for Machine {
    fn write(&mut self, at: MachineAddr, bytes: &[u8]) -> Result<(), MemoryError> {
        let mut pages = self.0.borrow_mut();
        let (mut at, mut rest) = (at.0, bytes);
        while !rest.is_empty() {
            let offset = usize::try_from(at & 0xfff).unwrap();
            let now = rest.len().min(4096 - offset);
            let page = pages.entry(at >> 12).or_insert_with(|| Box::new([0; 4096]));
            page[offset..offset + now].copy_from_slice(&rest[..now]);
            at += now as u64;
            rest = &rest[now..];
        }
        Ok(())
    }

    fn read(&self, at: MachineAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        buf.copy_from_slice(&self.within_page(at.0, buf.len()));
        Ok(())
    }
}

/// A hypervisor that does what it is told and remembers it.
#[derive(Debug)]
pub struct Box0 {
    pub order: Order,
    pub machine: Machine,
    pub extents: RefCell<Vec<(Mfn, u64)>>,
    pub root: Cell<Option<Mfn>>,
    pub context: Cell<Option<VcpuGuestContext>>,
}

impl Box0 {
    pub fn new(order: Order) -> Self {
        Self {
            order,
            machine: Machine::default(),
            extents: RefCell::default(),
            root: Cell::new(None),
            context: Cell::new(None),
        }
    }
}

impl DomainControl for Box0 {
    type Memory = Machine;

    fn populate(&self, _: DomId, first: Pfn, count: u64) -> Result<Vec<(Mfn, u64)>, ClientError> {
        assert_eq!(first, Pfn(0));
        *self.extents.borrow_mut() = self.order.extents(count);
        Ok(self.extents.borrow().clone())
    }

    fn map_memory(&self, _: DomId) -> Result<Machine, BuildError> {
        Ok(self.machine.clone())
    }

    fn shared_info(&self, _: DomId) -> Result<Mfn, ClientError> {
        Ok(Mfn(SHARED_INFO))
    }

    fn pin_root(&self, _: DomId, root: Mfn) -> Result<(), ClientError> {
        assert_eq!(self.context.get(), None, "registers name a pinned root");
        self.root.set(Some(root));
        Ok(())
    }

    fn set_context(&self, _: DomId, context: &VcpuGuestContext) -> Result<(), ClientError> {
        self.context.set(Some(*context));
        Ok(())
    }
}
