//! Privileged instructions that a PV kernel still executes.
//!
//! Law: the instruction was fetched once by the caller; it either takes effect
//! whole, with `rip` behind it, or not at all.

use super::{CpuidPolicy, msr};
use crate::{
    cpu::{Context, reg},
    vcpu::GuestState,
};
use guest_abi::arch_x86::XEN_EMULATE_PREFIX;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};

/// The longest instruction, with the emulation prefix before it.
pub const MAX_FETCH: usize = 15 + XEN_EMULATE_PREFIX.len();

/// What came of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done; `rip` is behind it.
    Done,
    /// Done, and events are now unmasked (`sti`) or masked (`cli`).
    EventMask(bool),
    /// Done; the engine must load this XCR0.
    SetXcr0(u64),
    /// `int vector`, this many bytes long; not done.
    Interrupt {
        /// The vector.
        vector: u8,
        /// Bytes of the instruction.
        length: u8,
    },
    /// Not one that a guest may use: the fault is the guest's.
    Refused,
}

/// Emulates the instruction that raised `#GP` or `#UD` in guest kernel mode.
pub fn emulate(
    state: &mut GuestState,
    policy: &CpuidPolicy,
    first_vcpu: bool,
    bytes: &[u8],
) -> Outcome {
    let rip = state.context.rip;
    let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
    let insn = decoder.decode();
    if insn.is_invalid() {
        return Outcome::Refused;
    }
    let outcome = execute(state, policy, first_vcpu, &insn);
    if !matches!(outcome, Outcome::Refused | Outcome::Interrupt { .. }) {
        state.context.rip = rip.wrapping_add(insn.len() as u64);
    }
    outcome
}

/// `cpuid` behind the emulation prefix, which any mode may use. `None` when
/// the bytes are something else.
pub fn prefixed_cpuid(context: &mut Context, policy: &CpuidPolicy, bytes: &[u8]) -> Option<()> {
    let rest = bytes.strip_prefix(&XEN_EMULATE_PREFIX)?;
    rest.starts_with(&[0x0f, 0xa2]).then_some(())?;
    cpuid(context, policy);
    context.rip = context
        .rip
        .wrapping_add(XEN_EMULATE_PREFIX.len() as u64 + 2);
    Some(())
}

/// A plain `cpuid`, which any mode may use where it faults. `None` when the
/// bytes are something else.
pub fn plain_cpuid(context: &mut Context, policy: &CpuidPolicy, bytes: &[u8]) -> Option<()> {
    bytes.starts_with(&[0x0f, 0xa2]).then_some(())?;
    cpuid(context, policy);
    context.rip = context.rip.wrapping_add(2);
    Some(())
}

/// The vector of an `int n` (any mode) with its length.
#[must_use]
pub fn software_interrupt(bytes: &[u8]) -> Option<(u8, u8)> {
    match bytes {
        [0xcd, vector, ..] => Some((*vector, 2)),
        _ => None,
    }
}

fn execute(
    state: &mut GuestState,
    policy: &CpuidPolicy,
    first_vcpu: bool,
    insn: &Instruction,
) -> Outcome {
    match insn.code() {
        Code::Cli => Outcome::EventMask(true),
        Code::Sti => Outcome::EventMask(false),
        Code::Cpuid => {
            cpuid(&mut state.context, policy);
            Outcome::Done
        }
        Code::Rdmsr => read_msr(state, first_vcpu),
        Code::Wrmsr => write_msr(state),
        Code::Xsetbv => set_xcr(state),
        // Caches are the host's; CR0.TS is ours.
        Code::Wbinvd | Code::Invd | Code::Wbnoinvd => Outcome::Done,
        Code::Clts => {
            state.task_switched = false;
            Outcome::Done
        }
        Code::Mov_r64_cr => read_control(state, insn),
        Code::Mov_cr_r64 => write_control(state, insn),
        Code::Mov_r64_dr => read_debug(state, insn),
        Code::Mov_dr_r64 => write_debug(state, insn),
        Code::In_AL_imm8 | Code::In_AL_DX => port_in(state, insn, 1),
        Code::In_AX_imm8 | Code::In_AX_DX => port_in(state, insn, 2),
        Code::In_EAX_imm8 | Code::In_EAX_DX => port_in(state, insn, 4),
        Code::Out_imm8_AL | Code::Out_imm8_AX | Code::Out_imm8_EAX => Outcome::Done,
        Code::Out_DX_AL | Code::Out_DX_AX | Code::Out_DX_EAX => Outcome::Done,
        Code::Int_imm8 => Outcome::Interrupt {
            vector: insn.immediate8(),
            length: 2,
        },
        _ => Outcome::Refused,
    }
}

