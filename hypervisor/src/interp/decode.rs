//! From instruction bytes to operations.
//!
//! Law: what is not known for certain becomes [`system::unknown`], which stops
//! before the instruction. Operands are taken apart here, once, in the same
//! way for all: `dst` is the first register operand, `src` the second, `imm`
//! the third or the immediate; a memory operand is not counted.

use super::{
    exec::{
        alu, bits, compat, control, data, masked, shift, stack, string, swap, system, vector,
        xstate,
    },
    op::{Handler, Op, slot},
    vector::Plans,
};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

/// How the first two operands are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A register alone.
    Reg,
    /// A memory operand alone.
    Mem,
    /// Register, register.
    RegReg,
    /// Register, immediate.
    RegImm,
    /// Register, memory.
    RegMem,
    /// Memory, register.
    MemReg,
    /// Memory, immediate.
    MemImm,
    /// Anything else: implied operands, or none.
    Other,
}

/// An instruction's shape: what its handler is chosen by.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How the operands are given.
    pub form: Form,
    /// Bytes of the first operand.
    pub width: usize,
    /// Whether one of the operands is in memory.
    pub memory: bool,
    /// `lock`.
    pub locked: bool,
}

/// What becomes of one instruction.
#[derive(Debug)]
pub struct Decoded {
    /// Computes a 32-bit effective address first.
    pub before: Option<Op>,
    /// The operation.
    pub op: Op,
    /// Whether nothing follows in the same block.
    pub ends_block: bool,
}

/// A handler, and whether the block ends with it.
pub type Choice = Option<(Handler, bool)>;

/// Decodes `instruction`, whose IP is its offset in its page.
/// With `compat` it is of 32-bit code.
pub fn decode(instruction: &Instruction, compat: bool, plans: &mut Plans) -> Decoded {
    let at = u16::try_from(instruction.ip() & 0xfff).unwrap_or(0);
    let len = u8::try_from(instruction.len()).unwrap_or(0);
    let mut op = Op::new(system::unknown, at, len);
    let mut before = None;
    let mut ends_block = true;
    if let Some(shape) = operands(instruction, &mut op)
        && let Some((run, ends)) = choose_for(instruction, shape, &mut op, compat, plans)
    {
        op.run = run;
        ends_block = ends;
        if compat && has_memory(instruction) {
            before = Some(split_linear(instruction, &mut op));
        } else if short_address(instruction) {
            before = Some(split_address(&mut op));
        }
    }
    Decoded {
        before,
        op,
        ends_block,
    }
}

fn choose_for(
    i: &Instruction,
    shape: Shape,
    op: &mut Op,
    compat: bool,
    plans: &mut Plans,
) -> Choice {
    if !compat {
        return choose(i, shape, op, plans);
    }
    // No handler for 16-bit addresses.
    if has_memory(i) && (i.memory_base().is_gpr16() || i.memory_displ_size() == 2) {
        return None;
    }
    match compat::choose(i, shape, op) {
        compat::Answer::Own(choice) => choice,
        compat::Answer::Shared => choose(i, shape, op, plans),
    }
}

fn choose(i: &Instruction, shape: Shape, op: &mut Op, plans: &mut Plans) -> Choice {
    let straight = |handler: Option<Handler>| handler.map(|h| (h, false));
    use Mnemonic as M;
    match i.mnemonic() {
        M::Add
        | M::Or
        | M::Adc
        | M::Sbb
        | M::And
        | M::Sub
        | M::Xor
        | M::Cmp
        | M::Test
        | M::Inc
        | M::Dec
        | M::Neg
        | M::Not
        | M::Mul
        | M::Imul
        | M::Div
        | M::Idiv => straight(alu::choose(i, shape)),
        M::Shl
        | M::Sal
        | M::Shr
        | M::Sar
        | M::Rol
        | M::Ror
        | M::Rcl
        | M::Rcr
        | M::Shld
        | M::Shrd => straight(shift::choose(i, shape)),
        M::Bt
        | M::Bts
        | M::Btr
        | M::Btc
        | M::Bsf
        | M::Bsr
        | M::Tzcnt
        | M::Lzcnt
        | M::Popcnt
        | M::Andn
        | M::Bextr
        | M::Bzhi
        | M::Pdep
        | M::Pext
        | M::Blsi
        | M::Blsr
        | M::Blsmsk
        | M::Adcx
        | M::Adox
        | M::Mulx
        | M::Rorx
        | M::Sarx
        | M::Shlx
        | M::Shrx
        | M::Crc32 => straight(bits::choose(i, shape)),
        M::Xchg | M::Xadd | M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => {
            straight(swap::choose(i, shape))
        }
        M::Push | M::Pop | M::Pushfq | M::Popfq | M::Pushf | M::Popf | M::Enter | M::Leave => {
            straight(stack::choose(i, shape, op)).or_else(|| system::choose(i, shape, op))
        }
        _ => straight(data::choose(i, shape, op))
            .or_else(|| straight(string::choose(i, op)))
            .or_else(|| control::choose(i, shape, op))
            .or_else(|| system::choose(i, shape, op))
            .or_else(|| straight(xstate::choose(i, op)))
            .or_else(|| straight(masked::choose(i, op)))
            .or_else(|| straight(vector::choose(i, op, plans))),
    }
}

