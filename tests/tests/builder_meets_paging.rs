//! What the domain builder writes, direct paging must accept.
//!
//! The two are written against the same rules by two crates that do not know
//! each other. Here they meet without a VM: a small kernel is built into a
//! domain whose memory is a vector, its page tables are pinned by the rules of
//! the hypervisor, and the slow model recounts every reference. A frame order
//! other than the ascending one makes sure that neither confuses PFN and MFN.

use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
};

use dom0_tools::builder::{
    BuildError, BuildSpec, DomainControl, DomainMemory, KernelImage, Ramdisk, Reading, build,
    memory::MemoryError,
};
use domus_privcmd::client::ClientError;
use guest_abi::{
    addr::{DomId, MachineAddr, Mfn, Pfn, Port, VcpuId},
    arch_x86::VcpuGuestContext,
    arch_x86_64::cr3_to_pfn,
    elfnote::{
        XEN_ELFNOTE_GUEST_OS, XEN_ELFNOTE_INIT_P2M, XEN_ELFNOTE_MOD_START_PFN,
        XEN_ELFNOTE_VIRT_BASE, XEN_ELFNOTE_XEN_VERSION,
    },
};
use hypervisor::paging::{FrameType, Level, Paging, TableStore};

const BASE: Mfn = Mfn(0x1000);
const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
const KERNEL: u64 = 0x10_0000;

/// A domain's RAM: what the builder writes to and the rules read from.
#[derive(Clone)]
struct Ram(Rc<RefCell<Vec<u8>>>);

impl Ram {
    fn at(table: Mfn, index: usize) -> usize {
        usize::try_from(table.0 - BASE.0).unwrap() * 4096 + index * 8
    }
}

impl DomainMemory for Ram {
    fn write(&mut self, at: MachineAddr, bytes: &[u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(at.0 - BASE.addr().unwrap().0).unwrap();
        self.0.borrow_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, at: MachineAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(at.0 - BASE.addr().unwrap().0).unwrap();
        buf.copy_from_slice(&self.0.borrow()[start..start + buf.len()]);
        Ok(())
    }
}

impl TableStore for Ram {
    fn load(&self, table: Mfn, index: usize) -> u64 {
        let at = Self::at(table, index);
        u64::from_le_bytes(self.0.borrow()[at..at + 8].try_into().unwrap())
    }

