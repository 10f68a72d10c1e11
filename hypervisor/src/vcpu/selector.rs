//! Loads of segment registers that need the guest's descriptor tables.
//!
//! A processor would read them by itself. The KVM engine's own tables hold only
//! flat segments, and the interpreter has none: both raise #GP with the selector
//! for an error code, and the load is done here.
//!
//! Law: any data segment of ring 3 may be loaded. What its descriptor says now holds until
//! the register is loaded anew; 64-bit code is held to the bases of FS and GS alone. What is
//! refused stays a fault of the guest's.

use super::Vcpu;
use super::inspect::limit;
use crate::{
    cpu::{Segment, reg},
    guest_access::GuestAccessExt,
};
use guest_abi::{addr::GuestVirt, arch_x86_64::FLAT_RING3_SS32};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};

const PRESENT: u64 = 1 << 47;
const NOT_SYSTEM: u64 = 1 << 44;
const CODE: u64 = 1 << 43;
/// Of a data segment: its limit is its lower end.
const EXPANDS_DOWN: u64 = 1 << 42;
/// Of a data segment that expands down: it reaches to 4 GiB, not to 64 KiB.
const BIG: u64 = 1 << 54;
/// Of a data segment: it can be written.
const WRITABLE: u64 = 1 << 41;
/// Of a code segment: it can be read.
const READABLE: u64 = 1 << 41;

/// A descriptor's base.
#[must_use]
pub fn base_of(descriptor: u64) -> u64 {
    descriptor >> 16 & 0xff_ffff | descriptor >> 56 << 24
}

/// Whether ring 3 may load a data segment register with it.
fn is_data(descriptor: u64) -> bool {
    descriptor & PRESENT != 0
        && descriptor & NOT_SYSTEM != 0
        && descriptor >> 45 & 3 == 3
        && (descriptor & CODE == 0 || descriptor & READABLE != 0)
}

/// What 32-bit code reaches through a segment with this descriptor.
#[must_use]
pub fn segment_of(descriptor: u64) -> Segment {
    let limit = u32::try_from(limit(descriptor)).unwrap_or(u32::MAX);
    let (first, last) = match (descriptor & (CODE | EXPANDS_DOWN), limit) {
        (EXPANDS_DOWN, u32::MAX) => (1, 0),
        (EXPANDS_DOWN, _) if descriptor & BIG != 0 => (limit + 1, u32::MAX),
        (EXPANDS_DOWN, _) => (limit + 1, 0xffff),
        _ => (0, limit),
    };
    Segment {
        base: u32::try_from(base_of(descriptor)).unwrap_or(0),
        first,
        last,
        writable: descriptor & CODE == 0 && descriptor & WRITABLE != 0,
    }
}

/// FS and GS: their base is elsewhere.
fn without_base(segment: Segment) -> Segment {
    Segment { base: 0, ..segment }
}

/// The selector that an instruction loads, and how far it pops the stack.
struct Load {
    register: Register,
    selector: u16,
    popped: u64,
    /// A general register that is loaded with it, and its value.
    offset: Option<(usize, u64)>,
}

impl Vcpu {
    /// Does what the instruction `code` at `rip` wants of a descriptor. `false`
    /// if it wants nothing, or is refused.
    pub(super) fn use_selector(&mut self, code: &[u8]) -> bool {
        let bits = if self.state.context.compat.is_some() {
            32
        } else {
            64
        };
        let rip = self.state.context.rip;
        let insn = Decoder::with_ip(bits, code, rip, DecoderOptions::NONE).decode();
        self.load_selector(&insn) || self.inspect_selector(&insn)
    }

    /// Does a load. `false` if it is none, or one that is refused.
    fn load_selector(&mut self, insn: &Instruction) -> bool {
        let Some(load) = self.decode_load(insn) else {
            return false;
        };
        let null = load.selector & !3 == 0 && load.register != Register::SS;
        let id = self.shared.id;
        let descriptor = self
            .lock_mm()
            .read_descriptor(&self.tables(), id, load.selector)
            .filter(|descriptor| is_data(*descriptor));
        let found = descriptor.map(segment_of);
        let Some(segment) = found.or(null.then_some(Segment::NONE)) else {
            return false;
        };
        let base = u64::from(segment.base);
        let (data, segments) = (load.selector, without_base(segment));
        let context = &mut self.state.context;
        match load.register {
            Register::FS => {
                (context.data.fs, context.segments.fs) = (data, segments);
                context.fs_base = base;
            }
            Register::GS => {
                (context.data.gs, context.segments.gs) = (data, segments);
                context.gs_base = base;
            }
            Register::ES => (context.data.es, context.segments.es) = (data, segment),
            Register::DS => (context.data.ds, context.segments.ds) = (data, segment),
            Register::SS if segment.writable => {
                context.segments.ss = segment;
                if let Some(compat) = &mut context.compat {
                    compat.ss = data;
                }
            }
            _ => return false,
        }
        if let Some((register, value)) = load.offset {
            context.gpr[register] = value;
        }
        let stack = &mut context.gpr[reg::RSP];
        *stack = stack.wrapping_add(load.popped);
        context.rip = insn.next_ip();
        true
    }