/// Takes the operands apart; `None` if there is one that no handler knows.
fn operands(i: &Instruction, op: &mut Op) -> Option<Shape> {
    let mut registers = 0;
    let mut kinds = [None; 2];
    for n in 0..i.op_count() {
        let kind = i.op_kind(n);
        let class = match kind {
            OpKind::Register => {
                // Control, vector and mask registers leave the operand at
                // ZERO: no handler for them looks at it.
                if let Some(operand) = register(i.op_register(n)) {
                    place_register(op, &mut registers, operand);
                }
                'r'
            }
            OpKind::Memory => {
                memory(i, op)?;
                'm'
            }
            OpKind::Immediate8
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate32to64
            | OpKind::Immediate64 => {
                op.imm = i.immediate(n);
                'i'
            }
            _ => 'o',
        };
        if let Some(entry) = kinds.get_mut(n as usize) {
            *entry = Some(class);
        }
    }
    let form = match kinds {
        [Some('r'), None] => Form::Reg,
        [Some('m'), None] => Form::Mem,
        [Some('r'), Some('r')] => Form::RegReg,
        [Some('r'), Some('i')] => Form::RegImm,
        [Some('r'), Some('m')] => Form::RegMem,
        [Some('m'), Some('r')] => Form::MemReg,
        [Some('m'), Some('i')] => Form::MemImm,
        _ => Form::Other,
    };
    Some(Shape {
        form,
        width: width(i, 0),
        memory: has_memory(i),
        locked: i.has_lock_prefix(),
    })
}

fn place_register(op: &mut Op, count: &mut u32, operand: u8) {
    match *count {
        0 => op.dst = operand,
        1 => op.src = operand,
        _ => op.imm = u64::from(operand),
    }
    *count += 1;
}

/// Bytes of operand `n`; 0 if it has no size of its own.
pub fn width(i: &Instruction, n: u32) -> usize {
    if n >= i.op_count() {
        return 0;
    }
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size(),
        OpKind::Memory => i.memory_size().size(),
        _ => 0,
    }
}

/// The operand number of a general register.
pub fn register(r: Register) -> Option<u8> {
    if !r.is_gpr() {
        return None;
    }
    let number = u8::try_from(r.full_register().number()).ok()?;
    let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    Some(number | if high { slot::HIGH_BYTE } else { 0 })
}

fn memory(i: &Instruction, op: &mut Op) -> Option<()> {
    op.base = match i.memory_base() {
        Register::None => slot::ZERO,
        // Without RIP's page in it: see `Cpu::in_page`.
        Register::RIP => slot::PAGE,
        Register::EIP => return None,
        base => register(base)?,
    };
    op.index = match i.memory_index() {
        Register::None => slot::ZERO,
        // Of several elements: `exec::masked` adds each one's.
        index if index.is_vector_register() => slot::ZERO,
        index => register(index)?,
    };
    let scale = i.memory_index_scale().trailing_zeros();
    op.scale = u8::try_from(scale).ok()?;
    op.disp = i.memory_displacement64();
    segment(i, op)
}

/// The segment base; those of CS, DS, ES and SS are zero, and prefixes that name one of them
/// do nothing: the base register tells an operand of the stack.
pub fn segment(i: &Instruction, op: &mut Op) -> Option<()> {
    use Register as R;
    match (i.memory_segment(), i.memory_base()) {
        (R::FS, _) => op.segment = slot::FS,
        (R::GS, _) => op.segment = slot::GS,
        (_, R::RSP | R::RBP | R::ESP | R::EBP) => op.scale |= Op::STACK,
        _ => {}
    }
    Some(())
}

/// Whether the memory operand's address is computed in 32 bits.
fn short_address(i: &Instruction) -> bool {
    has_memory(i)
        && (i.memory_base().is_gpr32()
            || i.memory_index().is_gpr32()
            || (i.memory_displ_size() == 4 && no_registers(i)))
}

fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

fn no_registers(i: &Instruction) -> bool {
    i.memory_base() == Register::None && i.memory_index() == Register::None
}

/// The same for 32-bit code, whose linear addresses wrap; `lea` has no segment.
fn split_linear(i: &Instruction, op: &mut Op) -> Op {
    let mut before = split_address(op);
    // The operand of `xlat` is its handler's.
    if !matches!(i.mnemonic(), Mnemonic::Lea | Mnemonic::Xlatb) {
        before.run = compat::linear;
        before.imm = operand_of(i).pack();
    }
    op.segment = slot::ZERO;
    before
}

/// What is done to an instruction's memory operand.
fn operand_of(i: &Instruction) -> compat::Operand {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(i);
    let n = (0..i.op_count()).find(|n| i.op_kind(*n) == OpKind::Memory);
    let access = n.map_or(OpAccess::None, |n| info.op_access(n));
    let touches = !matches!(access, OpAccess::None | OpAccess::NoMemAccess);
    let bytes = u16::try_from(i.memory_size().size()).unwrap_or(0);
    compat::Operand {
        segment: u8::try_from(i.memory_segment().number()).unwrap_or(0),
        bytes: if touches { bytes } else { 0 },
        writes: touches && !matches!(access, OpAccess::Read | OpAccess::CondRead),
    }
}

/// Moves the address computation into an operation of its own.
fn split_address(op: &mut Op) -> Op {
    let mut before = *op;
    before.run = data::address32;
    op.base = slot::TEMP;
    op.index = slot::ZERO;
    op.disp = 0;
    op.scale &= Op::STACK;
    before
}
