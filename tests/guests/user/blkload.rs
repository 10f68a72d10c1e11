//! Loads a block device, or checks one: a program for a guest's user space and
//! for the host, without any crate.
//!
//! ```text
//! blkload random DEVICE SECONDS DEPTH       4 KiB reads all over, so many at a
//!                                           time: "N operations in S s: R IOPS"
//! blkload sequential read|write DEVICE MIB  1 MiB at a time, eight under way:
//!                                           "N MiB in S s: R MiB/s"
//! blkload fill DEVICE MIB SEED              writes numbered, checksummed blocks
//!                                           and says "acknowledged N" as it goes
//! blkload check DEVICE BLOCKS SEED          that these blocks are there
//! ```
//!
//! All I/O is direct (`O_DIRECT`) and asynchronous (`io_submit`), so that it is
//! the device that is measured.

use std::{
    arch::asm,
    env,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::{fd::AsRawFd, unix::fs::{FileExt, OpenOptionsExt}},
    process::ExitCode,
    time::{Duration, Instant},
};

const O_DIRECT: i32 = 0o40000;
const MIB: usize = 1 << 20;
const BLOCK: usize = 64 << 10;

const IO_SETUP: i64 = 206;
const IO_GETEVENTS: i64 = 208;
const IO_SUBMIT: i64 = 209;
const PREAD: u16 = 0;
const PWRITE: u16 = 1;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["random", device, seconds, depth] => random(device, number(seconds), number(depth)),
        ["sequential", way, device, mib] => sequential(way == "write", device, number(mib)),
        ["fill", device, mib, seed] => fill(device, number(mib), number(seed)),
        ["check", device, blocks, seed] => check(device, number(blocks), number(seed)),
        _ => Err(io::Error::other("usage: blkload random|sequential|fill|check ...")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("blkload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(1)
}

fn open(path: &str, write: bool) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(write).custom_flags(O_DIRECT).open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    Ok((file, size))
}

fn random(path: &str, seconds: u64, depth: u64) -> io::Result<()> {
    let (file, size) = open(path, false)?;
    let blocks = size / 4096;
    let mut aio = Aio::new(&file, depth as usize, 4096)?;
    let mut noise = 88_172_645_463_325_252_u64;
    let start = Instant::now();
    let (mut count, end) = (0_u64, start + Duration::from_secs(seconds));
    let mut slots: Vec<usize> = (0..depth as usize).collect();
    while Instant::now() < end {
        let batch = slots.drain(..).map(|slot| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            (slot, noise % blocks * 4096)
        });
        aio.submit(PREAD, batch.collect())?;
        aio.wait(1, &mut slots)?;
        count += slots.len() as u64;
    }
    aio.wait(depth as usize - slots.len(), &mut slots)?;
    let time = start.elapsed().as_secs_f64();
    println!("{count} operations in {time:.3} s: {:.0} IOPS", count as f64 / time);
    Ok(())
}

fn sequential(write: bool, path: &str, mib: u64) -> io::Result<()> {
    const DEPTH: usize = 8;
    let (file, size) = open(path, write)?;
    let total = mib.min(size / MIB as u64);
    let mut aio = Aio::new(&file, DEPTH, MIB)?;
    let start = Instant::now();
    let mut slots: Vec<usize> = (0..DEPTH).collect();
    let (mut begun, mut ended) = (0, 0);
    while ended < total {
        let mut batch = Vec::new();
        while begun < total && let Some(slot) = slots.pop() {
            batch.push((slot, begun * MIB as u64));
            begun += 1;
        }
        aio.submit(if write { PWRITE } else { PREAD }, batch)?;
        let before = slots.len();
        aio.wait(1, &mut slots)?;
        ended += (slots.len() - before) as u64;
    }
    let time = start.elapsed().as_secs_f64();
    println!("{total} MiB in {time:.3} s: {:.1} MiB/s", total as f64 / time);
    Ok(())
}

