//! The rules around vector and x87 instructions: where their state is, what they
//! fault on, and what `xsave` and its kin do.

use crate::{
    guest::{CODE, DATA, END, Guest, exception, page_fault},
    machine::ALL,
};
use hypervisor::{
    cpu::reg,
    fpu::{FpuState, at},
    interp::Exit,
};

/// A guest that has its vector registers.
fn guest(code: &[u8]) -> Guest {
    let mut guest = Guest::new(code);
    guest.interpreter.load_fpu(&FpuState::new());
    guest.interpreter.model().xcr0 = Some(7);
    guest
}

fn state(guest: &Guest) -> FpuState {
    guest.interpreter.fpu().expect("it was loaded").clone()
}

fn set(guest: &mut Guest, change: impl FnOnce(&mut FpuState)) {
    let mut now = state(guest);
    change(&mut now);
    guest.interpreter.load_fpu(&now);
}

fn low(guest: &Guest, register: usize) -> u64 {
    u64::from_le_bytes(state(guest).ymm(register)[..8].try_into().unwrap())
}

#[test]
fn the_registers_are_asked_for_when_they_are_needed() {
    // mov $5, %eax; movd %eax, %xmm1; hlt
    let mut guest = Guest::new(&[0xb8, 5, 0, 0, 0, 0x66, 0x0f, 0x6e, 0xc8, 0xf4]);
    assert_eq!(guest.run(), Exit::NeedsFpu);
    assert_eq!((guest.context.rip, *guest.gpr(reg::RAX)), (CODE + 5, 5));
    assert!(guest.interpreter.fpu().is_none());
    guest.interpreter.load_fpu(&FpuState::new());
    assert_eq!(guest.run(), END);
    let changed = guest.interpreter.fpu_changes().map(|state| state.ymm(1)[0]);
    assert_eq!(changed, Some(5));
    assert!(guest.interpreter.fpu_changes().is_none(), "taken once");
    guest.interpreter.forget_fpu();
    assert_eq!(guest.rerun(), Exit::NeedsFpu);
}

#[test]
fn looking_is_no_change() {
    // movdqu %xmm1, (%rsi); ucomisd would be one; hlt
    let mut guest = guest(&[0xf3, 0x0f, 0x7f, 0x0e, 0xf4]);
    assert_eq!(guest.run(), END);
    assert!(guest.interpreter.fpu_changes().is_none());
}

#[test]
fn operands_are_aligned_and_whole() {
    // movaps (%rsi), %xmm2; hlt
    let mut aligned = guest(&[0x0f, 0x28, 0x16, 0xf4]);
    *aligned.gpr(reg::RSI) = DATA + 8;
    assert_eq!(aligned.run(), exception(13, 0, 0));
    assert_eq!(aligned.context.rip, CODE);
    // movups %xmm2, (%rsi): the second page is missing
    let mut split = guest(&[0x0f, 0x11, 0x16, 0xf4]);
    set(&mut split, |state| state.set_ymm(2, &[0x77; 32]));
    *split.gpr(reg::RSI) = DATA + 0xff8;
    assert_eq!(split.run(), page_fault(6, DATA + 0x1000));
    let half = split.machine.read(split.data, 0xff8, 8);
    assert_eq!(half, [0; 8], "nothing is written");
    let next = split.machine.map_new(split.root, DATA + 0x1000, ALL);
    assert_eq!(split.run(), END);
    assert_eq!(split.machine.read(split.data, 0xff8, 8), [0x77; 8]);
    assert_eq!(split.machine.read(next, 0, 16)[6..10], [0x77, 0x77, 0, 0]);
}

