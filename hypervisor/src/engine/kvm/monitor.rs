//! Writes the monitor's pages: descriptor tables, stubs, page tables.
//!
//! Law: nothing in these pages is trusted after the guest has run. The process
//! takes from them only what the guest could have set anyway (its own
//! registers), and never an address or a length.

use super::layout::{self as at, VcpuArea, selector};
use crate::{engine::EngineError, memory::MachineMemory};
use guest_abi::addr::{MachineAddr, Mfn};

/// The most vCPUs of a domain.
pub const MAX_VCPUS: u32 = 32;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Present, writable, supervisor; accessed and dirty so that no CPU writes it.
const SUPERVISOR: u64 = PRESENT | WRITE | ACCESSED | DIRTY;

/// Values for the hypervisor's L4 slots 256..=271.
pub type HypervisorSlots = [u64; 16];

/// Writes all monitor pages of a fresh domain, for at most `vcpus` vCPUs. Says
/// what its L4 tables hold in the hypervisor's slots, whatever engine runs it.
///
/// # Errors
/// The page tables for this much memory exceed the low area.
pub fn install(memory: &MachineMemory, vcpus: u32) -> Result<HypervisorSlots, EngineError> {
    write_all(memory, vcpus).ok_or(EngineError::Layout(
        "page tables for this much memory exceed the low area",
    ))
}

fn write_all(memory: &MachineMemory, vcpus: u32) -> Option<HypervisorSlots> {
    write_stubs(memory)?;
    write_syscall_page(memory)?;
    write_idt(memory)?;
    write_gdt(memory, vcpus)?;
    for vcpu in 0..vcpus {
        write_tss(memory, VcpuArea(vcpu))?;
    }
    write_tables(memory, vcpus)
}

fn write_stubs(memory: &MachineMemory) -> Option<()> {
    let mut page = [0xf4; 4096]; // hlt
    for stub in page[..at::ENTRY_OFFSET].chunks_exact_mut(at::STUB_BYTES) {
        stub[..2].copy_from_slice(&[0xe6, at::PORT_TRAP]); // out %al, $port
    }
    let mut code = Vec::new();
    for _ in 0..at::ENTRY_WRITES {
        code.extend([0x5f, 0xf0, 0x48, 0x83, 0x0f, 0x00]); // pop %rdi; lock orq $0, (%rdi)
    }
    code.extend([0x5f, 0x48, 0xcf]); // pop %rdi; iretq
    let start = at::ENTRY_OFFSET;
    page[start..start + code.len()].copy_from_slice(&code);
    memory.write(at::MFN_STUBS.addr()?, &page)
}

fn write_syscall_page(memory: &MachineMemory) -> Option<()> {
    let mut page = [0xf4; 4096];
    page[..2].copy_from_slice(&[0xe6, at::PORT_SYSCALL]);
    // mov (%rax), %rbx; syscall: for the checker. It does what any guest can do.
    page[0x100..0x105].copy_from_slice(&[0x48, 0x8b, 0x18, 0x0f, 0x05]);
    memory.write(at::MFN_SYSCALL.addr()?, &page)
}

fn write_idt(memory: &MachineMemory) -> Option<()> {
    let base = at::MFN_IDT.addr()?.0;
    for vector in 0..32u64 {
        let handler = at::STUBS + vector * at::STUB_BYTES as u64;
        // int3 and into may come from ring 3 as instructions.
        let dpl: u64 = if vector == 3 || vector == 4 { 3 } else { 0 };
        let low = (handler & 0xffff)
            | u64::from(selector::KERNEL_CODE) << 16
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        memory.store(MachineAddr(base + vector * 16), low)?;
        memory.store(MachineAddr(base + vector * 16 + 8), handler >> 32)?;
    }
    Some(())
}

/// One GDT serves all vCPUs: the TSS descriptors stand in a row.
fn write_gdt(memory: &MachineMemory, vcpus: u32) -> Option<()> {
    let base = at::MFN_GDT.addr()?.0;
    let code = |dpl: u64| 0x00af_9b00_0000_ffff | dpl << 45;
    let data = |dpl: u64| 0x00cf_9300_0000_ffff | dpl << 45;
    let entries = [
        (selector::KERNEL_CODE, code(0)),
        (selector::KERNEL_DATA, data(0)),
        (selector::USER_DATA & !3, data(3)),
        (selector::USER_CODE & !3, code(3)),
    ];
    for (selector, descriptor) in entries {
        memory.store(MachineAddr(base + u64::from(selector)), descriptor)?;
    }
    for vcpu in 0..vcpus {
        let tss = VcpuArea(vcpu).virt(0);
        let low = TSS_LIMIT | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56;
        let slot = base + u64::from(tss_selector(vcpu));
        memory.store(MachineAddr(slot), low)?;
        memory.store(MachineAddr(slot + 8), tss >> 32)?;
    }
    Some(())
}

