//! Stopping the services.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{ALL, Service, ServiceError};
use crate::paths;

const GRACE: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Ends all services, the last one that started first. `force` kills those
/// that don't end by themselves. Returns those that ran.
///
/// # Errors
/// One would not end.
pub fn stop(force: bool) -> Result<Vec<Service>, ServiceError> {
    if !paths::run_dir().exists() {
        return Ok(Vec::new());
    }
    let _lock = super::lock()?;
    let mut stopped = Vec::new();
    for service in ALL.into_iter().rev() {
        if let Some(pid) = service.pid() {
            stop_one(service, pid, force)?;
            stopped.push(service);
        }
    }
    Ok(stopped)
}

fn stop_one(service: Service, pid: u32, force: bool) -> Result<(), ServiceError> {
    send(service, pid, Signal::SIGTERM)?;
    if gone(service, pid) {
        return Ok(());
    }
    if force {
        send(service, pid, Signal::SIGKILL)?;
        if gone(service, pid) {
            return Ok(());
        }
    }
    Err(ServiceError::Undying {
        program: service.program(),
        pid,
    })
}

fn send(service: Service, pid: u32, signal: Signal) -> Result<(), ServiceError> {
    let target = i32::try_from(pid).ok().filter(|pid| *pid > 1);
    let sent = target.map_or(Err(Errno::ESRCH), |pid| kill(Pid::from_raw(pid), signal));
    match sent {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(ServiceError::File {
            path: paths::pid_file(service.program()),
            source: io::Error::from(errno),
        }),
    }
}

/// Waits for the lock on the pid file: it is free when the process is gone.
fn gone(service: Service, pid: u32) -> bool {
    let give_up = Instant::now() + GRACE;
    while Instant::now() < give_up {
        if service.pid() != Some(pid) {
            return true;
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    false
}
