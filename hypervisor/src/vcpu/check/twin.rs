//! An interpreter on a copy of the domain's memory.

use super::copied::CopiedPhys;
use crate::{
    cpu::Context,
    fpu::FpuState,
    interp::{Cpuid, Exit, Far, GuestPhys, Interpreter},
    space::Space,
};
use guest_abi::addr::Mfn;
use iced_x86::{Instruction, Mnemonic, RflagsBits};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

pub(super) const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;
const OF: u64 = 1 << 11;
/// Flags that are compared: those of ring 3 but TF and RF.
const COMPARED: u64 = 0x0024_0cd5;
/// No stretch is as long: code that goes on and on has lost its way.
const ENDLESS: u64 = 1 << 16;

/// See the module.
pub(super) struct Twin {
    pub phys: Arc<CopiedPhys>,
    pub interpreter: Interpreter,
}

impl Twin {
    /// Of a domain with this memory. What `source` has copied is as it found it.
    pub fn new(space: Arc<Space>, source: Option<&Twin>, cpuid: Option<Cpuid>) -> Self {
        let source = source.map(|twin| Arc::clone(&twin.phys));
        let phys = Arc::new(CopiedPhys::new(space, source));
        let mut interpreter = Interpreter::new(Arc::clone(&phys) as Arc<dyn GuestPhys>);
        let model = interpreter.model();
        model.alone = true;
        model.tsc_aux = Some(0);
        model.cpuid = cpuid;
        Twin { phys, interpreter }
    }

    /// Begins with memory as it is, and these vector registers.
    pub fn begin(&mut self, fpu: &FpuState, xcr0: u64) {
        self.interpreter.flush_all();
        self.phys.reset();
        self.interpreter.load_fpu(fpu);
        self.interpreter.model().xcr0 = Some(xcr0);
    }

    /// Begins once more.
    pub fn rewind(&mut self, fpu: &FpuState) {
        self.interpreter.flush_all();
        self.phys.rewind();
        self.interpreter.load_fpu(fpu);
    }

    /// The instruction at a context.
    pub fn instruction(&mut self, at: &Context, root: Mfn) -> Option<Instruction> {
        self.interpreter.instruction(at, root)
    }

    /// One instruction, or one element of a repeated one.
    pub fn step(&mut self, from: &Context, root: Mfn) -> (Context, Exit) {
        let mut context = Context {
            rflags: from.rflags | TF,
            ..*from
        };
        let never = AtomicBool::new(false);
        let exit = self.interpreter.run(&mut context, root, 1, &never);
        (plain(&context), exit)
    }

    /// Runs until it traps; and whether compiled code was executed.
    pub fn run(&mut self, from: &Context, root: Mfn) -> (Context, Exit, bool) {
        let mut context = plain(from);
        let never = AtomicBool::new(false);
        let before = self.interpreter.counts().compiled;
        let exit = self.interpreter.run(&mut context, root, ENDLESS, &never);
        debug_assert!(!never.load(Relaxed));
        let compiled = self.interpreter.counts().compiled > before;
        (plain(&context), exit, compiled)
    }

    /// The vector registers, if they are not these.
    pub fn vectors_differ(&self, theirs: &FpuState) -> Option<String> {
        let ours = self.interpreter.fpu()?;
        let register = (0..16).find(|n| ours.ymm(*n) != theirs.ymm(*n));
        (register.is_some() || ours.mxcsr() != theirs.mxcsr()).then(|| {
            format!(
                "vector registers before here: {register:?}, mxcsr {:#x} here, {:#x} there",
                ours.mxcsr(),
                theirs.mxcsr()
            )
        })
    }
}

/// Whether an interpreter and a processor do the same with it.
pub(super) fn is_comparable(next: &Instruction) -> bool {
    use Mnemonic as M;
    let odd = match next.mnemonic() {
        M::Rdtsc
        | M::Rdtscp
        | M::Rdrand
        | M::Rdseed
        | M::Rdpid
        | M::Cpuid
        | M::Xgetbv
        | M::Pushf
        | M::Pushfq
        | M::Popf
        | M::Popfq
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Int
        | M::Int3
        | M::Int1
        | M::Syscall
        | M::Sysenter => true,
        // A processor may say of a component in its initial state that it is in use.
        M::Xsave
        | M::Xsave64
        | M::Xsavec
        | M::Xsavec64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsaves
        | M::Xsaves64 => true,
        M::Pop => !next.op0_register().is_gpr(),
        _ => false,
    };
    let of_segments = (0..next.op_count()).any(|n| next.op_register(n).is_segment_register());
    !odd && !of_segments && Far::of(next).is_none()
}

/// A context without what single-stepping leaves in its flags.
pub(super) fn plain(context: &Context) -> Context {
    Context {
        rflags: context.rflags & !(TF | RF),
        ..*context
    }
}

/// A context with only the flags that both must agree on.
pub(super) fn comparable(context: &Context, undefined: u64) -> Context {
    Context {
        rflags: context.rflags & COMPARED & !undefined,
        ..*context
    }
}

/// Which flags are undefined after an instruction, where these were before: only those
/// that a processor makes depend on the form of an instruction, OF after shifts and
/// rotations.
pub(super) fn undefined_flags(instruction: &Instruction, before: u64) -> u64 {
    use Mnemonic as M;
    let shifts = matches!(
        instruction.mnemonic(),
        M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd
    );
    if shifts {
        OF
    } else if instruction.rflags_modified() & RflagsBits::OF != 0 {
        0
    } else {
        before
    }
}

/// Whether an instruction looks at flags that are undefined.
pub(super) fn reads_undefined(instruction: &Instruction, undefined: u64) -> bool {
    undefined & OF != 0 && instruction.rflags_read() & RflagsBits::OF != 0
}
