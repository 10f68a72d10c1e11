//! Builds domains in a box, then looks at them as the guest will: through the
//! page tables that vCPU 0's CR3 names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use guest_abi::{
    arch_x86_64::cr3_to_pfn,
    elfnote::{
        XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_HYPERCALL_PAGE, XEN_ELFNOTE_INIT_P2M,
        XEN_ELFNOTE_MOD_START_PFN, XEN_ELFNOTE_VIRT_BASE,
    },
};
use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::builder::{
    Reading,
    tables::pte,
    testing::{Box0, Elf, Machine, Order, SHARED_INFO, VIRT_BASE, number},
};

const DOM: DomId = DomId(5);
const MIB: u64 = 256;

fn image(elf: &Elf) -> KernelImage {
    KernelImage::from_bytes(Path::new("vmlinux"), &elf.build(), &mut Reading::default()).unwrap()
}

fn spec(memory_pages: u64) -> BuildSpec {
    BuildSpec {
        memory_pages,
        ramdisk: None,
        cmdline: "root=/dev/xvda1 ro".into(),
        flags: 0,
        store_port: Port(1),
        console_port: Port(2),
    }
}

fn with_ramdisk(memory_pages: u64, len: usize) -> BuildSpec {
    let content = (0..251).cycle().take(len).collect();
    BuildSpec {
        ramdisk: Ramdisk::from_bytes(content),
        ..spec(memory_pages)
    }
}

/// The domain as its kernel sees it.
struct Guest {
    machine: Machine,
    root: u64,
    context: VcpuGuestContext,
    /// Machine frame by pseudo-physical frame.
    frames: Vec<u64>,
}

impl Guest {
    fn built(elf: &Elf, spec: &BuildSpec, order: Order) -> (Self, Built) {
        let hypervisor = Box0::new(order);
        let built = build(&hypervisor, DOM, &image(elf), spec).unwrap();
        let context = hypervisor.context.get().unwrap();
        let root = hypervisor.root.get().unwrap();
        assert_eq!(context.ctrlreg[3], pfn_to_cr3(root.0));
        assert_eq!(cr3_to_pfn(context.ctrlreg[3]), root.0);
        let extents = hypervisor.extents.borrow();
        let frames = extents
            .iter()
            .flat_map(|(mfn, count)| mfn.0..mfn.0 + count)
            .collect();
        let guest = Self {
            machine: hypervisor.machine.clone(),
            root: root.0,
            context,
            frames,
        };
        (guest, built)
    }

    fn walk(&self, address: u64) -> Option<(u64, u64)> {
        let mut table = self.root;
        for level in (1..=4).rev() {
            let index = address >> (12 + 9 * (level - 1)) & 511;
            let entry = self.machine.word((table << 12) + index * 8);
            if entry & pte::PRESENT == 0 {
                return None;
            }
            assert_ne!(entry & pte::USER, 0);
            if level == 1 {
                return Some(((entry >> 12) & 0xff_ffff_ffff, entry & 0xfff));
            }
            table = (entry >> 12) & 0xff_ffff_ffff;
        }
        None
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let end = address + len as u64;
        let mut bytes = Vec::new();
        let mut at = address;
        while at < end {
            let (frame, _) = self.walk(at).expect("a mapped address");
            let start = (frame << 12) + (at & 0xfff);
            let next = end.min((at | 0xfff) + 1);
            let len = usize::try_from(next - at).unwrap();
            bytes.extend(self.machine.within_page(start, len));
            at = next;
        }
        bytes
    }

    fn start_info(&self) -> StartInfo {
        let bytes = self.bytes(self.context.user_regs.rsi, size_of::<StartInfo>());
        StartInfo::read_from_bytes(&bytes).unwrap()
    }

    /// Every table by frame with its level, and every leaf.
    fn mappings(&self) -> (BTreeMap<u64, u8>, Vec<(u64, u64)>) {
        let (mut tables, mut leaves) = (BTreeMap::new(), Vec::new());
        self.visit(self.root, 4, &mut tables, &mut leaves);
        (tables, leaves)
    }

