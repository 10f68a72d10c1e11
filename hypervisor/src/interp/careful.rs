//! Alignment checks and breakpoints: what is too rare to slow anything else down.
//!
//! Law: with AC set or a breakpoint armed, instructions are executed one by one, and
//! what each of them touches is worked out before it runs. An instruction breakpoint
//! and a misaligned operand are faults; what is read or written traps after it.

use super::{
    Exit, Interpreter, code, exit,
    flags::{AC, TF},
    op::slot,
    state::{Cpu, Stop, vector},
};
use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, Register, UsedMemory};
use std::sync::atomic::{AtomicBool, Ordering};

/// A vCPU's debug registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Breakpoints {
    /// DR0 to DR3.
    pub address: [u64; 4],
    /// DR7.
    pub control: u64,
}

/// What a breakpoint waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Execution,
    Write,
    Access,
}

impl Breakpoints {
    /// Bits of DR7 that arm a breakpoint.
    const ENABLED: u64 = 0xff;

    /// Whether there is one.
    #[must_use]
    pub fn are_armed(&self) -> bool {
        self.control & Self::ENABLED != 0
    }

    /// Those that are armed: number, address, bytes, and what they wait for.
    fn armed(&self) -> impl Iterator<Item = (u32, u64, u64, Kind)> {
        (0u32..).zip(self.address).filter_map(|(n, address)| {
            let kind = match self.control >> (16 + 4 * n) & 3 {
                0 => Kind::Execution,
                1 => Kind::Write,
                3 => Kind::Access,
                // Ports: no guest has any.
                _ => return None,
            };
            let bytes = [1, 2, 8, 4][usize::try_from(self.control >> (18 + 4 * n) & 3).ok()?];
            (self.control >> (2 * n) & 3 != 0).then_some((n, address, bytes, kind))
        })
    }

    /// Bits of DR6 for an instruction at `address`.
    fn executed(&self, address: u64) -> u64 {
        self.armed()
            .filter(|(_, at, _, kind)| *kind == Kind::Execution && *at == address)
            .fold(0, |hits, (n, ..)| hits | 1 << n)
    }

    /// Bits of DR6 for an access.
    fn touched(&self, access: &Touch) -> u64 {
        let hit = |at: u64, bytes: u64| {
            let at = at & !(bytes - 1);
            access.address.wrapping_sub(at) < bytes
                || at.wrapping_sub(access.address) < access.bytes
        };
        self.armed()
            .filter(|(_, at, bytes, kind)| {
                let kind = *kind == Kind::Access || *kind == Kind::Write && access.writes;
                kind && hit(*at, *bytes)
            })
            .fold(0, |hits, (n, ..)| hits | 1 << n)
    }
}

/// An operand in memory.
#[derive(Debug, Clone, Copy)]
struct Touch {
    address: u64,
    bytes: u64,
    writes: bool,
}

impl Touch {
    /// Words, double words and quad words have to be aligned.
    fn is_misaligned(&self) -> bool {
        matches!(self.bytes, 2 | 4 | 8) && self.address & (self.bytes - 1) != 0
    }
}

impl Interpreter {
    /// Whether each instruction has to be looked at.
    pub(super) fn is_careful(&self) -> bool {
        self.cpu.model.alone
            && (self.cpu.other_flags & AC != 0 || self.cpu.model.breakpoints.are_armed())
    }

    /// As `execute`, one instruction after the other. The first one has no
    /// instruction breakpoint if it is `resumed` (RF).
    #[cold]
    pub(super) fn execute_carefully(
        &mut self,
        budget: u64,
        interrupt: &AtomicBool,
        mut resumed: bool,
    ) -> Exit {
        for _ in 0..budget {
            if interrupt.load(Ordering::Relaxed) {
                return Exit::Interrupted;
            }
            if !self.is_careful() {
                break;
            }
            self.used += 1;
            if let Some(exit) = self.careful_step(resumed) {
                return exit;
            }
            resumed = false;
        }
        Exit::Budget
    }

    /// One instruction, or one element of a repeated one; why not to go on, if so.
    pub(super) fn careful_step(&mut self, resumed: bool) -> Option<Exit> {
        let cpu = &mut self.cpu;
        let breakpoints = cpu.model.breakpoints;
        let executed = breakpoints.executed(cpu.rip);
        if executed != 0 && !resumed {
            cpu.model.hits |= executed;
            return Some(exit(Stop::Fault {
                vector: vector::DB,
                error: 0,
                cr2: 0,
            }));
        }
        let touched = match code::whole_instruction(cpu) {
            Some(instruction) => touched_by(cpu, &instruction),
            // The step tells why.
            None => Vec::new(),
        };
        if cpu.other_flags & AC != 0
            && let Some(stop) = touched.iter().find_map(|touch| misaligned(cpu, touch))
        {
            return Some(exit(stop));
        }
        let hits = touched
            .iter()
            .fold(0, |hits, touch| hits | breakpoints.touched(touch));
        let trapped = hits != 0 || cpu.other_flags & TF != 0;
        match self.step_once() {
            None | Some(Stop::Again) => {
                self.cpu.model.hits |= hits;
                trapped.then(|| exit(Stop::Software(vector::DB)))
            }
            Some(stop) => Some(exit(stop)),
        }
    }
}

