//! Programs of random instructions, executed by the interpreter and in compiled
//! form: after each trap registers, flags, the trap and all memory must be the
//! same.
//!
//! A program fills most of a page and uses three pages of data: two mapped
//! side by side, one of them for reading only, one missing. Registers point into
//! or near them, so operands lie across pages, are missing, may not be written; one
//! mapping is of the code itself. After a trap the program goes on behind the
//! instruction, with new registers, in the same run-time state of caches.
//!
//! `DOMUS_TEST_ROUNDS` and `DOMUS_TEST_SEED` make a longer or another run.

use crate::{
    machine::{ALL, Machine, PRESENT, USER},
    random::{Random, instruction},
};
use guest_abi::addr::Mfn;
use hypervisor::{
    cpu::{Context, reg},
    fpu::FpuState,
    interp::{Exit, Interpreter},
};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic, OpKind};
use std::sync::{Arc, atomic::AtomicBool};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0xffff_8880_0100_0000;
const PAGES: u64 = 4;

/// One side of the comparison.
struct Side {
    machine: Arc<Machine>,
    root: Mfn,
    frames: Vec<Mfn>,
    interpreter: Interpreter,
}

impl Side {
    fn new(compiled: bool) -> Self {
        let machine = Arc::new(Machine::new(48));
        let root = machine.alloc();
        let code = machine.map_new(root, CODE, ALL);
        let mut frames = vec![code];
        for page in 0..PAGES {
            let bits = [ALL, ALL, PRESENT | USER, 0];
            let bits = bits[usize::try_from(page).unwrap()];
            frames.push(machine.map_new(root, DATA + page * 0x1000, bits));
        }
        // The code once more, beside the data.
        machine.map(root, DATA - 0x1000, code, ALL);
        let interpreter = if compiled {
            crate::interpreter(&machine)
        } else {
            Interpreter::new(Arc::clone(&machine) as _)
        };
        Side {
            machine,
            root,
            frames,
            interpreter,
        }
    }

    fn run(&mut self, context: &mut Context) -> Exit {
        let go = AtomicBool::new(false);
        let exit = self.interpreter.run(context, self.root, 4000, &go);
        if exit != Exit::NeedsFpu {
            return exit;
        }
        self.interpreter.load_fpu(&FpuState::new());
        self.interpreter.run(context, self.root, 4000, &go)
    }

    /// Whether an instruction of [`shifts_far`] may have been executed between two places:
    /// programs have none, but may be entered in the middle of an instruction.
    fn has_shifted(&self, places: [u64; 2]) -> bool {
        let [a, b] = places.map(|rip| rip & 0xfff);
        let (start, end) = (a.min(b).saturating_sub(64), (a.max(b) + 64).min(0x1000));
        let bytes = self.machine.read(self.frames[0], start, end - start);
        (0..bytes.len()).any(|from| shifts_far(&decode(&bytes[from..], CODE)))
    }

    /// Whether what the code does may be different each time, if it is entered in the middle
    /// of an instruction.
    fn is_of_chance(&self) -> bool {
        let bytes = self.machine.read(self.frames[0], 0, 0x1000);
        (0..bytes.len()).any(|from| differs_each_time(&decode(&bytes[from..], CODE)))
    }

    /// Takes over the other's memory, as if another vCPU had written it.
    fn copy(&mut self, other: &Side) {
        for (frame, bytes) in self.frames.iter().zip(other.memory()) {
            self.machine.write(*frame, 0, &bytes);
        }
    }

    fn memory(&self) -> Vec<Vec<u8>> {
        let frames = self.frames.iter();
        frames
            .map(|frame| self.machine.read(*frame, 0, 0x1000))
            .collect()
    }
}

fn decode(bytes: &[u8], ip: u64) -> iced_x86::Instruction {
    Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode()
}

/// A shift by an immediate other than 1: the interpreter shifts by CL, and OF, which
/// is undefined, may come out otherwise.
fn shifts_far(i: &iced_x86::Instruction) -> bool {
    use Mnemonic as M;
    let shifts = matches!(
        i.mnemonic(),
        M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd
    );
    let last = i.op_count().saturating_sub(1);
    shifts && i.op_kind(last) == OpKind::Immediate8 && i.immediate8() & 63 != 1
}

fn differs_each_time(i: &iced_x86::Instruction) -> bool {
    matches!(
        i.mnemonic(),
        Mnemonic::Rdrand | Mnemonic::Rdseed | Mnemonic::Rdtsc | Mnemonic::Rdtscp
    )
}