fn fill(path: &str, mib: u64, seed: u64) -> io::Result<()> {
    let (file, size) = open(path, true)?;
    let blocks = (mib * MIB as u64).min(size) / BLOCK as u64;
    let mut buffer = Buffer::new(BLOCK);
    for number in 0..blocks {
        pattern(buffer.bytes(), number, seed);
        let outcome = file.write_all_at(buffer.bytes(), number * BLOCK as u64);
        if let Err(error) = outcome {
            println!("failed after {number}: {error}");
            return Err(error);
        }
        if number % 16 == 15 || number + 1 == blocks {
            println!("acknowledged {}", number + 1);
            io::stdout().flush()?;
        }
    }
    Ok(())
}

fn check(path: &str, blocks: u64, seed: u64) -> io::Result<()> {
    let (file, _) = open(path, false)?;
    let (mut expected, mut found) = (Buffer::new(BLOCK), Buffer::new(BLOCK));
    for number in 0..blocks {
        pattern(expected.bytes(), number, seed);
        file.read_exact_at(found.bytes(), number * BLOCK as u64)?;
        if expected.bytes() != found.bytes() {
            return Err(io::Error::other(format!("block {number} is wrong")));
        }
    }
    println!("{blocks} blocks are right");
    Ok(())
}

/// Bytes that no other block has.
fn pattern(bytes: &mut [u8], number: u64, seed: u64) {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// Memory as direct I/O wants it.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Self {
        let memory = vec![0x5a; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, len }
    }
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    reqprio: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// The kernel's asynchronous I/O on one file.
struct Aio {
    context: u64,
    fd: u32,
    buffers: Vec<Buffer>,
    blocks: Vec<Iocb>,
}

impl Aio {
    fn new(file: &File, depth: usize, size: usize) -> io::Result<Self> {
        let mut context = 0_u64;
        // SAFETY: the call writes one word.
        unsafe { call(IO_SETUP, [depth as u64, &raw mut context as u64, 0, 0, 0]) }?;
        Ok(Self {
            context,
            fd: file.as_raw_fd() as u32,
            buffers: (0..depth).map(|_| Buffer::new(size)).collect(),
            blocks: vec![Iocb::default(); depth],
        })
    }

    fn submit(&mut self, opcode: u16, batch: Vec<(usize, u64)>) -> io::Result<()> {
        let mut list = Vec::with_capacity(batch.len());
        for (slot, offset) in batch {
            let bytes = self.buffers[slot].bytes();
            let (buf, nbytes) = (bytes.as_mut_ptr() as u64, bytes.len() as u64);
            self.blocks[slot] = Iocb {
                data: slot as u64,
                opcode,
                fd: self.fd,
                buf,
                nbytes,
                offset: offset as i64,
                ..Iocb::default()
            };
            list.push(&raw const self.blocks[slot] as u64);
        }
        let mut done = 0;
        while done < list.len() {
            let rest = &list[done..];
            // SAFETY: the blocks and buffers live as long as the context.
            let args = [self.context, rest.len() as u64, rest.as_ptr() as u64, 0, 0];
            done += unsafe { call(IO_SUBMIT, args) }? as usize;
        }
        Ok(())
    }

    /// Waits for so many at least; their slots.
    fn wait(&mut self, least: usize, slots: &mut Vec<usize>) -> io::Result<()> {
        let mut events = vec![Event::default(); self.blocks.len()];
        let (count, at) = (events.len() as u64, events.as_mut_ptr() as u64);
        // SAFETY: the call writes at most `count` events.
        let got = unsafe { call(IO_GETEVENTS, [self.context, least as u64, count, at, 0]) }?;
        for event in &events[..got as usize] {
            let slot = event.data as usize;
            if event.res != self.buffers[slot].len as i64 {
                return Err(io::Error::other(format!("an operation gave {}", event.res)));
            }
            slots.push(slot);
        }
        Ok(())
    }
}

/// # Safety
/// As the system call.
unsafe fn call(number: i64, args: [u64; 5]) -> io::Result<u64> {
    let result: i64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") args[0], in("rsi") args[1],
            in("rdx") args[2], in("r10") args[3], in("r8") args[4], lateout("rcx") _, lateout("r11") _);
    }
    u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result as i32))
}