    fn store(&self, table: Mfn, index: usize, value: u64) {
        let at = Self::at(table, index);
        self.0.borrow_mut()[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn compare_exchange(&self, table: Mfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        match self.load(table, index) {
            found if found == old => {
                self.store(table, index, new);
                Ok(())
            }
            found => Err(found),
        }
    }

    fn flush_writable(&self, _: Mfn) {}

    fn use_begins(&self, _: Mfn) {}

    fn table_promoted(&self, _: Mfn) {}

    fn install_hypervisor_slots(&self, _: Mfn) {}
}

struct Domain {
    ram: Ram,
    paging: RefCell<Paging>,
    descending: bool,
    context: Cell<Option<VcpuGuestContext>>,
}

impl Domain {
    fn new(pages: u64, descending: bool) -> Self {
        let bytes = usize::try_from(pages).unwrap() * 4096;
        Self {
            ram: Ram(Rc::new(RefCell::new(vec![0; bytes]))),
            paging: RefCell::new(Paging::new(BASE, pages, 1).unwrap()),
            descending,
            context: Cell::new(None),
        }
    }
}

impl DomainControl for Domain {
    type Memory = Ram;

    fn populate(&self, _: DomId, _: Pfn, count: u64) -> Result<Vec<(Mfn, u64)>, ClientError> {
        let mut paging = self.paging.borrow_mut();
        let mut frames: Vec<_> = (0..count)
            .map(|_| (paging.allocate(0).unwrap(), 1))
            .collect();
        if self.descending {
            frames.reverse();
        }
        Ok(frames)
    }

    fn map_memory(&self, _: DomId) -> Result<Ram, BuildError> {
        Ok(self.ram.clone())
    }

    fn shared_info(&self, _: DomId) -> Result<Mfn, ClientError> {
        Ok(Mfn(7))
    }

    fn pin_root(&self, _: DomId, root: Mfn) -> Result<(), ClientError> {
        let pinned = self
            .paging
            .borrow_mut()
            .pin_table(&self.ram, Level::L4, root);
        assert_eq!(pinned, Ok(()), "the rules refuse the builder's tables");
        Ok(())
    }

    fn set_context(&self, _: DomId, context: &VcpuGuestContext) -> Result<(), ClientError> {
        self.context.set(Some(*context));
        Ok(())
    }
}

/// An ELF file of one segment, 32 KiB at 1 MiB, and the notes.
fn kernel(notes: &[(u32, Vec<u8>)]) -> KernelImage {
    let mut note_bytes = Vec::new();
    for (kind, content) in notes {
        let len = u32::try_from(content.len()).unwrap();
        for word in [4, len, *kind] {
            note_bytes.extend(word.to_le_bytes());
        }
        note_bytes.extend(b"Xen\0");
        note_bytes.extend(content);
        note_bytes.resize(note_bytes.len().next_multiple_of(4), 0);
    }
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [VIRT_BASE + KERNEL, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [64u16, 56, 2, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let notes_len = note_bytes.len() as u64;
    let content_at = 176 + notes_len;
    let programs = [
        (
            1u32,
            [content_at, VIRT_BASE + KERNEL, KERNEL, 0x1000, 0x8000],
        ),
        (4, [176, 0, 0, notes_len, notes_len]),
    ];
    for (kind, words) in programs {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in words.into_iter().chain([4]) {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend(note_bytes);
    file.extend([0x90; 0x1000]);
    KernelImage::from_bytes(Path::new("kernel"), &file, &mut Reading::default()).unwrap()
}

fn linux_notes() -> Vec<(u32, Vec<u8>)> {
    vec![
        (XEN_ELFNOTE_GUEST_OS, b"linux\0".to_vec()),
        (XEN_ELFNOTE_XEN_VERSION, b"xen-3.0\0".to_vec()),
        (XEN_ELFNOTE_VIRT_BASE, VIRT_BASE.to_le_bytes().to_vec()),
    ]
}

fn check(image: &KernelImage, pages: u64, ramdisk: usize, descending: bool) {
    let domain = Domain::new(pages, descending);
    let spec = BuildSpec {
        memory_pages: pages,
        ramdisk: Ramdisk::from_bytes(vec![7; ramdisk]),
        cmdline: "quiet".into(),
        flags: 0,
        store_port: Port(1),
        console_port: Port(2),
    };
    let built = build(&domain, DomId(1), image, &spec).unwrap();
    let context = domain.context.get().unwrap();
    let root = Mfn(cr3_to_pfn(context.ctrlreg[3]));
    let mut paging = domain.paging.into_inner();
    assert_eq!(
        paging.frame_type(root).map(|(kind, _)| kind),
        Some(FrameType::L4)
    );
    paging.audit(&domain.ram, &[]).unwrap();
    // What vCPU 0 does first, and what the guest does with its pin later.
    paging.new_baseptr(&domain.ram, VcpuId(0), root).unwrap();
    for mfn in [built.store_mfn, built.console_mfn] {
        let kind = paging.frame_type(mfn).map(|(kind, _)| kind);
        assert_eq!(kind, Some(FrameType::Writable));
    }
    paging.unpin_table(&domain.ram, root).unwrap();
    paging.audit(&domain.ram, &[]).unwrap();
}

#[test]
fn initial_page_tables_are_accepted_whatever_the_order_of_frames() {
    let image = kernel(&linux_notes());
    for descending in [false, true] {
        check(&image, 4096, 0, descending);
        check(&image, 16384, 9_000_000, descending);
    }
}

#[test]
fn a_p2m_list_with_its_own_tables_is_accepted() {
    let mut notes = linux_notes();
    notes.push((
        XEN_ELFNOTE_INIT_P2M,
        0x80_0000_0000u64.to_le_bytes().to_vec(),
    ));
    notes.push((XEN_ELFNOTE_MOD_START_PFN, 1u64.to_le_bytes().to_vec()));
    let image = kernel(&notes);
    for descending in [false, true] {
        check(&image, 32768, 9_000_000, descending);
    }
}

#[test]
fn a_kernel_in_the_lower_half_is_accepted() {
    let mut notes = linux_notes();
    notes[2].1 = 0x7000_0000u64.to_le_bytes().to_vec();
    notes.push((guest_abi::elfnote::XEN_ELFNOTE_ENTRY, {
        (0x7000_0000u64 + KERNEL).to_le_bytes().to_vec()
    }));
    check(&kernel(&notes), 4096, 0, true);
}
