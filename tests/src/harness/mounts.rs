//! Mounts that a test has for itself.
//!
//! Law: mounts are those of a thread and of what it starts; they go with the last of
//! these. So a test can put files of its own in the place of the host's, and what a
//! program forgets to unmount is gone afterwards.

use std::process::Command;

use nix::sched::CloneFlags;

use super::isolated::isolated;

/// Runs a test with mounts of its own.
///
/// # Panics
/// When there can be none, and when the test does.
pub fn in_private_mounts(test: impl FnOnce() + Send) {
    isolated(CloneFlags::CLONE_NEWNS, || {
        mount(&["--make-rprivate", "/"]);
        test();
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
