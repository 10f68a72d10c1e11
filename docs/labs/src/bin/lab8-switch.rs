//! Lab 8: a context switch between two user processes of one's own kernel.
#![no_std]
#![no_main]

use core::arch::global_asm;

use guest_abi::{
    addr::{GuestVirt, Mfn},
    errno::Errno,
    kernel::{
        Boot, boot, mem, mm, mmuext, sched,
        trap::{TRAP_SYSCALL, TrapFrame},
        user,
    },
    kprintln,
    sched::SHUTDOWN_POWEROFF,
};

guest_abi::pv_kernel!(main, name = "lab8");

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x80_0000;

// The program of both processes: it counts in its own memory and calls.
global_asm!(
    ".pushsection .rodata.program, \"a\"",
    "program:",
    "mov rbx, {data}",
    "2: inc qword ptr [rbx]",
    "mov rdi, [rbx]",
    "syscall",
    "jmp 2b",
    ".space 64",
    ".popsection",
    data = const DATA,
);

unsafe extern "C" {
    static program: [u8; 64];
}

/// A process: its address space and where it stopped.
struct Process {
    name: &'static str,
    root: Mfn,
    context: TrapFrame,
}

fn main(boot: &'static Boot) -> ! {
    boot.init().expect("the usual set-up");
    let ping = Process::new("ping", 0).expect("room");
    let pong = Process::new("pong", 100).expect("room");
    let mut processes = [ping, pong];
    for turn in 0..6 {
        let process = &mut processes[turn % 2];
        process.run();
        let TrapFrame { number, rdi, .. } = process.context;
        assert!(number == TRAP_SYSCALL, "trap {number}");
        kprintln!("lab8: {} says {rdi}", process.name);
    }
    sched::shutdown(SHUTDOWN_POWEROFF)
}

impl Process {
    /// An address space with the program and a page of data.
    fn new(name: &'static str, first: u64) -> Result<Self, Errno> {
        let root = mm::make_table(mm::allocate().ok_or(Errno::ENOMEM)?)?;
        // SAFETY: an empty table.
        unsafe { mmuext::pin(4, root) }?;
        let code = map(root, CODE, mm::PAGE_READONLY)?;
        let data = map(root, DATA, mm::PAGE_KERNEL | mm::PAGE_NX)?;
        // SAFETY: two pages of our own, mapped where we can write.
        unsafe {
            mem::copy(code as *mut u8, (&raw const program).cast(), 64);
            (data as *mut u64).write_volatile(first);
        }
        let context = user::context(GuestVirt(CODE), GuestVirt(DATA + 4096));
        Ok(Self {
            name,
            root,
            context,
        })
    }

    /// Switches to its address space and lets it run until it calls.
    fn run(&mut self) {
        // SAFETY: both pages of it are meant for user mode.
        unsafe { user::set_root(self.root) }.expect("a pinned root");
        // SAFETY: the root is loaded.
        self.context = unsafe { user::run(self.context) };
    }
}

/// A fresh page at a user address; where the kernel sees it.
fn map(root: Mfn, address: u64, flags: u64) -> Result<u64, Errno> {
    let page = mm::allocate().ok_or(Errno::ENOMEM)?;
    let mfn = boot::pfn_to_mfn(page).ok_or(Errno::EINVAL)?;
    // SAFETY: an address space that nobody uses yet.
    unsafe { mm::map(root, GuestVirt(address), mm::entry(mfn, flags)) }?;
    Ok(boot::pfn_to_virt(page).0)
}
