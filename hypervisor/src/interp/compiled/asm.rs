//! A small assembler: instructions by `iced-x86`'s encoder, labels by us.

use super::super::host::CodeMemory;
use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};

/// A place in the code, known or not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// Code in the making.
pub struct Asm {
    encoder: Encoder,
    base: usize,
    len: usize,
    labels: Vec<Option<usize>>,
    /// Where a 32-bit distance to a label has to be filled in.
    fixups: Vec<(usize, Label)>,
    failed: bool,
}

/// What iced's constructors give, whether they can fail or not.
pub trait IntoInstruction {
    /// The instruction.
    fn into_instruction(self) -> Option<Instruction>;
}
impl IntoInstruction for Instruction {
    fn into_instruction(self) -> Option<Instruction> {
        Some(self)
    }
}
impl IntoInstruction for Result<Instruction, IcedError> {
    fn into_instruction(self) -> Option<Instruction> {
        self.ok()
    }
}

/// `[base + displacement]`.
pub fn at(base: Register, displacement: i64) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, displacement)
}

/// `[base + index * 8 + displacement]`.
pub fn indexed(base: Register, index: Register, displacement: i64) -> MemoryOperand {
    MemoryOperand::with_base_index_scale_displ_size(base, index, 8, displacement, 1)
}

/// `[index * 4]`.
pub fn indexed_by_4(index: Register) -> MemoryOperand {
    MemoryOperand::with_base_index_scale_displ_size(Register::None, index, 4, 0, 8)
}

impl Asm {
    /// Code that will lie at the end of `memory`.
    pub fn new(memory: &CodeMemory) -> Self {
        Asm {
            encoder: Encoder::new(64),
            base: memory.next(),
            len: 0,
            labels: Vec::new(),
            fixups: Vec::new(),
            failed: false,
        }
    }

    /// The address of the next instruction.
    pub fn here(&self) -> u64 {
        (self.base + self.len) as u64
    }

    /// Adds an instruction.
    pub fn put(&mut self, instruction: impl IntoInstruction) {
        let here = self.here();
        let encoded = instruction
            .into_instruction()
            .and_then(|i| self.encoder.encode(&i, here).ok());
        match encoded {
            Some(len) => self.len += len,
            None => self.failed = true,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.encoder.write_u8(*byte);
        }
        self.len += bytes.len();
    }

