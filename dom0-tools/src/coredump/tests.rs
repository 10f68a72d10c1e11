use super::*;
use crate::builder::tables::pte;
use object::{Object, ObjectSection, ObjectSegment};
use std::collections::BTreeMap;

const RW: u64 = pte::PRESENT | pte::WRITABLE;

/// A domain of a few pages.
struct Little {
    vcpus: Vec<Box<VcpuGuestContext>>,
    frames: Vec<(Mfn, Pfn)>,
    pages: BTreeMap<Mfn, [u8; PAGE]>,
    version: XenVersion,
}

impl Source for Little {
    fn vcpus(&self) -> &[Box<VcpuGuestContext>] {
        &self.vcpus
    }
    fn shared_info(&self) -> &[u8] {
        &[0x5a; PAGE]
    }
    fn frames(&self) -> &[(Mfn, Pfn)] {
        &self.frames
    }
    fn version(&self) -> &XenVersion {
        &self.version
    }
    fn read(&self, mfn: Mfn, page: &mut [u8; PAGE]) -> io::Result<()> {
        page.copy_from_slice(&self.pages[&mfn]);
        Ok(())
    }
}

const FIRST: u64 = 0x1000;

/// Frames 0x1000 to 0x1007; the root is 0x1000.
fn little() -> Little {
    let mut context = Box::new(VcpuGuestContext::default());
    context.ctrlreg[3] = FIRST << 12;
    context.user_regs.rip = 0xffff_ffff_8000_0123;
    let frames: Vec<_> = (0..8).map(|i| (Mfn(FIRST + i), Pfn(7 - i))).collect();
    let pages = frames.iter().map(|(mfn, _)| (*mfn, [0; PAGE])).collect();
    Little {
        vcpus: vec![context],
        frames,
        pages,
        version: XenVersion::default(),
    }
}