    fn visit(
        &self,
        table: u64,
        level: u8,
        tables: &mut BTreeMap<u64, u8>,
        leaves: &mut Vec<(u64, u64)>,
    ) {
        assert_eq!(tables.insert(table, level), None, "a table is used once");
        for index in 0..512 {
            let entry = self.machine.word((table << 12) + index * 8);
            if entry == 0 {
                continue;
            }
            if level == 4 {
                assert!(!(256..272).contains(&index), "hypervisor slots are empty");
            }
            let frame = entry >> 12;
            if level == 1 {
                leaves.push((frame, entry & 0xfff));
            } else {
                self.visit(frame, level - 1, tables, leaves);
            }
        }
    }

    /// Everything that the builder promises of any domain.
    fn check(&self, built: &Built, elf: &Elf, spec: &BuildSpec) {
        let layout = &built.layout;
        let info = self.start_info();
        self.check_mappings(layout);
        self.check_p2m(&info);
        self.check_tables_position(layout, &info);
        self.check_start_info(built, &info, spec);
        self.check_content(layout, elf, spec, &info);
        let regs = &self.context.user_regs;
        let stack = self.walk(regs.rsp - 8).unwrap();
        assert_ne!(stack.1 & pte::WRITABLE, 0);
        assert_eq!(self.context.kernel_sp, regs.rsp);
        assert_eq!((regs.cs, regs.ss), (0xe033, 0xe02b));
        assert_eq!(self.context.flags, VGCF_IN_KERNEL | VGCF_ONLINE);
    }

    fn check_mappings(&self, layout: &Layout) {
        let (tables, leaves) = self.mappings();
        let own: BTreeSet<u64> = self.frames.iter().copied().collect();
        for (frame, flags) in &leaves {
            assert!(own.contains(frame), "{frame:#x} is the domain's");
            let writable = flags & pte::WRITABLE != 0;
            assert_eq!(writable, !tables.contains_key(frame), "{frame:#x}");
        }
        assert!(tables.keys().all(|frame| own.contains(frame)));
        let own_p2m = layout
            .p2m_own
            .as_ref()
            .map_or(0, |_| layout.p2m.end - layout.p2m.start);
        assert_eq!(leaves.len() as u64, layout.mapped.end + own_p2m);
        for pfn in layout.mapped.clone() {
            let (frame, _) = self.walk(layout.virt(Pfn(pfn))).unwrap();
            assert_eq!(frame, self.frames[usize::try_from(pfn).unwrap()]);
        }
        assert_eq!(self.walk(layout.virt(Pfn(layout.mapped.end))), None);
        assert!(layout.mapped.end <= layout.pages);
        assert!(
            layout.mapped.end - layout.boot_stack.0 > 128,
            "512 KiB are free"
        );
        assert_eq!(layout.virt(Pfn(layout.mapped.end)) % (4 << 20), 0);
    }

    fn check_p2m(&self, info: &StartInfo) {
        for (pfn, mfn) in self.frames.iter().enumerate() {
            let at = info.mfn_list + 8 * pfn as u64;
            let (frame, _) = self.walk(at).unwrap();
            assert_eq!(self.machine.word((frame << 12) + (at & 0xfff)), *mfn);
        }
    }

    fn check_tables_position(&self, layout: &Layout, info: &StartInfo) {
        assert_eq!(self.walk(info.pt_base).unwrap().0, self.root);
        let (tables, _) = self.mappings();
        let listed: BTreeSet<u64> = (0..info.nr_pt_frames)
            .map(|i| self.walk(info.pt_base + (i << 12)).unwrap().0)
            .collect();
        let p2m_tables = layout.p2m_own.as_ref().map_or(0, |own| {
            (own.end - own.start) - (layout.p2m.end - layout.p2m.start)
        });
        assert_eq!(listed.len() as u64, info.nr_pt_frames);
        assert_eq!(tables.len() as u64, info.nr_pt_frames + p2m_tables);
        assert!(listed.iter().all(|frame| tables.contains_key(frame)));
    }

