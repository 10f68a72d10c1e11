//! Exceptions, compared with this processor's: vector, error code, CR2, and every
//! register, flag and byte as they are then.
//!
//! One test executes random instructions whose operands lie at the edges of pages: of
//! missing ones, of one that can only be read, and of what is canonical. The other one
//! executes every opcode of every map with each prefix that chooses among instructions.
//!
//! The interpreter is alone here, as on the software engine, with the CPUID that guests
//! see. What that does not show is #UD; this processor may have it. Left out is what
//! asks for a secret of the machine (time, random numbers, selectors, bases) or would
//! change this process (system calls, segment registers, far branches, `xsave` and its kin).

use crate::{
    differential::{Bench, Case, differences, setting, text, unlike},
    machine::{PRESENT, USER},
    native::{AT, Area, CODE, DATA, READ_ONLY, State, TAKEN, Trapped},
    random::{Random, instruction, vector_instruction},
};
use guest_abi::addr::{GuestVirt, Mfn};
use hypervisor::{
    cpu::{Context, Trap, reg},
    engine::{Available, EngineChoice},
    fpu::{FpuState, at},
    interp::Exit,
};
use iced_x86::{Code, Mnemonic, OpKind, Register};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::AtomicBool,
};

/// The resume flag.
const RF: u64 = 1 << 16;
const HLT: u8 = 0xf4;
const INVALID_OPCODE: u8 = 6;
const PAGE_FAULT: u8 = 14;

/// The comparison, and what it has seen.
struct Against {
    bench: Bench,
    /// Instructions that came to an end, and exceptions, by their vector.
    ended: u32,
    trapped: BTreeMap<u8, u32>,
    /// What the interpreter lacks, although guests are shown it.
    lacking: BTreeSet<String>,
    wrong: BTreeMap<Code, Vec<String>>,
    read_only: Mfn,
}

/// How an instruction went, and what it left.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    /// Where to, or the exception: vector, error code and CR2.
    went: Result<u64, (u8, u32, u64)>,
    state: State,
}

impl Against {
    fn new(seed: u64) -> Self {
        let mut bench = Bench::new(seed, instruction);
        let machine = bench.machine.clone();
        let read_only = machine.map_new(bench.root, READ_ONLY, PRESENT | USER);
        let cpuid = Available::find(EngineChoice::Soft).expect("no KVM is asked for");
        let cpuid = cpuid.cpuid();
        let model = bench.interpreter.model();
        model.alone = true;
        model.xcr0 = Some(7);
        model.cpuid = Some(Box::new(move |leaf, subleaf| {
            let leaf = cpuid.lookup(leaf, subleaf);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        }));
        let mut against = Against {
            bench,
            ended: 0,
            trapped: BTreeMap::new(),
            lacking: BTreeSet::new(),
            wrong: BTreeMap::new(),
            read_only,
        };
        against.fill();
        against
    }

    fn fill(&mut self) {
        self.bench.fill();
        let mut page = [0; 0x1000];
        for bytes in page.chunks_exact_mut(8) {
            bytes.copy_from_slice(&self.bench.random.value().to_le_bytes());
        }
        self.bench.native.write_read_only(&page);
        self.bench.machine.write(self.read_only, 0, &page);
    }

    /// Executes a case on both sides.
    fn check(&mut self, case: &Case) {
        let Some(ours) = self.interpret(case) else {
            self.bench.copy_back();
            return;
        };
        let ours_fpu = self.bench.interpreter.fpu().expect("it is here").clone();
        let mut area = Area([0; 832]);
        case.fpu.to_xsave(&mut area.0);
        let mut state = case.state;
        state.area = std::ptr::from_mut(&mut area).expose_provenance() as u64;
        let went = self.bench.native.try_run(&case.bytes, &mut state);
        state.area = 0;
        let theirs = outcome(went, state, case);
        let theirs_fpu = FpuState::from_xsave(&area.0);
        let mut ours = ours;
        ours.state.rflags &= !unlike(&case.instruction);
        let same_data = self.bench.same_data();
        if ours == theirs && same_data && ours_fpu == theirs_fpu {
            match ours.went {
                Ok(_) => self.ended += 1,
                Err((vector, ..)) => *self.trapped.entry(vector).or_default() += 1,
            }
            return;
        }
        let report = format!(
            "{} = {:x?}\nbefore    {:x?}\nprocessor {theirs:x?}\nours      {ours:x?}\nmemory the same: {same_data}\nXSAVE area {}",
            text(&case.instruction),
            case.bytes,
            case.state,
            differences(&case.fpu, &theirs_fpu, &ours_fpu),
        );
        let list = self.wrong.entry(case.instruction.code()).or_default();
        list.push(report);
        self.bench.copy_back();
    }

