//! A host's network that a test has for itself, and traffic in it.
//!
//! Law: a network namespace lives as long as a process in it. So a test that
//! runs in one of its own, with all that it starts, leaves no interface behind,
//! and meets none of the host's or of other tests.

use std::process::{Command, Stdio};

use nix::sched::CloneFlags;

use super::isolated::isolated;

/// Runs a test in a network namespace of its own, where `lo` is up. What it
/// starts runs there too.
///
/// # Panics
/// When there can be none, and when the test does.
pub fn in_a_network(test: impl FnOnce() + Send) {
    // Built before, for cargo may want the host's network.
    let _ = super::Programs::get();
    isolated(CloneFlags::CLONE_NEWNET, || {
        ip("link set lo up");
        test();
    });
}

/// Gives the calling thread's namespace an interface with a route, from which
/// passt takes its addresses: 192.0.2.10/24 on `up0`.
///
/// # Panics
/// When there is one already.
pub fn uplink() {
    ip("link add up0 type veth peer name up1");
    ip("address add 192.0.2.10/24 dev up0");
    ip("link set up0 up");
    ip("link set up1 up");
    ip("route add default via 192.0.2.1");
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
