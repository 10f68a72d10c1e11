//! Which instructions the host may execute for the guest, and the code that
//! does it.
//!
//! Law: an instruction is on the list by what it is made of: legacy or VEX
//! encoding, features that guests are told of and this processor has, general,
//! vector, MMX and x87 registers, at most one memory operand, which is replaced by
//! `[rsi]`. It is encoded anew from its decoded form. What is not on the list,
//! or touches anything that its operands do not name, has no plan.
//!
//! ```text
//!   mov r8, rdx                 rdi the frame, rsi the operand, rdx the registers
//!   push rcx; popfq             rcx flags, if it reads any
//!   load what it uses           xmm/ymm, or all by fxrstor64; rax, rcx, rdx
//!   ldmxcsr [rdi + 24]          if it may look at it
//!   (the instruction)
//!   stmxcsr [rdi + 24]; ldmxcsr [rdi + the host's]
//!   store what it changed       xmm/ymm, or all by fxsave64 and fninit
//!   lahf; seto al; ret          if it gives flags
//! ```

use super::traits::{self, Traits};
use crate::{
    fpu::at,
    interp::{
        decode::register,
        host::{HOST_MXCSR, SCRATCH},
        op::slot,
    },
};
use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, Instruction, InstructionInfoFactory, MemoryOperand,
    OpAccess, OpKind, Register,
};

/// A register of the host that stands for one of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// The guest's, by its slot.
    pub slot: u8,
    /// The host's, by its number.
    host: Register,
    written: bool,
}

/// What to know of a stub before it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of the memory operand; 0 if there is none.
    pub bytes: u16,
    /// Bits that its address must not have.
    pub misaligned: u8,
    /// Whether memory is written.
    pub writes: bool,
    /// Whether vector, x87 or control registers change.
    pub changes: bool,
    /// Whether it can raise SIMD floating-point exceptions.
    pub mxcsr: bool,
    /// Whether it gives flags.
    pub flags: bool,
    /// Whether it uses x87 or MMX registers.
    pub x87: bool,
    /// Whether it waits for pending x87 exceptions.
    pub waits: bool,
    /// Where in the stub the instruction is.
    pub at: u16,
}

/// A vector register and what happens to it.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    low: bool,
    high: bool,
    written: bool,
}

/// An instruction ready to be made a stub.
pub struct Plan {
    /// The instruction, with its stand-ins.
    instruction: Instruction,
    /// How to run it.
    pub shape: Shape,
    vex: bool,
    reads_flags: bool,
    vectors: [Use; 16],
    stands: Vec<Stand>,
}

/// The general registers that may stand for the guest's.
const STANDS: [Register; 3] = [Register::RAX, Register::RCX, Register::RDX];

/// Whether this processor has a feature that guests may be told of.
fn available(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    match feature {
        F::FPU | F::FPU287 | F::FPU387 | F::CMOV | F::MMX | F::SSE | F::SSE2 | F::FXSR => true,
        F::SSE3 => is_x86_feature_detected!("sse3"),
        F::SSSE3 => is_x86_feature_detected!("ssse3"),
        F::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::SSE4A => is_x86_feature_detected!("sse4a"),
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        F::SHA => is_x86_feature_detected!("sha"),
        F::GFNI => is_x86_feature_detected!("gfni"),
        F::AVX => is_x86_feature_detected!("avx"),
        F::AVX2 => is_x86_feature_detected!("avx2"),
        F::FMA => is_x86_feature_detected!("fma"),
        F::F16C => is_x86_feature_detected!("f16c"),
        F::VAES => is_x86_feature_detected!("vaes"),
        F::RDRAND => is_x86_feature_detected!("rdrand"),
        F::RDSEED => is_x86_feature_detected!("rdseed"),
        F::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        _ => false,
    }
}

/// Whether `code` may be executed at all.
pub fn is_listed(code: Code) -> bool {
    matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().copied().all(available)
}

impl Plan {
    /// How to execute `i`; `None` if it is not on the list.
    pub fn new(i: &Instruction) -> Option<Self> {
        if !is_listed(i.code()) || i.has_lock_prefix() {
            return None;
        }
        let mut instruction = *i;
        let mut stands = Vec::new();
        let bytes = stand_ins(&mut instruction, &mut stands)?;
        let traits = Traits::of(&instruction);
        let mut plan = Plan {
            instruction,
            shape: Shape {
                bytes,
                misaligned: 0,
                writes: false,
                changes: false,
                mxcsr: false,
                flags: false,
                x87: traits.x87,
                waits: traits.waits,
                at: 0,
            },
            vex: i.code().encoding() == EncodingKind::VEX,
            reads_flags: false,
            vectors: [Use::default(); 16],
            stands,
        };
        plan.uses()?;
        let shape = &mut plan.shape;
        // Of those with x87 or MMX registers: conversions from and to vector registers.
        let converts = i
            .cpuid_features()
            .iter()
            .any(|feature| matches!(feature, CpuidFeature::SSE | CpuidFeature::SSE2));
        shape.mxcsr = traits.mxcsr && (!shape.x87 || converts);
        shape.changes = shape.x87 || shape.mxcsr || plan.vectors.iter().any(|v| v.written);
        if traits::is_aligned(i) {
            shape.misaligned = u8::try_from(bytes.min(32).saturating_sub(1)).ok()?;
        }
        if bytes == 512 {
            // FXSAVE: whatever its size.
            shape.misaligned = 15;
        }
        Some(plan)
    }

