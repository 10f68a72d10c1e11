//! The run-ahead interpreter against the processor itself, and against the
//! rules of paging, atomicity and self-modifying code.

#![allow(missing_docs, reason = "tests")]

mod alone;
mod atomics;
mod code;
mod differential;
mod fpu;
mod guest;
mod machine;
mod native;
mod paging;
mod random;
