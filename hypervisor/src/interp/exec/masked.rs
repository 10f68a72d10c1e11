//! Instructions whose memory operand is several elements, each with a
//! mask: conditional moves and gathers of AVX, and `maskmovdqu` and its kin.
//!
//! Law: an element whose mask bit is clear is not accessed. A store is checked
//! for all its elements before the first is written. A gather that faults has
//! done the elements before, and says so in its mask register.

use crate::{
    fpu::{FpuState, at},
    interp::{
        decode::segment,
        op::{Flow, Halt, Handler, Op, Outcome, slot},
        state::{Cpu, vector},
        vector::is_listed,
    },
};
use iced_x86::{Code, Instruction, OpKind, Register};

/// The sizes of such an instruction, and a register more; kept in `Op::imm`.
#[derive(Clone, Copy)]
struct Form {
    /// Elements.
    count: u8,
    /// Bytes of each.
    bytes: u8,
    /// Bytes of each index of a gather.
    index_bytes: u8,
    /// The register of the mask of a move, of the indices of a gather.
    third: u8,
}

impl Form {
    fn pack(self) -> u64 {
        let Form {
            count,
            bytes,
            index_bytes,
            third,
        } = self;
        u64::from_le_bytes([count, bytes, index_bytes, third, 0, 0, 0, 0])
    }

    fn of(op: &Op) -> Self {
        let [count, bytes, index_bytes, third, ..] = op.imm.to_le_bytes();
        Form {
            count,
            bytes,
            index_bytes,
            third,
        }
    }

    fn elements(self) -> std::ops::Range<usize> {
        0..usize::from(self.count)
    }

    /// An element's place in a register.
    fn place(self, n: usize) -> std::ops::Range<usize> {
        let bytes = usize::from(self.bytes);
        n * bytes..(n + 1) * bytes
    }

    /// Whether the mask's element has its top bit set.
    fn wants(self, mask: &[u8; 32], n: usize) -> bool {
        mask[(n + 1) * usize::from(self.bytes) - 1] & 0x80 != 0
    }

    fn load(self, cpu: &mut Cpu, address: u64, to: &mut [u8]) -> Result<(), Halt> {
        if self.bytes == 4 {
            to.copy_from_slice(&cpu.load::<u32>(address)?.to_le_bytes());
        } else {
            to.copy_from_slice(&cpu.load::<u64>(address)?.to_le_bytes());
        }
        Ok(())
    }
}

/// `vmaskmov`, `vpmaskmov` from memory: op.dst gets it.
fn load(cpu: &mut Cpu, op: &Op) -> Outcome {
    let form = Form::of(op);
    let mask = cpu.fpu()?.ymm(form.third.into());
    let address = cpu.address(op);
    let mut value = [0; 32];
    for n in form.elements().filter(|n| form.wants(&mask, *n)) {
        let offset = n as u64 * u64::from(form.bytes);
        form.load(cpu, address.wrapping_add(offset), &mut value[form.place(n)])?;
    }
    cpu.fpu_mut()?.set_ymm(op.dst.into(), &value);
    Ok(Flow::Next)
}

/// The same to memory: op.dst is the source.
fn store(cpu: &mut Cpu, op: &Op) -> Outcome {
    let form = Form::of(op);
    let state = cpu.fpu()?;
    let (mask, value) = (state.ymm(form.third.into()), state.ymm(op.dst.into()));
    let address = cpu.address(op);
    let place = |n: usize| address.wrapping_add(n as u64 * u64::from(form.bytes));
    for n in form.elements().filter(|n| form.wants(&mask, *n)) {
        cpu.pieces(place(n), form.bytes.into(), true)?;
    }
    for n in form.elements().filter(|n| form.wants(&mask, *n)) {
        let element = &value[form.place(n)];
        if let Ok(word) = <[u8; 4]>::try_from(element) {
            cpu.store(place(n), u32::from_le_bytes(word))?;
        } else if let Ok(word) = <[u8; 8]>::try_from(element) {
            cpu.store(place(n), u64::from_le_bytes(word))?;
        }
    }
    Ok(Flow::Next)
}

/// The bytes that the mask wants, to [RDI].
fn store_bytes(cpu: &mut Cpu, op: &Op, mask: &[u8], value: &[u8]) -> Result<(), Halt> {
    let start = cpu.get::<u64>(slot::RDI);
    let start = start.wrapping_add(cpu.get(op.segment));
    let wanted = || {
        (0u64..)
            .zip(mask)
            .zip(value)
            .filter(|((_, mask), _)| **mask & 0x80 != 0)
    };
    for ((n, _), _) in wanted() {
        cpu.write_place(start.wrapping_add(n), 1)?;
    }
    for ((n, _), byte) in wanted() {
        cpu.store(start.wrapping_add(n), *byte)?;
    }
    Ok(())
}