    /// Looks at every register and byte that the instruction touches.
    fn uses(&mut self) -> Option<()> {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&self.instruction);
        let memory = info.used_memory();
        match (memory, self.shape.bytes) {
            ([], 0) => {}
            ([one], bytes) if bytes != 0 && one.base() == Register::RSI => {
                self.shape.writes = writes(one.access());
            }
            _ => return None,
        }
        for used in info.used_registers() {
            let (r, access) = (used.register(), used.access());
            if r.is_vector_register() {
                let number = r.number();
                let vector = self.vectors.get_mut(number)?;
                let wide = !r.is_xmm();
                let fresh = self.vex && access == OpAccess::Write;
                vector.low |= !fresh;
                vector.high |= wide && !fresh;
                vector.written |= writes(access);
            } else if r.is_gpr() {
                self.uses_general(r.full_register(), writes(access))?;
            } else if !(r.is_st() || r.is_mm()) {
                return None;
            }
        }
        let i = &self.instruction;
        self.shape.flags = i.rflags_modified() != 0;
        let all = iced_x86::RflagsBits::OF
            | iced_x86::RflagsBits::SF
            | iced_x86::RflagsBits::ZF
            | iced_x86::RflagsBits::AF
            | iced_x86::RflagsBits::CF
            | iced_x86::RflagsBits::PF;
        self.reads_flags =
            i.rflags_read() & all != 0 || (self.shape.flags && i.rflags_modified() & all != all);
        Some(())
    }

    fn uses_general(&mut self, r: Register, written: bool) -> Option<()> {
        if r == Register::RSI && self.shape.bytes != 0 {
            return (!written).then_some(());
        }
        if let Some(stand) = self.stands.iter_mut().find(|stand| stand.host == r) {
            stand.written |= written;
            return Some(());
        }
        // Not named by an operand: it stands for itself.
        let slot = match r {
            Register::RAX => slot::RAX,
            Register::RCX => slot::RCX,
            Register::RDX => slot::RDX,
            _ => return None,
        };
        self.stands.push(Stand {
            slot,
            host: r,
            written,
        });
        Some(())
    }

    /// The stub's code; with it, the shape is complete.
    pub fn encode(&mut self) -> Option<Vec<u8>> {
        let mut code = Coder::new();
        if !self.stands.is_empty() {
            code.put(Instruction::with2(
                Code::Mov_r64_rm64,
                Register::R8,
                Register::RDX,
            ))?;
        }
        if self.reads_flags {
            code.put(Instruction::with1(Code::Push_r64, Register::RCX))?;
            code.put(Instruction::with(Code::Popfq))?;
        }
        for stand in &self.stands {
            code.put(Instruction::with2(
                Code::Mov_r64_rm64,
                stand.host,
                slot_of(stand),
            ))?;
        }
        self.load(&mut code)?;
        self.shape.at = u16::try_from(code.len).ok()?;
        code.put(self.instruction)?;
        self.store(&mut code)?;
        for stand in self.stands.iter().filter(|stand| stand.written) {
            code.put(Instruction::with2(
                Code::Mov_rm64_r64,
                slot_of(stand),
                stand.host,
            ))?;
        }
        if self.shape.flags {
            code.put(Instruction::with(Code::Lahf))?;
            code.put(Instruction::with1(Code::Seto_rm8, Register::AL))?;
        }
        code.put(Instruction::with(Code::Retnq))?;
        Some(code.encoder.take_buffer())
    }

    fn load(&self, code: &mut Coder) -> Option<()> {
        if self.shape.x87 {
            return code.put(Instruction::with1(Code::Fxrstor64_m512byte, frame(0)));
        }
        for (n, vector) in self.vectors.iter().enumerate() {
            let (xmm, ymm) = pair(n)?;
            if vector.low {
                let op = if self.vex {
                    Code::VEX_Vmovups_xmm_xmmm128
                } else {
                    Code::Movups_xmm_xmmm128
                };
                code.put(Instruction::with2(op, xmm, frame(at::XMM + 16 * n)))?;
            }
            if vector.high {
                let high = frame(at::YMM_HIGH + 16 * n);
                let op = Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8;
                code.put(Instruction::with4(op, ymm, ymm, high, 1).ok()?)?;
            }
        }
        if self.shape.mxcsr {
            code.put(Instruction::with1(Code::Ldmxcsr_m32, frame(at::MXCSR)))?;
        }
        Some(())
    }

    fn store(&self, code: &mut Coder) -> Option<()> {
        let host = Instruction::with1(Code::Ldmxcsr_m32, frame(HOST_MXCSR));
        if self.shape.x87 {
            code.put(Instruction::with1(Code::Fxsave64_m512byte, frame(0)))?;
            code.put(Instruction::with(Code::Fninit))?;
            return code.put(host);
        }
        if self.shape.mxcsr {
            code.put(Instruction::with1(Code::Stmxcsr_m32, frame(at::MXCSR)))?;
            code.put(host)?;
        }
        for (n, _) in self.vectors.iter().enumerate().filter(|(_, v)| v.written) {
            let (xmm, ymm) = pair(n)?;
            let low = frame(at::XMM + 16 * n);
            if !self.vex {
                code.put(Instruction::with2(Code::Movups_xmmm128_xmm, low, xmm))?;
                continue;
            }
            code.put(Instruction::with2(Code::VEX_Vmovups_xmmm128_xmm, low, xmm))?;
            let high = frame(at::YMM_HIGH + 16 * n);
            let op = Code::VEX_Vextractf128_xmmm128_ymm_imm8;
            code.put(Instruction::with3(op, high, ymm, 1).ok()?)?;
        }
        if self.vex {
            code.put(Instruction::with(Code::VEX_Vzeroupper))?;
        }
        Some(())
    }
}

