//! A vCPU's integer state while it is interpreted.

use super::{
    careful::Breakpoints,
    compiled::Compiled,
    exec::string::CHUNK,
    flags::{ARITHMETIC, DF, Flags, RF},
    host::{Registers, Word},
    op::{Flow, Halt, Op, Outcome, slot},
    pages::CodeLines,
    phys::GuestPhys,
    split::SplitOperand,
    tlb::Tlb,
    vector::Vector,
};
use crate::cpu::{Compat, Context, DataSegments, DataSelectors, Segment};
use guest_abi::addr::Mfn;
use std::{any::Any, sync::Arc};

/// Why an instruction did not run, or what running it brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// An exception, `rip` at the instruction.
    Fault { vector: u8, error: u32, cr2: u64 },
    /// `syscall` was executed; `Cpu::rip` is after it.
    Syscall,
    /// An instruction that raises this exception by itself was executed, or a
    /// single step is over; `Cpu::rip` is after it.
    Software(u8),
    /// The instruction was executed, `Cpu::rip` is after it, and the next ones
    /// have to be run in another way.
    Again,
    /// A `lock`ed operand lies across two cache lines.
    SplitLock,
    /// Somebody else has to execute this instruction.
    Unknown,
    /// An operand's address is not canonical: #SS or #GP, by its segment.
    NotCanonical,
    /// It needs the vector and x87 registers, which are not here.
    NeedsFpu,
    /// It would write over code of which there are decoded blocks.
    OverCode(Mfn),
}

/// CS and SS of 64-bit code, as the KVM engine shows them.
const LONG_MODE: (u16, u16) = (0x33, 0x2b);

/// Vectors of the exceptions that ring-3 code can raise by itself.
pub mod vector {
    #![allow(missing_docs, reason = "the manual's names")]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// Answers `cpuid`: leaf and sub-leaf to EAX, EBX, ECX and EDX.
pub type Cpuid = Box<dyn Fn(u32, u32) -> [u32; 4] + Send>;

/// What the guest can learn of its processor besides registers.
pub struct Model {
    /// Added to the host's time-stamp counter.
    pub tsc_offset: u64,
    /// What `rdtscp` puts in ECX; without it the instruction is unknown.
    pub tsc_aux: Option<u32>,
    /// What ES, CS, SS, DS, FS and GS hold, where that is certain; an
    /// instruction that reads or loads another one is unknown.
    pub selectors: [Option<u16>; 6],
    /// Answers `cpuid`; without it the instruction is unknown.
    pub cpuid: Option<Cpuid>,
    /// There is no engine for what is left undone. Then the selectors are the
    /// context's.
    pub alone: bool,
    /// The debug registers, obeyed by an interpreter that is alone.
    pub breakpoints: Breakpoints,
    /// Bits of DR6 for breakpoints that were hit. They stay until they are taken.
    pub hits: u64,
    /// XCR0 as ring 3 sees it; without it instructions that depend on it are
    /// unknown.
    pub xcr0: Option<u64>,
}

/// Registers, flags and translations.
pub struct Cpu {
    /// The register file.
    pub r: Registers,
    /// OF, SF, ZF, AF, PF and CF.
    pub flags: Flags,
    /// The other bits of `rflags`.
    pub other_flags: u64,
    /// 32-bit code runs.
    pub compat: Option<Compat>,
    /// The segments that it uses, in the order of [`Model::selectors`].
    pub segments: [Segment; 6],
    /// Where to go on after [`Flow::Branch`].
    pub rip: u64,
    /// Set by whoever returns [`Halt`].
    pub stop: Stop,
    /// Budget used up by string instructions beyond one each.
    pub extra: u64,
    /// Elements that a string instruction may do in one go.
    pub chunk: u64,
    /// While an instruction locks an operand across two cache lines: it.
    pub split: Option<SplitOperand>,
    /// Translations of the current root and of recent ones.
    pub tlb: Tlb,
    /// Which frames hold decoded code.
    pub lines: CodeLines,
    /// The domain's memory.
    pub phys: Arc<dyn GuestPhys>,
    /// The rest of the processor.
    pub model: Model,
    /// Vector and x87 registers.
    pub vector: Vector,
    /// Instructions that compiled code may still execute, while it runs.
    pub left: i64,
    /// The negative of the run's number.
    pub negative_epoch: u64,
    /// The negative of the mark of code that holds still, for compiled code.
    pub negative_still: u64,
    /// Tells jumps that are known now from those of other tables and times.
    pub jump_tag: u64,
    /// Compiled code, if code is compiled.
    pub compiled: Option<Box<Compiled>>,
    /// A panic that came up while compiled code ran.
    pub panic: Option<Box<dyn Any + Send>>,
}

impl Cpu {
    /// A vCPU of a domain with this memory.
    pub fn new(phys: Arc<dyn GuestPhys>) -> Self {
        Cpu {
            r: [0; 32],
            flags: Flags::default(),
            other_flags: 2,
            compat: None,
            segments: [Segment::FLAT; 6],
            rip: 0,
            stop: Stop::Unknown,
            extra: 0,
            chunk: CHUNK,
            split: None,
            tlb: Tlb::new(),
            lines: CodeLines::default(),
            phys,
            model: Model {
                tsc_offset: 0,
                tsc_aux: None,
                selectors: [None; 6],
                cpuid: None,
                alone: false,
                breakpoints: Breakpoints::default(),
                hits: 0,
                xcr0: None,
            },
            vector: Vector::new(),
            left: 0,
            negative_epoch: 0,
            negative_still: 0,
            jump_tag: 0,
            compiled: None,
            panic: None,
        }
    }