/// `maskmovdqu`: op.dst is the source, op.src the mask.
fn bytes_of_xmm(cpu: &mut Cpu, op: &Op) -> Outcome {
    let state = cpu.fpu()?;
    let (value, mask) = (state.ymm(op.dst.into()), state.ymm(op.src.into()));
    store_bytes(cpu, op, &mask[..16], &value[..16])?;
    Ok(Flow::Next)
}

/// The top of the x87 stack, a field of the status word.
const TOP: u16 = 7 << 11;

/// The x87 registers' places in the XSAVE area begin with the top of the stack.
fn place(state: &FpuState, register: usize) -> usize {
    let top = usize::from((state.x87_u16(at::FSW) & TOP) >> 11);
    at::ST + 16 * ((register + 8 - top) % 8)
}

/// Makes the x87 registers MMX registers: none is empty, and the top is the first one.
fn become_mmx(state: &mut FpuState) {
    let registers: [[u64; 2]; 8] = std::array::from_fn(|n| {
        let place = place(state, n);
        [state.x87_u64(place), state.x87_u64(place + 8)]
    });
    for (n, [low, high]) in registers.into_iter().enumerate() {
        state.set_x87_u64(at::ST + 16 * n, low);
        state.set_x87_u64(at::ST + 16 * n + 8, high);
    }
    state.set_x87_u16(at::FSW, state.x87_u16(at::FSW) & !TOP);
    state.set_x87_u16(at::TAGS, state.x87_u16(at::TAGS) & 0xff00 | 0xff);
}

/// `maskmovq`.
fn bytes_of_mm(cpu: &mut Cpu, op: &Op) -> Outcome {
    let state = cpu.fpu()?;
    if state.x87_pending() {
        return cpu.fault(vector::MF, 0);
    }
    let register = |n: u8| state.x87_u64(place(state, n.into())).to_le_bytes();
    let (value, mask) = (register(op.dst), register(op.src));
    store_bytes(cpu, op, &mask, &value)?;
    become_mmx(cpu.fpu_mut()?);
    Ok(Flow::Next)
}

/// Those with an operand that is not named.
fn at_rdi(i: &Instruction, op: &mut Op) -> Option<Handler> {
    use Code as C;
    if i.op0_kind() != OpKind::MemorySegRDI {
        return None;
    }
    let number = |n| u8::try_from(i.op_register(n).number()).ok();
    (op.dst, op.src) = (number(1)?, number(2)?);
    segment(i, op)?;
    match i.code() {
        C::Maskmovq_rDI_mm_mm => Some(bytes_of_mm),
        C::Maskmovdqu_rDI_xmm_xmm | C::VEX_Vmaskmovdqu_rDI_xmm_xmm => Some(bytes_of_xmm),
        _ => None,
    }
}

/// The index of element `n`, sign-extended.
fn index(form: Form, indices: &[u8; 32], n: usize) -> u64 {
    let bytes = usize::from(form.index_bytes);
    let mut word = [0; 8];
    word[..bytes].copy_from_slice(&indices[n * bytes..(n + 1) * bytes]);
    let value = i64::from_le_bytes(word);
    let unused = 64 - 8 * u32::from(form.index_bytes);
    (value << unused >> unused).cast_unsigned()
}

/// `vpgather*`, `vgather*`: op.dst gets the elements, op.src is the mask.
fn gather(cpu: &mut Cpu, op: &Op) -> Outcome {
    let form = Form::of(op);
    let state = cpu.fpu()?;
    let indices = state.ymm(form.third.into());
    let (mut value, mut mask) = (state.ymm(op.dst.into()), state.ymm(op.src.into()));
    let used = form.elements().len() * usize::from(form.bytes);
    mask[used..].fill(0);
    value[used..].fill(0);
    for n in form.elements() {
        let all = if form.wants(&mask, n) { 0xff } else { 0 };
        mask[form.place(n)].fill(all);
    }
    let mut outcome = Ok(Flow::Next);
    for n in form.elements() {
        let place = form.place(n);
        if form.wants(&mask, n) {
            let distance = index(form, &indices, n).wrapping_shl(u32::from(op.scale & 3));
            let address = cpu.address(op).wrapping_add(distance);
            if let Err(halt) = form.load(cpu, address, &mut value[place.clone()]) {
                outcome = Err(halt);
                break;
            }
        }
        mask[place].fill(0);
    }
    let state = cpu.fpu_mut()?;
    state.set_ymm(op.dst.into(), &value);
    state.set_ymm(op.src.into(), &mask);
    outcome
}