#[test]
fn unmasked_simd_exceptions_leave_the_operands() {
    // divpd %xmm1, %xmm0; hlt
    let mut guest = guest(&[0x66, 0x0f, 0x5e, 0xc1, 0xf4]);
    let numbers = |a: f64, b: f64| {
        let mut value = [0; 32];
        value[..8].copy_from_slice(&a.to_le_bytes());
        value[8..16].copy_from_slice(&b.to_le_bytes());
        value
    };
    let divide = |guest: &mut Guest, mxcsr: u32| {
        set(guest, |state| {
            state.set_ymm(0, &numbers(1.0, 1.0));
            // Zero divide in one half, precision in the other.
            state.set_ymm(1, &numbers(0.0, 3.0));
            state.set_mxcsr(mxcsr);
        });
        guest.rerun()
    };
    assert_eq!(divide(&mut guest, 0x1f80), END);
    assert_eq!(state(&guest).mxcsr(), 0x1fa4);
    // Zero divide unmasked: found before anything is computed.
    assert_eq!(divide(&mut guest, 0x1d80), exception(19, 0, 0));
    assert_eq!(state(&guest).mxcsr(), 0x1d84);
    assert_eq!((low(&guest, 0), guest.context.rip), (1f64.to_bits(), CODE));
    // Precision unmasked.
    assert_eq!(divide(&mut guest, 0x0f80), exception(19, 0, 0));
    assert_eq!(state(&guest).mxcsr(), 0x0fa4);
    // Overflow unmasked: does not happen.
    assert_eq!(divide(&mut guest, 0x1b80), END);
    assert_eq!(state(&guest).mxcsr(), 0x1ba4);
    assert_eq!(low(&guest, 0), f64::INFINITY.to_bits());
}

/// Those with MMX registers look at MXCSR as well.
#[test]
fn unmasked_exceptions_of_conversions_to_mmx_are_the_guests() {
    // cvttpd2pi %xmm1, %mm2; cvttpd2pi (%rsi), %mm2; cvtps2pi (%rsi), %mm2; hlt after each
    let codes: [&[u8]; 3] = [
        &[0x66, 0x0f, 0x2c, 0xd1, 0xf4],
        &[0x66, 0x0f, 0x2c, 0x16, 0xf4],
        &[0x0f, 0x2d, 0x16, 0xf4],
    ];
    for code in codes {
        let mut guest = guest(code);
        guest.machine.write(guest.data, 0, &[0xff; 16]);
        set(&mut guest, |state| {
            state.set_ymm(1, &[0xff; 32]);
            state.set_mxcsr(0);
        });
        assert_eq!(guest.run(), exception(19, 0, 0), "{code:x?}");
        assert_eq!(guest.context.rip, CODE);
        assert_eq!(state(&guest).mxcsr(), 1, "invalid");
        set(&mut guest, |state| state.set_mxcsr(0x1f80));
        assert_eq!(guest.rerun(), END);
        assert_eq!(state(&guest).mxcsr(), 0x1f81);
    }
}

#[test]
fn x87_exceptions_wait_for_the_next_instruction() {
    // fld1; fldz; fdivrp; fnstsw %ax; nop; fwait; hlt
    let code = [0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xdf, 0xe0, 0x9b, 0xf4];
    let mut guest = guest(&code);
    assert_eq!(guest.run(), END, "masked");
    set(&mut guest, |state| {
        state.init(1);
        state.set_x87_u16(at::FCW, 0x37b);
    });
    assert_eq!(guest.rerun(), exception(16, 0, 0));
    assert_eq!(guest.context.rip, CODE + 8, "fwait");
    assert_eq!(*guest.gpr(reg::RAX) & 0x84, 0x84, "zero divide, summary");
    assert_eq!(state(&guest).x87_u64(at::FIP), CODE + 4);
    // fninit clears it.
    guest
        .machine
        .write(guest.code, 8, &[0xdb, 0xe3, 0x9b, 0xf4]);
    set(&mut guest, |state| state.init(1));
    assert_eq!(guest.rerun(), END);
}

#[test]
fn xsave_and_xrstor_keep_to_their_components() {
    // xsave (%rsi); hlt
    let mut guest = guest(&[0x0f, 0xae, 0x26, 0xf4]);
    set(&mut guest, |state| {
        state.set_ymm(9, &[0x91; 32]);
        state.set_mxcsr(0x1fa0);
    });
    let before = state(&guest);
    guest.machine.write(guest.data, 0, &[0xee; 1024]);
    guest.machine.write(guest.data, 512, &[0; 64]);
    *guest.gpr(reg::RAX) = 6;
    assert_eq!(guest.run(), END);
    let area = guest.machine.read(guest.data, 0, 1024);
    assert_eq!(area[..24], [0xee; 24], "x87 was not asked for");
    assert_eq!(area[at::XMM + 9 * 16..][..16], [0x91; 16]);
    assert_eq!(area[at::YMM_HIGH + 9 * 16..][..16], [0x91; 16]);
    assert_eq!((area[at::XSTATE_BV], area[832]), (6, 0xee));
    // xrstor (%rsi); hlt
    guest
        .machine
        .write(guest.code, 0, &[0x0f, 0xae, 0x2e, 0xf4]);
    set(&mut guest, |state| *state = FpuState::new());
    assert_eq!(guest.rerun(), END);
    assert_eq!(state(&guest), before);
    for (offset, value) in [(at::XSTATE_BV, 8), (at::XCOMP_BV, 1), (at::MXCSR + 3, 1)] {
        let kept = area[offset];
        guest.machine.write(guest.data, offset as u64, &[value]);
        assert_eq!(guest.rerun(), exception(13, 0, 0), "at {offset}");
        guest.machine.write(guest.data, offset as u64, &[kept]);
    }
    *guest.gpr(reg::RSI) = DATA + 32;
    assert_eq!(guest.rerun(), exception(13, 0, 0), "misaligned");
}

