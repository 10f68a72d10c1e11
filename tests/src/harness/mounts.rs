//! Mounts that a test has for itself.
//!
//! Law: mounts are those of a thread and of what it starts; they go with the last of
//! these. So a test can put files of its own in the place of the host's, and what a
//! program forgets to unmount is gone afterwards.

use std::{panic::resume_unwind, process::Command, thread};

use nix::sched::{CloneFlags, unshare};

/// Runs a test with mounts of its own.
///
/// # Panics
/// When there can be none, and when the test does.
pub fn in_private_mounts(test: impl FnOnce() + Send) {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("mounts of our own (are we root?)");
        mount(&["--make-rprivate", "/"]);
        test();
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name).spawn_scoped(scope, run);
        if let Err(panic) = thread.expect("a thread").join() {
            resume_unwind(panic);
        }
    });
}

/// Runs `mount`, for the calling thread.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn mount(args: &[&str]) {
    let done = Command::new("mount").args(args).output();
    let done = done.expect("the program mount");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "mount {args:?}: {said}");
}
