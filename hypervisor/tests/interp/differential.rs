//! Random instructions, executed by the interpreter and by this processor:
//! registers, flags and memory must come out the same.
//!
//! An instruction is made of random bytes behind a prefix and opcode of a
//! family, and kept if it decodes. Registers are then chosen so that its memory
//! operand lies in the data pages. What the interpreter refuses (a trap, or an
//! instruction that it does not know) is not executed here. Undefined flags are
//! compared as well, since the interpreter takes them from the same instruction
//! of the same processor; [`unlike`] names the exception.
//!
//! `DOMUS_TEST_ROUNDS` and `DOMUS_TEST_SEED` make a longer or another run.

use crate::{
    machine::{ALL, Machine},
    native::{AT, Area, CODE, DATA, DATA_LEN, Native, State, TAKEN},
    random::{Random, float, instruction, vector_instruction},
};
use guest_abi::addr::Mfn;
use hypervisor::{
    cpu::{Context, Trap, reg},
    fpu::{FpuState, at},
    interp::{Exit, Interpreter},
};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
};

const HLT: u8 = 0xf4;
/// The middle of the data pages.
const MIDDLE: u64 = DATA + DATA_LEN / 2;

/// Both sides of the comparison.
pub(super) struct Bench {
    pub random: Random,
    pub machine: Arc<Machine>,
    pub root: Mfn,
    pub code: Mfn,
    data: [Mfn; 2],
    pub interpreter: Interpreter,
    pub native: Native,
    /// Memory operands lie within so many bytes before and behind this.
    pub target: (u64, u64),
    source: fn(&mut Random) -> Vec<u8>,
    done: BTreeMap<String, u32>,
    refused: BTreeMap<String, u32>,
}

/// One instruction with the state to execute it in.
pub(super) struct Case {
    pub bytes: Vec<u8>,
    pub instruction: Instruction,
    pub state: State,
    pub fpu: FpuState,
}

pub(super) fn decode(bytes: &[u8]) -> Instruction {
    Decoder::with_ip(64, bytes, CODE + AT, DecoderOptions::NONE).decode()
}

