//! The guest's side of the benchmark `workload`: a program of its user space.
//!
//! It is compiled by the benchmark, statically, and prints a line for each part:
//! its name, how often it was done, and the seconds that took.

use std::{
    env,
    fs::File,
    io::{Read, Write},
    process::exit,
    time::Instant,
};

unsafe extern "C" {
    fn getppid() -> i32;
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn execv(path: *const u8, argv: *const *const u8) -> i32;
    fn _exit(code: i32) -> !;
    fn pipe(ends: *mut i32) -> i32;
    fn read(file: i32, to: *mut u8, bytes: usize) -> isize;
    fn write(file: i32, from: *const u8, bytes: usize) -> isize;
    fn mmap(at: *mut u8, bytes: usize, access: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
    fn munmap(at: *mut u8, bytes: usize) -> i32;
}

const PAGE: usize = 4096;

fn timed(name: &str, times: u32, work: impl FnOnce(u32)) {
    let start = Instant::now();
    work(times);
    println!("PART {name} {times} {:.6}", start.elapsed().as_secs_f64());
}

/// Runs `work` in a child and waits for it.
fn child(work: impl FnOnce()) {
    let mut status = 0;
    // SAFETY: one thread; the child does `work` and ends.
    unsafe {
        let pid = fork();
        if pid == 0 {
            work();
            _exit(0);
        }
        waitpid(pid, &mut status, 0);
    }
    if status != 0 {
        eprintln!("a child ended with {status}");
        exit(1);
    }
}

fn touch(pages: u32) {
    let pages = pages as usize;
    // SAFETY: a private mapping of its own, each page of it written once.
    unsafe {
        let at = mmap(std::ptr::null_mut(), pages * PAGE, 3, 0x22, -1, 0);
        for page in 0..pages {
            at.add(page * PAGE).write_volatile(1);
        }
        munmap(at, pages * PAGE);
    }
}

fn exec(times: u32) {
    let path = env::current_exe().expect("/proc");
    let path = format!("{}\0", path.display());
    let arguments = [path.as_ptr(), c"nothing".as_ptr().cast(), std::ptr::null()];
    for _ in 0..times {
        // SAFETY: strings and list end with zeros and outlive the call.
        child(|| unsafe {
            execv(path.as_ptr(), arguments.as_ptr());
            _exit(9);
        });
    }
}

fn ping_pong(times: u32) {
    let (mut there, mut back) = ([0; 2], [0; 2]);
    let mut byte = 0u8;
    // SAFETY: one byte each way through descriptors of our own.
    unsafe {
        pipe(there.as_mut_ptr());
        pipe(back.as_mut_ptr());
        let pid = fork();
        for _ in 0..times {
            if pid == 0 {
                read(there[0], &mut byte, 1);
                write(back[1], &byte, 1);
            } else {
                write(there[1], &byte, 1);
                read(back[0], &mut byte, 1);
            }
        }
        if pid == 0 {
            _exit(0);
        }
        waitpid(pid, std::ptr::null_mut(), 0);
    }
}

fn copy(blocks: u32) {
    let mut from = File::open("/dev/zero").expect("/dev/zero");
    let mut to = File::create("/dd.out").expect("a file");
    let mut block = [0; 512];
    for _ in 0..blocks {
        from.read_exact(&mut block).expect("zeros");
        to.write_all(&block).expect("room");
    }
}

fn main() {
    if env::args().nth(1).is_some() {
        return;
    }
    timed("getppid", 20_000, |times| {
        for _ in 0..times {
            // SAFETY: it has no arguments and can't fail.
            unsafe { getppid() };
        }
    });
    timed("touch", 4096, touch);
    timed("fork+exit", 100, |times| (0..times).for_each(|_| child(|| ())));
    timed("fork+exec", 50, exec);
    timed("pipe", 500, ping_pong);
    timed("dd", 2000, copy);
}
