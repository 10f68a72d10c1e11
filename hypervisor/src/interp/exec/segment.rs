//! Segment registers: their bases, what can be done with selectors without a
//! descriptor table, and `iret` to where it came from.
//!
//! Law: the interpreter knows no descriptors. A selector is loaded only if it
//! is null and the register holds it already, which changes nothing but the base.

use super::stack::FOR_ENGINE;
use crate::cpu::Segment;
use crate::interp::{
    decode::Shape,
    far::POPPED,
    host::{NULL_CLEARS_BASE, Word},
    op::{Flow, Handler, Op, Outcome, slot},
    state::{Cpu, Stop, canonical, vector},
};
use iced_x86::{Code, Instruction, OpKind, Register};

/// Indices into [`Model::selectors`](crate::interp::Model::selectors).
pub(super) const ES: usize = 0;
const CS: usize = 1;
pub(super) const SS: usize = 2;
const FS: usize = 4;
const GS: usize = 5;
/// Selectors of flat data segments and of the code segment, which can be read.
const FLAT: [u16; 2] = [0x2b, 0x33];
/// The error code with which an instruction that looks into a descriptor table is
/// handed to who has one; never zero, whatever its selector.
const INSPECTS: u32 = 0xfff8;
/// NT: `iret` would be a task switch.
const NESTED_TASK: u64 = 1 << 14;

fn read_base<const SLOT: u8, W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let base = cpu.get::<u64>(SLOT);
    cpu.set(op.dst, W::low(base));
    Ok(Flow::Next)
}

fn write_base<const SLOT: u8, W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let base = cpu.get::<W>(op.dst).zext();
    if !canonical(base) {
        return cpu.fault(vector::GP, 0);
    }
    cpu.set(SLOT, base);
    Ok(Flow::Next)
}

/// The selector whose index is the immediate.
fn selector(cpu: &Cpu, op: &Op) -> Option<u16> {
    *cpu.model.selectors.get(usize::try_from(op.imm).ok()?)?
}

fn store_selector<const MEM: bool, W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let Some(selector) = selector(cpu, op) else {
        return cpu.halt(Stop::Unknown);
    };
    if MEM {
        cpu.store(cpu.address(op), selector)?;
    } else {
        cpu.set(op.dst, W::low(selector.into()));
    }
    Ok(Flow::Next)
}

fn push_selector(cpu: &mut Cpu, op: &Op) -> Outcome {
    let Some(selector) = selector(cpu, op) else {
        return cpu.halt(Stop::Unknown);
    };
    cpu.push(u64::from(selector))?;
    Ok(Flow::Next)
}

fn load_selector<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let value = super::operand::<MEM, u16>(cpu, op, op.dst)?;
    if cpu.model.alone {
        return load_alone(cpu, op, value);
    }
    if value > 3 || selector(cpu, op) != Some(value) {
        return cpu.halt(Stop::Unknown);
    }
    let base = match usize::try_from(op.imm) {
        Ok(FS) => slot::FS,
        Ok(GS) => slot::GS,
        _ => return Ok(Flow::Next),
    };
    if *NULL_CLEARS_BASE {
        cpu.set(base, 0u64);
    } else if cpu.get::<u64>(base) != 0 {
        return cpu.halt(Stop::Unknown);
    }
    Ok(Flow::Next)
}

/// Without an engine: null selectors, and those of the flat segments that the
/// KVM engine has too.
fn load_alone(cpu: &mut Cpu, op: &Op, value: u16) -> Outcome {
    let register = usize::try_from(op.imm).unwrap_or(CS);
    let null = value & !3 == 0;
    match register {
        CS => return cpu.fault(vector::UD, 0),
        SS if null => return cpu.fault(vector::GP, 0),
        _ if null || FLAT.contains(&(value | 3)) => {}
        _ => return cpu.fault(vector::GP, u32::from(value & !3)),
    }
    cpu.model.selectors[register] = Some(value);
    cpu.segments[register] = if null { Segment::NONE } else { Segment::FLAT };
    match register {
        FS => cpu.set(slot::FS, 0u64),
        GS => cpu.set(slot::GS, 0u64),
        _ => {}
    }
    Ok(Flow::Next)
}

/// `lar`, `lsl`, `verr` and `verw` look into descriptor tables, as loads do.
fn inspect<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Outcome {
    if MEM {
        cpu.load::<u16>(cpu.address(op))?;
    }
    if cpu.model.alone {
        return cpu.fault(vector::GP, INSPECTS);
    }
    cpu.halt(Stop::Unknown)
}

