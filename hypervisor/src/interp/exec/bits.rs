//! Bit tests, bit scans and counts, BMI1, BMI2, ADX and `crc32`.

use super::operand;
use crate::interp::{
    decode::{Form, Shape, width},
    flags::Flags,
    host::{BitWord, Checksum, HostPtr, Memory, MulDiv, VexWord, WideAtomic, Word},
    op::{Flow, Handler, Op, Outcome, slot},
    state::Cpu,
};
use iced_x86::{Instruction, Mnemonic, OpKind};
use std::arch::is_x86_feature_detected;

trait BitTest: 'static {
    const WRITES: bool = true;
    fn apply<W: BitWord>(value: W, bit: W, flags: Flags) -> (W, Flags);
    fn locked<W: WideAtomic>(bit: W, to: HostPtr, flags: Flags) -> Flags;
}

struct Bt;
impl BitTest for Bt {
    const WRITES: bool = false;
    #[inline(always)]
    fn apply<W: BitWord>(value: W, bit: W, flags: Flags) -> (W, Flags) {
        value.bt(bit, flags)
    }
    fn locked<W: WideAtomic>(_: W, _: HostPtr, flags: Flags) -> Flags {
        flags
    }
}

macro_rules! bit_test {
    ($($name:ident $method:ident $locked:ident)*) => {$(
        struct $name;
        impl BitTest for $name {
            #[inline(always)]
            fn apply<W: BitWord>(value: W, bit: W, flags: Flags) -> (W, Flags) {
                value.$method(bit, flags)
            }
            #[inline(always)]
            fn locked<W: WideAtomic>(bit: W, to: HostPtr, flags: Flags) -> Flags {
                bit.$locked(to, flags)
            }
        }
    )*};
}
bit_test!(Bts bts lock_bts Btr btr lock_btr Btc btc lock_btc);

fn test_reg<T: BitTest, const IMM: bool, W: BitWord>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let bit = if IMM { W::low(op.imm) } else { cpu.get(op.src) };
    let (value, flags) = T::apply(cpu.get::<W>(op.dst), bit, cpu.flags);
    cpu.flags = flags;
    if T::WRITES {
        cpu.set(op.dst, value);
    }
    Ok(Flow::Next)
}

/// The word that a bit of a memory operand is in, and its number there. An
/// immediate stays in the word; a register selects any bit around it.
#[inline(always)]
fn locate<const IMM: bool, W: Word>(cpu: &Cpu, op: &Op) -> (u64, W) {
    let address = cpu.address(op);
    let within = u64::from(W::BITS - 1);
    if IMM {
        return (address, W::low(op.imm & within));
    }
    let bit = cpu.get::<W>(op.dst).sext();
    let words = bit.cast_signed() >> W::BITS.trailing_zeros();
    let bytes = words.cast_unsigned().wrapping_mul(W::BYTES);
    (address.wrapping_add(bytes), W::low(bit & within))
}

fn test_mem<T: BitTest, const IMM: bool, W: BitWord + Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (address, bit) = locate::<IMM, W>(cpu, op);
    if T::WRITES {
        cpu.update::<W>(address, |value, flags| T::apply(value, bit, flags))?;
    } else {
        let value = cpu.load::<W>(address)?;
        cpu.flags = T::apply(value, bit, cpu.flags).1;
    }
    Ok(Flow::Next)
}

fn test_lock<T: BitTest, const IMM: bool, W: WideAtomic>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let (address, bit) = locate::<IMM, W>(cpu, op);
    let place = cpu.exclusive(address, W::BYTES)?;
    cpu.flags = T::locked(bit, place, cpu.flags);
    Ok(Flow::Next)
}

/// Instructions that compute the first operand from the second, and may keep
/// something of the first.
trait FromSource: 'static {
    fn apply<W: BitWord>(source: W, whole: u64, flags: Flags) -> (u64, Flags);
}

macro_rules! from_source {
    ($($name:ident $method:ident)*) => {$(
        struct $name;
        impl FromSource for $name {
            #[inline(always)]
            fn apply<W: BitWord>(source: W, whole: u64, flags: Flags) -> (u64, Flags) {
                BitWord::$method(source, whole, flags)
            }
        }
    )*};
}
from_source!(Bsf bsf Bsr bsr Tzcnt tzcnt Lzcnt lzcnt Popcnt popcnt);

fn from_source<S: FromSource, const MEM: bool, W: BitWord + Memory>(
    cpu: &mut Cpu,
    op: &Op,
) -> Outcome {
    let source = operand::<MEM, W>(cpu, op, op.src)?;
    let (result, flags) = S::apply(source, cpu.get(op.dst), cpu.flags);
    cpu.flags = flags;
    cpu.set::<u64>(op.dst, result);
    Ok(Flow::Next)
}

