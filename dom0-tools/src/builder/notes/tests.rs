use super::*;
use crate::builder::testing::{number, string};

fn linux() -> Vec<(u32, Vec<u8>)> {
    vec![
        string(abi::XEN_ELFNOTE_GUEST_OS, "linux"),
        string(abi::XEN_ELFNOTE_XEN_VERSION, "xen-3.0"),
        number(abi::XEN_ELFNOTE_VIRT_BASE, 0xffff_ffff_8000_0000),
    ]
}

#[test]
fn numbers_have_any_width() {
    let mut notes = linux();
    notes.push((abi::XEN_ELFNOTE_SUSPEND_CANCEL, vec![1, 0, 0, 0]));
    notes.push((abi::XEN_ELFNOTE_MOD_START_PFN, vec![1]));
    notes.push((abi::XEN_ELFNOTE_SUPPORTED_FEATURES, vec![1, 8, 0, 0]));
    notes.push(number(abi::XEN_ELFNOTE_INIT_P2M, 0x80_0000_0000));
    notes.push((abi::XEN_ELFNOTE_ENTRY, vec![]));
    notes.push((abi::XEN_ELFNOTE_PADDR_OFFSET, vec![0xff; 20]));
    let notes = XenNotes::parse(&notes, None).unwrap();
    assert!(notes.suspend_cancel && notes.mod_start_pfn && !notes.legacy);
    assert_eq!(notes.supported, Features(0x801));
    assert_eq!(notes.init_p2m, Some(0x80_0000_0000));
    assert_eq!(notes.entry, Some(0));
    assert_eq!(notes.paddr_offset, Some(u64::MAX));
}

#[test]
fn the_l1_note_is_a_pair() {
    let mut notes = linux();
    let pair = [1u64.to_le_bytes(), 1u64.to_le_bytes()].concat();
    notes.push((abi::XEN_ELFNOTE_L1_MFN_VALID, pair));
    let notes = XenNotes::parse(&notes, None).unwrap();
    assert_eq!(notes.l1_mfn_valid, Some((1, 1)));
}

#[test]
fn notes_count_before_the_section() {
    let section = b"GUEST_OS=other,XEN_VER=xen-3.0,VIRT_BASE=0x1000".as_slice();
    let notes = XenNotes::parse(&linux(), Some(section)).unwrap();
    assert_eq!(notes.guest_os, "linux");
    assert!(!notes.legacy);
}

#[test]
fn the_section_has_numbers_as_c_reads_them() {
    let section = b"GUEST_OS=linux-like,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,\
        VIRT_ENTRY=0300,ELF_PADDR_OFFSET=4096,HYPERCALL_PAGE=0x2,PAE=yes[extended-cr3],BSD_SYMTAB";
    let notes = XenNotes::parse(&[], Some(section)).unwrap();
    assert_eq!(notes.virt_base, Some(0xc000_0000));
    assert_eq!(notes.entry, Some(0o300));
    assert_eq!(notes.paddr_offset, Some(4096));
    assert_eq!(notes.hypercall_page, Some(0xc000_2000));
    assert_eq!(notes.pae_mode, "yes[extended-cr3]");
    assert!(notes.bsd_symtab && notes.legacy);
}

#[test]
fn linux_features_are_understood() {
    let mut notes = linux();
    notes.push(string(
        abi::XEN_ELFNOTE_FEATURES,
        "!writable_page_tables|pae_pgdir_above_4gb",
    ));
    let notes = XenNotes::parse(&notes, None).unwrap();
    assert_eq!(notes.required.to_string(), "writable_page_tables");
    assert_eq!(
        notes.supported.to_string(),
        "writable_page_tables|pae_pgdir_above_4gb"
    );
}

#[test]
fn a_foreign_loader_is_refused() {
    let mut notes = linux();
    notes[0] = string(abi::XEN_ELFNOTE_GUEST_OS, "plan9");
    assert!(matches!(
        XenNotes::parse(&notes, None),
        Err(NotesError::Loader { .. })
    ));
    notes.push(string(abi::XEN_ELFNOTE_LOADER, "generic"));
    XenNotes::parse(&notes, None).unwrap();
}
