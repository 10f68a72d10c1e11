//! A vCPU's x87, SSE and AVX state, while it is in the process.
//!
//! Law: the bytes are an XSAVE area in the standard format, with the three
//! components that guests are told of, all of them valid, whatever XSTATE_BV
//! said where they came from. So the process may load any of it into its own
//! registers: MXCSR never has a reserved bit.
//!
//! ```text
//!   0  x87: control, status, tags, opcode, pointers     SDM vol. 1, 10.5 and 13.4
//!  24  MXCSR and its mask
//!  32  ST0-ST7, 16 bytes each
//! 160  XMM0-XMM15
//! 512  header: XSTATE_BV, XCOMP_BV
//! 576  upper halves of YMM0-YMM15
//! 832
//! ```

use std::{arch::asm, sync::LazyLock};

/// Bytes of the state.
pub const FPU_BYTES: usize = 832;
/// x87, SSE and AVX: the components that [`FpuState`] holds.
pub const FPU_COMPONENTS: u64 = 7;

/// Where things lie in the area.
pub mod at {
    #![allow(missing_docs, reason = "the table of the module's comment")]
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const TAGS: usize = 4;
    pub const OPCODE: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
    pub const LEGACY_END: usize = 416;
    pub const XSTATE_BV: usize = 512;
    pub const XCOMP_BV: usize = 520;
    pub const YMM_HIGH: usize = 576;
}

/// Initial MXCSR: everything masked.
pub const MXCSR_INIT: u32 = 0x1f80;
const FCW_INIT: u16 = 0x37f;

/// The bits of MXCSR that this processor has.
pub static MXCSR_MASK: LazyLock<u32> = LazyLock::new(|| {
    #[repr(C, align(16))]
    struct Area([u8; 512]);
    let mut area = Area([0; 512]);
    // SAFETY: FXSAVE writes 512 aligned bytes, which are ours; every x86-64
    // processor has it.
    unsafe { std::arch::x86_64::_fxsave(area.0.as_mut_ptr()) };
    match word(&area.0, at::MXCSR_MASK) {
        0 => 0xffbf,
        mask => mask,
    }
});

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// The x87, SSE and AVX state of a vCPU; see the module's table.
// The bytes come first: the interpreter's stubs address them.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FpuState {
    bytes: [u8; FPU_BYTES],
    /// Components that are not kept here were in use where the state came from.
    beyond: bool,
}

impl Default for FpuState {
    fn default() -> Self {
        let mut state = FpuState {
            bytes: [0; FPU_BYTES],
            beyond: false,
        };
        state.init(FPU_COMPONENTS);
        state
    }
}

impl std::fmt::Debug for FpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hex = |range: std::ops::Range<usize>| {
            let bytes = self.bytes[range].iter().rev();
            bytes.map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        writeln!(f, "x87 {} mxcsr {:x}", hex(0..24), self.mxcsr())?;
        for st in (at::ST..at::XMM).step_by(16) {
            write!(f, "{} ", hex(st..st + 10))?;
        }
        for n in 0..16 {
            let (low, high) = (at::XMM + n * 16, at::YMM_HIGH + n * 16);
            write!(
                f,
                "\nymm{n} {}:{}",
                hex(high..high + 16),
                hex(low..low + 16)
            )?;
        }
        Ok(())
    }
}

impl FpuState {
    /// The state at the start of day.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From an XSAVE area in the standard format, or as much of one as there
    /// is. Components that its XSTATE_BV lacks are in their initial state, but
    /// for MXCSR, which is always there.
    #[must_use]
    pub fn from_xsave(area: &[u8]) -> Self {
        let mut state = Self::default();
        let mut bytes = [0; FPU_BYTES];
        let len = area.len().min(FPU_BYTES);
        bytes[..len].copy_from_slice(&area[..len]);
        let mut present = [0; 8];
        present.copy_from_slice(&bytes[at::XSTATE_BV..at::XSTATE_BV + 8]);
        let present = u64::from_le_bytes(present);
        for component in 0..3 {
            if present >> component & 1 != 0 {
                state.copy_component(component, &bytes);
            }
        }
        state.set_mxcsr(word(&bytes, at::MXCSR));
        state.beyond = present & !FPU_COMPONENTS != 0;
        state
    }

    /// Writes it into an XSAVE area in the standard format of at least
    /// [`FPU_BYTES`], leaving components beyond x87, SSE and AVX alone.
    pub fn to_xsave(&self, area: &mut [u8]) {
        let header = at::XSTATE_BV..at::XSTATE_BV + 8;
        let mut present = [0; 8];
        present.copy_from_slice(&area[header.clone()]);
        area[..at::LEGACY_END].copy_from_slice(&self.bytes[..at::LEGACY_END]);
        area[at::YMM_HIGH..FPU_BYTES].copy_from_slice(&self.bytes[at::YMM_HIGH..]);
        let present = u64::from_le_bytes(present) | FPU_COMPONENTS;
        area[header].copy_from_slice(&present.to_le_bytes());
    }

    /// Whether the processor that it came from had more in use: AVX-512, for
    /// instance, which guests are not told of.
    #[must_use]
    pub fn beyond(&self) -> bool {
        self.beyond
    }