#[test]
fn the_compacted_format_and_initial_components() {
    if !std::arch::is_x86_feature_detected!("xsavec") {
        return;
    }
    // xsavec64 (%rsi); hlt
    let mut guest = guest(&[0x48, 0x0f, 0xc7, 0x26, 0xf4]);
    set(&mut guest, |state| state.set_ymm(1, &[7; 32]));
    guest.machine.write(guest.data, 0, &[0xee; 512]);
    *guest.gpr(reg::RAX) = u64::MAX;
    assert_eq!(guest.run(), END);
    let area = guest.machine.read(guest.data, 0, 832);
    assert_eq!(area[at::XSTATE_BV], 6, "x87 is initial");
    assert_eq!(
        area[at::XCOMP_BV..at::XCOMP_BV + 8],
        [7, 0, 0, 0, 0, 0, 0, 0x80]
    );
    assert_eq!(area[..24], [0xee; 24]);
    // xrstor64 (%rsi); hlt: x87 becomes initial
    let before = state(&guest);
    guest
        .machine
        .write(guest.code, 0, &[0x48, 0x0f, 0xae, 0x2e, 0xf4]);
    set(&mut guest, |state| state.set_x87_u16(at::FCW, 0x27f));
    assert_eq!(guest.rerun(), END);
    assert_eq!(state(&guest), before);
}

#[test]
fn xcr0_that_is_larger_than_ours_shows_in_the_format_only() {
    if !std::arch::is_x86_feature_detected!("xsavec") {
        return;
    }
    // xsavec (%rsi); xrstor (%rsi); xor %ecx, %ecx; xgetbv; hlt
    let mut guest = guest(&[
        0x0f, 0xc7, 0x26, 0x0f, 0xae, 0x2e, 0x31, 0xc9, 0x0f, 0x01, 0xd0, 0xf4,
    ]);
    guest.interpreter.model().xcr0 = Some(0xe7);
    set(&mut guest, |state| state.set_ymm(1, &[7; 32]));
    *guest.gpr(reg::RAX) = 0xee;
    assert_eq!(guest.run(), END);
    let area = guest.machine.read(guest.data, 0, 832);
    assert_eq!((area[at::XSTATE_BV], area[at::XCOMP_BV]), (6, 0xe6));
    assert_eq!(*guest.gpr(reg::RAX), 0xe7);
    // Somebody has put AVX-512 state there: for the engine.
    guest
        .machine
        .write(guest.data, at::XSTATE_BV as u64, &[0x26]);
    guest
        .machine
        .write(guest.code, 0, &[0x0f, 0xae, 0x2e, 0xf4]);
    *guest.gpr(reg::RAX) = 0xee;
    assert_eq!(guest.rerun(), Exit::Unknown);
}

#[test]
fn reserved_bits_of_mxcsr_fault() {
    // ldmxcsr (%rsi); hlt
    let mut guest = guest(&[0x0f, 0xae, 0x16, 0xf4]);
    guest.machine.write(guest.data, 0, &[0x80, 0x1f, 1, 0]);
    assert_eq!(guest.run(), exception(13, 0, 0));
    guest.machine.write(guest.data, 0, &[0x80, 0x3f, 0, 0]);
    assert_eq!(guest.run(), END);
    assert_eq!(state(&guest).mxcsr(), 0x3f80);
}