    /// Makes SS the segment of 32-bit code's stack. `false` if it may not be.
    pub(crate) fn load_stack(&mut self, selector: u16) -> bool {
        /// Linux' own, Xen's, and this engine's: flat.
        const FLAT: [u16; 2] = [0x2b, FLAT_RING3_SS32];
        let segment = if FLAT.contains(&selector) {
            Some(Segment::FLAT)
        } else {
            let found = self
                .lock_mm()
                .read_descriptor(&self.tables(), self.shared.id, selector);
            found.filter(|found| is_data(*found)).map(segment_of)
        };
        let Some(segment) = segment.filter(|segment| segment.writable) else {
            return false;
        };
        self.state.context.segments.ss = segment;
        true
    }

    fn decode_load(&mut self, insn: &Instruction) -> Option<Load> {
        let popped = match insn.code() {
            Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => 0,
            Code::Popw_DS | Code::Popw_ES | Code::Popw_FS | Code::Popw_GS | Code::Popw_SS => 2,
            Code::Popd_DS | Code::Popd_ES | Code::Popd_FS | Code::Popd_GS | Code::Popd_SS => 4,
            Code::Popq_FS | Code::Popq_GS => 8,
            Code::Les_r32_m1632 | Code::Lds_r32_m1632 => return self.decode_far_load(insn),
            _ => return None,
        };
        let selector = match popped {
            0 => self.selector_at(insn, 1)?,
            _ => self.selector_in_memory(self.stack_address(0))?,
        };
        Some(Load {
            register: insn.op0_register(),
            selector,
            popped,
            offset: None,
        })
    }

    /// `lds` and `les`: a selector behind an offset, which is for a general register.
    fn decode_far_load(&mut self, insn: &Instruction) -> Option<Load> {
        let at = self.memory_operand(insn, 1)?;
        let selector = self.selector_in_memory((at + 4) & 0xffff_ffff)?;
        let offset: u32 = self.access().read_obj(GuestVirt(at)).ok()?;
        Some(Load {
            register: match insn.code() {
                Code::Les_r32_m1632 => Register::ES,
                _ => Register::DS,
            },
            selector,
            popped: 0,
            offset: Some((insn.op0_register().number() & 15, offset.into())),
        })
    }

    /// The selector that is this operand of an instruction.
    pub(super) fn selector_at(&self, insn: &Instruction, operand: u32) -> Option<u16> {
        if insn.op_kind(operand) != OpKind::Register {
            return self.selector_in_memory(self.memory_operand(insn, operand)?);
        }
        let value = self.state.context.gpr[insn.op_register(operand).number() & 15];
        u16::try_from(value & 0xffff).ok()
    }

    /// The linear address of a word on the running code's stack.
    pub(super) fn stack_address(&self, offset: u64) -> u64 {
        let context = &self.state.context;
        let at = context.gpr[reg::RSP].wrapping_add(offset);
        match context.compat {
            Some(_) => {
                (at & 0xffff_ffff).wrapping_add(context.segments.ss.base.into()) & 0xffff_ffff
            }
            None => at,
        }
    }

    fn selector_in_memory(&self, address: u64) -> Option<u16> {
        self.access().read_obj(GuestVirt(address)).ok()
    }

    /// The linear address of a memory operand.
    pub(super) fn memory_operand(&self, insn: &Instruction, operand: u32) -> Option<u64> {
        let context = &self.state.context;
        let address = insn.virtual_address(operand, 0, |register, _, _| {
            Some(match register {
                Register::FS => context.fs_base,
                Register::GS => context.gs_base,
                Register::DS if context.compat.is_some() => context.segments.ds.base.into(),
                Register::ES if context.compat.is_some() => context.segments.es.base.into(),
                Register::SS if context.compat.is_some() => context.segments.ss.base.into(),
                r if r.is_segment_register() => 0,
                r => {
                    let value = context.gpr[r.full_register().number() & 15];
                    if r.size() == 4 {
                        value & 0xffff_ffff
                    } else {
                        value
                    }
                }
            })
        })?;
        Some(if context.compat.is_some() {
            address & 0xffff_ffff
        } else {
            address
        })
    }
}
