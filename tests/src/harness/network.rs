//! A host's network that a test has for itself, and traffic in it.
//!
//! Law: a network namespace lives as long as a process in it. So a test that
//! runs in one of its own, with all that it starts, leaves no interface behind,
//! and meets none of the host's or of other tests.

use std::{
    panic::resume_unwind,
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a network namespace of its own, where `lo` is up. What it
/// starts runs there too.
///
/// # Panics
/// When there can be none, and when the test does.
pub fn in_a_network(test: impl FnOnce() + Send) {
    // Built before, for cargo may want the host's network.
    let _ = super::Programs::get();
    let name = thread::current().name().unwrap_or("test").to_owned();
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (are we root?)");
        ip("link set lo up");
        test();
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name).spawn_scoped(scope, run);
        if let Err(panic) = thread.expect("a thread").join() {
            resume_unwind(panic);
        }
    });
}

/// Runs `ip` with these words, in the namespace of the calling thread.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn ip(words: &str) {
    let done = Command::new("ip").args(words.split_whitespace()).output();
    let done = done.expect("the program ip (apt install iproute2)");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {words}: {said}");
}

/// A program that ends with the test.
#[derive(Debug)]
pub struct Child(std::process::Child);

impl Child {
    /// Starts it.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