fn low32(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn cpuid(context: &mut Context, policy: &CpuidPolicy) {
    let g = &mut context.gpr;
    let leaf = policy.lookup(low32(g[reg::RAX]), low32(g[reg::RCX]));
    g[reg::RAX] = leaf.eax.into();
    g[reg::RBX] = leaf.ebx.into();
    g[reg::RCX] = leaf.ecx.into();
    g[reg::RDX] = leaf.edx.into();
}

fn edx_eax(context: &Context) -> u64 {
    (context.gpr[reg::RDX] & 0xffff_ffff) << 32 | context.gpr[reg::RAX] & 0xffff_ffff
}

fn read_msr(state: &mut GuestState, first_vcpu: bool) -> Outcome {
    let number = low32(state.context.gpr[reg::RCX]);
    match msr::read(state, first_vcpu, number) {
        Ok(value) => {
            state.context.gpr[reg::RAX] = value & 0xffff_ffff;
            state.context.gpr[reg::RDX] = value >> 32;
            Outcome::Done
        }
        Err(msr::NoSuchMsr) => {
            tracing::debug!(
                msr = format_args!("{number:#x}"),
                "rdmsr of an MSR that guests don't have"
            );
            Outcome::Refused
        }
    }
}

fn write_msr(state: &mut GuestState) -> Outcome {
    let (number, value) = (low32(state.context.gpr[reg::RCX]), edx_eax(&state.context));
    match msr::write(state, number, value) {
        Ok(()) => Outcome::Done,
        Err(msr::NoSuchMsr) => {
            tracing::debug!(msr = format_args!("{number:#x}"), value, "wrmsr refused");
            Outcome::Refused
        }
    }
}

fn set_xcr(state: &mut GuestState) -> Outcome {
    let value = edx_eax(&state.context);
    let valid = low32(state.context.gpr[reg::RCX]) == 0
        && value & !super::cpuid::XCR0_MASK == 0
        && value & 1 != 0
        && (value & 4 == 0 || value & 2 != 0);
    if !valid {
        return Outcome::Refused;
    }
    state.xcr0 = value;
    Outcome::SetXcr0(value)
}

fn control_number(register: Register) -> u32 {
    register as u32 - Register::CR0 as u32
}

fn read_control(state: &mut GuestState, insn: &Instruction) -> Outcome {
    let value = match control_number(insn.op1_register()) {
        0 => 0x8005_0033 | if state.task_switched { 8 } else { 0 },
        3 => state.kernel_root.0 << 12,
        4 => state.cr4,
        8 => 0,
        _ => return Outcome::Refused,
    };
    state.context.gpr[gpr_index(insn.op0_register())] = value;
    Outcome::Done
}

fn write_control(state: &mut GuestState, insn: &Instruction) -> Outcome {
    let value = state.context.gpr[gpr_index(insn.op1_register())];
    match control_number(insn.op0_register()) {
        // Only TS may change.
        0 if (value ^ 0x8005_0033) & !8 == 0 => state.task_switched = value & 8 != 0,
        4 => state.cr4 = value & 0x7_ffff,
        8 if value == 0 => {}
        _ => return Outcome::Refused,
    }
    Outcome::Done
}

fn read_debug(state: &mut GuestState, insn: &Instruction) -> Outcome {
    let Some(value) = debug_slot(insn.op1_register()).map(|index| state.debug[index]) else {
        return Outcome::Refused;
    };
    state.context.gpr[gpr_index(insn.op0_register())] = value;
    Outcome::Done
}

fn write_debug(state: &mut GuestState, insn: &Instruction) -> Outcome {
    let value = state.context.gpr[gpr_index(insn.op1_register())];
    let number = insn.op0_register() as u32 - Register::DR0 as u32;
    match state.set_debug(number, value) {
        Ok(()) => Outcome::Done,
        Err(_) => Outcome::Refused,
    }
}

fn debug_slot(register: Register) -> Option<usize> {
    match register as usize - Register::DR0 as usize {
        index @ (0..=3 | 6 | 7) => Some(index),
        _ => None,
    }
}

/// No port is a guest's: reads give all ones, but for the two of the timer
/// that a calibration loop waits for.
fn port_in(state: &mut GuestState, insn: &Instruction, bytes: u32) -> Outcome {
    let port = if insn.op1_kind() == OpKind::Immediate8 {
        u64::from(insn.immediate8())
    } else {
        state.context.gpr[reg::RDX] & 0xffff
    };
    let ones = if port == 0x42 || port == 0x61 {
        0
    } else {
        u64::MAX
    };
    let rax = &mut state.context.gpr[reg::RAX];
    *rax = match bytes {
        1 => *rax & !0xff | ones & 0xff,
        2 => *rax & !0xffff | ones & 0xffff,
        _ => ones & 0xffff_ffff,
    };
    Outcome::Done
}

fn gpr_index(register: Register) -> usize {
    register.number() & 15
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::CpuId;

    fn run(state: &mut GuestState, bytes: &[u8]) -> Outcome {
        let policy = CpuidPolicy::new(&CpuId::new(0).unwrap(), (4, 17), 1);
        emulate(state, &policy, true, bytes)
    }

    #[test]
    fn cli_and_sti_change_the_event_mask() {
        let mut state = GuestState::new();
        assert_eq!(run(&mut state, &[0xfa]), Outcome::EventMask(true));
        assert_eq!(run(&mut state, &[0xfb]), Outcome::EventMask(false));
        assert_eq!(state.context.rip, 2);
    }

    #[test]
    fn ports_read_as_ones_but_for_the_timer() {
        let mut state = GuestState::new();
        state.context.gpr[reg::RAX] = 0x1111_2222_3333_4444;
        assert_eq!(run(&mut state, &[0xe4, 0x60]), Outcome::Done);
        assert_eq!(state.context.gpr[reg::RAX], 0x1111_2222_3333_44ff);
        assert_eq!(run(&mut state, &[0xe4, 0x61]), Outcome::Done);
        assert_eq!(state.context.gpr[reg::RAX], 0x1111_2222_3333_4400);
    }

    #[test]
    fn xcr0_must_be_consistent() {
        let mut state = GuestState::new();
        for (value, ok) in [
            (7, true),
            (3, true),
            (1, true),
            (0, false),
            (5, false),
            (0xe7, false),
        ] {
            state.context.gpr[reg::RAX] = value;
            assert_eq!(
                run(&mut state, &[0x0f, 0x01, 0xd1]) != Outcome::Refused,
                ok,
                "{value:#x}"
            );
        }
    }

    #[test]
    fn the_prefix_alone_is_no_cpuid() {
        let policy = CpuidPolicy::new(&CpuId::new(0).unwrap(), (4, 17), 1);
        let mut context = Context::default();
        assert_eq!(
            prefixed_cpuid(&mut context, &policy, b"\x0f\x0bxen\x0f\xa3"),
            None
        );
        assert_eq!(prefixed_cpuid(&mut context, &policy, b"\x0f\x0bxen"), None);
        context.gpr[reg::RAX] = 0x4000_0000;
        assert_eq!(
            prefixed_cpuid(&mut context, &policy, b"\x0f\x0bxen\x0f\xa2"),
            Some(())
        );
        assert_eq!((context.rip, context.gpr[reg::RBX]), (7, 0x566e_6558));
    }

    #[test]
    fn unknown_and_truncated_instructions_are_refused() {
        let mut state = GuestState::new();
        for bytes in [
            &[0xf4][..],
            &[0x0f],
            &[],
            &[0x0f, 0x01, 0x10],
            &[0x0f, 0x22, 0xd8],
        ] {
            assert_eq!(run(&mut state, bytes), Outcome::Refused, "{bytes:x?}");
            assert_eq!(state.context.rip, 0);
        }
    }
}