    /// The interpreter's outcome, if it can be compared.
    fn interpret(&mut self, case: &Case) -> Option<Outcome> {
        if is_left_out(case) {
            return None;
        }
        let mut page = [HLT; 0x100];
        page[..case.bytes.len()].copy_from_slice(&case.bytes);
        self.bench.machine.write(self.bench.code, AT, &page);
        let mut context = Context {
            gpr: case.state.gpr,
            rip: CODE + AT,
            rflags: case.state.rflags,
            ..Context::default()
        };
        self.bench.interpreter.load_fpu(&case.fpu);
        let go = AtomicBool::new(false);
        let (interpreter, root) = (&mut self.bench.interpreter, self.bench.root);
        let exit = interpreter.run(&mut context, root, 10_000, &go);
        let ends = [CODE + AT + case.bytes.len() as u64, CODE + TAKEN];
        let went = match exit {
            Exit::Trap(Trap::Exception { vector: 13, .. }) if ends.contains(&context.rip) => {
                Ok(context.rip)
            }
            Exit::Trap(Trap::Exception { vector, error, cr2 }) => Err((vector, error, cr2)),
            Exit::Unknown => match interpreter.describe(&context, root) {
                Some(_) => {
                    let code = case.instruction.code();
                    if is_known_to_lack(case) {
                        return None;
                    }
                    self.lacking
                        .insert(format!("{code:?} {:x?} {:#x}", case.bytes, context.rip));
                    return None;
                }
                None => {
                    // As the software engine does.
                    context.rflags |= RF;
                    Err((INVALID_OPCODE, 0, GuestVirt(0)))
                }
            },
            _ => return None,
        };
        let undefined = went.is_err_and(|(vector, ..)| vector == INVALID_OPCODE);
        if undefined && interpreter.describe(&context, root).is_none() && is_something(case) {
            return None;
        }
        let went = went.map_err(|(vector, error, cr2)| (vector, error, cr2.0));
        // This process's kernel does not tell what it has mapped in its own half.
        if went.is_err_and(|(_, _, cr2)| cr2 >= 0x7fff_ffff_f000) || is_another_order(case, went) {
            return None;
        }
        let went = went.map_err(|went| comparable(went, case));
        // `hlt` is an exception as well.
        let resume = if went.is_ok() { RF } else { 0 };
        let state = State {
            gpr: context.gpr,
            rflags: context.rflags & !resume,
            area: 0,
        };
        Some(Outcome { went, state })
    }

    /// Fails if anything was different.
    fn end(&self) {
        println!(
            "{} ended, exceptions {:?}, lacking {:?}",
            self.ended, self.trapped, self.lacking
        );
        for (code, reports) in &self.wrong {
            println!("{code:?}, {} times: {}\n", reports.len(), reports[0]);
        }
        assert!(self.wrong.is_empty(), "{:?}", self.wrong.keys());
        assert!(self.lacking.is_empty(), "{:?}", self.lacking);
    }
}

/// Whether some processor has it: then it may be #UD for guests alone. (But what is a
/// hint on a processor without the feature is a hint in guests.)
fn is_something(case: &Case) -> bool {
    let opcode = case.bytes.iter().skip_while(|byte| is_prefix(byte));
    let opcode: Vec<u8> = opcode.copied().collect();
    let hint = matches!(opcode[..], [0x0f, 0x18..=0x1f, ..]);
    !hint && !case.instruction.is_invalid()
}

/// `docs/engines.md` names them: strings and RIP-relative operands with addresses of 32
/// bits, and `bswap` of 16 bits.
fn is_known_to_lack(case: &Case) -> bool {
    let i = &case.instruction;
    let short = |n| matches!(i.op_kind(n), OpKind::MemorySegESI | OpKind::MemoryESEDI);
    matches!(i.code(), Code::Bswap_r16 | Code::Xlat_m8)
        || i.memory_base() == Register::EIP
        || i.memory_base() == Register::ESP && i.mnemonic() == Mnemonic::Pop
        || (0..i.op_count()).any(|n| short(n) || i.op_kind(n) == OpKind::MemorySegEDI)
}

