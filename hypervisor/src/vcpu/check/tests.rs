//! Compiled code beside the interpreter over a small memory: the same is found the same,
//! and what was planted is found.

use super::{
    compiled::{self, Start},
    path::Path,
    twin::Twin,
};
use crate::{
    cpu::{Context, Trap, reg},
    fpu::FpuState,
    memory::{BASE_MFN, MachineMemory},
    paging::Paging,
    space::Space,
};
use guest_abi::addr::{DomId, MachineAddr};
use std::sync::Arc;

/// Present, writable, for users.
const ALL: u64 = 7;
/// Where the code is, and the data behind it.
const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x40_1000;
/// Frames: three tables above the last one, that one, code and data.
const CODE_FRAME: u64 = BASE_MFN.0 + 4;

/// A loop over four words, then `cpuid`, which is not compared:
/// mov ecx, 4; mov rax, [rbx + rcx*8 - 8]; add rax, 5; mov [rbx + rcx*8 + 64], rax;
/// paddb xmm0, xmm1; dec ecx; jnz; cpuid
const PROGRAM: [u8; 28] = [
    0xb9, 4, 0, 0, 0, 0x48, 0x8b, 0x44, 0xcb, 0xf8, 0x48, 0x83, 0xc0, 5, 0x48, 0x89, 0x44, 0xcb,
    64, 0x66, 0x0f, 0xfc, 0xc1, 0xff, 0xc9, 0x75, 0xea, 0x0f,
];

fn space() -> Arc<Space> {
    let memory = Arc::new(MachineMemory::new(8).unwrap());
    let frame = |n: u64| MachineAddr((BASE_MFN.0 + n) << 12);
    let write = |at: MachineAddr, value: u64| {
        memory.write(at, &value.to_le_bytes()).unwrap();
    };
    write(frame(0), frame(1).0 | ALL);
    write(frame(1), frame(2).0 | ALL);
    write(MachineAddr(frame(2).0 + 16), frame(3).0 | ALL);
    for page in 0..2 {
        write(MachineAddr(frame(3).0 + page * 8), frame(4 + page).0 | ALL);
    }
    for word in 0..4 {
        write(MachineAddr(frame(5).0 + word * 8), 0x1111 * word);
    }
    memory.write(frame(4), &PROGRAM).unwrap();
    memory.write(MachineAddr(frame(4).0 + 28), &[0xa2]).unwrap();
    let paging = Paging::new(BASE_MFN, 8, 1).unwrap();
    Arc::new(Space::new(DomId(1), memory, paging, Vec::new(), [0; 16]))
}

/// Runs the program on both, with these bytes of the code or data of the compiled side
/// changed; whether compiled code came along, or the difference.
fn run_with(planted: &[(u64, u8)]) -> Result<bool, String> {
    let space = space();
    let mut interpreted = Twin::new(Arc::clone(&space), None, None);
    let mut compiled = Twin::new(space, Some(&interpreted), None);
    compiled.interpreter.compile(Some(1));
    let mut fpu = FpuState::new();
    fpu.set_ymm(1, &[3; 32]);
    interpreted.begin(&fpu, 7);
    compiled.begin(&fpu, 7);
    let mut context = Context {
        rip: CODE,
        rflags: 0x202,
        ..Context::default()
    };
    context.gpr[reg::RBX] = DATA;
    let root = BASE_MFN;
    let start = Start {
        context: &context,
        root,
        fpu: &fpu,
    };
    let path = Path::walk(&mut interpreted, &context, root, 1000);
    assert_eq!((path.steps(), path.stop()), (25, Some(25)), "four rounds");
    for (at, byte) in planted {
        let place = MachineAddr((CODE_FRAME << 12) + (at - CODE));
        assert!(compiled.phys.plant(place, *byte));
    }
    let place = |rip: u64| Some(MachineAddr((CODE_FRAME << 12) + (rip - CODE)));
    let run = compiled::run(&mut compiled, &mut interpreted, &path, &start, place);
    run.expect("a place to stop").map(|run| {
        assert_eq!(run.steps, 25);
        run.compiled
    })
}

#[test]
fn compiled_code_comes_to_the_same_end() {
    let compiled = std::arch::is_x86_feature_detected!("bmi2");
    assert_eq!(run_with(&[]), Ok(compiled));
}

#[test]
fn what_was_planted_in_compiled_code_is_found() {
    let differs = |planted: &[(u64, u8)]| run_with(planted).unwrap_err();
    // sub for add: another sum in rax and in memory.
    assert!(differs(&[(CODE + 12, 0xe8)]).contains("compiled"));
    // A store elsewhere: all registers are the same.
    assert!(differs(&[(CODE + 18, 72)]).contains("frame"));
    // psubb for paddb: all else is the same.
    assert!(differs(&[(CODE + 21, 0xf8)]).contains("vector registers"));
    // Another word in memory.
    assert!(differs(&[(DATA + 1, 7)]).contains("compiled"));
    // inc for dec: the loop does not end where it should.
    assert!(differs(&[(CODE + 24, 0xc1)]).contains("compiled at"));
    // jz for jnz: it ends too soon.
    assert!(differs(&[(CODE + 25, 0x74)]).contains("compiled"));
}

#[test]
fn a_path_ends_where_it_can_be_stopped() {
    let space = space();
    let mut twin = Twin::new(space, None, None);
    twin.begin(&FpuState::new(), 7);
    let mut context = Context {
        rip: CODE,
        rflags: 0x202,
        ..Context::default()
    };
    context.gpr[reg::RBX] = DATA;
    let path = Path::walk(&mut twin, &context, BASE_MFN, 20);
    assert_eq!(path.steps(), 20);
    assert_eq!(path.stop(), Some(6), "the jump, met for the first time");
    twin.begin(&FpuState::new(), 7);
    // Nothing is mapped behind the data: the store of the last word faults.
    context.gpr[reg::RBX] = DATA + 0x1000 - 64;
    let path = Path::walk(&mut twin, &context, BASE_MFN, 1000);
    assert!(matches!(
        path.trap,
        Some(Trap::Exception { vector: 14, .. })
    ));
    assert_eq!(path.stop(), Some(path.steps()));
}