impl Little {
    fn entry(&mut self, table: u64, index: usize, value: u64) {
        let page = self.pages.get_mut(&Mfn(FIRST + table)).unwrap();
        page[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn dump(&self) -> (Vec<u8>, Written) {
        let mut file = io::Cursor::new(Vec::new());
        let written = write(self, Format::Gdb, &mut file, |_| {}).unwrap();
        (file.into_inner(), written)
    }
}

fn at(frame: u64) -> u64 {
    (FIRST + frame) << 12
}

/// Two pages at 0xffffffff80000000, behind tables 0 to 3.
fn with_kernel() -> Little {
    let mut domain = little();
    domain.entry(0, 511, at(1) | RW);
    domain.entry(1, 510, at(2) | RW);
    domain.entry(2, 0, at(3) | RW);
    domain.entry(3, 0, at(5) | RW);
    domain.entry(3, 1, at(6) | RW);
    domain.entry(3, 3, at(4) | pte::PRESENT);
    domain.pages.get_mut(&Mfn(FIRST + 5)).unwrap()[0x123] = 0xcc;
    domain.pages.get_mut(&Mfn(FIRST + 6)).unwrap()[0] = 0x77;
    domain
}

#[test]
fn gdb_finds_memory_by_its_virtual_address() {
    let (file, written) = with_kernel().dump();
    assert_eq!((written.pages, written.runs), (8, 2));
    assert_eq!(written.holes, 2, "frames 4 and 7 hold nothing");
    let elf = object::File::parse(&*file).unwrap();
    let segments: Vec<_> = elf.segments().collect();
    let first = &segments[0];
    assert_eq!(first.address(), 0xffff_ffff_8000_0000);
    let bytes = first.data().unwrap();
    assert_eq!(bytes.len(), 2 * PAGE);
    assert_eq!((bytes[0x123], bytes[PAGE]), (0xcc, 0x77));
    assert_eq!(segments[1].address(), 0xffff_ffff_8000_3000);
}

#[test]
fn crash_finds_xens_sections() {
    let domain = with_kernel();
    let (file, _) = domain.dump();
    let elf = object::File::parse(&*file).unwrap();
    let section = |name: &str| elf.section_by_name(name).unwrap().data().unwrap();
    assert_eq!(section(".xen_pages").len(), 8 * PAGE);
    assert_eq!(section(".xen_shared_info"), domain.shared_info());
    let p2m = section(".xen_p2m");
    assert_eq!(&p2m[..8], &7u64.to_le_bytes());
    assert_eq!(&p2m[8..16], &FIRST.to_le_bytes());
    let context = section(".xen_prstatus");
    assert_eq!(context.len(), size_of::<VcpuGuestContext>());
    let notes = section(".note.Xen");
    let magic = notes
        .windows(8)
        .position(|bytes| bytes == 0xf00f_ebedu64.to_le_bytes());
    assert!(magic.is_some());
}

#[test]
fn a_dump_for_crash_is_as_xens_own() {
    let mut file = io::Cursor::new(Vec::new());
    let written = write(&with_kernel(), Format::Xen, &mut file, |_| {}).unwrap();
    assert_eq!((written.pages, written.runs), (8, 0));
    let file = file.into_inner();
    // crash takes a file with two program headers for another kind of dump.
    assert_eq!(&file[56..58], &[0, 0], "e_phnum");
    let elf = object::File::parse(&*file).unwrap();
    assert_eq!(elf.segments().count(), 0);
    let section = |name: &str| elf.section_by_name(name).unwrap().data().unwrap();
    assert_eq!(section(".xen_pages").len(), 8 * PAGE);
    assert_eq!(section(".xen_pages")[5 * PAGE + 0x123], 0xcc);
}

#[test]
fn the_kernels_image_is_not_crowded_out() {
    let mut domain = with_kernel();
    // A range that is mapped over and over again comes before it.
    domain.entry(0, 510, at(0) | RW);
    let walked = walk::runs(&domain, Some(Mfn(FIRST))).unwrap();
    assert_eq!(walked.runs[0].virt, 0xffff_ffff_8000_0000);
}

#[test]
fn tables_that_say_anything_are_followed_so_far_and_no_further() {
    let mut domain = little();
    // The root refers to itself everywhere: a fifth of an address space of its
    // own pages. And to what is not the domain's.
    for index in 0..512 {
        domain.entry(0, index, at(0) | RW);
    }
    domain.entry(0, 3, 0x000f_ffff_ffff_f000 | RW);
    let walked = walk::runs(&domain, Some(Mfn(FIRST))).unwrap();
    assert!(walked.cut_off);
    let nowhere = little();
    let walked = walk::runs(&nowhere, Some(Mfn(1))).unwrap();
    assert!(walked.runs.is_empty() && !walked.cut_off);
}

#[test]
fn a_file_that_could_not_be_finished_is_not_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("core");
    write_file(&little(), Format::Gdb, &path, |_| {}).unwrap();
    let again = write_file(&little(), Format::Gdb, &path, |_| {});
    assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    let mut broken = little();
    broken.frames.push((Mfn(0x9999), Pfn(9)));
    struct Broken(Little);
    impl Source for Broken {
        fn vcpus(&self) -> &[Box<VcpuGuestContext>] {
            self.0.vcpus()
        }
        fn shared_info(&self) -> &[u8] {
            self.0.shared_info()
        }
        fn frames(&self) -> &[(Mfn, Pfn)] {
            self.0.frames()
        }
        fn version(&self) -> &XenVersion {
            self.0.version()
        }
        fn read(&self, mfn: Mfn, page: &mut [u8; PAGE]) -> io::Result<()> {
            match self.0.pages.get(&mfn) {
                Some(bytes) => page.copy_from_slice(bytes),
                None => return Err(io::Error::other("no such frame")),
            }
            Ok(())
        }
    }
    let other = dir.path().join("other");
    assert!(write_file(&Broken(broken), Format::Gdb, &other, |_| {}).is_err());
    assert!(!other.exists());
}