    /// Takes over `context`.
    pub fn enter(&mut self, context: &Context) {
        self.r[..16].copy_from_slice(&context.gpr);
        self.r[usize::from(slot::FS)] = context.fs_base;
        self.r[usize::from(slot::GS)] = context.gs_base;
        self.rip = context.rip;
        self.compat = context.compat;
        if self.model.alone {
            let data = context.data;
            let (cs, ss) = match context.compat {
                Some(compat) => (compat.cs, compat.ss),
                None => LONG_MODE,
            };
            self.model.selectors = [data.es, cs, ss, data.ds, data.fs, data.gs].map(Some);
            let DataSegments { es, ss, ds, fs, gs } = context.segments;
            self.segments = [es, Segment::FLAT, ss, ds, fs, gs];
        }
        // RF stands in the flags that a fault saved, and lasts for one
        // instruction.
        self.set_rflags(context.rflags & !RF);
    }

    /// Gives the state back.
    pub fn leave(&self, context: &mut Context) {
        context.gpr.copy_from_slice(&self.r[..16]);
        context.fs_base = self.r[usize::from(slot::FS)];
        context.gs_base = self.r[usize::from(slot::GS)];
        context.rip = self.rip;
        context.rflags = self.rflags();
        if self.model.alone {
            let [es, _, _, ds, fs, gs] = self.model.selectors.map(Option::unwrap_or_default);
            context.data = DataSelectors { es, ds, fs, gs };
            let [es, _, ss, ds, fs, gs] = self.segments;
            context.segments = DataSegments { es, ss, ds, fs, gs };
        }
    }

    /// `rflags` as the guest sees it.
    #[inline]
    pub fn rflags(&self) -> u64 {
        self.other_flags | self.flags.to_rflags()
    }

    /// Sets all of `rflags`.
    #[inline]
    pub fn set_rflags(&mut self, rflags: u64) {
        self.flags = Flags::from_rflags(rflags);
        self.other_flags = rflags & !ARITHMETIC;
    }

    /// Whether string instructions go downwards.
    #[inline]
    pub fn backwards(&self) -> bool {
        self.other_flags & DF != 0
    }

    /// Reads a register operand.
    #[inline(always)]
    pub fn get<W: Word>(&self, operand: u8) -> W {
        W::get(&self.r, operand)
    }

    /// Writes a register operand.
    #[inline(always)]
    pub fn set<W: Word>(&mut self, operand: u8, value: W) {
        W::set(&mut self.r, operand, value);
    }

    /// Address of the memory operand.
    #[inline(always)]
    pub fn address(&self, op: &Op) -> u64 {
        self.offset(op)
            .wrapping_add(self.r[usize::from(op.segment & 31)])
    }

    /// The memory operand's address before its segment's base: what `lea` gives.
    #[inline(always)]
    pub fn offset(&self, op: &Op) -> u64 {
        self.r[usize::from(op.base & 31)]
            .wrapping_add(self.r[usize::from(op.index & 31)].wrapping_shl(u32::from(op.scale & 3)))
            .wrapping_add(op.disp)
    }

    /// The virtual address at `offset` from the code page.
    #[inline(always)]
    pub fn in_page(&self, offset: u64) -> u64 {
        self.r[usize::from(slot::PAGE)].wrapping_add(offset)
    }

    /// Goes to `target`, a near branch's destination.
    #[inline(always)]
    pub fn jump(&mut self, target: u64) -> Outcome {
        if !canonical(target) {
            return self.fault(vector::GP, 0);
        }
        self.rip = target;
        Ok(Flow::Branch)
    }

    /// Raises an exception at the instruction.
    #[cold]
    pub fn fault<T>(&mut self, vector: u8, error: u32) -> Result<T, Halt> {
        let cr2 = 0;
        self.halt(Stop::Fault { vector, error, cr2 })
    }

    /// Stops at the instruction.
    #[cold]
    pub fn halt<T>(&mut self, stop: Stop) -> Result<T, Halt> {
        self.stop = stop;
        Err(Halt)
    }
}

/// Whether bits 63..47 of `address` are equal.
#[inline(always)]
pub const fn canonical(address: u64) -> bool {
    let top = address >> 47;
    top == 0 || top == 0x1_ffff
}