/// What the alignment check says of an operand: nothing, #AC, or the page fault that
/// comes before it.
fn misaligned(cpu: &mut Cpu, touch: &Touch) -> Option<Stop> {
    if !touch.is_misaligned() {
        return None;
    }
    let last = touch.address.wrapping_add(touch.bytes - 1);
    // In the second page, its first byte is the one that faults.
    for address in [touch.address, touch.address.max(last & !0xfff)] {
        let place = if touch.writes {
            cpu.write_place(address, 1)
        } else {
            cpu.read_place(address)
        };
        match (place, cpu.stop) {
            (Ok(_), _) | (Err(_), Stop::OverCode(_)) => {}
            // The step tells which exception it is.
            (Err(_), Stop::NotCanonical) => return None,
            (Err(_), stop) => return Some(stop),
        }
    }
    Some(Stop::Fault {
        vector: vector::AC,
        error: 0,
        cr2: 0,
    })
}

/// The operands in memory that an instruction will have with these registers. (Of one
/// with a vector of addresses none is told.)
fn touched_by(cpu: &Cpu, instruction: &Instruction) -> Vec<Touch> {
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    if repeated && instruction.is_string_instruction() && count(cpu, instruction) == 0 {
        return Vec::new();
    }
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(instruction).used_memory();
    used.iter()
        .filter_map(|memory| touch(cpu, instruction, memory))
        .collect()
}

/// How often a repeated instruction is still to be done.
fn count(cpu: &Cpu, instruction: &Instruction) -> u64 {
    use iced_x86::OpKind as K;
    let short = |n| matches!(instruction.op_kind(n), K::MemoryESEDI | K::MemorySegESI);
    let count = cpu.get::<u64>(slot::RCX);
    if (0..instruction.op_count()).any(short) {
        count & 0xffff_ffff
    } else {
        count
    }
}

fn touch(cpu: &Cpu, instruction: &Instruction, memory: &UsedMemory) -> Option<Touch> {
    let writes = match memory.access() {
        OpAccess::Read | OpAccess::CondRead => false,
        OpAccess::None | OpAccess::NoMemAccess => return None,
        _ => true,
    };
    // A repeated string instruction's element has no size there.
    let size = match memory.memory_size().size() {
        0 => instruction.memory_size().size(),
        size => size,
    };
    let address = memory.virtual_address(0, |register, _, _| value_of(cpu, register))?;
    Some(Touch {
        address: if cpu.compat.is_some() {
            address & 0xffff_ffff
        } else {
            address
        },
        bytes: u64::try_from(size).ok().filter(|size| *size != 0)?,
        writes,
    })
}

fn value_of(cpu: &Cpu, register: Register) -> Option<u64> {
    match register {
        Register::FS => Some(cpu.get(slot::FS)),
        Register::GS => Some(cpu.get(slot::GS)),
        r if r.is_segment_register() => Some(0),
        r => {
            let value = cpu.get::<u64>(super::decode::register(r)?);
            Some(if r.size() == 4 {
                value & 0xffff_ffff
            } else {
                value
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(address: u64, bytes: u64, writes: bool) -> Touch {
        Touch {
            address,
            bytes,
            writes,
        }
    }

    #[test]
    fn a_breakpoint_is_hit_by_what_overlaps_it() {
        // DR1: 4 bytes, written; DR2: 8 bytes, read or written; DR3 is not armed.
        let breakpoints = Breakpoints {
            address: [0, 0x1002, 0x2000, 0x1000],
            control: 1 << 2 | 1 << 5 | 0b1101 << 20 | 0b1011 << 24 | 0b1111 << 28,
        };
        assert_eq!(breakpoints.touched(&touch(0x1000, 1, true)), 2);
        assert_eq!(breakpoints.touched(&touch(0x1003, 8, true)), 2);
        assert_eq!(breakpoints.touched(&touch(0xff8, 8, true)), 0);
        assert_eq!(breakpoints.touched(&touch(0xff9, 8, true)), 2);
        assert_eq!(breakpoints.touched(&touch(0x1000, 4, false)), 0);
        assert_eq!(breakpoints.touched(&touch(0x2007, 1, false)), 4);
        assert_eq!(breakpoints.touched(&touch(0x2008, 1, false)), 0);
        assert_eq!(breakpoints.executed(0x2000), 0);
    }

    #[test]
    fn an_instruction_breakpoint_is_an_address() {
        let breakpoints = Breakpoints {
            address: [0x1000, 0, 0, 0],
            control: 1,
        };
        assert_eq!(breakpoints.executed(0x1000), 1);
        assert_eq!(breakpoints.executed(0x1001), 0);
        assert_eq!(breakpoints.touched(&touch(0x1000, 8, true)), 0);
    }
}