/// The selector of a vCPU's TSS.
#[must_use]
pub fn tss_selector(vcpu: u32) -> u16 {
    selector::TSS + 16 * u16::try_from(vcpu).unwrap_or(0)
}

/// The TSS, 32 bytes of I/O bitmap, and the byte of ones that ends it.
pub const TSS_LIMIT: u64 = 0x68 + 32;

fn write_tss(memory: &MachineMemory, area: VcpuArea) -> Option<()> {
    let base = area.tss().addr()?.0;
    memory.write(MachineAddr(base + 4), &area.trap_stack_top().to_le_bytes())?; // rsp0
    memory.write(MachineAddr(base + 0x66), &0x68u16.to_le_bytes())?;
    let mut bitmap = [0xffu8; 33];
    bitmap[usize::from(at::PORT_SYSCALL / 8)] &= !(1 << (at::PORT_SYSCALL % 8));
    memory.write(MachineAddr(base + 0x68), &bitmap)
}

/// Hands out frames for page tables and fills them.
struct Tables<'a> {
    memory: &'a MachineMemory,
    next: u64,
}

impl Tables<'_> {
    fn table(&mut self) -> Option<Mfn> {
        let mfn = Mfn(self.next);
        self.next += 1;
        (mfn < at::MFN_VCPUS).then_some(mfn)
    }

    /// The table that `index` of `table` points to, made when missing.
    fn descend(&mut self, table: Mfn, index: u64, flags: u64) -> Option<Mfn> {
        let slot = MachineAddr(table.addr()?.0 + index * 8);
        let entry = self.memory.load(slot)?;
        if entry & PRESENT != 0 {
            return Some(MachineAddr(entry & 0x000f_ffff_ffff_f000).frame());
        }
        let next = self.table()?;
        self.memory.store(slot, next.addr()?.0 | flags)?;
        Some(next)
    }

    /// Maps a 4 KiB page (`level` 1) or a 2 MiB one (`level` 2) below `l3`.
    fn map(
        &mut self,
        l3: Mfn,
        virt: u64,
        target: u64,
        level: u32,
        leaf: u64,
        tables: u64,
    ) -> Option<()> {
        let mut table = self.descend(l3, virt >> 30 & 511, tables)?;
        if level == 1 {
            table = self.descend(table, virt >> 21 & 511, tables)?;
        }
        let shift = if level == 1 { 12 } else { 21 };
        let slot = table.addr()?.0 + (virt >> shift & 511) * 8;
        self.memory.store(MachineAddr(slot), target | leaf)
    }
}

fn write_tables(memory: &MachineMemory, vcpus: u32) -> Option<HypervisorSlots> {
    let mut tables = Tables {
        memory,
        next: at::MFN_TABLES.0,
    };
    let (guest, monitor, alias) = (tables.table()?, tables.table()?, tables.table()?);
    map_guest_slot(&mut tables, guest)?;
    map_monitor(&mut tables, monitor, vcpus)?;
    let mut addr = 0;
    while addr < memory.end() {
        let leaf = SUPERVISOR | LARGE | NO_EXECUTE;
        tables.map(alias, at::ALIAS + addr, addr, 2, leaf, SUPERVISOR)?;
        addr += 2 << 20;
    }
    let mut slots = [0; 16];
    slots[at::SLOT_GUEST - 256] = guest.addr()?.0 | PRESENT | USER | ACCESSED;
    slots[at::SLOT_MONITOR - 256] = monitor.addr()?.0 | SUPERVISOR;
    slots[at::SLOT_ALIAS - 256] = alias.addr()?.0 | SUPERVISOR;
    Some(slots)
}

/// The only part that ring 3 can reach: read-only at every level.
fn map_guest_slot(tables: &mut Tables<'_>, l3: Mfn) -> Option<()> {
    let upper = PRESENT | USER | ACCESSED;
    let table = tables.memory.m2p_area();
    let (start, bytes) = (table.start(), table.bytes());
    for offset in (0..bytes).step_by(4096) {
        let leaf = PRESENT | USER | ACCESSED | DIRTY | NO_EXECUTE;
        tables.map(l3, at::M2P + offset, start + offset, 1, leaf, upper)?;
    }
    let leaf = PRESENT | USER | ACCESSED | DIRTY;
    tables.map(
        l3,
        at::SYSCALL_PAGE,
        at::MFN_SYSCALL.addr()?.0,
        1,
        leaf,
        upper,
    )
}

fn map_monitor(tables: &mut Tables<'_>, l3: Mfn, vcpus: u32) -> Option<()> {
    let shared = [
        (at::STUBS, at::MFN_STUBS),
        (at::IDT, at::MFN_IDT),
        (at::GDT, at::MFN_GDT),
    ];
    let own = (0..vcpus).flat_map(|vcpu| VcpuArea(vcpu).pages());
    for (virt, frame) in shared.into_iter().chain(own) {
        tables.map(l3, virt, frame.addr()?.0, 1, SUPERVISOR, SUPERVISOR)?;
    }
    Some(())
}
