//! The thread of a queue: turns while there is work, then sleep until somebody
//! says that there is some again.
//!
//! Law: before it sleeps it asks the front end to notify it and looks once
//! more; while it works it asks for nothing, so that neither side pays for
//! notifications that tell what is known.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    grants::Grants,
    queue::{Queue, QueueError},
    wire::Wire,
};
use crate::backend::{Port, SharedMemory, Stop};

/// A wire without descriptor is asked as often as this.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The queue's event channels.
#[derive(Debug)]
pub struct Ports {
    /// For the transmit ring, or for both.
    pub tx: Port,
    /// For the receive ring, if it has one of its own.
    pub rx: Option<Port>,
}

impl Ports {
    fn rx(&self) -> &Port {
        self.rx.as_ref().unwrap_or(&self.tx)
    }

    /// Wakes the front end, whatever its rings say: a killed back end may have
    /// owed it a notification.
    pub fn notify_all(&self) {
        self.tx.notify();
        if let Some(rx) = &self.rx {
            rx.notify();
        }
    }

    fn clear(&self) {
        self.tx.clear();
        if let Some(rx) = &self.rx {
            rx.clear();
        }
    }
}

/// Serves until it is asked to stop.
///
/// # Errors
/// [`QueueError`]: the device is to be given up.
pub fn serve<M: SharedMemory, G: Grants, W: Wire>(
    queue: &mut Queue<M, G, W>,
    ports: &Ports,
    stop: &Stop,
) -> Result<(), QueueError> {
    while !stop.is_wanted() {
        let now = Instant::now();
        queue.wire_mut().flush();
        let tx = queue.turn_tx(now)?;
        if tx.notify {
            ports.tx.notify();
        }
        let rx = queue.turn_rx(now)?;
        if rx.notify {
            ports.rx().notify();
        }
        if tx.worked || rx.worked || queue.rest_tx()? || queue.rest_rx()? {
            continue;
        }
        sleep(queue, ports, stop, now).map_err(QueueError::Wire)?;
        ports.clear();
    }
    Ok(())
}

fn sleep<M: SharedMemory, G: Grants, W: Wire>(
    queue: &Queue<M, G, W>,
    ports: &Ports,
    stop: &Stop,
    now: Instant,
) -> io::Result<()> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::POLLIN, !queue.waits_for_pages());
    let wants_to_write = queue.waits_to_send() || queue.wire().wants_to_write();
    flags.set(PollFlags::POLLOUT, wants_to_write);
    let wire = queue.wire().fd();
    let mut fds = vec![
        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        PollFd::new(ports.tx.as_fd(), PollFlags::POLLIN),
    ];
    fds.extend(
        ports
            .rx
            .iter()
            .map(|port| PollFd::new(port.as_fd(), PollFlags::POLLIN)),
    );
    if !flags.is_empty() {
        fds.extend(wire.map(|fd| PollFd::new(fd, flags)));
    }
    let until = queue.wake_at().map(|at| at.saturating_duration_since(now));
    let look_again = wire.is_none().then_some(LOOK_AGAIN);
    let timeout = match [until, look_again].into_iter().flatten().min() {
        // A little later rather than a little too early, again and again.
        Some(time) => {
            PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
