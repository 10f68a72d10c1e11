//! A 32-bit program for a guest's user space, made byte by byte: no tool chain for
//! i386 is needed.

/// A static program for i386, which prints `hello from 32 bits` by `int 0x80` and ends
/// with 42.
///
/// # Panics
/// Never: its size is known.
#[must_use]
pub fn program32() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let message = b"hello from 32 bits\n";
    let mut code = vec![
        0xe8, 0, 0, 0, 0,    // call the next instruction
        0x59, // pop %ecx
        0x83, 0xc1, 38, // add $38, %ecx: the message
        0xb8, 4, 0, 0, 0, // mov $4, %eax: write
        0xbb, 1, 0, 0, 0, // mov $1, %ebx
        0xba, 19, 0, 0, 0, // mov $19, %edx
        0xcd, 0x80, // int $0x80
        0xb8, 1, 0, 0, 0, // mov $1, %eax: exit
        0xbb, 42, 0, 0, 0, // mov $42, %ebx
        0xcd, 0x80, // int $0x80
        0x90, 0x90, 0x90, 0x90, 0x90,
    ];
    code.extend(message);
    let size = HEADERS + u32::try_from(code.len()).expect("a small program");
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    // An executable for i386: entry, where the program headers are.
    [2, 3].into_iter().for_each(|v| half(&mut elf, v));
    [1, BASE + HEADERS, 52, 0, 0]
        .into_iter()
        .for_each(|v| word(&mut elf, v));
    [52, 32, 1, 0, 0, 0]
        .into_iter()
        .for_each(|v| half(&mut elf, v));
    // One segment: all of the file, readable and executable.
    [1, 0, BASE, BASE, size, size, 5, 0x1000]
        .into_iter()
        .for_each(|v| word(&mut elf, v));
    elf.extend(code);
    elf
}