/// Puts the code of a stub together.
struct Coder {
    encoder: Encoder,
    len: usize,
}

impl Coder {
    fn new() -> Self {
        Coder {
            encoder: Encoder::new(64),
            len: 0,
        }
    }

    fn put(&mut self, instruction: impl IntoInstruction) -> Option<()> {
        self.len += self
            .encoder
            .encode(&instruction.into_instruction()?, 0)
            .ok()?;
        Some(())
    }
}

/// What iced's constructors give, whether they can fail or not.
trait IntoInstruction {
    fn into_instruction(self) -> Option<Instruction>;
}
impl IntoInstruction for Instruction {
    fn into_instruction(self) -> Option<Instruction> {
        Some(self)
    }
}
impl<E> IntoInstruction for Result<Instruction, E> {
    fn into_instruction(self) -> Option<Instruction> {
        self.ok()
    }
}

fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// `[rdi + offset]`.
fn frame(offset: usize) -> MemoryOperand {
    let offset = i64::try_from(offset).unwrap_or(0);
    MemoryOperand::with_base_displ(Register::RDI, offset)
}

fn slot_of(stand: &Stand) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::R8, i64::from(stand.slot) * 8)
}

fn pair(n: usize) -> Option<(Register, Register)> {
    let n = u32::try_from(n).ok()?;
    Some((Register::XMM0 + n, Register::YMM0 + n))
}

/// Replaces general registers by the host's three and the memory operand by
/// `[rsi]`: the operand's size, 0 if there is none.
fn stand_ins(i: &mut Instruction, stands: &mut Vec<Stand>) -> Option<u16> {
    let mut bytes = 0;
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register => {
                let r = i.op_register(n);
                if r.is_gpr() {
                    i.set_op_register(n, stand_for(r, stands)?);
                }
            }
            OpKind::Memory => {
                bytes = u16::try_from(i.memory_size().size()).ok()?;
                if bytes == 0 || usize::from(bytes) > SCRATCH || i.is_vsib() {
                    return None;
                }
                i.set_memory_base(Register::RSI);
                i.set_memory_index(Register::None);
                i.set_memory_index_scale(1);
                i.set_memory_displ_size(0);
                i.set_memory_displacement64(0);
                i.set_segment_prefix(Register::None);
            }
            OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
            _ => return None,
        }
    }
    Some(bytes)
}

/// The part of a stand-in that is as wide as `r`.
fn stand_for(r: Register, stands: &mut Vec<Stand>) -> Option<Register> {
    let slot = register(r)?;
    if slot & slot::HIGH_BYTE != 0 {
        return None;
    }
    let known = stands.iter().position(|stand| stand.slot == slot);
    let index = match known {
        Some(index) => index,
        None => {
            let host = *STANDS.get(stands.len())?;
            stands.push(Stand {
                slot,
                host,
                written: false,
            });
            stands.len() - 1
        }
    };
    let number = u32::try_from(index).ok()?;
    Some(match r.size() {
        2 => Register::AX + number,
        4 => Register::EAX + number,
        8 => Register::RAX + number,
        _ => return None,
    })
}
