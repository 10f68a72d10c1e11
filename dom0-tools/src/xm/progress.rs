//! What takes time, for people: one line on the terminal, rewritten.

use std::io::{self, IsTerminal, Write};

/// Shows steps on stderr if that is a terminal; says nothing otherwise.
#[derive(Debug)]
pub struct Progress {
    on: bool,
}

impl Progress {
    /// For a command that is quiet, or not.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self {
            on: !quiet && io::stderr().is_terminal(),
        }
    }

    /// Never says anything.
    #[must_use]
    pub const fn silent() -> Self {
        Self { on: false }
    }

    /// The next step begins.
    pub fn step(&self, what: &str) {
        if self.on {
            // Nothing depends on it.
            let _ = write!(io::stderr(), "\r\x1b[K{what} ...");
        }
    }

    /// All done, or failed: the line is cleared for what comes.
    pub fn end(&self) {
        if self.on {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