/// What only a descriptor table tells.
pub fn for_descriptor_tables(cpu: &mut Cpu, _: &Op) -> Outcome {
    if cpu.model.alone {
        return cpu.fault(vector::GP, INSPECTS);
    }
    cpu.halt(Stop::Unknown)
}

/// `iretq` within ring 3 and the same segments.
fn return_within_ring(cpu: &mut Cpu, op: &Op) -> Outcome {
    let stack = cpu.get::<u64>(slot::RSP);
    let mut frame = [0u64; 5];
    for (word, offset) in frame.iter_mut().zip((0..).step_by(8)) {
        *word = cpu.load(stack.wrapping_add(offset))?;
    }
    let [rip, cs, rflags, rsp, ss] = frame;
    let now = &cpu.model.selectors;
    let same = now[CS] == Some(u16::low(cs)) && now[SS] == Some(u16::low(ss));
    let for_engine = rflags & FOR_ENGINE != 0 && !cpu.model.alone;
    let odd = for_engine || cpu.other_flags & NESTED_TASK != 0;
    if !same {
        return for_descriptor_tables(cpu, op);
    }
    if odd || !canonical(rip) {
        return if cpu.model.alone {
            cpu.fault(vector::GP, 0)
        } else {
            cpu.halt(Stop::Unknown)
        };
    }
    let kept = cpu.rflags() & !POPPED;
    cpu.set_rflags(kept | (rflags & POPPED));
    cpu.set(slot::RSP, rsp);
    let flow = cpu.jump(rip)?;
    if rflags & FOR_ENGINE != 0 {
        return cpu.halt(Stop::Again);
    }
    Ok(flow)
}

/// The handler for `iretq`.
pub fn iretq(op: &mut Op) -> Handler {
    op.scale |= Op::STACK;
    return_within_ring
}

/// The number of a segment register.
fn number(register: Register) -> Option<u64> {
    register
        .is_segment_register()
        .then(|| register.number() as u64)
}

fn choose_store(i: &Instruction, shape: Shape, op: &mut Op) -> Option<Handler> {
    op.imm = number(i.op1_register())?;
    Some(match (shape.memory, shape.width) {
        (true, _) => store_selector::<true, u16>,
        (false, 2) => store_selector::<false, u16>,
        (false, _) => store_selector::<false, u64>,
    })
}

fn choose_load(i: &Instruction, shape: Shape, op: &mut Op) -> Option<Handler> {
    op.imm = number(i.op0_register())?;
    Some(if shape.memory {
        load_selector::<true>
    } else {
        load_selector::<false>
    })
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, shape: Shape, op: &mut Op) -> Option<Handler> {
    Some(match i.code() {
        Code::Rdfsbase_r32 => read_base::<{ slot::FS }, u32>,
        Code::Rdfsbase_r64 => read_base::<{ slot::FS }, u64>,
        Code::Rdgsbase_r32 => read_base::<{ slot::GS }, u32>,
        Code::Rdgsbase_r64 => read_base::<{ slot::GS }, u64>,
        Code::Wrfsbase_r32 => write_base::<{ slot::FS }, u32>,
        Code::Wrfsbase_r64 => write_base::<{ slot::FS }, u64>,
        Code::Wrgsbase_r32 => write_base::<{ slot::GS }, u32>,
        Code::Wrgsbase_r64 => write_base::<{ slot::GS }, u64>,
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
            return choose_store(i, shape, op);
        }
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
            return choose_load(i, shape, op);
        }
        Code::Lar_r16_rm16
        | Code::Lar_r32_r32m16
        | Code::Lar_r64_r64m16
        | Code::Lsl_r16_rm16
        | Code::Lsl_r32_r32m16
        | Code::Lsl_r64_r64m16
        | Code::Verr_rm16
        | Code::Verr_r32m16
        | Code::Verr_r64m16
        | Code::Verw_rm16
        | Code::Verw_r32m16
        | Code::Verw_r64m16 => {
            if shape.memory {
                inspect::<true>
            } else {
                inspect::<false>
            }
        }
        Code::Pushq_FS | Code::Pushq_GS if i.op0_kind() == OpKind::Register => {
            op.imm = number(i.op0_register())?;
            op.scale |= Op::STACK;
            push_selector
        }
        Code::Popq_FS | Code::Popq_GS => for_descriptor_tables,
        _ => return None,
    })
}