/// Instructions with two sources and a destination of 32 or 64 bits.
trait TwoSources: 'static {
    fn apply<W: VexWord>(a: W, b: W, flags: Flags) -> (W, Flags);
}

macro_rules! two_sources {
    ($($name:ident $method:ident)*) => {$(
        struct $name;
        impl TwoSources for $name {
            #[inline(always)]
            fn apply<W: VexWord>(a: W, b: W, flags: Flags) -> (W, Flags) {
                VexWord::$method(a, b, flags)
            }
        }
    )*};
}
two_sources!(Andn andn Bextr bextr Bzhi bzhi Pdep pdep Pext pext Adcx adcx Adox adox);

macro_rules! shift_without_flags {
    ($($name:ident($a:ident, $b:ident) $result:expr;)*) => {$(
        struct $name;
        impl TwoSources for $name {
            #[inline(always)]
            fn apply<W: VexWord>($a: W, $b: W, flags: Flags) -> (W, Flags) {
                let $b = $b.zext() & u64::from(W::BITS - 1);
                (W::low($result), flags)
            }
        }
    )*};
}
shift_without_flags! {
    Shlx(a, count) a.zext() << count;
    Shrx(a, count) a.zext() >> count;
    Sarx(a, count) (a.sext().cast_signed() >> count).cast_unsigned();
    Rorx(a, count) (a.zext() >> count) | ((a.zext() << 1) << (u64::from(W::BITS - 1) - count));
}

