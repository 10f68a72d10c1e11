use std::io::Write;

use guest_abi::elfnote::{
    XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_FEATURES, XEN_ELFNOTE_HYPERCALL_PAGE, XEN_ELFNOTE_PADDR_OFFSET,
    XEN_ELFNOTE_PHYS32_ENTRY, XEN_ELFNOTE_VIRT_BASE, XEN_ELFNOTE_XEN_VERSION,
};
use proptest::prelude::*;

use super::*;
use crate::builder::testing::{Elf, VIRT_BASE, bzimage, number, string};

fn parse(image: &[u8]) -> Result<KernelImage, KernelFault> {
    KernelImage::from_bytes(Path::new("vmlinuz"), image, &mut Reading::default())
}

fn refusal(elf: &Elf) -> String {
    parse(&elf.build()).unwrap_err().to_string()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// `lz4 -l`, one block.
fn lz4(data: &[u8]) -> Vec<u8> {
    let block = lz4_flex::block::compress(data);
    let len = u32::try_from(block.len()).unwrap().to_le_bytes();
    [&[0x02, 0x21, 0x4c, 0x18], &len[..], &block].concat()
}

fn with_size(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
    packed.extend(u32::try_from(size).unwrap().to_le_bytes());
    packed
}

#[test]
fn every_kind_of_file_gives_the_same_kernel() {
    let elf = Elf::pv().build();
    let plain = parse(&elf).unwrap();
    assert_eq!(plain.format(), &Format::Elf);
    let files = [
        (Some(Compression::Gzip), gzip(&elf)),
        (Some(Compression::Gzip), bzimage(&gzip(&elf))),
        (
            Some(Compression::Lz4),
            bzimage(&with_size(lz4(&elf), elf.len())),
        ),
        (None, bzimage(&with_size(elf.clone(), elf.len()))),
    ];
    for (compression, file) in files {
        let image = parse(&file).unwrap();
        assert_eq!(image.compression(), compression);
        assert_eq!(image.segments(), plain.segments());
        assert_eq!(image.placement(), plain.placement());
        assert_eq!(image.notes(), plain.notes());
    }
}

#[test]
fn the_boot_header_is_told() {
    let elf = Elf::pv().build();
    let image = parse(&bzimage(&gzip(&elf))).unwrap();
    assert_eq!(image.format().to_string(), "bzImage (boot protocol 2.15)");
    assert_eq!(
        image.format(),
        &Format::BzImage {
            protocol: 0x20f,
            version: Some("6.1.0".into())
        }
    );
}

#[test]
fn a_file_that_is_missing_empty_or_no_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinuz");
    let error = |path: &Path| KernelImage::open(path).unwrap_err().to_string();
    assert!(error(&path).contains("vmlinuz: No such file"));
    assert!(error(dir.path()).ends_with("not a regular file"));
    std::fs::write(&path, b"").unwrap();
    assert!(error(&path).ends_with("the file is empty"));
    std::fs::write(&path, b"#!/bin/sh\n").unwrap();
    assert!(error(&path).contains("not a kernel"));
    std::fs::write(&path, gzip(b"#!/bin/sh\n")).unwrap();
    assert!(error(&path).contains("not a kernel"));
    for file in [Elf::pv().build(), bzimage(&gzip(&Elf::pv().build()))] {
        std::fs::write(&path, file).unwrap();
        KernelImage::open(&path).unwrap();
    }
}

#[test]
fn a_truncated_image_is_called_that() {
    let image = bzimage(&gzip(&Elf::pv().build()));
    let refused = parse(&image[..image.len() - 1000]).unwrap_err().to_string();
    assert!(
        refused.starts_with("cut short: its boot header promises"),
        "{refused}"
    );
}

#[test]
fn old_boot_protocols_are_refused() {
    let mut image = bzimage(&gzip(&Elf::pv().build()));
    image[0x206] = 0x07;
    let refused = parse(&image).unwrap_err();
    assert!(matches!(
        refused,
        KernelFault::BzImage(BzImageError::OldProtocol(_))
    ));
    assert!(
        refused
            .to_string()
            .contains("boot protocol 2.07 is too old")
    );
}

