//! What leaves the interpreter: traps, privileged instructions, and whatever
//! it does not know; and the few system instructions that ring 3 may execute.
//!
//! Law: a privileged instruction is #GP(0) as in ring 3 on hardware; the layer
//! above decides whether to emulate it. When in doubt, an instruction is
//! unknown: the engine has the last word.

use super::segment;
use crate::interp::{
    decode::{Choice, Form, Shape},
    far::Far,
    flags::Flags,
    host::{Word, random_number, random_seed, time_stamp},
    op::{Flow, Handler, Op, Outcome, slot},
    state::{Cpu, Stop, vector},
};
use iced_x86::{Instruction, Mnemonic};
use std::sync::atomic::{Ordering, fence};

/// An instruction that somebody else has to execute.
pub fn unknown(cpu: &mut Cpu, _: &Op) -> Outcome {
    cpu.halt(Stop::Unknown)
}

fn privileged(cpu: &mut Cpu, _: &Op) -> Outcome {
    cpu.fault(vector::GP, 0)
}

/// #UD.
pub fn undefined(cpu: &mut Cpu, _: &Op) -> Outcome {
    cpu.fault(vector::UD, 0)
}

fn syscall(cpu: &mut Cpu, op: &Op) -> Outcome {
    let next = cpu.in_page(op.next());
    let rflags = cpu.rflags();
    cpu.set(slot::RCX, next);
    cpu.set(slot::R11, rflags);
    cpu.rip = next;
    cpu.halt(Stop::Syscall)
}

/// `int3`, `int1`, and `int n` for a vector with a gate for ring 3: the
/// immediate says which.
fn software(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.rip = cpu.in_page(op.next());
    cpu.halt(Stop::Software(op.imm.to_le_bytes()[0]))
}

/// `int n`: the gate is not for ring 3; the error code names it.
fn int(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.fault(vector::GP, u32::low(op.imm) * 8 + 2)
}

fn mfence(_: &mut Cpu, _: &Op) -> Outcome {
    fence(Ordering::SeqCst);
    Ok(Flow::Next)
}

/// Cache-line hints check their operand as a load does.
fn touch(cpu: &mut Cpu, op: &Op) -> Outcome {
    cpu.load::<u8>(cpu.address(op))?;
    Ok(Flow::Next)
}

/// The guest's time-stamp counter into EDX:EAX.
fn rdtsc(cpu: &mut Cpu, _: &Op) -> Outcome {
    let now = time_stamp().wrapping_add(cpu.model.tsc_offset);
    cpu.set(slot::RAX, u32::low(now));
    cpu.set(slot::RDX, u32::low(now >> 32));
    Ok(Flow::Next)
}

fn rdtscp(cpu: &mut Cpu, op: &Op) -> Outcome {
    let Some(aux) = cpu.model.tsc_aux else {
        return cpu.halt(Stop::Unknown);
    };
    fence(Ordering::SeqCst);
    cpu.set(slot::RCX, aux);
    rdtsc(cpu, op)
}

fn rdpid(cpu: &mut Cpu, op: &Op) -> Outcome {
    let Some(aux) = cpu.model.tsc_aux else {
        return cpu.halt(Stop::Unknown);
    };
    cpu.set(op.dst, u64::from(aux));
    Ok(Flow::Next)
}

fn cpuid(cpu: &mut Cpu, _: &Op) -> Outcome {
    let (leaf, subleaf) = (cpu.get(slot::RAX), cpu.get(slot::RCX));
    let Some(answer) = cpu.model.cpuid.as_ref().map(|f| f(leaf, subleaf)) else {
        return cpu.halt(Stop::Unknown);
    };
    let registers = [slot::RAX, slot::RBX, slot::RCX, slot::RDX];
    for (register, value) in registers.into_iter().zip(answer) {
        cpu.set(register, value);
    }
    Ok(Flow::Next)
}

/// `rdrand`, or with `SEED` `rdseed`: CF says whether there was a number.
fn random<const SEED: bool, W: Word>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let number = if SEED { random_seed() } else { random_number() };
    cpu.set(op.dst, W::low(number.unwrap_or(0)));
    cpu.flags = Flags::default().with_carry(number.is_some());
    Ok(Flow::Next)
}

fn straight(i: &Instruction, shape: Shape, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    match i.mnemonic() {
        M::Mfence | M::Lfence | M::Sfence => Some(mfence),
        M::Clflush | M::Clflushopt | M::Clwb if shape.form == Form::Mem => Some(touch),
        M::Rdtsc => Some(rdtsc),
        M::Rdtscp => Some(rdtscp),
        M::Cpuid => Some(cpuid),
        M::Rdrand if std::arch::is_x86_feature_detected!("rdrand") => {
            by_wide_width!(shape.width, random, false)
        }
        M::Rdseed if std::arch::is_x86_feature_detected!("rdseed") => {
            by_wide_width!(shape.width, random, true)
        }
        M::Rdpid => Some(rdpid),
        _ => segment::choose(i, shape, op),
    }
}

/// `mov` to or from a control or debug register.
fn moves_system_register(i: &Instruction) -> bool {
    let system = |r: iced_x86::Register| r.is_cr() || r.is_dr();
    i.mnemonic() == Mnemonic::Mov && (system(i.op0_register()) || system(i.op1_register()))
}

fn ending(i: &Instruction, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    match i.mnemonic() {
        M::Syscall => Some(syscall),
        M::Int3 => {
            op.imm = u64::from(vector::BP);
            Some(software)
        }
        M::Int1 => {
            op.imm = u64::from(vector::DB);
            Some(software)
        }
        M::Iretq => Some(segment::iretq(op)),
        // Vectors 3 and 4 have gates for ring 3.
        M::Int => {
            op.imm = u64::from(i.immediate8());
            Some(if matches!(i.immediate8(), vector::BP | vector::OF) {
                software
            } else {
                int
            })
        }
        M::Ud0 | M::Ud1 | M::Ud2 | M::Stac | M::Clac => Some(undefined),
        M::Hlt
        | M::Cli
        | M::Sti
        | M::In
        | M::Out
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Outsb
        | M::Outsw
        | M::Outsd
        | M::Rdmsr
        | M::Wrmsr
        | M::Lgdt
        | M::Lidt
        | M::Lldt
        | M::Ltr
        | M::Lmsw
        | M::Clts
        | M::Invd
        | M::Wbinvd
        | M::Invlpg
        | M::Swapgs
        | M::Sysret
        | M::Sysretq
        | M::Xsetbv => Some(privileged),
        M::Mov if moves_system_register(i) => Some(privileged),
        _ if Far::of(i).is_some() => Some(segment::for_descriptor_tables),
        _ => None,
    }
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, shape: Shape, op: &mut Op) -> Choice {
    if i.has_lock_prefix() {
        return None;
    }
    straight(i, shape, op)
        .map(|run| (run, false))
        .or_else(|| ending(i, op).map(|run| (run, true)))
}
