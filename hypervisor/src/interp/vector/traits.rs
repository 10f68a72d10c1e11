//! What a decoded instruction does not say of itself.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind, Register};

/// See the fields.
pub struct Traits {
    /// It uses x87 or MMX registers.
    pub x87: bool,
    /// It raises a pending x87 exception.
    pub waits: bool,
    /// It may look at MXCSR.
    pub mxcsr: bool,
}

impl Traits {
    /// Those of `i`.
    pub fn of(i: &Instruction) -> Self {
        let features = i.cpuid_features();
        let has = |feature| features.contains(&feature);
        let mmx = |n| i.op_kind(n) == OpKind::Register && is_x87(i.op_register(n));
        let x87 = [
            CpuidFeature::FPU,
            CpuidFeature::FPU287,
            CpuidFeature::FPU387,
            CpuidFeature::MMX,
            CpuidFeature::FXSR,
        ]
        .into_iter()
        .any(has)
            || (0..i.op_count()).any(mmx);
        use Mnemonic as M;
        let silent = matches!(
            i.mnemonic(),
            M::Fninit
                | M::Fnclex
                | M::Fnstsw
                | M::Fnstcw
                | M::Fnstenv
                | M::Fnsave
                | M::Fneni
                | M::Fndisi
                | M::Fnsetpm
                | M::Fxsave
                | M::Fxsave64
        );
        Traits {
            x87,
            waits: x87 && !silent,
            mxcsr: !is_quiet(i.mnemonic()),
        }
    }
}

fn is_x87(r: Register) -> bool {
    r.is_st() || r.is_mm()
}

/// Whether the memory operand must be aligned to its size.
pub fn is_aligned(i: &Instruction) -> bool {
    use Mnemonic as M;
    let size = i.memory_size().size();
    if i.code().encoding() == iced_x86::EncodingKind::VEX {
        return matches!(
            i.mnemonic(),
            M::Vmovaps
                | M::Vmovapd
                | M::Vmovdqa
                | M::Vmovntps
                | M::Vmovntpd
                | M::Vmovntdq
                | M::Vmovntdqa
        );
    }
    let any = matches!(
        i.mnemonic(),
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpistri
            | M::Pcmpistrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
    );
    size == 16 && !any && !matches!(i.code(), Code::INVALID)
}

/// Whether a vector instruction is known to have nothing to do with MXCSR.
/// For others it is loaded and stored, which takes longer and is never wrong.
fn is_quiet(m: Mnemonic) -> bool {
    use Mnemonic as M;
    let name = format!("{m:?}");
    let stem = name.strip_prefix('V').unwrap_or(&name);
    let stem = stem.to_ascii_lowercase();
    let starts = |list: &[&str]| list.iter().any(|start| stem.starts_with(start));
    // Integer instructions; those of SSE and AVX that move, shuffle and mask.
    starts(&[
        "p",
        "mov",
        "and",
        "or",
        "xor",
        "shuf",
        "unpck",
        "blend",
        "insert",
        "extract",
        "broadcast",
        "aes",
        "sha",
        "gf2p8",
        "lddqu",
        "mask",
        "test",
        "zero",
    ]) || matches!(m, M::Emms | M::Extrq)
}
