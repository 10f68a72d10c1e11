//! The smallest file that is a PV kernel: it is never run.

const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
const TEXT_AT: u64 = 0x10_0000;
const TEXT_LEN: u64 = 0x1000;

fn note(kind: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("length");
    let mut bytes = Vec::new();
    for word in [4, length, kind] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"Xen\0");
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An ELF file with one segment at 1 MiB and the notes that a kernel needs.
pub fn pv_kernel() -> Vec<u8> {
    let notes = [
        note(6, b"linux\0"),
        note(8, b"generic\0"),
        note(5, b"xen-3.0\0"),
        note(3, &VIRT_BASE.to_le_bytes()),
        note(1, &(VIRT_BASE + TEXT_AT).to_le_bytes()),
    ]
    .concat();
    let notes_len = u64::try_from(notes.len()).expect("length");
    let text_at = 64 + 2 * 56;
    let mut elf = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1u32.to_le_bytes());
    elf.extend([VIRT_BASE + TEXT_AT, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut header = |kind: u32, fields: [u64; 6]| {
        elf.extend(kind.to_le_bytes());
        elf.extend(7u32.to_le_bytes());
        elf.extend(fields.map(u64::to_le_bytes).concat());
    };
    header(
        1,
        [text_at, VIRT_BASE + TEXT_AT, TEXT_AT, TEXT_LEN, TEXT_LEN, 8],
    );
    header(4, [text_at + TEXT_LEN, 0, 0, notes_len, notes_len, 4]);
    elf.resize(elf.len() + usize::try_from(TEXT_LEN).expect("length"), 0xf4);
    elf.extend(notes);
    elf
}
