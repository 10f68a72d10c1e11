//! Runs one instruction on this processor, with all registers loaded.
//!
//! The code page and the data pages are mapped in this process at the very
//! addresses that they have in the guest, so that both see the same pointers.
//! The addresses are low, for the sake of instructions with 32-bit addresses.

use std::{
    arch::global_asm,
    sync::{
        Mutex, MutexGuard, Once,
        atomic::{AtomicI32, AtomicU64, Ordering::SeqCst},
    },
};

/// Where the code page is.
pub const CODE: u64 = 0x2000_0000;
/// Where the data pages are; RIP-relative operands reach them.
pub const DATA: u64 = CODE + 0x10_0000;
/// Bytes of data.
pub const DATA_LEN: u64 = 0x2000;
/// The page behind them, which can only be read. Around all three nothing is mapped.
pub const READ_ONLY: u64 = DATA + DATA_LEN;
/// Bytes around the data pages where nothing is mapped.
pub const HOLE: u64 = 0x8000;
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

/// An exception of this processor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trapped {
    pub vector: u64,
    pub error: u64,
    /// CR2: of the last page fault.
    pub address: u64,
    pub rip: u64,
}

/// [`Trapped::vector`] while there is none.
const NONE: u64 = u64::MAX;
static HANDLERS: Once = Once::new();
/// The thread that executes an instruction; its signals are ours.
static THREAD: AtomicI32 = AtomicI32::new(0);
static VECTOR: AtomicU64 = AtomicU64::new(NONE);
static ERROR: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);
static FLAGS: AtomicU64 = AtomicU64::new(0);
/// Flags that would have an effect on the way back: TF and AC.
const NOT_ON_THE_WAY: i64 = 0x4_0100;

/// Notes what the exception was and leaves the instruction. Another thread's kills it.
extern "C" fn on_signal(
    signal: libc::c_int,
    _: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // SAFETY: async-signal-safe calls; the context is that of this signal.
    unsafe {
        if libc::gettid() != THREAD.swap(0, SeqCst) {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        let registers = &mut (*context).uc_mcontext.gregs;
        let at = |register: libc::c_int| register.cast_unsigned() as usize;
        let word = |register| registers[at(register)].cast_unsigned();
        VECTOR.store(word(libc::REG_TRAPNO), SeqCst);
        ERROR.store(word(libc::REG_ERR), SeqCst);
        ADDRESS.store(word(libc::REG_CR2), SeqCst);
        RIP.store(word(libc::REG_RIP), SeqCst);
        FLAGS.store(word(libc::REG_EFL), SeqCst);
        registers[at(libc::REG_EFL)] &= !NOT_ON_THE_WAY;
        registers[at(libc::REG_RIP)] = domus_test_leave as *const () as i64;
    }
}

fn handle_signals() {
    for signal in [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGTRAP,
    ] {
        // SAFETY: the handler keeps to what a handler may do.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
    }
}

/// The instruction's stack pointer is anything: signals of this thread need a stack of
/// their own, which is as large as all the registers of a processor need.
fn give_signals_a_stack() {
    const BYTES: usize = 0x10000;
    let stack = libc::stack_t {
        ss_sp: Box::leak(vec![0u8; BYTES].into_boxed_slice())
            .as_mut_ptr()
            .cast(),
        ss_flags: 0,
        ss_size: BYTES,
    };
    // SAFETY: memory that is never freed.
    let done = unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
    assert_eq!(done, 0);
}

fn read_only() -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(usize::try_from(READ_ONLY).unwrap())
}

fn protect(address: u64, protection: i32) {
    let at = std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap());
    // SAFETY: one page of the test's.
    assert_eq!(unsafe { libc::mprotect(at, 0x1000, protection) }, 0);
}

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
        map(DATA - HOLE, 2 * HOLE, libc::PROT_NONE);
        map(DATA, DATA_LEN + 0x1000, libc::PROT_READ | libc::PROT_WRITE);
        // So that the page is there.
        // SAFETY: it is mapped, and writable yet.
        unsafe { read_only().write_bytes(0x5a, 0x1000) };
        protect(READ_ONLY, libc::PROT_READ);
        HANDLERS.call_once(handle_signals);
        give_signals_a_stack();
        Native { _only: only }
    }

    /// Changes the page that can only be read.
    pub fn write_read_only(&mut self, bytes: &[u8; 0x1000]) {
        protect(READ_ONLY, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a whole page, writable now.
        unsafe { read_only().copy_from(bytes.as_ptr(), 0x1000) };
        protect(READ_ONLY, libc::PROT_READ);
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
        match self.try_run(instruction, state) {
            Ok(went) => went,
            Err(trap) => panic!("{instruction:x?}: {trap:x?}"),
        }
    }

    /// The same for one that may trap instead; the state is then that of the trap.
    pub fn try_run(&mut self, instruction: &[u8], state: &mut State) -> Result<u64, Trapped> {
        let next = AT + instruction.len() as u64;
        self.write(CODE + AT, instruction);
        self.pad(next, 1);
        self.pad(TAKEN, 2);
        self.write(CODE + MARKER, &[0; 4]);
        VECTOR.store(NONE, SeqCst);
        // SAFETY: no arguments.
        THREAD.store(unsafe { libc::gettid() }, SeqCst);
        // SAFETY: the caller's promise; the pads and the handler lead back.
        unsafe { domus_test_enter(state, CODE + AT) };
        THREAD.store(0, SeqCst);
        if VECTOR.load(SeqCst) != NONE {
            state.rflags = FLAGS.load(SeqCst);
            return Err(Trapped {
                vector: VECTOR.load(SeqCst),
                error: ERROR.load(SeqCst),
                address: ADDRESS.load(SeqCst),
                rip: RIP.load(SeqCst),
            });
        }
        // SAFETY: in the code page.
        match unsafe { pointer(CODE + MARKER).read_volatile() } {
            1 => Ok(CODE + next),
            2 => Ok(CODE + TAKEN),
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
