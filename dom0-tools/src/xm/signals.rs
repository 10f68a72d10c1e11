//! Ctrl+C in the middle of making a domain.
//!
//! Law: while a [`Held`] lives, the signals that end a program wait. The work
//! asks [`Held::arrived`] between its steps, takes back what it did, and then
//! lets the signal through.

use nix::sys::{
    signal::{SigSet, Signal, raise},
    signalfd::{SfdFlags, SignalFd},
};

/// Keeps SIGINT, SIGTERM and SIGHUP waiting.
#[derive(Debug)]
pub struct Held {
    mask: SigSet,
    fd: Option<SignalFd>,
    arrived: std::cell::Cell<Option<Signal>>,
}

impl Held {
    /// From now on they wait.
    #[must_use]
    pub fn hold() -> Self {
        let mask: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let held = mask
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&mask, flags));
        Self {
            mask,
            // Without it signals act at once, as in any program.
            fd: held.ok(),
            arrived: std::cell::Cell::new(None),
        }
    }

    /// Whether one has come.
    #[must_use]
    pub fn arrived(&self) -> bool {
        if let Some(Ok(Some(info))) = self.fd.as_ref().map(SignalFd::read_signal) {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            self.arrived.set(Signal::try_from(number).ok());
        }
        self.arrived.get().is_some()
    }
}

impl Drop for Held {
    /// They act again, also the one that has come.
    fn drop(&mut self) {
        let arrived = self.arrived();
        let _ = self.mask.thread_unblock();
        if let (true, Some(signal)) = (arrived, self.arrived.get()) {
            eprintln!("Interrupted.");
            let _ = raise(signal);
        }
    }
}
