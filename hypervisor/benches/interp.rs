//! Nanoseconds of CPU time per instruction, interpreted and compiled, for a few loops:
//! `cargo bench -p domus-hypervisor --bench interp`.

#[allow(
    dead_code,
    missing_docs,
    reason = "shared with the tests, which use all of it"
)]
#[path = "../tests/interp/machine.rs"]
mod machine;

use guest_abi::addr::Mfn;
use hypervisor::{
    cpu::{Context, reg},
    interp::{Exit, Interpreter},
};
use machine::{ALL, Machine};
use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

const CODE: u64 = 0xffff_8880_0010_0000;
const DATA: u64 = 0xffff_8880_0020_0000;
const STACK: u64 = 0xffff_8880_0030_0000;

/// A program to be copied into guest memory.
macro_rules! program {
    ($name:ident, $($line:literal),* $(,)?) => {
        mod $name {
            std::arch::global_asm!(
                ".pushsection .rodata",
                concat!(".globl domus_bench_", stringify!($name)),
                concat!(".globl domus_bench_end_", stringify!($name)),
                concat!("domus_bench_", stringify!($name), ":"),
                $($line,)*
                concat!("domus_bench_end_", stringify!($name), ":"),
                ".popsection",
            );
            unsafe extern "C" {
                #[link_name = concat!("domus_bench_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("domus_bench_end_", stringify!($name))]
                static END: u8;
            }
            pub fn code() -> &'static [u8] {
                let (start, end) = (&raw const START, &raw const END);
                // SAFETY: the two labels enclose the program's bytes.
                unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
            }
        }
    };
}

program!(countdown, "2: dec rcx", "jnz 2b", "jmp 2b",);
program!(
    arithmetic,
    "2: add rax, rcx",
    "xor rbx, rax",
    "lea rdx, [rax + rbx * 4 + 17]",
    "shr rdx, 3",
    "imul rbx, rdx",
    "sub rcx, 1",
    "jnz 2b",
    "jmp 2b",
);
program!(
    memory,
    "2: mov rax, [rsi + rcx * 8]",
    "add rax, rbx",
    "mov [rdi + rcx * 8], rax",
    "inc rcx",
    "and ecx, 255",
    "cmp rcx, 300",
    "jne 2b",
);
program!(
    calls,
    "2: mov rdi, rcx",
    "call 3f",
    "dec rcx",
    "jmp 2b",
    "3: push rbp",
    "mov rbp, rsp",
    "push rbx",
    "test edi, 1",
    "mov rbx, rdi",
    "jz 4f",
    "add rbx, 5",
    "4: mov rax, rbx",
    "pop rbx",
    "pop rbp",
    "ret",
);
program!(
    bytes,
    "2: movzx eax, byte ptr [rsi + rcx]",
    "mov edx, eax",
    "and edx, 15",
    "cmp al, 'a'",
    "jb 3f",
    "sub al, 32",
    "3: mov [rdi + rcx], al",
    "inc ecx",
    "and ecx, 0x7ff",
    "jmp 2b",
);
program!(
    locked,
    "2: lock inc qword ptr [rsi]",
    "lock bts dword ptr [rsi + 8], 3",
    "mov eax, 1",
    "lock cmpxchg [rsi + 16], rbx",
    "jmp 2b",
);
program!(
    clear_page,
    "2: mov rdi, r8",
    "mov ecx, 512",
    "xor eax, eax",
    "rep stosq",
    "jmp 2b",
);

/// A name and the bytes.
type Program = (&'static str, fn() -> &'static [u8]);

const PROGRAMS: [Program; 7] = [
    ("countdown", countdown::code),
    ("arithmetic", arithmetic::code),
    ("memory", memory::code),
    ("calls", calls::code),
    ("bytes", bytes::code),
    ("locked", locked::code),
    ("clear_page", clear_page::code),
];

fn context() -> Context {
    let mut context = Context {
        rip: CODE,
        rflags: 0x202,
        ..Context::default()
    };
    context.gpr[reg::RSI] = DATA;
    context.gpr[reg::RDI] = DATA + 4096;
    context.gpr[reg::R8] = DATA;
    context.gpr[reg::RSP] = STACK + 2048;
    context
}

fn machine(code: &[u8]) -> (Arc<Machine>, Mfn) {
    let machine = Arc::new(Machine::new(64));
    let root = machine.alloc();
    let mfn = machine.map_new(root, CODE, ALL);
    machine.write(mfn, 0, code);
    for address in [DATA, DATA + 4096, DATA + 8192, STACK] {
        machine.map_new(root, address, ALL);
    }
    (machine, root)
}

/// Of this thread: a busy host does not count.
fn cpu_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    Duration::from(clock.now().expect("the thread has a clock"))
}

/// The best of a few runs: instructions, and nanoseconds for each.
fn measure(code: &[u8], budget: u64, compiled: bool) -> (u64, f64) {
    let (machine, root) = machine(code);
    let mut interpreter = Interpreter::new(machine);
    if compiled {
        interpreter.compile(None);
    }
    let interrupt = AtomicBool::new(false);
    let mut best = (0, f64::MAX);
    for _ in 0..5 {
        let mut context = context();
        let before = interpreter.counts().instructions;
        let start = cpu_time();
        let exit = interpreter.run(&mut context, root, budget, &interrupt);
        let nanoseconds = (cpu_time() - start).as_secs_f64() * 1e9;
        assert_eq!(exit, Exit::Budget, "at {:#x}", context.rip);
        let count = interpreter.counts().instructions - before;
        #[allow(clippy::cast_precision_loss, reason = "a report")]
        let each = nanoseconds / count as f64;
        if each < best.1 {
            best = (count, each);
        }
    }
    best
}

fn main() {
    println!(
        "{:12} {:>12} {:>8} {:>9}",
        "loop", "instructions", "ns each", "compiled"
    );
    for (name, code) in PROGRAMS {
        let (count, each) = measure(code(), 5_000_000, false);
        let (_, compiled) = measure(code(), 5_000_000, true);
        println!("{name:12} {count:12} {each:8.2} {compiled:9.2}");
    }
}
