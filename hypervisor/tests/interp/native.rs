//! Runs one instruction on this processor, with all registers loaded.
//!
//! The code page and the data pages are mapped in this process at the very
//! addresses that they have in the guest, so that both see the same pointers.
//! The addresses are low, for the sake of instructions with 32-bit addresses.

use std::{
    arch::global_asm,
    sync::{Mutex, MutexGuard},
};

/// Where the code page is.
pub const CODE: u64 = 0x2000_0000;
/// Where the data pages are; RIP-relative operands reach them.
pub const DATA: u64 = CODE + 0x10_0000;
/// Bytes of data.
pub const DATA_LEN: u64 = 0x2000;
/// The instruction's offset in the code page.
pub const AT: u64 = 0x100;
/// Offset of the code that a taken branch goes to.
pub const TAKEN: u64 = 0x180;
/// Offset of the word that tells where the instruction went.
const MARKER: u64 = 0x800;

/// Registers and flags, before and after.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    pub gpr: [u64; 16],
    pub rflags: u64,
    /// Address of an [`Area`] to load first and to save to afterwards, or 0.
    pub area: u64,
}

/// An XSAVE area: x87, SSE and AVX in the standard format.
#[repr(C, align(64))]
pub struct Area(pub [u8; 832]);

global_asm!(
    ".globl domus_test_enter",
    ".globl domus_test_leave",
    ".pushsection .bss",
    "domus_test_state: .quad 0",
    "domus_test_stack: .quad 0",
    "domus_test_target: .quad 0",
    "domus_test_rdi: .quad 0",
    ".popsection",
    // (rdi: state, rsi: code)
    "domus_test_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + domus_test_state], rdi",
    "mov [rip + domus_test_stack], rsp",
    "mov [rip + domus_test_target], rsi",
    "mov rcx, [rdi + 136]",
    "test rcx, rcx",
    "jz 2f",
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [rcx]",
    "2:",
    "push qword ptr [rdi + 128]",
    "popfq",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rsp, [rdi + 32]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "jmp [rip + domus_test_target]",
    "domus_test_leave:",
    "mov [rip + domus_test_rdi], rdi",
    "mov rdi, [rip + domus_test_state]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 32], rsp",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "mov rax, [rip + domus_test_rdi]",
    "mov [rdi + 56], rax",
    "mov rsp, [rip + domus_test_stack]",
    "pushfq",
    "pop qword ptr [rdi + 128]",
    "push 0x202",
    "popfq",
    "mov rcx, [rdi + 136]",
    "test rcx, rcx",
    "jz 2f",
    "mov eax, 7",
    "xor edx, edx",
    "xsave64 [rcx]",
    "fninit",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rcx",
    "vzeroupper",
    "2:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn domus_test_enter(state: *mut State, code: u64);
    fn domus_test_leave();
}

/// The pages in this process; there is one set of them.
pub struct Native {
    _only: MutexGuard<'static, ()>,
}

static ONE: Mutex<()> = Mutex::new(());

fn map(address: u64, len: u64, protection: i32) {
    // SAFETY: a fixed mapping where nothing is, or where an earlier test's
    // mapping was.
    let at = unsafe {
        libc::mmap(
            std::ptr::without_provenance_mut(usize::try_from(address).unwrap()),
            usize::try_from(len).unwrap(),
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
}

fn pointer(address: u64) -> *mut u8 {
    assert!((CODE..CODE + 0x1000).contains(&address) || (DATA..DATA + DATA_LEN).contains(&address));
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap())
}

impl Native {
    pub fn new() -> Self {
        let only = ONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        map(
            CODE,
            0x1000,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        );
        map(DATA, DATA_LEN, libc::PROT_READ | libc::PROT_WRITE);
        Native { _only: only }
    }

    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        for (i, byte) in (0u64..).zip(bytes) {
            // SAFETY: `pointer` checked the address.
            unsafe { pointer(address + i).write_volatile(*byte) };
        }
    }

    pub fn data(&self) -> &[u8] {
        // SAFETY: the pages are mapped and nobody writes them meanwhile.
        unsafe { std::slice::from_raw_parts(pointer(DATA), usize::try_from(DATA_LEN).unwrap()) }
    }

    /// Executes `instruction`, which reaches its end or [`TAKEN`] and touches
    /// nothing but data pages: where it went, as an address.
    pub fn run(&mut self, instruction: &[u8], state: &mut State) -> u64 {
        let next = AT + instruction.len() as u64;
        self.write(CODE + AT, instruction);
        self.pad(next, 1);
        self.pad(TAKEN, 2);
        self.write(CODE + MARKER, &[0; 4]);
        // SAFETY: the caller's promise; the pads lead back.
        unsafe { domus_test_enter(state, CODE + AT) };
        // SAFETY: in the code page.
        match unsafe { pointer(CODE + MARKER).read_volatile() } {
            1 => CODE + next,
            2 => CODE + TAKEN,
            other => panic!("the marker is {other}"),
        }
    }

    /// `mov dword [marker], id; jmp [rip]`, and where to.
    fn pad(&mut self, at: u64, id: u8) {
        let distance = u32::try_from(MARKER - (at + 10)).unwrap();
        let mut bytes = vec![0xc7, 0x05];
        bytes.extend(distance.to_le_bytes());
        bytes.extend([id, 0, 0, 0, 0xff, 0x25, 0, 0, 0, 0]);
        let leave = domus_test_leave as *const () as u64;
        bytes.extend(leave.to_le_bytes());
        self.write(CODE + at, &bytes);
    }
}
