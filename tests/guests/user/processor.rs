//! What few programs ask of a processor: a program for a guest's user space and for
//! the host, without any crate.
//!
//! ```text
//! processor       prints a line for each part, and what differs from a processor
//! ```
//!
//! 32-bit code that a 64-bit program goes to and comes back from by far branches:
//! decimal arithmetic, `bound`, `into`, `arpl`; segments of `modify_ldt`, with bases and limits;
//! alignment checks; hardware breakpoints set by `ptrace`. Where the program comes to the
//! wrong end it says `WRONG`.

#![allow(unsafe_op_in_unsafe_fn)]

use std::{
    arch::{asm, global_asm},
    process::ExitCode,
    ptr,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

unsafe extern "C" {
    fn mmap(at: *mut u8, bytes: usize, access: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
    fn sigaction(signal: i32, new: *const Action, old: *mut Action) -> i32;
    fn sigaltstack(new: *const Stack, old: *mut Stack) -> i32;
    fn syscall(number: i64, ...) -> i64;
    fn ptrace(request: i32, pid: i32, at: usize, data: usize) -> i64;
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn raise(signal: i32) -> i32;
    fn _exit(code: i32) -> !;
}

const ALL: i32 = 7;
const PRIVATE_ANONYMOUS_LOW: i32 = 0x62;
const SIGTRAP: i32 = 5;
const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;
const SIGSTOP: i32 = 19;
const SYS_MODIFY_LDT: i64 = 154;
/// Of the low pages: code, what is run 32 bits wide, data, the stack's end.
const RUN: usize = 0x400;
const BACK: usize = 0x100;
const SAVED: usize = 0x200;
const DATA: usize = 0x4000;
const SPARE: usize = 0x8000;
const STACK: usize = 0xc000;
const LOW: usize = 0x10000;

/// glibc's `struct sigaction`.
#[repr(C)]
struct Action {
    handler: usize,
    mask: [u64; 16],
    flags: i32,
    restorer: usize,
}

#[repr(C)]
struct Stack {
    at: *mut u8,
    flags: i32,
    bytes: usize,
}

/// Signal, trap number and error code of the last signal.
static SIGNAL: AtomicU64 = AtomicU64::new(0);
static TRAP: AtomicU64 = AtomicU64::new(0);
static ERROR: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Where the handler returns to.
static RESUME: AtomicU64 = AtomicU64::new(0);

/// Notes the trap; goes on where it was said, without AC.
extern "C" fn on_trap(signal: i32, _: *const usize, context: *mut u64) {
    // `gregs` of a `ucontext_t`: RIP, flags, error code and trap number.
    const RIP: usize = 5 + 16;
    const FLAGS: usize = 5 + 17;
    const CODE: usize = 5 + 19;
    const NUMBER: usize = 5 + 20;
    SIGNAL.store(signal as u64, SeqCst);
    // SAFETY: the kernel's context of this signal; or all ends here.
    unsafe {
        if COUNT.fetch_add(1, SeqCst) > 100 {
            _exit(9);
        }
        TRAP.store(*context.add(NUMBER), SeqCst);
        ERROR.store(*context.add(CODE), SeqCst);
        *context.add(FLAGS) &= !(1 << 18);
        *context.add(RIP) = RESUME.load(SeqCst);
    }
}

/// Memory below 4 GiB with a way into 32-bit code.
struct Low(*mut u8);

impl Low {
    fn new() -> Self {
        // SAFETY: a new mapping.
        let at = unsafe { mmap(ptr::null_mut(), LOW, ALL, PRIVATE_ANONYMOUS_LOW, -1, 0) };
        assert!((at as usize) < 1 << 32, "no memory below 4 GiB");
        let low = Low(at);
        // mov rsp, [rip + SAVED]; jmp [rip + SAVED + 8]
        let mut back = vec![0x48, 0x8b, 0x25];
        back.extend(((SAVED - BACK - 7) as i32).to_le_bytes());
        back.extend([0xff, 0x25]);
        back.extend(((SAVED + 8 - BACK - 13) as i32).to_le_bytes());
        low.put(BACK, &back);
        low
    }

    fn at(&self, offset: usize) -> u32 {
        (self.0 as usize + offset) as u32
    }

    fn put(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: within the mapping.
        unsafe { self.0.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn word(&self, offset: usize) -> u32 {
        // SAFETY: within the mapping.
        unsafe { self.0.add(offset).cast::<u32>().read_unaligned() }
    }

    fn put_word(&self, offset: usize, word: u32) {
        self.put(offset, &word.to_le_bytes());
    }

    /// Runs 32-bit code with ESI at the data, EDI at the spare room and ECX as given, DS and
    /// ES flat; a far jump leads back. EAX at the end.
    fn run(&self, body: &[u8], count: u32) -> u32 {
        // mov eax, 0x2b; mov ds, eax; mov es, eax
        let mut code = vec![0xb8, 0x2b, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xc0];
        code.extend(body);
        let end = code.len();
        // push eax; xor eax, eax; mov ds, eax; mov es, eax; pop eax; ljmp 0x33:BACK
        code.extend([0x50, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x58, 0xea]);
        code.extend(self.at(BACK).to_le_bytes());
        code.extend([0x33, 0]);
        self.put(RUN, &code);
        RESUME.store(u64::from(self.at(RUN + end)), SeqCst);
        for what in [&SIGNAL, &TRAP, &ERROR] {
            what.store(0, SeqCst);
        }
        let eax: u32;
        // SAFETY: the code comes back with the stack pointer that it left with.
        unsafe {
            asm!(
                "push rbx", "push rbp",
                "lea rax, [rip + 2f]", "mov [rdx + 8], rax", "mov [rdx], rsp",
                "mov rsp, r8", "push 0x23", "push r9", "retfq",
                "2:", "pop rbp", "pop rbx",
                in("rdx") self.0.add(SAVED), in("r8") self.0.add(STACK), in("r9") self.0.add(RUN),
                inout("rsi") self.0.add(DATA) => _, inout("rdi") self.0.add(SPARE) => _,
                inout("rcx") count => _, out("rax") eax, out("r10") _, out("r11") _,
                clobber_abi("C"),
            );
        }
        eax
    }
}

static WRONG: AtomicU64 = AtomicU64::new(0);

fn expect(what: &str, seen: u64, expected: u64) {
    if seen == expected {
        println!("{what}: {seen:#x}");
    } else {
        println!("{what}: WRONG: {seen:#x}, not {expected:#x}");
        WRONG.fetch_add(1, SeqCst);
    }
}

/// The last signal, as one number: signal, trap number, error code.
fn signal() -> u64 {
    SIGNAL.load(SeqCst) << 32 | TRAP.load(SeqCst) << 16 | ERROR.load(SeqCst)
}

fn trapped(signal: i32, trap: u64, error: u64) -> u64 {
    (signal as u64) << 32 | trap << 16 | error
}

/// FNV-1a.
fn sum(words: impl Iterator<Item = u32>) -> u64 {
    words.fold(0xcbf2_9ce4_8422_2325, |sum, word| {
        (sum ^ u64::from(word)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Each decimal instruction on all of AL, some of AH and of the flags.
fn decimals(low: &Low) {
    let operations: [(&str, &[u8], u32, u64); 6] = [
        ("daa", &[0x27], 0xd5, 0x3c36_7060_3bae_3405),
        ("das", &[0x2f], 0xd5, 0xaf51_e6b1_b91f_5fa1),
        ("aaa", &[0x37], 0x11, 0x6343_7fa0_fa9f_7b25),
        ("aas", &[0x3f], 0x11, 0x690f_8fd4_99a3_bb25),
        ("aam", &[0xd4, 10], 0xc4, 0x06f7_8207_d5ea_d685),
        ("aad", &[0xd5, 10], 0xc4, 0x1d13_01e4_9958_c725),
    ];
    for (name, code, mask, expected) in operations {
        for n in 0..1024u32 {
            let at = DATA + n as usize * 8;
            low.put_word(at, (n & 0xff) | (n.wrapping_mul(37) & 0xff) << 8);
            low.put_word(at + 4, 0x202 | (n >> 8 & 1) | (n >> 9 & 1) << 4);
        }
        // mov eax, [esi]; push [esi + 4]; popf; ...; mov [edi], eax; pushf; pop [edi + 4];
        // add esi, 8; add edi, 8; dec ecx; jnz
        let mut body = vec![0x8b, 0x06, 0xff, 0x76, 4, 0x9d];
        body.extend(code);
        body.extend([0x89, 0x07, 0x9c, 0x8f, 0x47, 4, 0x83, 0xc6, 8, 0x83, 0xc7, 8, 0x49]);
        body.extend([0x75, (-(body.len() as i32) - 2) as u8]);
        low.run(&body, 1024);
        let results = (0..1024).flat_map(|n| {
            let at = SPARE + n * 8;
            [low.word(at), low.word(at + 4) & mask]
        });
        expect(name, sum(results), expected);
    }
}

fn rare_instructions(low: &Low) {
    low.put_word(DATA, 2);
    low.put_word(DATA + 4, 5);
    // mov eax, 4; bound eax, [esi]; mov eax, 6; bound eax, [esi]
    low.run(&[0xb8, 4, 0, 0, 0, 0x62, 0x06], 0);
    expect("bound within", signal(), 0);
    low.run(&[0xb8, 6, 0, 0, 0, 0x62, 0x06], 0);
    expect("bound beyond", signal(), trapped(SIGSEGV, 5, 0));
    // mov al, 0x7f; inc al; into
    low.run(&[0xb0, 0x7f, 0xfe, 0xc0, 0xce], 0);
    expect("into", signal(), trapped(SIGSEGV, 4, 0));
    // mov eax, 0x10; mov ecx, 3; arpl ax, cx
    let raised = low.run(&[0xb8, 0x10, 0, 0, 0, 0xb9, 3, 0, 0, 0, 0x63, 0xc8], 0);
    expect("arpl", raised.into(), 0x13);
    // lcall to the lret; jmp over it; lret; mov eax, 0x77
    let mut body = vec![0x9a];
    body.extend((low.at(RUN) + 9 + 9).to_le_bytes());
    body.extend([0x23, 0, 0xeb, 1, 0xcb, 0xb8, 0x77, 0, 0, 0]);
    let done = low.run(&body, 0);
    expect("lcall and lret", u64::from(done) | signal() << 32, 0x77);
    // pushf; push cs; push the address behind it; iret; mov eax, 0x78
    let mut body = vec![0x9c, 0x0e, 0x68];
    body.extend((low.at(RUN) + 9 + 8).to_le_bytes());
    body.extend([0xcf, 0xb8, 0x78, 0, 0, 0]);
    let done = low.run(&body, 0);
    expect("iret", u64::from(done) | signal() << 32, 0x78);
    // push 0x23:0x10 as two words; lret of 16 bits: nothing is mapped there.
    low.run(&[0x68, 0x10, 0, 0x23, 0, 0x66, 0xcb], 0);
    expect("a far return of 16 bits", signal(), trapped(SIGSEGV, 14, 0x14));
    // ljmp 8:0
    low.run(&[0xea, 0, 0, 0, 0, 8, 0], 0);
    expect("a jump into ring 0", signal(), trapped(SIGSEGV, 13, 8));
}

/// `struct user_desc`: entry, base, limit, and what it is.
fn set_ldt(entry: u32, base: u32, limit: u32, kind: u32) -> bool {
    let descriptor = [entry, base, limit, kind];
    // SAFETY: the kernel copies 16 bytes.
    unsafe { syscall(SYS_MODIFY_LDT, 0x11, &raw const descriptor, 16usize) == 0 }
}

const SEG_32BIT: u32 = 1;
const READ_ONLY: u32 = 1 << 3;
const EXPAND_DOWN: u32 = 1 << 1;
const USABLE: u32 = 1 << 6;

fn segments(low: &Low) {
    let base = low.at(DATA + 0x100);
    if !set_ldt(0, base, 15, SEG_32BIT | USABLE) {
        println!("no modify_ldt here");
        return;
    }
    for n in 0..8 {
        low.put_word(DATA + 0x100 + n * 4, 0x1111 * (n as u32 + 1));
    }
    let seen: u64;
    // SAFETY: GS is not used by 64-bit programs; it is null again.
    unsafe {
        asm!("mov gs, {s:e}", "mov {seen:e}, gs:[4]", "mov gs, {null:e}", s = in(reg) 7, null = in(reg) 0, seen = out(reg) seen);
    }
    expect("a base in 64-bit code", seen, 0x2222);
    // mov eax, 7; mov gs, eax; mov eax, gs:[N]
    let read = |register: u8, at: u8| {
        let load = if register == 0x65 { 0xe8 } else { 0xd8 };
        vec![0xb8, 7, 0, 0, 0, 0x8e, load, register, 0xa1, at, 0, 0, 0]
    };
    for (name, register) in [("gs", 0x65), ("ds", 0x3e)] {
        expect(&format!("{name} within its limit"), low.run(&read(register, 12), 0).into(), 0x4444);
        expect("without a signal", signal(), 0);
        low.run(&read(register, 13), 0);
        expect(&format!("{name} beyond its limit"), signal(), trapped(SIGSEGV, 13, 0));
    }
    // mov eax, 7; mov es, eax; xor edi, edi; mov eax, 0x99; stosd; stosd; ...
    let stores = [0xb8, 7, 0, 0, 0, 0x8e, 0xc0, 0x31, 0xff, 0xb0, 0x99, 0xb9, 5, 0, 0, 0, 0xf3, 0xab];
    low.run(&stores, 0);
    expect("rep stosd beyond es", signal(), trapped(SIGSEGV, 13, 0));
    expect("what it did before", u64::from(low.word(DATA + 0x10c)) << 32 | u64::from(low.word(DATA + 0x110)), 0x99_0000_5555);
    set_ldt(0, base, 15, SEG_32BIT | USABLE | READ_ONLY);
    // mov eax, 7; mov ds, eax; mov [4], eax
    let store = [0xb8, 7, 0, 0, 0, 0x8e, 0xd8, 0xa3, 4, 0, 0, 0];
    low.run(&store, 0);
    expect("a read-only segment", signal(), trapped(SIGSEGV, 13, 0));
    set_ldt(0, base, 7, SEG_32BIT | USABLE | EXPAND_DOWN);
    expect("above the limit of one that expands down", low.run(&read(0x3e, 8), 0).into(), 0x99);
    low.run(&read(0x3e, 4), 0);
    expect("below it", signal(), trapped(SIGSEGV, 13, 0));
    // mov eax, 0; mov ds, eax; mov eax, [4]
    low.run(&[0x31, 0xc0, 0x8e, 0xd8, 0xa1, 4, 0, 0, 0], 0);
    expect("a null segment", signal(), trapped(SIGSEGV, 13, 0));
    // mov ss, a segment with a base; push eax; pop ebx; back to the old one
    set_ldt(0, base, 0xff, SEG_32BIT | USABLE);
    let mut body = vec![0x89, 0xe2, 0xb8, 7, 0, 0, 0, 0x8e, 0xd0, 0xbc, 0x20, 0, 0, 0, 0x68, 0x66, 0x77, 0, 0, 0x5b];
    body.extend([0xb8, 0x2b, 0, 0, 0, 0x8e, 0xd0, 0x89, 0xd4, 0x89, 0xd8]);
    expect("a stack with a base", low.run(&body, 0).into(), 0x7766);
    expect("what it pushed", low.word(DATA + 0x11c).into(), 0x7766);
}

/// With AC set, `mov rax, [at]`.
fn aligned(at: *const u8) {
    SIGNAL.store(0, SeqCst);
    TRAP.store(0, SeqCst);
    ERROR.store(0, SeqCst);
    // SAFETY: eight readable bytes; AC is clear again.
    unsafe {
        asm!(
            "lea {t}, [rip + 2f]", "mov [{resume}], {t}",
            "pushfq", "or dword ptr [rsp], 0x40000", "popfq",
            "mov {t}, [{at}]",
            "2:", "pushfq", "and dword ptr [rsp], -0x40001", "popfq",
            t = out(reg) _, at = in(reg) at, resume = in(reg) RESUME.as_ptr(),
        );
    }
}

fn alignment(low: &Low) {
    // SAFETY: within the mapping.
    let at = |offset| unsafe { low.0.add(DATA + offset) };
    aligned(at(8));
    expect("an aligned word", signal(), 0);
    aligned(at(9));
    expect("a misaligned word", signal(), trapped(SIGBUS, 17, 0));
}

static WATCHED: AtomicU64 = AtomicU64::new(0);

#[inline(never)]
extern "C" fn landmark(n: u64) -> u64 {
    std::hint::black_box(n + 1)
}

// A function whose first instruction touches a page.
global_asm!(".globl processor_touch", "processor_touch:", "mov byte ptr [rdi], 1", "ret");

unsafe extern "C" {
    fn processor_touch(page: *mut u8);
}

fn set_register(pid: i32, n: usize, value: usize) -> bool {
    // SAFETY: a child that has stopped; 848 is where `struct user` has them.
    unsafe { ptrace(6, pid, 848 + 8 * n, value) == 0 }
}

fn stopped(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: one's own child.
    unsafe { waitpid(pid, &mut status, 0) };
    status
}

/// A child is watched: two stores to a variable, a read, a function, and an instruction
/// that faults in between: its breakpoint is hit once.
fn breakpoints() {
    // SAFETY: the child does nothing but this; no other thread runs.
    unsafe {
        let page = mmap(ptr::null_mut(), 4096, 3, 0x22, -1, 0);
        let pid = fork();
        if pid == 0 {
            ptrace(0, 0, 0, 0);
            raise(SIGSTOP);
            WATCHED.store(1, SeqCst);
            let read = WATCHED.load(SeqCst);
            WATCHED.store(read + 1, SeqCst);
            let code = landmark(40 + read);
            processor_touch(page);
            _exit(code as i32);
        }
        expect("the child stops", (stopped(pid) >> 8) as u64, SIGSTOP as u64);
        // DR0: 8 bytes, written; DR1 and DR2: functions.
        let set = set_register(pid, 0, WATCHED.as_ptr() as usize)
            && set_register(pid, 1, landmark as *const () as usize)
            && set_register(pid, 2, processor_touch as *const () as usize)
            && set_register(pid, 7, 1 << 0 | 1 << 2 | 1 << 4 | 0b1001 << 16);
        expect("breakpoints are taken", set.into(), 1);
        let mut hits = 0;
        loop {
            ptrace(7, pid, 0, 0);
            let status = stopped(pid);
            if status & 0xff != 0x7f {
                expect("breakpoints that were hit", hits, 0x1124);
                expect("the child ends", (status >> 8) as u64, 42);
                return;
            }
            expect("a stop", (status >> 8) as u64, SIGTRAP as u64);
            let dr6 = ptrace(3, pid, 848 + 8 * 6, 0) as u64;
            set_register(pid, 6, 0);
            hits = hits << 4 | dr6 & 15;
        }
    }
}

fn main() -> ExitCode {
    let low = Low::new();
    // SAFETY: a stack for handlers: the interrupted one may have a segment of its own.
    unsafe {
        let stack = Stack { at: mmap(ptr::null_mut(), LOW, 3, 0x22, -1, 0), flags: 0, bytes: LOW };
        assert_eq!(sigaltstack(&stack, ptr::null_mut()), 0);
        for signal in [SIGBUS, SIGSEGV] {
            // SA_SIGINFO, SA_ONSTACK
            let action = Action { handler: on_trap as *const () as usize, mask: [0; 16], flags: 0x0800_0004, restorer: 0 };
            assert_eq!(sigaction(signal, &action, ptr::null_mut()), 0);
        }
    }
    decimals(&low);
    rare_instructions(&low);
    segments(&low);
    alignment(&low);
    breakpoints();
    println!("{} WRONG", WRONG.load(SeqCst));
    if WRONG.load(SeqCst) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
