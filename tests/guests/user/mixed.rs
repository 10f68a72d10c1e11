//! A bit of everything that programs do: a program for a guest's user space and for
//! the host, without any crate.
//!
//! ```text
//! mixed SEED ROUNDS       prints one line for each round, the same on every machine
//! ```
//!
//! Each round does integer and x87 arithmetic, vector code of every extension that
//! the processor shows, string instructions in both directions, locks (also across
//! cache lines), code that changes through another mapping, page faults with
//! handlers, single steps, processes, pipes, threads, files and TCP on the loopback
//! interface. What it computes goes into one sum.

#![allow(unsafe_op_in_unsafe_fn)]

use std::{
    arch::{asm, x86_64::*},
    env, fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, ExitCode},
    ptr,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
};

unsafe extern "C" {
    fn mmap(at: *mut u8, bytes: usize, access: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
    fn munmap(at: *mut u8, bytes: usize) -> i32;
    fn mprotect(at: *mut u8, bytes: usize, access: i32) -> i32;
    fn memfd_create(name: *const u8, flags: u32) -> i32;
    fn ftruncate(file: i32, bytes: i64) -> i32;
    fn close(file: i32) -> i32;
    fn sigaction(signal: i32, new: *const Action, old: *mut Action) -> i32;
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(code: i32) -> !;
}

const PAGE: usize = 4096;
const READ: i32 = 1;
const WRITE: i32 = 2;
const EXECUTE: i32 = 4;
const SHARED: i32 = 1;
const PRIVATE: i32 = 2;
const ANONYMOUS: i32 = 0x20;
const SIGTRAP: i32 = 5;
const SIGSEGV: i32 = 11;
const SA_SIGINFO: i32 = 4;

/// glibc's `struct sigaction`.
#[repr(C)]
struct Action {
    handler: usize,
    mask: [u64; 16],
    flags: i32,
    restorer: usize,
}

/// FNV-1a over words.
struct Sum(u64);

impl Sum {
    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x100_0000_01b3);
    }
    fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next().to_le_bytes()[5])
    }
}

fn integers(sum: &mut Sum, random: &mut Random) {
    let mut words: Vec<u64> = (0..256).map(|_| random.next()).collect();
    words.sort_unstable();
    for pair in words.windows(2) {
        let wide = u128::from(pair[0]) * u128::from(pair[1] | 1);
        sum.add((wide / u128::from(pair[1] >> 20 | 1)) as u64);
        sum.add(pair[0] % (pair[1] >> 32 | 1));
        sum.add(u64::from(pair[0].count_ones() + pair[1].leading_zeros() + pair[0].trailing_zeros()));
        sum.add(pair[0].rotate_left((pair[1] & 63) as u32) ^ pair[1].swap_bytes());
        sum.add((pair[0] as i64 / ((pair[1] as i16) as i64 | 1)) as u64);
    }
    sum.bytes(format!("{words:?} {:.6}", words[7] as f64 / 3.0).as_bytes());
}

