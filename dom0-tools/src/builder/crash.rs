//! What a crashed domain's vCPU was doing, for people.
//!
//! A kernel that dies before its console works says nothing. Its registers and
//! its stack do: the report shows both, with the kernel's symbols where they
//! can be had.
//!
//! Law: registers, page tables and stack are the guest's word. They are read
//! in bounds, a bounded number of times, and are shown, never acted upon.

use std::fmt::{self, Write};

use domus_privcmd::client::{Client, ClientError, Memory};
use guest_abi::{
    addr::{DomId, GuestVirt, Mfn, PAGE_SIZE, VcpuId},
    arch_x86::VcpuGuestContext,
    arch_x86_64::cr3_to_pfn,
};
use thiserror::Error;
use zerocopy::FromBytes;

use super::{
    image::KernelImage,
    memory::{DomainMemory, MemoryError, MemoryFile},
    symbols::Kind,
    tables::pte,
};

/// How much of the stack is looked at.
const STACK_BYTES: usize = 2048;
/// How many words of it are printed as they are.
const STACK_WORDS: usize = 32;
/// How many calls are listed.
const CALLS: usize = 24;
/// The frame number in a page-table entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const LARGE: u64 = 1 << 7;

/// Why there is no report.
#[derive(Debug, Error)]
pub enum CrashError {
    /// The hypervisor refused.
    #[error("can't look at domain {}: {source}", dom.0)]
    Hypervisor {
        /// Which domain.
        dom: DomId,
        /// What it said.
        source: ClientError,
    },
    /// Its context is not one.
    #[error("domain {}'s vCPU context has {len} bytes", dom.0)]
    Context {
        /// Which domain.
        dom: DomId,
        /// What came.
        len: usize,
    },
    /// See [`MemoryError`].
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// The report of a domain's vCPU, asked of the hypervisor: registers, stack
/// and calls. `image` is the kernel that the domain was built from.
///
/// # Errors
/// See [`CrashError`]. A stack that can't be read is no error, the report says
/// so.
pub fn crash_report_of(
    client: &Client,
    dom: DomId,
    vcpu: VcpuId,
    image: Option<&KernelImage>,
) -> Result<String, CrashError> {
    let failed = |source| CrashError::Hypervisor { dom, source };
    let bytes = client.vcpu_context(dom, vcpu).map_err(failed)?;
    let context = VcpuGuestContext::read_from_bytes(&bytes).map_err(|_| CrashError::Context {
        dom,
        len: bytes.len(),
    })?;
    let Memory {
        fd,
        base_mfn,
        pages,
    } = client.map_memory(dom).map_err(failed)?;
    let memory = MemoryFile::new(fd, base_mfn, pages)?;
    let stack = read_stack(&memory, &context);
    let report = crash_report(&context, image, &stack);
    Ok(format!("domain {}, vCPU {}:\n{report}", dom.0, vcpu.0))
}

/// The bytes at the stack pointer, through the vCPU's own page tables; fewer
/// where they are not mapped.
#[must_use]
pub fn read_stack(memory: &impl DomainMemory, context: &VcpuGuestContext) -> Vec<u8> {
    let mut stack = Vec::new();
    let mut at = context.user_regs.rsp;
    while stack.len() < STACK_BYTES {
        let in_page = PAGE_SIZE - GuestVirt(at).page_offset();
        let len = usize::try_from(in_page).map_or(0, |len| len.min(STACK_BYTES - stack.len()));
        let mut bytes = vec![0; len];
        let machine = translate(memory, cr3_to_pfn(context.ctrlreg[3]), at);
        let read = machine.and_then(|(frame, offset)| {
            let start = Mfn(frame).addr()?.checked_add(offset)?;
            memory.read(start, &mut bytes).ok()
        });
        let (Some(()), Some(next)) = (read, at.checked_add(in_page)) else {
            break;
        };
        stack.extend(bytes);
        at = next;
    }
    stack
}

/// The frame and the offset in it of a virtual address, by tables of 4 KiB
/// pages.
fn translate(memory: &impl DomainMemory, root: u64, address: u64) -> Option<(u64, u64)> {
    if !GuestVirt(address).is_canonical() {
        return None;
    }
    let mut frame = root;
    for shift in [39, 30, 21, 12] {
        let index = (address >> shift) & 511;
        let mut entry = [0; 8];
        let slot = Mfn(frame).addr()?.checked_add(index * 8)?;
        memory.read(slot, &mut entry).ok()?;
        let entry = u64::from_le_bytes(entry);
        let large = shift != 12 && entry & LARGE != 0;
        if entry & pte::PRESENT == 0 || large {
            return None;
        }
        frame = (entry & FRAME) >> 12;
    }
    Some((frame, GuestVirt(address).page_offset()))
}

/// The report of given registers and the bytes from the stack pointer on.
#[must_use]
pub fn crash_report(
    context: &VcpuGuestContext,
    image: Option<&KernelImage>,
    stack: &[u8],
) -> String {
    let mut text = String::new();
    let report = Report {
        context,
        image,
        stack,
    };
    // Writing to a String can't fail.
    let _ = report.write(&mut text);
    text
}

struct Report<'a> {
    context: &'a VcpuGuestContext,
    image: Option<&'a KernelImage>,
    stack: &'a [u8],
}

