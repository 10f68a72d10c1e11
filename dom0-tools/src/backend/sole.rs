//! The lock that makes a back end the only one of its kind for a guest.
//!
//! Law: it is held until the process's last thread has ended. So no I/O of a
//! killed back end lands in a page that the guest uses again.

use crate::paths;
use domus_privcmd::pidfile::{PidFile, PidFileError};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Takes the lock of the back end `program` of `domain`, waiting up to
/// `patience` for a predecessor that has been killed to end.
///
/// # Errors
/// Another one still has it, or the file can't be made.
pub fn only_one(program: &str, domain: u16, patience: Duration) -> Result<PidFile, PidFileError> {
    let path = paths::pid_file(&format!("{program}-{domain}"));
    let deadline = Instant::now() + patience;
    loop {
        match PidFile::acquire(&path) {
            Err(PidFileError::Held { .. }) if Instant::now() < deadline => {
                sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}