#[test]
fn a_kernel_that_claims_gigabytes_is_refused_unread() {
    let elf = Elf::pv().build();
    for claimed in [u32::MAX, 1 << 31, (512 << 20) + 1] {
        let image = bzimage(&[lz4(&elf), claimed.to_le_bytes().to_vec()].concat());
        assert!(matches!(
            parse(&image),
            Err(KernelFault::ClaimTooLarge { claimed: c }) if c == claimed
        ));
    }
}

#[test]
fn a_kernel_that_unpacks_to_another_size_is_refused() {
    let elf = Elf::pv().build();
    let image = bzimage(&with_size(lz4(&elf), elf.len() + 1));
    assert!(matches!(
        parse(&image),
        Err(KernelFault::SizeMismatch { .. })
    ));
    let image = bzimage(&with_size(lz4(&elf), elf.len() - 1));
    let refused = parse(&image).unwrap_err().to_string();
    assert!(refused.contains(&format!("more than {} bytes", elf.len() - 1)));
}

#[test]
fn a_corrupt_payload_is_called_that() {
    let mut packed = gzip(&Elf::pv().build());
    let checksum = packed.len() - 8;
    packed[checksum] ^= 0xff;
    let refused = parse(&bzimage(&packed)).unwrap_err().to_string();
    assert!(refused.contains("gzip data is corrupt"), "{refused}");
    let refused = parse(&bzimage(b"what is this, a payload?")).unwrap_err();
    assert!(matches!(refused, KernelFault::UnknownPayload(_)));
}

#[test]
fn kernels_of_the_wrong_kind_are_told_what_they_are() {
    let mut elf = Elf::pv();
    elf.notes.clear();
    assert!(refusal(&elf).contains("CONFIG_XEN_PV. Debian's linux-image-amd64"));
    elf.notes = vec![number(XEN_ELFNOTE_PHYS32_ENTRY, 0x100_0000)];
    assert!(refusal(&elf).contains("PVH/HVM only"));
    let mut elf = Elf::pv();
    elf.class = 1;
    elf.machine = 3;
    assert!(refusal(&elf).contains("32-bit kernel"));
    let mut elf = Elf::pv();
    elf.machine = 183;
    assert!(refusal(&elf).contains("ELF machine 183"));
    let mut elf = Elf::pv();
    elf.kind = 1;
    assert!(refusal(&elf).contains("type 1"));
    let mut elf = Elf::pv();
    elf.segments.clear();
    assert!(refusal(&elf).contains("no segment to load"));
    let elf = Elf::pv().note(string(XEN_ELFNOTE_XEN_VERSION, "xen-2.0"));
    assert!(refusal(&elf).contains("\"xen-2.0\""));
}

#[test]
fn a_required_feature_that_we_lack_is_named() {
    for feature in [
        "auto_translated_physmap",
        "supervisor_mode_kernel",
        "dom0",
        "telepathy",
    ] {
        let text = format!("writable_page_tables|!{feature}");
        let elf = Elf::pv().note(string(XEN_ELFNOTE_FEATURES, &text));
        assert!(refusal(&elf).contains(&format!("\"{feature}\"")));
        let text = format!("!writable_page_tables|{feature}");
        let elf = Elf::pv().note(string(XEN_ELFNOTE_FEATURES, &text));
        parse(&elf.build()).unwrap();
    }
}