impl Report<'_> {
    fn write(&self, out: &mut String) -> fmt::Result {
        self.registers(out)?;
        self.stack_words(out)?;
        self.calls(out)
    }

    fn registers(&self, out: &mut String) -> fmt::Result {
        let c = self.context;
        let r = &c.user_regs;
        writeln!(
            out,
            "  rip  {:04x}:{:016x}  {}",
            r.cs,
            r.rip,
            self.name(r.rip)
        )?;
        writeln!(
            out,
            "  rsp  {:04x}:{:016x}  rflags {:016x}",
            r.ss, r.rsp, r.rflags
        )?;
        let general = [
            [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx)],
            [("rdx", r.rdx), ("rsi", r.rsi), ("rdi", r.rdi)],
            [("rbp", r.rbp), ("r8 ", r.r8), ("r9 ", r.r9)],
            [("r10", r.r10), ("r11", r.r11), ("r12", r.r12)],
            [("r13", r.r13), ("r14", r.r14), ("r15", r.r15)],
            [
                ("cr3", c.ctrlreg[3]),
                ("cr2", c.ctrlreg[2]),
                ("cr0", c.ctrlreg[0]),
            ],
            [
                ("fsb", c.fs_base),
                ("gsk", c.gs_base_kernel),
                ("gsu", c.gs_base_user),
            ],
        ];
        for row in general {
            for (name, value) in row {
                write!(out, "  {name} {value:016x}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        let words = self.stack.chunks_exact(8);
        words.filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)))
    }

    fn stack_words(&self, out: &mut String) -> fmt::Result {
        if self.stack.is_empty() {
            return writeln!(out, "  the stack is not mapped");
        }
        let words: Vec<u64> = self.words().take(STACK_WORDS).collect();
        let mut at = self.context.user_regs.rsp;
        for row in words.chunks(4) {
            write!(out, "  {at:016x}:")?;
            for word in row {
                write!(out, " {word:016x}")?;
            }
            writeln!(out)?;
            at = at.wrapping_add(32);
        }
        Ok(())
    }

    /// Every word on the stack that points behind an instruction may be a
    /// return address; some are left from earlier calls.
    fn calls(&self, out: &mut String) -> fmt::Result {
        let Some(image) = self.image else {
            return Ok(());
        };
        let mut calls = self
            .words()
            .filter(|&word| may_return_to(image, word))
            .take(CALLS)
            .peekable();
        if calls.peek().is_none() {
            return Ok(());
        }
        writeln!(
            out,
            "  calls, as far as the stack tells (some may be over):"
        )?;
        for address in calls {
            writeln!(out, "    {address:016x}  {}", caller(image, address))?;
        }
        Ok(())
    }

    fn name(&self, address: u64) -> String {
        match self.image {
            None => String::new(),
            Some(image) if !image.is_code(address) => "(not in the kernel's code)".into(),
            Some(image) => match image.symbolise(address) {
                Some((name, offset)) => format!("{name}+{offset:#x}"),
                None => "(kernel code)".into(),
            },
        }
    }
}

/// Whether a call may stand before `address`. Executable segments of Linux hold
/// data too: symbols tell.
fn may_return_to(image: &KernelImage, address: u64) -> bool {
    let Some(call) = address.checked_sub(1) else {
        return false;
    };
    let symbol = image.symbols().and_then(|symbols| symbols.lookup(call));
    image.is_code(call) && symbol.is_none_or(|symbol| symbol.kind == Kind::Code)
}

/// The function that a return address leads back to: that of the call, which
/// may be the function's last instruction.
fn caller(image: &KernelImage, address: u64) -> String {
    match image.symbolise(address - 1) {
        Some((name, offset)) => format!("{name}+{:#x}", offset + 1),
        None => "(kernel code)".into(),
    }
}

#[cfg(test)]
mod tests;