    /// The area's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; FPU_BYTES] {
        &self.bytes
    }

    /// Where a component lies, but for MXCSR.
    #[must_use]
    pub const fn component(component: u32) -> &'static [(usize, usize)] {
        match component {
            0 => &[(0, at::MXCSR), (at::ST, at::XMM)],
            1 => &[(at::XMM, at::LEGACY_END)],
            _ => &[(at::YMM_HIGH, FPU_BYTES)],
        }
    }

    /// Takes a component (0: x87, 1: XMM, 2: upper halves of YMM) over from an
    /// XSAVE area; not MXCSR.
    pub fn copy_component(&mut self, component: u32, from: &[u8; FPU_BYTES]) {
        for &(start, end) in Self::component(component) {
            self.bytes[start..end].copy_from_slice(&from[start..end]);
        }
    }

    /// Initial state for the components of this mask; MXCSR with the second.
    pub fn init(&mut self, components: u64) {
        for component in (0..3).filter(|c| components >> c & 1 != 0) {
            for &(start, end) in Self::component(component) {
                self.bytes[start..end].fill(0);
            }
        }
        if components & 1 != 0 {
            self.bytes[..2].copy_from_slice(&FCW_INIT.to_le_bytes());
        }
        if components & 2 != 0 {
            self.set_mxcsr(MXCSR_INIT);
        }
    }

    /// The components that are not in their initial state.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        let initial = Self::default();
        let differs = |component: &u32| {
            let parts = Self::component(*component).iter();
            parts
                .into_iter()
                .any(|&(start, end)| self.bytes[start..end] != initial.bytes[start..end])
        };
        (0..3).filter(differs).map(|component| 1 << component).sum()
    }

    /// MXCSR.
    #[must_use]
    pub fn mxcsr(&self) -> u32 {
        word(&self.bytes, at::MXCSR)
    }

    /// Sets MXCSR; bits that this processor lacks are dropped.
    pub fn set_mxcsr(&mut self, value: u32) {
        let value = value & *MXCSR_MASK;
        self.bytes[at::MXCSR..at::MXCSR + 4].copy_from_slice(&value.to_le_bytes());
        self.bytes[at::MXCSR_MASK..at::MXCSR_MASK + 4].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    }

    /// A 16-bit field of the x87 part.
    #[must_use]
    pub fn x87_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// Sets a 16-bit field of the x87 part.
    pub fn set_x87_u16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// A pointer of the x87 part.
    #[must_use]
    pub fn x87_u64(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(word)
    }

    /// Sets a pointer of the x87 part.
    pub fn set_x87_u64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Makes of an x87 state that came from memory what the processor makes of
    /// it: reserved bits and the summary of exceptions.
    pub fn settle_x87(&mut self) {
        let host = MXCSR_INIT;
        // SAFETY: loads and stores 512 aligned bytes that are ours, MXCSR among
        // them without reserved bits; the x87 unit and MXCSR are then again as
        // Rust code expects them, all other registers are declared.
        unsafe {
            asm!(
                "fxrstor64 [{state}]",
                "fxsave64 [{state}]",
                "fninit",
                "ldmxcsr [{host}]",
                state = in(reg) self.bytes.as_mut_ptr(),
                host = in(reg) &raw const host,
                clobber_abi("sysv64"),
            );
        }
    }

    /// Whether an x87 exception that is not masked waits for the next x87
    /// instruction.
    #[must_use]
    pub fn x87_pending(&self) -> bool {
        self.x87_u16(at::FSW) & !self.x87_u16(at::FCW) & 0x3f != 0
    }

    /// A vector register: XMM in the low half.
    #[must_use]
    pub fn ymm(&self, number: usize) -> [u8; 32] {
        let (low, high) = (at::XMM + number * 16, at::YMM_HIGH + number * 16);
        let mut value = [0; 32];
        value[..16].copy_from_slice(&self.bytes[low..low + 16]);
        value[16..].copy_from_slice(&self.bytes[high..high + 16]);
        value
    }

    /// Sets a vector register.
    pub fn set_ymm(&mut self, number: usize, value: &[u8; 32]) {
        let (low, high) = (at::XMM + number * 16, at::YMM_HIGH + number * 16);
        self.bytes[low..low + 16].copy_from_slice(&value[..16]);
        self.bytes[high..high + 16].copy_from_slice(&value[16..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_components_are_initial() {
        let mut area = [0xa5; FPU_BYTES];
        area[at::XSTATE_BV..at::XSTATE_BV + 8].copy_from_slice(&0u64.to_le_bytes());
        area[at::MXCSR..at::MXCSR + 4].copy_from_slice(&MXCSR_INIT.to_le_bytes());
        assert_eq!(FpuState::from_xsave(&area), FpuState::new());
        area[at::XSTATE_BV] = 2;
        let state = FpuState::from_xsave(&area);
        assert_eq!(
            (state.ymm(3)[0], state.ymm(3)[31], state.in_use()),
            (0xa5, 0, 2)
        );
        area[at::MXCSR..at::MXCSR + 4].fill(0xff);
        let reserved = FpuState::from_xsave(&area).mxcsr() & !*MXCSR_MASK;
        assert_eq!(reserved, 0);
        assert_eq!(state.x87_u16(at::FCW), 0x37f);
    }

    #[test]
    fn what_goes_out_comes_back_and_other_components_stay() {
        let mut state = FpuState::new();
        state.set_ymm(7, &std::array::from_fn(|i| u8::try_from(i).unwrap()));
        state.set_mxcsr(0x1fa0);
        let mut area = vec![0x5a; 1024];
        area[at::XSTATE_BV..at::XSTATE_BV + 8].copy_from_slice(&0xe0u64.to_le_bytes());
        state.to_xsave(&mut area);
        assert_eq!(area[at::XSTATE_BV], 0xe7);
        assert_eq!(area[FPU_BYTES], 0x5a);
        let back = FpuState::from_xsave(&area);
        assert!(back.beyond());
        assert_eq!((back.ymm(7), back.mxcsr()), (state.ymm(7), 0x1fa0));
    }
}