/// Whether this exception and another thing come in an order that nobody promises: an x87
/// instruction that faults may have been given up for an exception of its own, or have
/// made the registers MMX registers; `fxsave` may begin at its end, a conversion have told
/// MXCSR, a call have pushed before its target is looked at.
fn is_another_order(case: &Case, went: Result<u64, (u8, u32, u64)>) -> bool {
    let i = &case.instruction;
    let x87 = matches!(
        case.bytes.iter().find(|byte| !is_prefix(byte)),
        Some(0xd8..=0xdf)
    );
    let mmx = (0..i.op_count()).any(|n| i.op_register(n).is_mm());
    let fxsave = matches!(
        i.mnemonic(),
        Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64
    );
    let unmasked = case.fpu.x87_u16(at::FCW) & 0x3f != 0x3f;
    let masked = matches!(i.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu);
    let late = i.mnemonic() == Mnemonic::Vcvtps2ph;
    let elements = i.is_vsib() || masked || is_masked_move(i.mnemonic());
    let in_parts = i.memory_size().size() == 10;
    let jumps = i.is_call_near_indirect() || i.is_jmp_near_indirect();
    match went {
        Err((PAGE_FAULT, ..)) => {
            x87 && (unmasked || in_parts) || mmx || fxsave || late || elements || jumps
        }
        Err((vector::SS | vector::XM | vector::GP, ..)) => {
            x87 && unmasked || mmx || late || fxsave || jumps || elements || is_sum(i.mnemonic())
        }
        // With nothing to write it may fault or not.
        Ok(_) => masked,
        _ => false,
    }
}

/// Which of their elements faults first is not said.
fn is_masked_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
    )
}

/// Of several operations, one of which may raise what the next ones then do not.
fn is_sum(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Dpps | M::Dppd | M::Vdpps | M::Vdppd)
}

/// Prefixes that the tests put before an instruction.
fn is_prefix(byte: &u8) -> bool {
    matches!(
        byte,
        0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3
    )
}

mod vector {
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const XM: u8 = 19;
}

/// Where it is a matter of the processor which of several bytes faults first.
fn comparable((vector, error, cr2): (u8, u32, u64), case: &Case) -> (u8, u32, u64) {
    use Mnemonic as M;
    match case.instruction.mnemonic() {
        M::Fldenv | M::Fnstenv | M::Frstor | M::Fnsave => (vector, error, cr2 & !0xfff),
        M::Maskmovdqu | M::Vmaskmovdqu | M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => {
            (vector, error, 0)
        }
        _ => (vector, error, cr2),
    }
}

fn outcome(went: Result<u64, Trapped>, mut state: State, case: &Case) -> Outcome {
    state.rflags &= !unlike(&case.instruction);
    let went = went.map_err(|trap| {
        let vector = u8::try_from(trap.vector).expect("a vector");
        let error = u32::try_from(trap.error).expect("32 bits");
        match vector {
            PAGE_FAULT => comparable((vector, error, trap.address), case),
            _ => (vector, error, 0),
        }
    });
    Outcome { went, state }
}

/// What can't be compared, or not here.
fn is_left_out(case: &Case) -> bool {
    use Mnemonic as M;
    let i = &case.instruction;
    let loads_selector = i.op_count() > 0
        && i.op_kind(0) == OpKind::Register
        && i.op0_register().is_segment_register();
    loads_selector
        || hypervisor::interp::Far::of(i).is_some()
        || i.segment_prefix() == Register::FS
        || i.memory_base() == Register::EIP
        || case
            .bytes
            .windows(3)
            .any(|bytes| bytes == [0x0f, 0x01, 0xc1])
        || matches!(
            i.mnemonic(),
            M::Syscall
                | M::Sysenter
                | M::Int
                | M::Int1
                | M::Iret
                | M::Iretd
                | M::Iretq
                | M::Lfs
                | M::Lgs
                | M::Lss
                | M::Cpuid
                | M::Rdtsc
                | M::Rdtscp
                | M::Rdpid
                | M::Rdpmc
                | M::Rdrand
                | M::Rdseed
                | M::Xgetbv
                | M::Rdfsbase
                | M::Rdgsbase
                | M::Wrfsbase
                | M::Wrgsbase
                | M::Xsave
                | M::Xsave64
                | M::Xsaveopt
                | M::Xsaveopt64
                | M::Xsavec
                | M::Xsavec64
                | M::Xrstor
                | M::Xrstor64
                // The kernel of this host may emulate them.
                | M::Sgdt
                | M::Sidt
                | M::Sldt
                | M::Smsw
                | M::Str
                // These enter what this machine may run in.
                | M::Vmcall
                | M::Vmmcall
                | M::Vmfunc
                // It changes the x87 registers before it faults.
                | M::Maskmovq
                // Look into descriptor tables.
                | M::Lar
                | M::Lsl
                | M::Verr
                | M::Verw
        )
}

/// Edges of what is mapped: the data's, the read-only page's, the hole's.
const EDGES: [u64; 4] = [DATA, READ_ONLY, READ_ONLY + 0x1000, READ_ONLY + 0x3000];

