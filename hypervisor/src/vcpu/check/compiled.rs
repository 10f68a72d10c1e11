//! What compiled code makes of a stretch.
//!
//! A second interpreter, on a copy of its own, compiles all that it meets and runs it
//! without a look at anything until a breakpoint that stands in the copy, or the
//! stretch's own trap. Its registers, flags and memory there are compared with the
//! interpreter's, and then with KVM's.

use super::{
    path::Path,
    same_trap,
    twin::{Twin, comparable},
};
use crate::{
    cpu::{Context, Trap},
    fpu::FpuState,
    interp::Exit,
};
use guest_abi::addr::{MachineAddr, Mfn};

const INT3: u8 = 0xcc;
const BREAKPOINT: u8 = 3;

/// Where compiled code came to.
pub(super) struct Run {
    /// After so many steps of the interpreter's.
    pub steps: usize,
    /// Flags that are undefined there.
    pub undefined: u64,
    /// Its state.
    pub context: Context,
    /// Where in memory its breakpoint stands.
    pub breakpoint: Option<MachineAddr>,
    /// Compiled code was executed, not only interpreted.
    pub compiled: bool,
}

impl Run {
    /// Registers and flags, if they are not these.
    pub fn differs_from(&self, theirs: &Context) -> Option<String> {
        let ours = comparable(&self.context, self.undefined);
        let theirs = comparable(theirs, self.undefined);
        (ours != theirs).then(|| format!("{ours:x?} compiled, {theirs:x?} there"))
    }
}

/// Where a stretch begins.
pub(super) struct Start<'a> {
    pub context: &'a Context,
    pub root: Mfn,
    pub fpu: &'a FpuState,
}

/// Runs a stretch compiled, to the place where `path` can be stopped, whose machine address
/// is `place`; and compares. `None` if there is no such place; the text is a difference.
pub(super) fn run(
    compiled: &mut Twin,
    interpreted: &mut Twin,
    path: &Path,
    start: &Start<'_>,
    place: impl Fn(u64) -> Option<MachineAddr>,
) -> Option<Result<Run, String>> {
    let steps = path.stop()?;
    let (end, undefined) = path.state(steps);
    let breakpoint = match path.trap {
        Some(_) => None,
        None => Some(place(end.rip).filter(|at| compiled.phys.plant(*at, INT3))?),
    };
    // Code with another breakpoint, or without one, is not what stands there now.
    let forget = |compiled: &mut Twin| {
        if let Some(at) = breakpoint {
            compiled.interpreter.forget_code(at.frame());
        }
    };
    forget(compiled);
    let (mut context, exit, ran) = compiled.run(start.context, start.root);
    forget(compiled);
    if breakpoint.is_some() {
        // The trap is behind the instruction.
        context.rip = context.rip.wrapping_sub(1);
    }
    let expected = path.trap.unwrap_or(Trap::Exception {
        vector: BREAKPOINT,
        error: 0,
        cr2: guest_abi::addr::GuestVirt(0),
    });
    if !matches!(exit, Exit::Trap(trap) if same_trap(expected, trap)) {
        return Some(Err(format!(
            "{exit:?} compiled at {:#x}, {expected:?} interpreted",
            context.rip
        )));
    }
    let run = Run {
        steps,
        undefined,
        context,
        breakpoint,
        compiled: ran,
    };
    if let Some(text) = run.differs_from(end) {
        return Some(Err(text));
    }
    go_to(interpreted, path, steps, start);
    let memory = compiled.phys.differs_from(&interpreted.phys);
    let there = interpreted.interpreter.fpu().cloned().unwrap_or_default();
    match memory.or_else(|| compiled.vectors_differ(&there)) {
        Some(text) => Some(Err(text)),
        None => Some(Ok(run)),
    }
}

/// Brings the interpreter, which is at the path's end, to one of its steps.
fn go_to(interpreted: &mut Twin, path: &Path, steps: usize, start: &Start<'_>) {
    if steps == path.steps() {
        return;
    }
    interpreted.rewind(start.fpu);
    let mut at = *start.context;
    for _ in 0..steps {
        at = interpreted.step(&at, start.root).0;
    }
}