    /// A label to be bound.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.len);
    }

    /// `jmp`.
    pub fn jump(&mut self, to: Label) {
        self.bytes(&[0xe9]);
        self.distance(to);
    }

    /// `jcc`, by the encoding's number of the condition.
    pub fn jump_if(&mut self, condition: u8, to: Label) {
        self.bytes(&[0x0f, 0x80 | condition]);
        self.distance(to);
    }

    fn distance(&mut self, to: Label) {
        self.fixups.push((self.len, to));
        self.bytes(&[0; 4]);
    }

    /// Goes to `to` if RCX is not zero.
    pub fn jump_if_rcx(&mut self, to: Label) {
        // jrcxz over the jump.
        self.bytes(&[0xe3, 5]);
        self.jump(to);
    }

    /// `call` of an address near.
    pub fn call(&mut self, address: u64) {
        self.put(Instruction::with_branch(Code::Call_rel32_64, address));
    }

    /// `jmp` to an address near.
    pub fn jump_to(&mut self, address: u64) {
        self.put(Instruction::with_branch(Code::Jmp_rel32_64, address));
    }

    /// `to = from`.
    pub fn mov(&mut self, to: Register, from: Register) {
        self.put(Instruction::with2(Code::Mov_r64_rm64, to, from));
    }

    /// `to = [from]`, 64 bits.
    pub fn load(&mut self, to: Register, from: MemoryOperand) {
        self.put(Instruction::with2(Code::Mov_r64_rm64, to, from));
    }

    /// `[to] = from`, 64 bits.
    pub fn store(&mut self, to: MemoryOperand, from: Register) {
        self.put(Instruction::with2(Code::Mov_rm64_r64, to, from));
    }

    /// `to = value`, a small one, by its lower half.
    pub fn set_low(&mut self, to: Register, value: u32) {
        let low = match to.number() {
            n if n < 16 => Register::EAX + u32::try_from(n).unwrap_or(0),
            _ => Register::None,
        };
        self.put(Instruction::with2(Code::Mov_r32_imm32, low, value));
    }

    /// `to = from << by`, the flags left alone.
    pub fn shift_left(&mut self, to: Register, from: Register, by: Register) {
        self.put(Instruction::with3(
            Code::VEX_Shlx_r64_rm64_r64,
            to,
            from,
            by,
        ));
    }

    /// `to = from >> by`, the flags left alone.
    pub fn shift_right(&mut self, to: Register, from: Register, by: Register) {
        self.put(Instruction::with3(
            Code::VEX_Shrx_r64_rm64_r64,
            to,
            from,
            by,
        ));
    }

    /// `to = from`, turned to the right, the flags left alone.
    pub fn turn(&mut self, to: Register, from: Register, by: u32) {
        let code = if to.is_gpr64() {
            Code::VEX_Rorx_r64_rm64_imm8
        } else {
            Code::VEX_Rorx_r32_rm32_imm8
        };
        self.put(Instruction::with3(code, to, from, by));
    }

    /// Keeps the lowest 16 bits of a register, given by its lower half.
    pub fn narrow(&mut self, register: Register) {
        let low = Register::AX + u32::try_from(register.number()).unwrap_or(0);
        self.put(Instruction::with2(Code::Movzx_r32_rm16, register, low));
    }

    /// `to = address`.
    pub fn lea(&mut self, to: Register, address: MemoryOperand) {
        self.put(Instruction::with2(Code::Lea_r64_m, to, address));
    }

    /// `to = ` the label's address.
    pub fn lea_label(&mut self, to: Register, label: Label) {
        let number = u8::try_from(to.number()).unwrap_or(0);
        let rex = 0x48 | (number >> 3) << 2;
        self.bytes(&[rex, 0x8d, (number & 7) << 3 | 5]);
        self.distance(label);
    }

    /// Keeps the lowest byte of a register, given by its lower half.
    pub fn narrow_to_byte(&mut self, register: Register) {
        let low = Register::AL + u32::try_from(register.number()).unwrap_or(0);
        self.put(Instruction::with2(Code::Movzx_r32_rm8, register, low));
    }

    /// Inverts every bit, the flags left alone.
    pub fn invert(&mut self, register: Register) {
        self.put(Instruction::with1(Code::Not_rm64, register));
    }

    /// `to = value`, sign-extended.
    pub fn set(&mut self, to: Register, value: i32) {
        self.put(Instruction::with2(Code::Mov_rm64_imm32, to, value));
    }

    /// `to = value`.
    pub fn set_address(&mut self, to: Register, value: u64) {
        self.put(Instruction::with2(Code::Mov_r64_imm64, to, value));
    }

    /// `jmp register`.
    pub fn jump_by(&mut self, register: Register) {
        self.put(Instruction::with1(Code::Jmp_rm64, register));
    }

    /// `jmp [memory]`.
    pub fn jump_through(&mut self, memory: MemoryOperand) {
        self.put(Instruction::with1(Code::Jmp_rm64, memory));
    }

    /// The code; `None` if something could not be encoded.
    pub fn finish(mut self) -> Option<Vec<u8>> {
        let mut code = self.encoder.take_buffer();
        for (at, label) in &self.fixups {
            let target = self.labels[label.0]?;
            let distance = i64::try_from(target).ok()? - i64::try_from(at + 4).ok()?;
            let distance = i32::try_from(distance).ok()?;
            code[*at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        (!self.failed).then_some(code)
    }
}