/// A case at some edge; sometimes with a base register that is not canonical.
fn at_an_edge(against: &mut Against) -> Option<Case> {
    let bench = &mut against.bench;
    let edge = bench.random.pick(&EDGES);
    let spread = bench.random.pick(&[8, 24, 40]);
    bench.target = (edge, spread);
    let bytes = if bench.random.below(3) == 0 {
        vector_instruction(&mut bench.random)
    } else {
        instruction(&mut bench.random)
    };
    let mut case = bench.case_of(bytes)?;
    let base = case.instruction.memory_base();
    if base.is_gpr64() && bench.random.below(16) == 0 {
        let far = bench.random.pick(&[(1 << 47) + (1 << 33), 1 << 63]);
        case.state.gpr[base.number()] = far;
    }
    if bench.random.below(3) == 0 {
        unmask(&mut case, &mut bench.random);
    }
    if bench.random.below(4) == 0 {
        // The stack is where it is mostly: well mapped.
        case.state.gpr[reg::RSP] = DATA + 0x1000;
    }
    Some(case)
}

/// Has some floating-point exceptions raised, and x87 exceptions pending, perhaps.
fn unmask(case: &mut Case, random: &mut Random) {
    /// Underflow stays masked: `docs/run-ahead.md` says why.
    const UNDERFLOW: u64 = 1 << 11;
    let word = |n: u64| u16::try_from(n & 0xffff).unwrap();
    let mxcsr = random.next() & 0x7fc0 | UNDERFLOW;
    case.fpu.set_mxcsr(u32::from(word(mxcsr)));
    case.fpu
        .set_x87_u16(at::FCW, word(random.next() & 0xf7f | 0x40));
    case.fpu
        .set_x87_u16(at::FSW, word(random.next() & 0x7f7f & random.next()));
    case.fpu.settle_x87();
}

#[test]
fn every_exception_is_this_processors() {
    let mut against = Against::new(setting("DOMUS_TEST_SEED", 3));
    for round in 0..setting("DOMUS_TEST_ROUNDS", 60_000) {
        if let Some(case) = at_an_edge(&mut against) {
            against.check(&case);
        }
        if round % 20_000 == 0 {
            against.fill();
        }
    }
    against.end();
}

/// Opcodes with all of `/0` to `/7`, with a register and with memory; those of x87 and of
/// the groups that have instructions without operands, with all registers.
fn operands(opcode: &[u8]) -> Vec<u8> {
    let all = matches!(
        opcode,
        [0xd8..=0xdf] | [0x0f, 0x00 | 0x01 | 0xae | 0xc7 | 0x1e]
    );
    let memory = (0..8).map(|reg| reg << 3 | 6);
    let registers = (0..=0x3f).filter(|n| all || n & 7 == 3).map(|n| 0xc0 | n);
    memory.chain(registers).collect()
}

/// Every opcode of the legacy maps.
fn legacy() -> Vec<Vec<u8>> {
    let prefixes: [&[u8]; 5] = [&[], &[0x66], &[0xf3], &[0xf2], &[0xf0]];
    let mut all = Vec::new();
    for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
        for opcode in 0..=255u8 {
            let opcode = [map, &[opcode]].concat();
            for (prefix, wide) in prefixes.iter().flat_map(|p| [(p, false), (p, true)]) {
                for operand in operands(&opcode) {
                    let rex: &[u8] = if wide { &[0x48] } else { &[] };
                    all.push([prefix, rex, &opcode, &[operand]].concat());
                }
            }
        }
    }
    all
}

/// Every opcode of the VEX maps, of both lengths.
fn vex() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (map, opcode) in (1..=3u8).flat_map(|map| (0..=255u8).map(move |opcode| (map, opcode))) {
        for kind in 0..16u8 {
            // W, then L and pp; `vvvv` names no register, or one.
            let second = (kind & 8) << 4 | kind & 7;
            for (vvvv, operand) in [0x78, 0x50].into_iter().cycle().zip(operands(&[opcode])) {
                for vvvv in [vvvv, vvvv ^ 0x28] {
                    all.push(vec![0xc4, 0xe0 | map, second | vvvv, opcode, operand]);
                }
            }
        }
    }
    all
}

fn every(opcodes: Vec<Vec<u8>>, least: u32) {
    let mut against = Against::new(setting("DOMUS_TEST_SEED", 4));
    // Each of them with other operands in the next run of another seed.
    for mut bytes in opcodes {
        bytes.extend((0..10).map(|_| against.bench.random.byte()));
        bytes.truncate(15);
        if let Some(case) = against.bench.case_of(bytes) {
            against.check(&case);
        }
    }
    against.end();
    let undefined = against.trapped[&INVALID_OPCODE];
    assert!(
        against.ended > least && undefined > least,
        "{} ended, {undefined} undefined",
        against.ended
    );
}

#[test]
fn every_opcode_is_this_processors() {
    every(legacy(), 10_000);
}

#[test]
fn every_vex_opcode_is_this_processors() {
    every(vex(), 1_000);
}
