//! Reads pages from inside the VM: what it finds there is what KVM's own tables
//! map, which must be what the guest's tables in memory say.

use super::Checker;
use crate::{
    cpu::{Context, Trap, reg},
    engine::{Entry, kvm::PROBE_CODE},
    vcpu::{Crash, Vcpu},
};
use guest_abi::addr::{MachineAddr, Mfn};

/// Pages in one go.
const PAGES: usize = 8;
const PRESENT_USER: u64 = 5;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl Vcpu {
    /// Compares some pages that the current tables map. A kick ends it.
    pub(super) fn probe_pages(&mut self, checker: &mut Checker) -> Result<Option<Trap>, Crash> {
        for _ in 0..PAGES {
            let Some((address, at)) = self.random_page(checker) else {
                continue;
            };
            let before = self.domain.space.memory.load(at);
            let (trap, seen) = self.read_inside(address)?;
            match trap {
                Trap::Syscall => {}
                Trap::Kick => return Ok(Some(trap)),
                Trap::Exception { .. } => continue,
            }
            checker.counts.probes += 1;
            // Dom0 may have written in between.
            let after = self.domain.space.memory.load(at);
            if before == after && before.is_some_and(|before| before != seen) {
                let text = format!(
                    "the VM reads {seen:#x} at {address:#x}, where the tables map {:#x} with {before:x?}",
                    at.0
                );
                let context = self.state.context;
                self.tell(checker, &context, &text);
            }
        }
        Ok(None)
    }

    /// A page that the current root maps: a virtual address in it, and the machine
    /// address behind that.
    fn random_page(&self, checker: &mut Checker) -> Option<(u64, MachineAddr)> {
        let (mut table, mut address) = (self.state.root(), 0u64);
        for level in (0..4).rev() {
            let start = checker.next_random();
            let (index, entry) = (0..512).find_map(|step| {
                let index = (start + step) & 511;
                let guests = level != 3 || !(256..272).contains(&index);
                let entry = self
                    .domain
                    .space
                    .memory
                    .load(MachineAddr((table.0 << 12) + index * 8))?;
                (guests && entry & PRESENT_USER == PRESENT_USER).then_some((index, entry))
            })?;
            if level != 0 && entry & LARGE != 0 {
                return None;
            }
            address |= index << (12 + 9 * level);
            table = Mfn((entry & ADDRESS) >> 12);
        }
        let offset = checker.next_random() & 0xff8;
        if !self.domain.space.memory.is_ram(table) {
            return None;
        }
        let sign = if address >> 47 & 1 != 0 {
            0xffff << 48
        } else {
            0
        };
        Some((
            sign | address | offset,
            MachineAddr((table.0 << 12) + offset),
        ))
    }

    /// A word as the VM reads it, if the trap is the `syscall` after the load.
    fn read_inside(&mut self, address: u64) -> Result<(Trap, u64), Crash> {
        let mut context = Context {
            rip: PROBE_CODE,
            rflags: 2,
            ..self.state.context
        };
        context.gpr[reg::RAX] = address;
        let trap = self.engine.run(&mut Entry {
            context: &mut context,
            root: self.state.root(),
            flush: self.flush.replace(false),
            writes: self.writes.get_mut(),
        })?;
        Ok((trap, context.gpr[reg::RBX]))
    }
}

impl Checker {
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 3
    }
}
