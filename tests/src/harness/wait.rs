//! Waiting for what can be seen.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything but a boot may take on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_secs(180);

const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Waits until `look` gives something.
///
/// # Panics
/// When it does not within `patience`: `what` names what was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(
            start.elapsed() < patience,
            "waited {patience:?} in vain: {what}"
        );
        thread::sleep(BETWEEN_LOOKS);
    }
}