fn floats(sum: &mut Sum, random: &mut Random) {
    let mut x = (random.next() >> 40) as f64 + 0.5;
    for n in 1..200 {
        x = (x * 1.000_1 + 1.0 / f64::from(n)).sqrt() + x.abs() * 0.25;
        sum.add(x.to_bits());
        sum.add(u64::from((x as f32 / 7.0).to_bits()));
        sum.add(x.mul_add(2.0, -1.0).floor().to_bits());
        sum.add((x as i64) as u64);
    }
    let mut out = [0u64; 3];
    // SAFETY: three numbers from and to memory of ours, and an empty x87 stack after.
    unsafe {
        asm!(
            "fld qword ptr [{x}]", "fld st(0)", "fsin", "fstp qword ptr [{out}]",
            "fld st(0)", "fsqrt", "fmul st, st(1)", "fstp qword ptr [{out} + 8]",
            "fldpi", "fpatan", "fistp qword ptr [{out} + 16]",
            x = in(reg) &x, out = in(reg) &mut out,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    // The last bits of transcendental functions differ between makers.
    sum.add(out[0] >> 12);
    sum.add(out[1]);
    sum.add(out[2]);
}

fn strings(sum: &mut Sum, random: &mut Random) {
    let mut from: Vec<u8> = (0..2 * PAGE).map(|_| random.next() as u8).collect();
    let mut to = vec![0u8; 2 * PAGE];
    let start = (random.next() & 0x3ff) as usize;
    let count = (random.next() & 0xfff) as usize;
    let left: usize;
    // SAFETY: all within the two vectors; the direction flag is clear again.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rsi") from.as_ptr().add(start) => _, inout("rdi") to.as_mut_ptr().add(7) => _);
        asm!("rep stosq", inout("rcx") 40usize => _, inout("rdi") to.as_mut_ptr().add(PAGE - 9) => _, in("rax") random.next());
        asm!("std", "rep movsw", "cld", inout("rcx") 300usize => _, inout("rsi") from.as_ptr().add(PAGE) => _, inout("rdi") to.as_mut_ptr().add(2 * PAGE - 2) => _);
        asm!("repne scasb", inout("rcx") PAGE => left, inout("rdi") from.as_ptr() => _, in("al") 0x5au8);
    }
    from[..start].fill(3);
    sum.add(left as u64);
    sum.bytes(&from);
    sum.bytes(&to);
}

#[target_feature(enable = "ssse3,sse4.1,sse4.2")]
unsafe fn sse4(sum: &mut Sum, bytes: [u8; 32]) {
    let (a, b) = (_mm_loadu_si128(bytes.as_ptr().cast()), _mm_loadu_si128(bytes.as_ptr().add(16).cast()));
    let all = [_mm_shuffle_epi8(a, b), _mm_maddubs_epi16(a, b), _mm_mullo_epi32(a, b), _mm_packus_epi32(a, b), _mm_cmpgt_epi64(a, b), _mm_blend_epi16(a, b, 0x5a), _mm_mpsadbw_epu8(a, b, 3)];
    for one in all {
        sum.add(_mm_extract_epi64(one, 0) as u64);
        sum.add(_mm_extract_epi64(one, 1) as u64);
    }
    sum.add(_mm_cmpistri(a, b, 0x0c) as u64);
    sum.add(_mm_crc32_u64(7, _mm_extract_epi64(a, 1) as u64));
    sum.add(_mm_movemask_epi8(a) as u64);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(sum: &mut Sum, bytes: [u8; 32]) {
    let a = _mm256_loadu_si256(bytes.as_ptr().cast());
    let b = _mm256_permute4x64_epi64(a, 0x1b);
    let table = [1i32, -2, 3, -4, 5, -6, 7, -8];
    let picked = _mm256_i32gather_epi32(table.as_ptr(), _mm256_and_si256(a, _mm256_set1_epi32(7)), 4);
    let floats = _mm256_cvtepi32_ps(_mm256_srai_epi32(a, 8));
    let fused = _mm256_castps_si256(_mm256_fmadd_ps(floats, floats, _mm256_set1_ps(0.5)));
    let halves = _mm256_castps_si256(_mm256_cvtph_ps(_mm_set1_epi16(0x3c11)));
    for one in [_mm256_add_epi64(a, b), _mm256_mul_epu32(a, b), _mm256_sllv_epi32(a, _mm256_and_si256(b, _mm256_set1_epi32(31))), picked, fused, halves, _mm256_alignr_epi8(a, b, 5)] {
        let mut out = [0u64; 4];
        _mm256_storeu_si256(out.as_mut_ptr().cast(), one);
        out.iter().for_each(|word| sum.add(*word));
    }
}

#[target_feature(enable = "aes,pclmulqdq,sha,sse4.1")]
unsafe fn ciphers(sum: &mut Sum, bytes: [u8; 32]) {
    let (a, b) = (_mm_loadu_si128(bytes.as_ptr().cast()), _mm_loadu_si128(bytes.as_ptr().add(16).cast()));
    for one in [_mm_aesenc_si128(a, b), _mm_aesdeclast_si128(a, b), _mm_aeskeygenassist_si128(a, 3), _mm_clmulepi64_si128(a, b, 0x11), _mm_sha256msg1_epu32(a, b), _mm_sha1rnds4_epu32(a, b, 2)] {
        sum.add(_mm_extract_epi64(one, 0) as u64);
        sum.add(_mm_extract_epi64(one, 1) as u64);
    }
}

#[target_feature(enable = "bmi1,bmi2,lzcnt,popcnt,adx")]
unsafe fn bits(sum: &mut Sum, a: u64, b: u64) {
    for one in [_pext_u64(a, b), _pdep_u64(a, b), _bzhi_u64(a, (b & 63) as u32), _andn_u64(a, b), _blsr_u64(a), _lzcnt_u64(a >> (b & 31)), _tzcnt_u64(a << (b & 31))] {
        sum.add(one);
    }
    let mut out = 0;
    let carry = _addcarryx_u64(1, a, b, &mut out);
    sum.add(out ^ u64::from(carry));
}

/// What the processor lacks is left out: the sum tells which machine it was.
fn vectors(sum: &mut Sum, random: &mut Random) {
    for _ in 0..20 {
        let bytes = random.bytes();
        let (a, b) = (random.next(), random.next());
        // SAFETY: each only where the processor has it.
        unsafe {
            if is_x86_feature_detected!("sse4.2") {
                sse4(sum, bytes);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                avx2(sum, bytes);
            }
            if is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq") && is_x86_feature_detected!("sha") {
                ciphers(sum, bytes);
            }
            if is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("adx") {
                bits(sum, a, b);
            }
        }
    }
}

fn locks(sum: &mut Sum, random: &mut Random) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.store(random.next(), SeqCst);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..200).for_each(|n| _ = COUNT.fetch_add(n, SeqCst)));
        }
    });
    sum.add(COUNT.swap(0, SeqCst));
    let mut lines = vec![0u8; 256];
    let start = lines.as_ptr().align_offset(64);
    for at in [3, 57, 61] {
        // SAFETY: eight bytes within the vector, some across a cache line.
        unsafe {
            let place = lines.as_mut_ptr().add(start + at);
            asm!("lock add [{place}], {by}", place = in(reg) place, by = in(reg) random.next());
            asm!("lock btc dword ptr [{place}], 5", place = in(reg) place);
        }
    }
    sum.bytes(&lines[start..start + 128]);
}

