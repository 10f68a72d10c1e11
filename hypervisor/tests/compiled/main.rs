//! The tests of the interpreter once more, with everything compiled that can be
//! as soon as it is met, and tests of what compiling could spoil.

#![allow(missing_docs, reason = "tests")]

#[path = "../interp/alone.rs"]
mod alone;
#[path = "../interp/atomics.rs"]
mod atomics;
#[path = "../interp/code.rs"]
mod code;
#[path = "../interp/differential.rs"]
mod differential;
#[path = "../interp/faults.rs"]
mod faults;
#[path = "../interp/fpu.rs"]
mod fpu;
#[path = "../interp/guest.rs"]
mod guest;
#[path = "../interp/machine.rs"]
mod machine;
#[path = "../interp/native.rs"]
mod native;
#[path = "../interp/paging.rs"]
mod paging;
mod programs;
#[path = "../interp/random.rs"]
mod random;
mod rules;

use hypervisor::interp::Interpreter;
use std::sync::Arc;

/// Guests that a test of many makes; each maps its own memory for code.
const FRESH: u32 = 2_000;

/// An interpreter that compiles what it meets.
fn interpreter(machine: &Arc<machine::Machine>) -> Interpreter {
    let mut interpreter = Interpreter::new(Arc::clone(machine) as _);
    interpreter.compile(Some(1));
    interpreter
}