/// The last operand may be in memory: `andn`, `pdep`, `pext`.
fn last_source<S: TwoSources, const MEM: bool, W: VexWord + Memory>(
    cpu: &mut Cpu,
    op: &Op,
) -> Outcome {
    let b = operand::<MEM, W>(cpu, op, u8::low(op.imm))?;
    let a = cpu.get::<W>(op.src);
    let (result, flags) = S::apply(a, b, cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

/// The middle operand may be in memory: `bextr`, `bzhi`, `shlx`.
fn middle_source<S: TwoSources, const MEM: bool, W: VexWord + Memory>(
    cpu: &mut Cpu,
    op: &Op,
) -> Outcome {
    let a = operand::<MEM, W>(cpu, op, op.src)?;
    let last = if MEM { op.src } else { u8::low(op.imm) };
    let (result, flags) = S::apply(a, cpu.get::<W>(last), cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

/// The last operand is an immediate: `rorx`.
fn immediate_source<S: TwoSources, const MEM: bool, W: VexWord + Memory>(
    cpu: &mut Cpu,
    op: &Op,
) -> Outcome {
    let a = operand::<MEM, W>(cpu, op, op.src)?;
    let (result, flags) = S::apply(a, W::low(op.imm), cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

/// The first operand is a source too: `adcx`, `adox`.
fn first_source<S: TwoSources, const MEM: bool, W: VexWord + Memory>(
    cpu: &mut Cpu,
    op: &Op,
) -> Outcome {
    let b = operand::<MEM, W>(cpu, op, op.src)?;
    let (result, flags) = S::apply(cpu.get::<W>(op.dst), b, cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

trait LowestBit: 'static {
    fn apply<W: VexWord>(a: W, flags: Flags) -> (W, Flags);
}

macro_rules! lowest_bit {
    ($($name:ident $method:ident)*) => {$(
        struct $name;
        impl LowestBit for $name {
            #[inline(always)]
            fn apply<W: VexWord>(a: W, flags: Flags) -> (W, Flags) {
                VexWord::$method(a, flags)
            }
        }
    )*};
}
lowest_bit!(Blsi blsi Blsr blsr Blsmsk blsmsk);

fn lowest_bit<L: LowestBit, const MEM: bool, W: VexWord + Memory>(
    cpu: &mut Cpu,
    op: &Op,
) -> Outcome {
    let a = operand::<MEM, W>(cpu, op, op.src)?;
    let (result, flags) = L::apply(a, cpu.flags);
    cpu.flags = flags;
    cpu.set(op.dst, result);
    Ok(Flow::Next)
}

/// `mulx high, low, source`: no flags; if both are one register, it gets the
/// high half.
fn mulx<const MEM: bool, W: MulDiv + Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let b = operand::<MEM, W>(cpu, op, u8::low(op.imm))?;
    let (low, high, _) = cpu.get::<W>(slot::RDX).mul(b, cpu.flags);
    cpu.set(op.src, low);
    cpu.set(op.dst, high);
    Ok(Flow::Next)
}

/// `crc32`: the sum is 32 bits wide whatever the source is.
fn crc32<const MEM: bool, W: Checksum + Memory>(cpu: &mut Cpu, op: &Op) -> Outcome {
    let source = operand::<MEM, W>(cpu, op, op.src)?;
    let sum = source.crc32(cpu.get(op.dst));
    cpu.set::<u32>(op.dst, sum);
    Ok(Flow::Next)
}

macro_rules! by_vex_width {
    ($shape:expr, $handler:ident $(, $parameter:tt)*) => {
        match ($shape.width, $shape.memory) {
            (4, false) => Some($handler::<$($parameter,)* false, u32> as Handler),
            (4, true) => Some($handler::<$($parameter,)* true, u32> as Handler),
            (8, false) => Some($handler::<$($parameter,)* false, u64> as Handler),
            (8, true) => Some($handler::<$($parameter,)* true, u64> as Handler),
            _ => None,
        }
    };
}

fn choose_test<T: BitTest>(shape: Shape) -> Option<Handler> {
    let w = shape.width;
    match (shape.form, shape.locked) {
        (Form::RegReg, false) => by_wide_width!(w, test_reg, T, false),
        (Form::RegImm, false) => by_wide_width!(w, test_reg, T, true),
        (Form::MemReg, false) => by_wide_width!(w, test_mem, T, false),
        (Form::MemImm, false) => by_wide_width!(w, test_mem, T, true),
        (Form::MemReg, true) if T::WRITES => by_wide_width!(w, test_lock, T, false),
        (Form::MemImm, true) if T::WRITES => by_wide_width!(w, test_lock, T, true),
        _ => None,
    }
}

fn choose_source<S: FromSource>(shape: Shape) -> Option<Handler> {
    if shape.memory {
        by_wide_width!(shape.width, from_source, S, true)
    } else {
        by_wide_width!(shape.width, from_source, S, false)
    }
}

fn choose_crc(i: &Instruction, shape: Shape) -> Option<Handler> {
    if shape.memory {
        by_width!(width(i, 1), crc32, true)
    } else {
        by_width!(width(i, 1), crc32, false)
    }
}

/// The handler for an instruction of this family, if this processor has it.
pub fn choose(i: &Instruction, shape: Shape) -> Option<Handler> {
    use Mnemonic as M;
    let bmi1 = is_x86_feature_detected!("bmi1");
    let bmi2 = is_x86_feature_detected!("bmi2");
    let adx = is_x86_feature_detected!("adx");
    match i.mnemonic() {
        M::Bt => choose_test::<Bt>(shape),
        M::Bts => choose_test::<Bts>(shape),
        M::Btr => choose_test::<Btr>(shape),
        M::Btc => choose_test::<Btc>(shape),
        M::Bsf => choose_source::<Bsf>(shape),
        M::Bsr => choose_source::<Bsr>(shape),
        M::Tzcnt if bmi1 => choose_source::<Tzcnt>(shape),
        M::Lzcnt if is_x86_feature_detected!("lzcnt") => choose_source::<Lzcnt>(shape),
        M::Popcnt if is_x86_feature_detected!("popcnt") => choose_source::<Popcnt>(shape),
        M::Crc32 if is_x86_feature_detected!("sse4.2") => choose_crc(i, shape),
        M::Andn if bmi1 => by_vex_width!(shape, last_source, Andn),
        M::Bextr if bmi1 && is_general(i) => by_vex_width!(shape, middle_source, Bextr),
        M::Blsi if bmi1 => by_vex_width!(shape, lowest_bit, Blsi),
        M::Blsr if bmi1 => by_vex_width!(shape, lowest_bit, Blsr),
        M::Blsmsk if bmi1 => by_vex_width!(shape, lowest_bit, Blsmsk),
        M::Bzhi if bmi2 => by_vex_width!(shape, middle_source, Bzhi),
        M::Pdep if bmi2 => by_vex_width!(shape, last_source, Pdep),
        M::Pext if bmi2 => by_vex_width!(shape, last_source, Pext),
        M::Mulx if bmi2 => by_vex_width!(shape, mulx),
        M::Rorx if bmi2 => by_vex_width!(shape, immediate_source, Rorx),
        M::Sarx if bmi2 => by_vex_width!(shape, middle_source, Sarx),
        M::Shlx if bmi2 => by_vex_width!(shape, middle_source, Shlx),
        M::Shrx if bmi2 => by_vex_width!(shape, middle_source, Shrx),
        M::Adcx if adx => by_vex_width!(shape, first_source, Adcx),
        M::Adox if adx => by_vex_width!(shape, first_source, Adox),
        _ => None,
    }
}

/// Whether the last operand is a register (AMD's `bextr` with an immediate is
/// another instruction).
fn is_general(i: &Instruction) -> bool {
    i.op_kind(2) == OpKind::Register
}