    fn check_start_info(&self, built: &Built, info: &StartInfo, spec: &BuildSpec) {
        assert!(info.magic.starts_with(b"xen-3.0-x86_64\0"));
        assert_eq!(info.nr_pages, spec.memory_pages);
        assert_eq!(info.shared_info, SHARED_INFO << 12);
        assert_eq!(info.store_mfn, built.store_mfn.0);
        assert_eq!(info.store_evtchn, spec.store_port.0);
        assert_eq!(info.console_mfn, built.console_mfn.0);
        assert_eq!(info.console_evtchn, spec.console_port.0);
        let rings = [built.layout.xenstore, built.layout.console];
        let mfns = rings.map(|pfn| self.walk(built.layout.virt(pfn)).unwrap().0);
        assert_eq!(mfns, [info.store_mfn, info.console_mfn]);
        let end = spec.cmdline.len();
        assert_eq!(&info.cmd_line[..end], spec.cmdline.as_bytes());
        assert_eq!(info.cmd_line[end], 0);
        assert_ne!(info.flags & SIF_VIRT_P2M_4TOOLS, 0);
    }

    fn check_content(&self, layout: &Layout, elf: &Elf, spec: &BuildSpec, info: &StartInfo) {
        let offset = image(elf).placement().paddr_offset;
        let hypercalls = image(elf).placement().hypercall_page;
        for (paddr, _, memsz, content) in &elf.segments {
            let mut expected = content.clone();
            expected.resize(usize::try_from(*memsz).unwrap(), 0);
            let start = paddr - offset;
            if let Some(page) = hypercalls.filter(|page| (start..start + memsz).contains(page)) {
                let at = usize::try_from(page - start).unwrap();
                expected[at..at + 4096].copy_from_slice(&hypercall_page::content());
            }
            let found = self.bytes(layout.virt_base + start, expected.len());
            assert!(found == expected, "segment at {paddr:#x}");
        }
        let Some(ramdisk) = &spec.ramdisk else {
            assert_eq!((info.mod_start, info.mod_len), (0, 0));
            return;
        };
        assert_eq!(info.mod_len, ramdisk.content().len() as u64);
        let found: Vec<u8> = if info.flags & SIF_MOD_START_PFN == 0 {
            self.bytes(info.mod_start, ramdisk.content().len())
        } else {
            let first = usize::try_from(info.mod_start).unwrap();
            let pages = ramdisk.content().chunks(4096).zip(&self.frames[first..]);
            pages
                .flat_map(|(page, frame)| self.machine.within_page(frame << 12, page.len()))
                .collect()
        };
        assert!(found == ramdisk.content(), "the ramdisk");
    }
}

fn check(elf: &Elf, spec: &BuildSpec, order: Order) -> (Guest, Built) {
    let (guest, built) = Guest::built(elf, spec, order);
    guest.check(&built, elf, spec);
    (guest, built)
}

#[test]
fn a_domain_is_what_it_promises_for_every_order_of_frames() {
    for order in [Order::Ascending, Order::Descending, Order::Scattered] {
        check(&Elf::pv(), &spec(16 * MIB), order);
        check(&Elf::pv(), &with_ramdisk(32 * MIB, 3_000_001), order);
    }
}

#[test]
fn a_large_domain() {
    let (guest, built) = check(&Elf::pv(), &spec(2048 * MIB), Order::Descending);
    assert_eq!(built.layout.p2m.end - built.layout.p2m.start, 1024);
    assert_eq!(
        guest.start_info().mfn_list,
        built.layout.virt(Pfn(built.layout.p2m.start))
    );
}

#[test]
fn the_entry_and_the_addresses_are_the_notes() {
    let (guest, built) = check(&Elf::pv(), &spec(16 * MIB), Order::Ascending);
    assert_eq!(guest.context.user_regs.rip, VIRT_BASE + 0x10_0100);
    assert_eq!(built.layout.virt_base, VIRT_BASE);
    let stubs = guest.bytes(VIRT_BASE + 0x10_3000, 4096);
    assert!(stubs == hypercall_page::content());
}