impl Bench {
    pub fn new(seed: u64, source: fn(&mut Random) -> Vec<u8>) -> Self {
        let machine = Arc::new(Machine::new(32));
        let root = machine.alloc();
        let code = machine.map_new(root, CODE, ALL);
        let data = [
            machine.map_new(root, DATA, ALL),
            machine.map_new(root, DATA + 0x1000, ALL),
        ];
        let mut bench = Bench {
            random: Random(seed),
            interpreter: crate::interpreter(&machine),
            machine,
            root,
            code,
            data,
            native: Native::new(),
            target: (MIDDLE, 0x100),
            source,
            done: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        bench.fill();
        bench
    }

    /// New data on both sides.
    pub fn fill(&mut self) {
        for offset in (0..DATA_LEN).step_by(8) {
            let value = self.random.value();
            self.write(DATA + offset, &value.to_le_bytes());
        }
    }

    /// What lies beyond the data pages is left as it is.
    fn write(&mut self, address: u64, bytes: &[u8]) {
        let end = address.wrapping_add(bytes.len() as u64);
        if address < DATA || end > DATA + DATA_LEN || end < address {
            return;
        }
        self.native.write(address, bytes);
        self.copy_back();
    }

    /// Makes the interpreter's data the same as the processor's.
    pub fn copy_back(&mut self) {
        for (frame, page) in self.data.iter().zip(self.native.data().chunks(0x1000)) {
            // SAFETY: a whole frame of the test machine.
            unsafe {
                self.machine
                    .byte(*frame, 0)
                    .copy_from(page.as_ptr(), 0x1000)
            };
        }
    }

    pub fn same_data(&self) -> bool {
        let frames = self.data.iter().zip(self.native.data().chunks(0x1000));
        frames.into_iter().all(|(frame, page)| {
            // SAFETY: a whole frame of the test machine, not written meanwhile.
            page == unsafe { std::slice::from_raw_parts(self.machine.byte(*frame, 0), 0x1000) }
        })
    }

    fn state(&mut self) -> State {
        let mut state = State::default();
        for register in &mut state.gpr {
            *register = self.random.value();
        }
        let (middle, spread) = self.target;
        state.gpr[reg::RSP] = middle - spread / 2 + self.random.below(spread);
        let direction = if self.random.below(4) == 0 { 0x400 } else { 0 };
        state.rflags = 0x202 | direction | (self.random.next() & 0x8d5);
        state
    }

    /// A case that will touch the data pages only, if it touches memory.
    fn case(&mut self) -> Option<Case> {
        let bytes = (self.source)(&mut self.random);
        if decode(&bytes).is_invalid() {
            return None;
        }
        self.case_of(bytes)
    }

    /// The same with an instruction given.
    pub fn case_of(&mut self, bytes: Vec<u8>) -> Option<Case> {
        let instruction = decode(&bytes);
        let random = matches!(instruction.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed);
        if random {
            return None;
        }
        let state = self.state();
        let mut case = Case {
            bytes,
            instruction,
            state,
            fpu: self.fpu(),
        };
        if !instruction.is_invalid() {
            case.bytes.truncate(instruction.len());
        }
        self.implied(&mut case);
        self.branch(&mut case)?;
        self.memory(&mut case)?;
        self.pointers(&mut case);
        Some(case)
    }

    /// Any x87, MMX, SSE and AVX state with all exceptions masked.
    fn fpu(&mut self) -> FpuState {
        let mut area = [0; 832];
        for bytes in area.chunks_exact_mut(8) {
            bytes.copy_from_slice(&float(&mut self.random).to_le_bytes());
        }
        let random = &mut self.random;
        let mut word = |at: usize, value: u64| {
            area[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        let control = 0x37f & (random.next() | 0xff) | random.next() & 0xc00;
        let status = random.next() & 0x7f7f;
        let some = random.next() & 0xff;
        let tags = random.pick(&[0, 0xff, some]);
        word(at::FCW, control | (status << 16) | (tags << 32));
        word(at::FIP, random.next() >> 20);
        word(at::FDP, random.next() >> 20);
        let mxcsr = 0x1f80 | random.next() & 0x603f | random.pick(&[0, 0, 0x8040]);
        word(at::MXCSR, mxcsr);
        word(at::XSTATE_BV, 7);
        word(at::XCOMP_BV, 0);
        for st in 0..8 {
            // An exponent of the middle, or a number from memory.
            if random.below(3) == 0 {
                let exponent = 0x3fff + random.below(80) - 40;
                area[at::ST + 16 * st + 7] |= 0x80;
                area[at::ST + 16 * st + 8..][..2].copy_from_slice(&exponent.to_le_bytes()[..2]);
            }
            area[at::ST + 16 * st + 10..at::ST + 16 * st + 16].fill(0);
        }
        FpuState::from_xsave(&area)
    }

    /// Registers that an instruction uses without naming them.
    fn implied(&mut self, case: &mut Case) {
        let (middle, spread) = self.target;
        let near = |random: &mut Random| middle - 2 * spread + random.below(4 * spread);
        let gpr = &mut case.state.gpr;
        let i = &case.instruction;
        if i.is_string_instruction() {
            gpr[reg::RSI] = near(&mut self.random);
            gpr[reg::RDI] = near(&mut self.random);
            gpr[reg::RCX] = self.random.below(40);
        }
        match i.mnemonic() {
            Mnemonic::Leave => gpr[reg::RBP] = near(&mut self.random),
            Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => {
                gpr[reg::RDI] = near(&mut self.random);
            }
            Mnemonic::Div if self.random.below(4) != 0 => gpr[reg::RDX] = self.random.below(3),
            Mnemonic::Idiv if self.random.below(4) != 0 => {
                gpr[reg::RDX] = self.random.below(3).wrapping_sub(1);
                gpr[reg::RAX] >>= self.random.below(60);
            }
            Mnemonic::Enter => {
                let at = case.bytes.len() - 2;
                case.bytes[at] &= 3;
                case.bytes[at + 1] = 0;
                case.instruction = decode(&case.bytes);
            }
            _ => {}
        }
    }

    /// Direct branches go to [`TAKEN`].
    fn branch(&mut self, case: &mut Case) -> Option<()> {
        let kind = case.instruction.op0_kind();
        if case.instruction.op_count() == 0 || kind != OpKind::NearBranch64 {
            return Some(());
        }
        let len = case.bytes.len();
        let distance = TAKEN - (AT + len as u64);
        let place = Decoder::with_ip(64, &case.bytes, CODE + AT, 0);
        let size = constant(place, |c| c.immediate_size());
        case.bytes[len - size..].copy_from_slice(&distance.to_le_bytes()[..size]);
        case.instruction = decode(&case.bytes);
        Some(())
    }

    /// Chooses registers or the displacement so that the operand is in the
    /// data pages.
    fn memory(&mut self, case: &mut Case) -> Option<()> {
        let i = case.instruction;
        if !(0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            return Some(());
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        let by_bit = is_bit_test(&i) && i.op1_kind() == OpKind::Register;
        let (middle, spread) = self.target;
        let target = middle - spread + self.random.below(2 * spread);
        let wide = |r: Register| r.is_gpr32() || r.is_gpr64();
        if by_bit {
            let bit = i.op1_register().full_register();
            if bit == base.full_register() || bit == index.full_register() {
                return None;
            }
            let offset = self.random.below(0x4000).wrapping_sub(0x2000);
            case.state.gpr[bit.number()] = offset;
        }
        if wide(index) && base != Register::None {
            case.state.gpr[index.number()] = self.random.below(20);
        }
        if base == index && wide(base) {
            let times = u64::from(i.memory_index_scale()) + 1;
            case.state.gpr[base.number()] = target.wrapping_sub(i.memory_displacement64()) / times;
        } else if wide(base) {
            let off = target.wrapping_sub(case.address());
            let register = &mut case.state.gpr[base.number()];
            *register = register.wrapping_add(off);
        } else if wide(index) && base == Register::None {
            let distance = target.wrapping_sub(i.memory_displacement64());
            case.state.gpr[index.number()] = distance / u64::from(i.memory_index_scale());
        } else if index == Register::None {
            case.patch_displacement(target);
        }
        if !is_lea(&i) && !(middle - 0x800..middle + 0x800).contains(&case.address()) {
            return None;
        }
        let whole = i.memory_size().size() >= 16 || i.mnemonic() == Mnemonic::Cmpxchg16b;
        if i.memory_size().size() >= 16 && wide(base) && index == Register::None {
            let low = case.address() & 31;
            if self.random.below(2) == 0 {
                case.state.gpr[base.number()] -= low;
            }
        } else if whole && self.random.below(4) != 0 && wide(base) {
            let low = case.address() & 15;
            case.state.gpr[base.number()] -= low;
        }
        Some(())
    }

    /// Indirect branches go to [`TAKEN`].
    fn pointers(&mut self, case: &mut Case) {
        let i = case.instruction;
        let target = (CODE + TAKEN).to_le_bytes();
        match i.code() {
            Code::Retnq | Code::Retnq_imm16 => {
                let stack = case.state.gpr[reg::RSP];
                self.write(stack, &target);
            }
            Code::Jmp_rm64 | Code::Call_rm64 if i.op0_kind() == OpKind::Register => {
                case.state.gpr[i.op0_register().number()] = CODE + TAKEN;
            }
            Code::Jmp_rm64 | Code::Call_rm64 => {
                let at = case.address();
                self.write(at, &target);
            }
            _ => {}
        }
        // Give comparisons a chance to find equality.
        let compares = matches!(i.mnemonic(), Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b);
        if compares && i.op0_kind() == OpKind::Memory && self.random.below(2) == 0 {
            let gpr = case.state.gpr;
            let bytes = match i.mnemonic() {
                Mnemonic::Cmpxchg => gpr[reg::RAX],
                _ => (gpr[reg::RDX] << 32) | (gpr[reg::RAX] & 0xffff_ffff),
            };
            let at = case.address();
            self.write(at, &bytes.to_le_bytes());
        }
    }

    fn rounds(&mut self, rounds: u64) {
        for round in 0..rounds {
            if let Some(case) = self.case() {
                self.check(&case);
            }
            if round % 20_000 == 0 {
                self.fill();
            }
        }
    }

    fn check(&mut self, case: &Case) {
        let name = format!("{:?}", case.instruction.mnemonic());
        let mut page = [HLT; 0x100];
        page[..case.bytes.len()].copy_from_slice(&case.bytes);
        self.machine.write(self.code, AT, &page);
        let mut context = Context {
            gpr: case.state.gpr,
            rip: CODE + AT,
            rflags: case.state.rflags,
            ..Context::default()
        };
        let go = AtomicBool::new(false);
        self.interpreter.load_fpu(&case.fpu);
        let exit = self.interpreter.run(&mut context, self.root, 10_000, &go);
        let next = CODE + AT + case.bytes.len() as u64;
        let through = matches!(exit, Exit::Trap(Trap::Exception { vector: 13, .. }))
            && (context.rip == next || context.rip == CODE + TAKEN);
        if !through {
            *self.refused.entry(name).or_default() += 1;
            self.copy_back();
            return;
        }
        let mut area = Area([0; 832]);
        case.fpu.to_xsave(&mut area.0);
        let mut state = case.state;
        state.area = std::ptr::from_mut(&mut area).expose_provenance() as u64;
        let went = self.native.run(&case.bytes, &mut state);
        state.area = 0;
        // What the processor keeps of an instruction that only looks.
        let theirs = FpuState::from_xsave(&area.0);
        let ours_fpu = self.interpreter.fpu().expect("it was loaded").clone();
        let mut ours = State {
            gpr: context.gpr,
            // `hlt` sets RF.
            rflags: context.rflags & !(1 << 16),
            area: 0,
        };
        ours.rflags &= !unlike(&case.instruction);
        state.rflags &= !unlike(&case.instruction);
        let same = ours == state && went == context.rip && self.same_data() && ours_fpu == theirs;
        assert!(
            same,
            "{} = {:x?}\nbefore    {:x?}\nprocessor {:x?} at {went:#x}\nours      {:x?} at {:#x}\nmemory the same: {}\nXSAVE area {}",
            text(&case.instruction),
            case.bytes,
            case.state,
            state,
            ours,
            context.rip,
            self.same_data(),
            differences(&case.fpu, &theirs, &ours_fpu),
        );
        *self.done.entry(name).or_default() += 1;
    }
}

impl Case {
    /// The memory operand's address.
    pub fn address(&self) -> u64 {
        let i = &self.instruction;
        let operand = (0..i.op_count())
            .find(|n| i.op_kind(*n) == OpKind::Memory)
            .unwrap();
        let value = |r: Register, _, _| {
            if !r.is_gpr() {
                return Some(0);
            }
            let full = self.state.gpr[r.full_register().number()];
            Some(match r.size() {
                1 => full & 0xff,
                4 => full & 0xffff_ffff,
                _ => full,
            })
        };
        i.virtual_address(operand, 0, value).unwrap()
    }

    fn patch_displacement(&mut self, target: u64) {
        let mut value = target;
        if self.instruction.memory_base() == Register::RIP
            || self.instruction.memory_base() == Register::EIP
        {
            value = value.wrapping_sub(CODE + AT + self.bytes.len() as u64);
        }
        let at = constant(Decoder::with_ip(64, &self.bytes, CODE + AT, 0), |c| {
            c.displacement_offset()
        });
        let size = constant(Decoder::with_ip(64, &self.bytes, CODE + AT, 0), |c| {
            c.displacement_size()
        });
        self.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        self.instruction = decode(&self.bytes);
    }
}

fn constant(mut decoder: Decoder<'_>, what: impl Fn(&iced_x86::ConstantOffsets) -> usize) -> usize {
    let instruction = decoder.decode();
    what(&decoder.get_constant_offsets(&instruction))
}

fn is_lea(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Lea
}

fn is_bit_test(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    )
}

/// Flags that are undefined and not taken from the very same instruction: the
/// interpreter shifts by CL where the guest shifts by an immediate.
pub(super) fn unlike(i: &Instruction) -> u64 {
    let shifts = matches!(
        i.mnemonic(),
        Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    let last = i.op_count().saturating_sub(1);
    if shifts && i.op_kind(last) == OpKind::Immediate8 && i.immediate8() & 63 != 1 {
        0x800
    } else {
        0
    }
}

/// Words of the XSAVE area that the two sides disagree in.
pub(super) fn differences(before: &FpuState, theirs: &FpuState, ours: &FpuState) -> String {
    let words = |state: &FpuState| -> Vec<u64> {
        let words = state.bytes().chunks_exact(8);
        words
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect()
    };
    let (before, theirs, ours) = (words(before), words(theirs), words(ours));
    (0..before.len())
        .filter(|n| theirs[*n] != ours[*n])
        .map(|n| {
            format!(
                "{}: {:x}, processor {:x}, ours {:x}; ",
                8 * n,
                before[n],
                theirs[n],
                ours[n]
            )
        })
        .collect()
}

pub(super) fn text(i: &Instruction) -> String {
    use iced_x86::{Formatter, NasmFormatter};
    let mut out = String::new();
    NasmFormatter::new().format(i, &mut out);
    out
}

pub(super) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn every_instruction_does_what_this_processor_does() {
    let mut bench = Bench::new(setting("DOMUS_TEST_SEED", 1), instruction);
    bench.rounds(setting("DOMUS_TEST_ROUNDS", 300_000));
    let few: Vec<_> = bench.done.iter().filter(|(_, n)| **n < 20).collect();
    println!("compared {:?}\nrefused {:?}", bench.done, bench.refused);
    let total: u32 = bench.done.values().sum();
    assert!(total > 60_000, "only {total} comparisons");
    assert!(few.len() < 15, "too few comparisons of {few:?}");
}

#[test]
fn every_vector_instruction_does_what_this_processor_does() {
    let mut bench = Bench::new(setting("DOMUS_TEST_SEED", 2), vector_instruction);
    bench.rounds(setting("DOMUS_TEST_ROUNDS", 300_000));
    println!("compared {:?}\nrefused {:?}", bench.done, bench.refused);
    let total: u32 = bench.done.values().sum();
    assert!(total > 60_000, "only {total} comparisons");
    for wanted in [
        "Paddd",
        "Vpaddd",
        "Cvttsd2si",
        "Vfmadd231pd",
        "Fadd",
        "Pcmpistri",
        "Movdqu",
    ] {
        assert!(
            bench.done.contains_key(wanted),
            "{wanted} was never compared"
        );
    }
}