/// The pointers in an ELF file and its notes, each made to point elsewhere.
#[test]
fn every_address_is_checked() {
    let outside = |elf: &Elf| assert!(refusal(elf).contains("outside the kernel"));
    outside(&Elf::pv().note(number(XEN_ELFNOTE_ENTRY, VIRT_BASE)));
    outside(&Elf::pv().note(number(XEN_ELFNOTE_ENTRY, VIRT_BASE + 0x20_3000)));
    outside(&Elf::pv().note(number(XEN_ELFNOTE_ENTRY, 0)));
    outside(&Elf::pv().note(number(XEN_ELFNOTE_HYPERCALL_PAGE, VIRT_BASE + 0x20_3000)));
    outside(&Elf::pv().note(number(XEN_ELFNOTE_HYPERCALL_PAGE, 0x7fff_f000)));
    let elf = Elf::pv().note(number(XEN_ELFNOTE_HYPERCALL_PAGE, VIRT_BASE + 0x10_0010));
    assert!(refusal(&elf).contains("not at a page boundary"));
    let elf = Elf::pv().note(number(XEN_ELFNOTE_VIRT_BASE, VIRT_BASE + 1));
    assert!(refusal(&elf).contains("not at a page boundary"));
    for base in [
        0xffff_8000_0000_0000,
        0xffff_87ff_ffff_f000,
        0x7fff_ffff_f000,
        1 << 60,
    ] {
        let elf = Elf::pv().note(number(XEN_ELFNOTE_VIRT_BASE, base));
        assert!(
            refusal(&elf).contains("not the guest's to use"),
            "{base:#x}"
        );
    }
    let elf = Elf::pv().note(number(XEN_ELFNOTE_VIRT_BASE, 0xffff_ffff_ffff_f000));
    assert!(refusal(&elf).contains("can't be placed"));
    let elf = Elf::pv().note(number(XEN_ELFNOTE_PADDR_OFFSET, 0x10_1000));
    assert!(refusal(&elf).contains("can't be placed"));
    let elf = Elf::pv()
        .without(XEN_ELFNOTE_VIRT_BASE)
        .note(number(XEN_ELFNOTE_PADDR_OFFSET, 0));
    assert!(refusal(&elf).contains("makes no sense without VIRT_BASE"));
}

#[test]
fn every_segment_is_checked() {
    let with = |paddr, memsz| {
        let mut elf = Elf::pv();
        elf.segments.push((paddr, 0, memsz, vec![1; 16]));
        refusal(&elf)
    };
    assert!(
        with(0x30_0000, 15).contains("refused"),
        "more file than memory"
    );
    assert!(with(u64::MAX - 10, 16).contains("refused"), "wraps around");
    assert!(
        with(0x30_0000, u64::MAX).contains("refused"),
        "all there is"
    );
    assert!(with(0x10_3fff, 16).contains("overlap"));
    let mut elf = Elf::pv().build();
    // p_filesz of the first program header: past the end of the file.
    elf[64 + 32..64 + 40].copy_from_slice(&0x3fffu64.to_le_bytes());
    elf.truncate(0x3000);
    assert!(
        parse(&elf)
            .unwrap_err()
            .to_string()
            .contains("past the end of the file")
    );
}