/// A function that is written through one mapping and called through another.
fn changing_code(sum: &mut Sum, random: &mut Random) {
    // SAFETY: the code is `mov eax, imm32; ret`; both mappings are unmapped at the end.
    unsafe {
        let file = memfd_create(c"code".as_ptr().cast(), 0);
        assert!(file >= 0 && ftruncate(file, PAGE as i64) == 0);
        let write = mmap(ptr::null_mut(), PAGE, READ | WRITE, SHARED, file, 0);
        let run = mmap(ptr::null_mut(), PAGE, READ | EXECUTE, SHARED, file, 0);
        close(file);
        for _ in 0..10 {
            let value = random.next() as u32;
            let mut code = vec![0xb8];
            code.extend(value.to_le_bytes());
            code.push(0xc3);
            write.copy_from_nonoverlapping(code.as_ptr(), code.len());
            let function: extern "C" fn() -> u32 = std::mem::transmute(run);
            assert_eq!(function(), value, "old code was executed");
            sum.add(value.into());
        }
        munmap(write, PAGE);
        munmap(run, PAGE);
    }
}

static FAULTS: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Makes the page that was written to writable.
extern "C" fn on_fault(_: i32, info: *const usize, _: *mut u8) {
    // SAFETY: the third word of `siginfo_t` is the address.
    unsafe {
        let address = *info.add(2) & !(PAGE - 1);
        if mprotect(address as *mut u8, PAGE, READ | WRITE) != 0 {
            _exit(9);
        }
    }
    FAULTS.fetch_add(1, SeqCst);
}

extern "C" fn on_step(_: i32, _: *const usize, _: *mut u8) {
    STEPS.fetch_add(1, SeqCst);
}

