//! Names an instruction that the interpreter does not know, or finds that the
//! processor which the guest sees has none such.

use super::state::Cpu;
use iced_x86::{CpuidFeature, Formatter, Instruction, NasmFormatter};

/// The instruction for people; `None` if it is undefined for this guest.
pub fn describe(cpu: &mut Cpu, instruction: &Instruction) -> Option<String> {
    let undefined = instruction.is_invalid()
        || !instruction
            .cpuid_features()
            .iter()
            .all(|feature| announced(cpu, *feature));
    if undefined {
        return None;
    }
    let mut text = String::new();
    NasmFormatter::new().format(instruction, &mut text);
    Some(format!(
        "`{text}` ({:?}) at {:#x}",
        instruction.code(),
        cpu.rip
    ))
}

/// Whether the guest's CPUID shows a feature. Those that are not in the list
/// are shown to nobody.
fn announced(cpu: &Cpu, feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    const EBX: usize = 1;
    const ECX: usize = 2;
    const EDX: usize = 3;
    let bit = |leaf, subleaf, register: usize, bit: u32| {
        let answer = cpu.model.cpuid.as_ref().map(|ask| ask(leaf, subleaf));
        answer.is_none_or(|answer| answer[register] >> bit & 1 != 0)
    };
    let extended = 0x8000_0001;
    match feature {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::MULTIBYTENOP
        | F::PAUSE
        | F::CPUID
        | F::CMOV
        | F::SYSCALL => true,
        F::SSE3 => bit(1, 0, ECX, 0),
        F::PCLMULQDQ => bit(1, 0, ECX, 1),
        F::SSSE3 => bit(1, 0, ECX, 9),
        F::FMA => bit(1, 0, ECX, 12),
        F::CMPXCHG16B => bit(1, 0, ECX, 13),
        F::SSE4_1 => bit(1, 0, ECX, 19),
        F::SSE4_2 => bit(1, 0, ECX, 20),
        F::MOVBE => bit(1, 0, ECX, 22),
        F::POPCNT => bit(1, 0, ECX, 23),
        F::AES => bit(1, 0, ECX, 25),
        F::XSAVE => bit(1, 0, ECX, 26),
        F::AVX => bit(1, 0, ECX, 28),
        F::F16C => bit(1, 0, ECX, 29),
        F::RDRAND => bit(1, 0, ECX, 30),
        F::TSC => bit(1, 0, EDX, 4),
        F::CX8 => bit(1, 0, EDX, 8),
        F::CLFSH => bit(1, 0, EDX, 19),
        F::MMX => bit(1, 0, EDX, 23),
        F::FXSR => bit(1, 0, EDX, 24),
        F::SSE => bit(1, 0, EDX, 25),
        F::SSE2 => bit(1, 0, EDX, 26),
        F::FSGSBASE => bit(7, 0, EBX, 0),
        F::BMI1 => bit(7, 0, EBX, 3),
        F::AVX2 => bit(7, 0, EBX, 5),
        F::BMI2 => bit(7, 0, EBX, 8),
        F::RDSEED => bit(7, 0, EBX, 18),
        F::ADX => bit(7, 0, EBX, 19),
        F::CLFLUSHOPT => bit(7, 0, EBX, 23),
        F::CLWB => bit(7, 0, EBX, 24),
        F::SHA => bit(7, 0, EBX, 29),
        F::GFNI => bit(7, 0, ECX, 8),
        F::VAES => bit(7, 0, ECX, 9),
        F::VPCLMULQDQ => bit(7, 0, ECX, 10),
        F::XSAVEOPT => bit(0xd, 1, 0, 0),
        F::XSAVEC => bit(0xd, 1, 0, 1),
        F::LZCNT => bit(extended, 0, ECX, 5),
        F::SSE4A => bit(extended, 0, ECX, 6),
        F::PREFETCHW => bit(extended, 0, ECX, 8),
        F::RDTSCP => bit(extended, 0, EDX, 27),
        _ => false,
    }
}