#[test]
fn init_p2m_has_its_own_place_and_tables() {
    let elf = Elf::pv()
        .note(number(XEN_ELFNOTE_INIT_P2M, 0x80_0000_0000))
        .note(number(XEN_ELFNOTE_MOD_START_PFN, 1));
    for order in [Order::Ascending, Order::Descending] {
        let spec = with_ramdisk(300 * MIB, 1_234_567);
        let (guest, built) = check(&elf, &spec, order);
        let info = guest.start_info();
        assert_eq!(info.mfn_list, 0x80_0000_0000);
        assert_eq!(info.first_p2m_pfn, built.layout.p2m.start);
        // 150 pages of list, an L3, an L2 and an L1.
        assert_eq!(info.nr_p2m_frames, 150 + 3);
        assert!(built.layout.ramdisk_unmapped);
        assert!(info.mod_start >= built.layout.mapped.end);
        assert_eq!(built.layout.free, info.first_p2m_pfn + info.nr_p2m_frames);
    }
}

#[test]
fn init_p2m_above_virt_base_is_not_heeded() {
    let elf = Elf::pv().note(number(XEN_ELFNOTE_INIT_P2M, VIRT_BASE + 0x1000_0000));
    let (guest, built) = check(&elf, &spec(16 * MIB), Order::Ascending);
    assert_eq!(guest.start_info().first_p2m_pfn, 0);
    assert!(built.layout.mapped.contains(&built.layout.p2m.start));
}

#[test]
fn kernels_at_virtual_address_0_and_without_an_entry_note() {
    let mut elf = Elf::pv()
        .without(XEN_ELFNOTE_VIRT_BASE)
        .without(XEN_ELFNOTE_ENTRY)
        .without(XEN_ELFNOTE_HYPERCALL_PAGE);
    for start in [0, 0x10_0000] {
        elf.segments = vec![(start, start, 0x5000, vec![0x90; 0x4321])];
        elf.entry = start + 0x20;
        let (guest, built) = check(&elf, &spec(16 * MIB), Order::Descending);
        assert_eq!(guest.context.user_regs.rip, start + 0x20);
        assert_eq!(built.layout.virt_base, 0);
        assert_eq!(built.layout.kernel.start, start >> 12);
    }
}

#[test]
fn the_xen_guest_section_of_old_kernels() {
    let mut elf = Elf::pv();
    elf.notes.clear();
    elf.guest_section = Some(
        "GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xffffffff80000000,\
         HYPERCALL_PAGE=0x103,FEATURES=writable_page_tables|auto_translated_physmap,\
         LOADER=generic"
            .into(),
    );
    // Such kernels have virtual addresses for physical ones.
    for segment in &mut elf.segments {
        segment.0 += VIRT_BASE;
    }
    let (guest, built) = check(&elf, &spec(16 * MIB), Order::Scattered);
    assert_eq!(guest.context.user_regs.rip, VIRT_BASE + 0x10_0000);
    assert_eq!(built.layout.kernel.start, 0x100);
    let stubs = guest.bytes(VIRT_BASE + 0x10_3000, 4096);
    assert!(stubs == hypercall_page::content());
}

#[test]
fn nothing_is_asked_for_a_domain_that_is_too_small() {
    let hypervisor = Box0::new(Order::Ascending);
    let refused = build(&hypervisor, DOM, &image(&Elf::pv()), &spec(MIB)).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("the domain has 1 MiB"), "{text}");
    assert!(text.contains("memory = 3"), "{text}");
    assert!(hypervisor.extents.borrow().is_empty());
}

#[test]
fn the_memory_that_a_refusal_advises_is_enough() {
    for (pages, ramdisk) in [(3 * MIB, 0), (5 * MIB, 4 << 20), (40 * MIB, 39 << 20)] {
        let spec = with_ramdisk(pages, ramdisk);
        let refused = plan(&image(&Elf::pv()), &spec).unwrap_err().to_string();
        let (_, advice) = refused.split_once("memory = ").expect(&refused);
        let advised: u64 = advice.trim_end_matches(')').parse().unwrap();
        let spec = with_ramdisk(advised * MIB, ramdisk);
        plan(&image(&Elf::pv()), &spec).unwrap();
    }
}