#[test]
fn symbols_come_from_the_image_or_a_map_beside_it() {
    let mut elf = Elf::pv();
    elf.symbols = vec![
        (VIRT_BASE + 0x10_0000, "startup_xen".into()),
        (VIRT_BASE + 0x10_0800, "start_kernel".into()),
    ];
    let image = parse(&elf.build()).unwrap();
    assert_eq!(
        image.symbolise(VIRT_BASE + 0x10_0810),
        Some(("start_kernel", 0x10))
    );
    assert_eq!(image.symbolise(0x1000), None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinuz-6.1");
    std::fs::write(&path, bzimage(&gzip(&Elf::pv().build()))).unwrap();
    let image = KernelImage::open(&path).unwrap();
    assert_eq!(image.symbolise(VIRT_BASE + 0x10_0004), None);
    let map = dir.path().join("System.map-6.1");
    std::fs::write(&map, "ffffffff80100000 T startup_xen\n").unwrap();
    assert_eq!(
        image.symbolise(VIRT_BASE + 0x10_0004),
        None,
        "looked for once"
    );
    let mut image = KernelImage::open(&path).unwrap();
    let found = image.symbolise(VIRT_BASE + 0x10_0004);
    assert_eq!(found, Some(("startup_xen", 4)));
    let other = dir.path().join("map");
    std::fs::write(&other, "ffffffff80100002 T other\n").unwrap();
    image.load_system_map(&other).unwrap();
    assert_eq!(image.symbolise(VIRT_BASE + 0x10_0004), Some(("other", 2)));
}

#[test]
fn progress_is_told() {
    let image = bzimage(&gzip(&Elf::pv().build()));
    let (_, told) = read_telling(&image, None);
    assert!(matches!(
        told[..],
        [
            Progress::Decompressing(Compression::Gzip, _),
            Progress::Parsing(_)
        ]
    ));
}

/// The image at `image`, and what was told meanwhile.
fn read_telling(image: &[u8], kept: Option<&KeptKernels>) -> (KernelImage, Vec<Progress>) {
    let mut told = Vec::new();
    let mut tell = |step| told.push(step);
    let mut reading = Reading {
        progress: Some(&mut tell),
        kept,
    };
    let read = KernelImage::from_bytes(Path::new("x"), image, &mut reading).unwrap();
    (read, told)
}

#[test]
fn a_kept_kernel_is_not_unpacked_again() {
    let elf = Elf::pv().build();
    for image in [bzimage(&gzip(&elf)), gzip(&elf)] {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptKernels::open(dir.path().into()).unwrap();
        let (first, told) = read_telling(&image, Some(&kept));
        assert_eq!(told.len(), 2);
        let (again, told) = read_telling(&image, Some(&kept));
        assert_eq!(told, []);
        assert_eq!(first.segments(), again.segments());
        assert_eq!(first.compression(), again.compression());
    }
}

#[test]
fn a_kept_kernel_that_was_damaged_is_unpacked_anew() {
    let dir = tempfile::tempdir().unwrap();
    let kept = KeptKernels::open(dir.path().into()).unwrap();
    let image = bzimage(&gzip(&Elf::pv().build()));
    let (whole, _) = read_telling(&image, Some(&kept));
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        std::fs::write(entry.unwrap().path(), "not ELF").unwrap();
    }
    for steps in [2, 0] {
        let (again, told) = read_telling(&image, Some(&kept));
        assert_eq!(whole.segments(), again.segments());
        assert_eq!(told.len(), steps);
    }
}

/// All that can be made of an image that was damaged, with a domain of 64 MiB.
fn use_image(bytes: &[u8]) {
    let Ok(image) = parse(bytes) else { return };
    let content: u64 = image.segments().iter().map(|s| s.data.len() as u64).sum();
    assert!(content <= 2 * bytes.len() as u64 + (1 << 20));
    let _ = crate::builder::describe(&image);
    let _ = crate::builder::Layout::plan(image.placement(), 16384, Some(5 << 20));
    let _ = image.symbolise(VIRT_BASE + 0x10_0004);
}

fn whole_images() -> Vec<Vec<u8>> {
    let mut elf = Elf::pv();
    elf.symbols = vec![(VIRT_BASE + 0x10_0000, "startup_xen".into())];
    let modern = elf.build();
    elf.notes.clear();
    elf.guest_section = Some("GUEST_OS=linux,XEN_VER=xen-3.0,LOADER=generic,PAE=yes".into());
    let packed = bzimage(&with_size(lz4(&modern), modern.len()));
    vec![modern, elf.build(), packed]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_images_are_refused_or_used_without_harm(
        which in 0..3usize,
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::option::of(0..0x300usize), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut image = whole_images().swap_remove(which);
        for (anywhere, in_header, value) in damage {
            let at = in_header.unwrap_or_else(|| anywhere.index(image.len()));
            image[at] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        use_image(&image);
    }

    /// The same through the file: ELF files are read piece by piece there.
    #[test]
    fn damaged_files_are_refused_or_used_without_harm(
        at in 0..0x300usize, value in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut image = whole_images().swap_remove(0);
        image[at] = value;
        image.truncate(cut.index(image.len()).max(16));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &image).unwrap();
        let from_file = KernelImage::open(file.path()).map(|i| i.placement().clone());
        let from_bytes = parse(&image).map(|i| i.placement().clone());
        prop_assert_eq!(from_file.ok(), from_bytes.ok());
    }
}