fn vector_number(r: Register) -> Option<u8> {
    r.is_vector_register()
        .then(|| u8::try_from(r.number()).ok())?
}

/// Register, mask and memory operand of a move; whether it stores.
fn conditional(i: &Instruction, op: &mut Op) -> Option<Handler> {
    use Code as C;
    let (count, bytes, stores) = match i.code() {
        C::VEX_Vmaskmovps_xmm_xmm_m128 | C::VEX_Vpmaskmovd_xmm_xmm_m128 => (4, 4, false),
        C::VEX_Vmaskmovps_ymm_ymm_m256 | C::VEX_Vpmaskmovd_ymm_ymm_m256 => (8, 4, false),
        C::VEX_Vmaskmovpd_xmm_xmm_m128 | C::VEX_Vpmaskmovq_xmm_xmm_m128 => (2, 8, false),
        C::VEX_Vmaskmovpd_ymm_ymm_m256 | C::VEX_Vpmaskmovq_ymm_ymm_m256 => (4, 8, false),
        C::VEX_Vmaskmovps_m128_xmm_xmm | C::VEX_Vpmaskmovd_m128_xmm_xmm => (4, 4, true),
        C::VEX_Vmaskmovps_m256_ymm_ymm | C::VEX_Vpmaskmovd_m256_ymm_ymm => (8, 4, true),
        C::VEX_Vmaskmovpd_m128_xmm_xmm | C::VEX_Vpmaskmovq_m128_xmm_xmm => (2, 8, true),
        C::VEX_Vmaskmovpd_m256_ymm_ymm | C::VEX_Vpmaskmovq_m256_ymm_ymm => (4, 8, true),
        _ => return None,
    };
    let value = if stores { 2 } else { 0 };
    op.dst = vector_number(i.op_register(value))?;
    op.imm = Form {
        count,
        bytes,
        index_bytes: 0,
        third: vector_number(i.op_register(1))?,
    }
    .pack();
    Some(if stores { store } else { load })
}

fn gathers(i: &Instruction, op: &mut Op) -> Option<Handler> {
    use Code as C;
    let (count, bytes, index_bytes) = match i.code() {
        C::VEX_Vpgatherdd_xmm_vm32x_xmm | C::VEX_Vgatherdps_xmm_vm32x_xmm => (4, 4, 4),
        C::VEX_Vpgatherdd_ymm_vm32y_ymm | C::VEX_Vgatherdps_ymm_vm32y_ymm => (8, 4, 4),
        C::VEX_Vpgatherdq_xmm_vm32x_xmm | C::VEX_Vgatherdpd_xmm_vm32x_xmm => (2, 8, 4),
        C::VEX_Vpgatherdq_ymm_vm32x_ymm | C::VEX_Vgatherdpd_ymm_vm32x_ymm => (4, 8, 4),
        C::VEX_Vpgatherqd_xmm_vm64x_xmm | C::VEX_Vgatherqps_xmm_vm64x_xmm => (2, 4, 8),
        C::VEX_Vpgatherqd_xmm_vm64y_xmm | C::VEX_Vgatherqps_xmm_vm64y_xmm => (4, 4, 8),
        C::VEX_Vpgatherqq_xmm_vm64x_xmm | C::VEX_Vgatherqpd_xmm_vm64x_xmm => (2, 8, 8),
        C::VEX_Vpgatherqq_ymm_vm64y_ymm | C::VEX_Vgatherqpd_ymm_vm64y_ymm => (4, 8, 8),
        _ => return None,
    };
    (op.dst, op.src) = (
        vector_number(i.op_register(0))?,
        vector_number(i.op_register(2))?,
    );
    let third = vector_number(i.memory_index())?;
    if i.memory_base().is_gpr32() {
        return None;
    }
    if op.dst == op.src || op.dst == third || op.src == third {
        return Some(super::system::undefined);
    }
    op.imm = Form {
        count,
        bytes,
        index_bytes,
        third,
    }
    .pack();
    Some(gather)
}

/// The handler for an instruction of this family.
pub fn choose(i: &Instruction, op: &mut Op) -> Option<Handler> {
    if !is_listed(i.code()) {
        return None;
    }
    conditional(i, op)
        .or_else(|| gathers(i, op))
        .or_else(|| at_rdi(i, op))
}