#[test]
fn a_ramdisk_larger_than_the_memory_is_refused() {
    let refused = plan(&image(&Elf::pv()), &with_ramdisk(16 * MIB, 17 << 20)).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("ramdisk has 17 MiB"), "{text}");
    assert!(text.contains("memory 16 MiB"), "{text}");
}

#[test]
fn a_command_line_has_1023_bytes_at_most() {
    let mut spec = spec(16 * MIB);
    spec.cmdline = "x".repeat(1023);
    check(&Elf::pv(), &spec, Order::Ascending);
    spec.cmdline.push('x');
    let refused = plan(&image(&Elf::pv()), &spec).unwrap_err().to_string();
    assert!(
        refused.contains("1024 bytes") && refused.contains("at most 1023"),
        "{refused}"
    );
    spec.cmdline = "quiet\0".into();
    assert!(matches!(
        plan(&image(&Elf::pv()), &spec),
        Err(BuildError::CommandLineNul(5))
    ));
}

#[test]
fn a_hypervisor_that_gives_too_few_frames_is_found_out() {
    assert!(matches!(
        PhysMap::new([(Mfn(0x1000), 10)], 11),
        Err(MemoryError::Populate {
            given: 10,
            asked: 11
        })
    ));
    assert!(PhysMap::new([(Mfn(u64::MAX), 2)], 2).is_err());
    assert!(PhysMap::new([(Mfn(1), 0)], 0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_domain_that_can_be_planned_is_what_it_promises(
        pages in 1..24 * MIB,
        ramdisk in prop::option::of(1..6_000_000usize),
        start in (0..1200u64).prop_map(|page| page << 12),
        memsz in 0x1000..0x10_0000u64,
        base in prop::sample::select(vec![
            0, 0x10_0000, 0x7000_0000, 0xffff_8800_0000_0000, VIRT_BASE, VIRT_BASE + (3 << 12),
        ]),
        init_p2m in prop::option::of(prop::sample::select(vec![
            0x80_0000_0000u64, 0x6ff0_0000, VIRT_BASE - (64 << 20),
        ])),
        unmapped in any::<bool>(),
        order in prop::sample::select(vec![Order::Ascending, Order::Descending, Order::Scattered]),
    ) {
        let mut elf = Elf::pv()
            .note(number(XEN_ELFNOTE_VIRT_BASE, base))
            .note(number(XEN_ELFNOTE_ENTRY, base + start))
            .note(number(XEN_ELFNOTE_MOD_START_PFN, unmapped.into()))
            .without(XEN_ELFNOTE_HYPERCALL_PAGE);
        if let Some(at) = init_p2m {
            elf = elf.note(number(XEN_ELFNOTE_INIT_P2M, at));
        }
        elf.segments = vec![(start, 0, memsz, vec![0x5a; 0xfff])];
        let spec = match ramdisk {
            Some(len) => with_ramdisk(pages, len),
            None => spec(pages),
        };
        if plan(&image(&elf), &spec).is_ok() {
            check(&elf, &spec, order);
        }
    }
}

/// With a real kernel, if one is named: `DOMUS_TEST_KERNEL=/boot/vmlinuz-...`.
#[test]
fn a_real_kernel() {
    let Some(path) = std::env::var_os("DOMUS_TEST_KERNEL") else {
        eprintln!("skipped: DOMUS_TEST_KERNEL names no kernel");
        return;
    };
    let image = KernelImage::open(Path::new(&path)).unwrap();
    let hypervisor = Box0::new(Order::Descending);
    let spec = with_ramdisk(256 * MIB, 10_000_000);
    let built = build(&hypervisor, DOM, &image, &spec).unwrap();
    let guest = Guest {
        machine: hypervisor.machine.clone(),
        root: hypervisor.root.get().unwrap().0,
        context: hypervisor.context.get().unwrap(),
        frames: Order::Descending
            .extents(spec.memory_pages)
            .iter()
            .map(|(mfn, _)| mfn.0)
            .collect(),
    };
    guest.check_mappings(&built.layout);
    guest.check_p2m(&guest.start_info());
    guest.check_tables_position(&built.layout, &guest.start_info());
    guest.check_start_info(&built, &guest.start_info(), &spec);
    assert!(guest.walk(guest.context.user_regs.rip).is_some());
}