/// An instruction whose effect is the same on both sides, wherever it is.
fn plain(random: &mut Random) -> Vec<u8> {
    loop {
        let mut bytes = instruction(random);
        let i = decode(&bytes, CODE);
        let other = differs_each_time(&i);
        let far = i.op_count() > 0
            && !matches!(i.op0_kind(), OpKind::Register | OpKind::Memory)
            && i.flow_control() != FlowControl::Next
            && i.op0_kind() != OpKind::NearBranch64;
        if i.is_invalid() || other || far || shifts_far(&i) {
            continue;
        }
        bytes.truncate(i.len());
        let near = i.op_count() > 0 && i.op0_kind() == OpKind::NearBranch64;
        if near {
            // A little on, or a little back.
            let mut place = Decoder::with_ip(64, &bytes, CODE, 0);
            let decoded = place.decode();
            let size = place.get_constant_offsets(&decoded).immediate_size();
            let distance = i32::try_from(random.below(60)).unwrap() - 20;
            let at = bytes.len() - size;
            bytes[at..].copy_from_slice(&distance.to_le_bytes()[..size]);
        } else if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            // Displacements that stay near.
            let mut place = Decoder::with_ip(64, &bytes, CODE, 0);
            let decoded = place.decode();
            let offsets = place.get_constant_offsets(&decoded);
            if offsets.displacement_size() == 4 && !i.is_ip_rel_memory_operand() {
                let at = offsets.displacement_offset();
                bytes[at + 1..at + 4].fill(0);
            }
        }
        return bytes;
    }
}

fn program(random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < 0xff0 {
        code.extend(plain(random));
    }
    code.truncate(0x1000);
    code
}

/// Registers that lead near the data, mostly.
fn registers(random: &mut Random, context: &mut Context) {
    for register in &mut context.gpr {
        *register = match random.below(8) {
            0 => random.value(),
            1 => random.below(64),
            2 => DATA + random.below(PAGES) * 0x1000 + 0xff8 + random.below(8),
            3 => DATA - 0x1000 + random.below(0x1000),
            _ => DATA + random.below(PAGES * 0x1000),
        };
    }
    if random.below(4) != 0 {
        context.gpr[reg::RSP] = DATA + 0x400 + random.below(0x800);
    }
    context.gpr[reg::RCX] &= if random.below(2) == 0 { 0xff } else { u64::MAX };
    context.rflags = 0x202 | (random.next() & 0x8d5);
    context.gs_base = random.below(0x100);
    context.fs_base = DATA;
}

fn numbers(name: &str, otherwise: u64) -> u64 {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(otherwise)
}

#[test]
fn programs_do_the_same_compiled_and_interpreted() {
    let rounds = numbers("DOMUS_TEST_ROUNDS", 40);
    let seed = numbers("DOMUS_TEST_SEED", 11);
    let mut random = Random(seed);
    let mut compiled = 0;
    for round in 0..rounds {
        let (mut plain, mut fast) = (Side::new(false), Side::new(true));
        let code = program(&mut random);
        for offset in (0..0x1000).step_by(8) {
            let value = random.value().to_le_bytes();
            for side in [&plain, &fast] {
                for frame in &side.frames[1..] {
                    side.machine.write(*frame, offset, &value);
                }
            }
        }
        for side in [&plain, &fast] {
            side.machine.write(side.frames[0], 0, &code);
        }
        let mut context = Context {
            rip: CODE,
            ..Context::default()
        };
        for stretch in 0..150 {
            registers(&mut random, &mut context);
            context.rip = CODE + random.below(0xf00);
            let (start, mut other) = (context, context);
            let (a, b) = (plain.run(&mut context), fast.run(&mut other));
            let what = || {
                format!(
                    "seed {seed} round {round} stretch {stretch} from {:#x}: {a:?} {b:?}\n{:x?}\n{start:x?}\n{context:x?}\n{other:x?}",
                    start.rip,
                    plain.machine.read(plain.frames[0], start.rip & 0xfff, 64),
                )
            };
            let same = a == b && context == other && plain.memory() == fast.memory();
            let free = || {
                let at_one_place = (a, context.rip) == (b, other.rip);
                plain.is_of_chance() || at_one_place && plain.has_shifted([start.rip, context.rip])
            };
            if a == Exit::Budget || b == Exit::Budget || (!same && free()) {
                // They stop at different places of a loop, read the clock, or have a flag that
                // is undefined.
                fast.copy(&plain);
                continue;
            }
            assert!(a == b && context == other, "{}", what());
            assert!(plain.memory() == fast.memory(), "memory: {}", what());
        }
        compiled += fast.interpreter.counts().compiled;
    }
    assert!(
        compiled > rounds * 500,
        "only {compiled} instructions compiled"
    );
}
