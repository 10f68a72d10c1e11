//! A test that has a part of the host for itself.
//!
//! Law: what is unshared belongs to a thread and to what it starts, and goes with
//! the last of these: nothing has to be put back.

use std::{panic::resume_unwind, thread};

use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a thread of the same name that has its own `what`.
///
/// # Panics
/// When it can't have that, and when the test does.
pub(super) fn isolated(what: CloneFlags, test: impl FnOnce() + Send) {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let run = || {
        unshare(what).unwrap_or_else(|e| panic!("{what:?} of our own: {e} (are we root?)"));
        test();
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name).spawn_scoped(scope, run);
        if let Err(panic) = thread.expect("a thread").join() {
            resume_unwind(panic);
        }
    });
}
