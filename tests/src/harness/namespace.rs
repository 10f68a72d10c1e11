//! A network of the test's own: a network namespace with a bridge in it.

use std::{
    ffi::OsStr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network namespace; it goes with the value, and what is in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A namespace with a bridge `br0` that has this address (`10.9.0.1/24`).
    ///
    /// # Panics
    /// When it can't be made: that takes root and `ip` (package `iproute2`).
    #[must_use]
    pub fn with_bridge(address: &str) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("domus-t-{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace.ip(&["link", "add", "br0", "type", "bridge"]);
        namespace.ip(&["addr", "add", address, "dev", "br0"]);
        namespace.ip(&["link", "set", "br0", "up"]);
        namespace
    }

    /// A program, run inside: `command` gives a [`Command`] for the `ip` that
    /// does so, with the environment wanted.
    #[must_use]
    pub fn inside(&self, mut command: Command, program: impl AsRef<OsStr>) -> Command {
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    fn ip(&self, args: &[&str]) {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        ip(&all);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What is left of it shows at the next look at `ip netns`.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output();
    let done = done.unwrap_or_else(|error| panic!("ip {args:?}: {error} (apt install iproute2)"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {args:?}: {said}");
}
