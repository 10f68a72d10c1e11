//! What a domain's vCPUs did, counted: the figures behind every claim of speed.

use guest_abi::{arch_x86::exception_name, xen::hypercall_name};
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Hypercall numbers that are counted apart; the rest share the last counter.
const HYPERCALLS: usize = 64;

/// Counters of one domain.
#[derive(Debug)]
pub struct Counts {
    hypercalls: [AtomicU64; HYPERCALLS],
    exceptions: [AtomicU64; 32],
    /// `syscall` in user mode.
    pub user_syscalls: AtomicU64,
    /// Events delivered.
    pub events: AtomicU64,
    /// Kicks that found the guest running.
    pub kicks: AtomicU64,
    /// Entries into the VM.
    pub entries: AtomicU64,
    /// What run-ahead interpreted instead, in instructions.
    pub interpreted: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Counts {
            hypercalls: std::array::from_fn(|_| AtomicU64::new(0)),
            exceptions: Default::default(),
            user_syscalls: AtomicU64::new(0),
            events: AtomicU64::new(0),
            kicks: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            interpreted: AtomicU64::new(0),
        }
    }
}

impl Counts {
    /// Counts a hypercall.
    pub fn hypercall(&self, number: u64) {
        let index = usize::try_from(number)
            .unwrap_or(usize::MAX)
            .min(HYPERCALLS - 1);
        self.hypercalls[index].fetch_add(1, Relaxed);
    }

    /// Counts an exception.
    pub fn exception(&self, vector: u8) {
        self.exceptions[usize::from(vector & 31)].fetch_add(1, Relaxed);
    }

    /// All counters that are not zero, by name.
    #[must_use]
    pub fn list(&self) -> Vec<(String, u64)> {
        let hypercalls = self.hypercalls.iter().zip(0u64..).map(|(count, number)| {
            let name =
                hypercall_name(number).map_or_else(|| format!("hypercall {number}"), String::from);
            (name, count.load(Relaxed))
        });
        let exceptions = self
            .exceptions
            .iter()
            .zip(0..)
            .map(|(count, vector)| (exception(vector), count.load(Relaxed)));
        let others = [
            ("user syscall", &self.user_syscalls),
            ("event delivered", &self.events),
            ("kick", &self.kicks),
            ("VM entry", &self.entries),
            ("run-ahead instruction", &self.interpreted),
        ];
        let others = others
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count.load(Relaxed)));
        hypercalls
            .chain(exceptions)
            .chain(others)
            .filter(|(_, count)| *count != 0)
            .collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, count)) in self.list().into_iter().enumerate() {
            if index != 0 {
                f.write_str(", ")?;
            }
            write!(f, "{name} {count}")?;
        }
        Ok(())
    }
}

/// The same name that a trace of the domain gives it.
fn exception(vector: u8) -> String {
    exception_name(vector).map_or_else(|| format!("exception_{vector}"), String::from)
}