fn handle(signal: i32, handler: extern "C" fn(i32, *const usize, *mut u8)) {
    let action = Action { handler: handler as usize, mask: [0; 16], flags: SA_SIGINFO, restorer: 0 };
    // SAFETY: the handler does what a handler may.
    assert_eq!(unsafe { sigaction(signal, &action, ptr::null_mut()) }, 0);
}

/// A string instruction that runs into pages that it may not write, and single steps.
fn traps(sum: &mut Sum, random: &mut Random) {
    handle(SIGSEGV, on_fault);
    handle(SIGTRAP, on_step);
    const PAGES: usize = 6;
    FAULTS.store(0, SeqCst);
    STEPS.store(0, SeqCst);
    // SAFETY: a mapping of our own, which the handler makes writable page by page.
    unsafe {
        let at = mmap(ptr::null_mut(), PAGES * PAGE, READ, PRIVATE | ANONYMOUS, -1, 0);
        let count = PAGES * PAGE - 16;
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") at.add(8) => _, in("al") random.next() as u8);
        at.add(2 * PAGE - 3).cast::<u64>().write_unaligned(random.next());
        sum.bytes(std::slice::from_raw_parts(at, PAGES * PAGE));
        munmap(at, PAGES * PAGE);
        asm!(
            "pushfq", "or qword ptr [rsp], 0x100", "popfq",
            "nop", "mov ecx, 3", "2:", "dec ecx", "jnz 2b",
            "pushfq", "and qword ptr [rsp], -257", "popfq",
            out("rcx") _,
        );
    }
    sum.add(FAULTS.load(SeqCst));
    sum.add(STEPS.load(SeqCst));
}

fn processes(sum: &mut Sum, random: &mut Random) {
    let code = (random.next() & 63) as i32;
    let mut status = 0;
    // SAFETY: the child ends at once; no other thread runs now.
    unsafe {
        let pid = fork();
        if pid == 0 {
            _exit(code);
        }
        waitpid(pid, &mut status, 0);
    }
    sum.add(status as u64);
    let text = format!("{:x}", random.next()).repeat(200);
    let own = env::current_exe().expect("/proc");
    let mut child = Command::new(own)
        .arg("rot")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a process");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(text.as_bytes()).expect("a reader");
    drop(input);
    let output = child.wait_with_output().expect("a child");
    sum.bytes(&output.stdout);
}

fn files(sum: &mut Sum, random: &mut Random) {
    let path = env::temp_dir().join(format!("mixed.{}", std::process::id()));
    let text: Vec<u8> = (0..40_000).map(|_| random.next() as u8).collect();
    fs::write(&path, &text).expect("room");
    sum.bytes(&fs::read(&path).expect("what was written"));
    fs::remove_file(&path).expect("what was written");
}

fn network(sum: &mut Sum, random: &mut Random) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback interface");
    let address = listener.local_addr().expect("bound");
    let text: Vec<u8> = (0..100_000).map(|_| random.next() as u8).collect();
    let got = thread::scope(|scope| {
        scope.spawn(|| TcpStream::connect(address).and_then(|mut s| s.write_all(&text)).expect("a stream"));
        let mut got = Vec::new();
        listener.accept().expect("a stream").0.read_to_end(&mut got).expect("all of it");
        got
    });
    sum.bytes(&got);
}

fn rot() -> ExitCode {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).expect("a pipe");
    text.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
    std::io::stdout().write_all(&text).expect("a pipe");
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if args == ["rot"] {
        return rot();
    }
    let number = |n: usize| args.get(n).and_then(|text| text.parse().ok());
    let (Some(seed), Some(rounds)) = (number(0), number(1)) else {
        eprintln!("usage: mixed SEED ROUNDS");
        return ExitCode::FAILURE;
    };
    for round in 0..rounds {
        let mut random = Random(seed + (round << 32));
        let mut sum = Sum(0xcbf2_9ce4_8422_2325);
        for part in [integers, floats, strings, vectors, locks, changing_code, traps, processes, files, network] {
            part(&mut sum, &mut random);
        }
        println!("mixed {seed} {round} {:016x}", sum.0);
    }
    ExitCode::SUCCESS
}