#[test]
fn a_gather_that_faults_has_done_the_elements_before() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    // vpgatherqq %ymm1, (%rsi,%ymm2,1), %ymm0; hlt
    let mut guest = guest(&[0xc4, 0xe2, 0xf5, 0x91, 0x04, 0x16, 0xf4]);
    let words = |words: [u64; 4]| -> [u8; 32] {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.try_into().unwrap()
    };
    guest.machine.write(guest.data, 0, &words([10, 11, 12, 13]));
    set(&mut guest, |state| {
        state.set_ymm(0, &words([1, 2, 3, 4]));
        state.set_ymm(1, &words([1 << 63, 0, 1 << 63, u64::MAX]));
        state.set_ymm(2, &words([24, 0x5000, 0x1000, 8]));
    });
    assert_eq!(guest.run(), page_fault(4, DATA + 0x1000));
    assert_eq!(state(&guest).ymm(0), words([13, 2, 3, 4]));
    assert_eq!(state(&guest).ymm(1), words([0, 0, u64::MAX, u64::MAX]));
    set(&mut guest, |state| {
        state.set_ymm(2, &words([24, 0x5000, 0, 8]));
    });
    assert_eq!(guest.run(), END);
    assert_eq!(state(&guest).ymm(0), words([13, 2, 10, 11]));
    assert_eq!(state(&guest).ymm(1), [0; 32]);
}

#[test]
fn a_masked_store_touches_what_it_writes() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    // vpmaskmovd %ymm2, %ymm1, (%rsi); hlt
    let mut guest = guest(&[0xc4, 0xe2, 0x75, 0x8e, 0x16, 0xf4]);
    let mut mask = [0; 32];
    (mask[3], mask[11]) = (0x80, 0xff);
    set(&mut guest, |state| {
        state.set_ymm(1, &mask);
        state.set_ymm(2, &[0x44; 32]);
    });
    *guest.gpr(reg::RSI) = DATA + 0xff4;
    assert_eq!(guest.run(), END, "the page after is not touched");
    let words = guest.machine.read(guest.data, 0xff4, 12);
    assert_eq!(
        words,
        [0x44, 0x44, 0x44, 0x44, 0, 0, 0, 0, 0x44, 0x44, 0x44, 0x44]
    );
    set(&mut guest, |state| state.set_ymm(1, &[0xff; 32]));
    assert_eq!(guest.rerun(), page_fault(6, DATA + 0x1000));
}

/// More instructions than there is room for stubs.
#[test]
fn stubs_start_anew_when_there_is_no_room() {
    let mut guest = guest(&[0xf4]);
    let mut expected = [0u8; 32];
    for round in 0..6000u32 {
        let [imm, high, ..] = round.to_le_bytes();
        // pshufd $imm, %xmm0, %xmmN; hlt
        let code = [0x66, 0x0f, 0x70, 0xc0 | (1 + high % 7) << 3, imm, 0xf4];
        guest.machine.write(guest.code, 0, &code);
        let words: [u32; 4] = std::array::from_fn(|n| round * 4 + u32::try_from(n).unwrap());
        for (word, place) in words.iter().zip(expected.chunks_exact_mut(4)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        set(&mut guest, |state| state.set_ymm(0, &expected));
        assert_eq!(guest.rerun(), END, "round {round}");
        let first = words[usize::from(imm & 3)];
        let got = low(&guest, usize::from(1 + high % 7)) & 0xffff_ffff;
        assert_eq!(got, u64::from(first), "round {round}");
    }
}

/// What is not an instruction, or not one that guests may use, is not executed.
#[test]
fn nothing_off_the_list_is_executed() {
    let cases: &[&[u8]] = &[
        // vaddpd with EVEX; kmovw; tdpbf16ps; lock movups; xsaves
        &[0x62, 0xf1, 0xed, 0x48, 0x58, 0xc1],
        &[0xc5, 0xf8, 0x92, 0xc8],
        &[0xc4, 0xe2, 0x72, 0x5c, 0xc2],
        &[0xf0, 0x0f, 0x10, 0x06],
        &[0x0f, 0xc7, 0x2e],
    ];
    for code in cases {
        let mut guest = guest(code);
        let before = state(&guest);
        assert_eq!(guest.run(), Exit::Unknown, "{code:x?}");
        assert_eq!((state(&guest), guest.context.rip), (before, CODE));
    }
}
