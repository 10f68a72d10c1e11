//! The run-ahead interpreter against the processor itself, and against the
//! rules of paging, atomicity and self-modifying code.

#![allow(missing_docs, reason = "tests")]

mod alone;
mod atomics;
mod careful;
mod code;
mod differential;
mod faults;
mod fpu;
mod guest;
mod legacy;
mod machine;
mod native;
mod paging;
mod preempt;
mod random;

use hypervisor::interp::Interpreter;
use std::sync::Arc;

/// Guests that a test of many makes.
const FRESH: u32 = 20_000;

/// An interpreter that compiles nothing.
fn interpreter(machine: &Arc<machine::Machine>) -> Interpreter {
    Interpreter::new(Arc::clone(machine) as _)
}
