//! The thread of a queue: turns while there is work, then sleep until somebody
//! says that there is some again.
//!
//! Law: a front end that runs is not interrupted: see
//! [`Nudges`]. A stream moves in batches: see [`gather`]. Before it sleeps the thread asks the front end to notify it and looks once
//! more; while it works it asks for nothing, so that neither side pays for
//! notifications that tell what is known.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use super::{
    grants::Grants,
    queue::{Queue, QueueError},
    wire::Wire,
};
use crate::backend::{Heard, Nudges, Port, SharedMemory, Stop};

/// A guest that runs may look for packets by itself for so long.
const RX_PATIENCE: Duration = Duration::from_millis(1);
/// ... and for responses, which it wants when its ring is full.
const TX_PATIENCE: Duration = Duration::from_millis(4);
/// A few responses wait for a packet to be told of with, for so long at most.
const HOLD: Duration = Duration::from_micros(300);
/// Who moves so many bytes in a turn moves a stream of them.
const STREAM: u64 = 16 << 10;
/// A stream from the guest gathers for so long, or until so many slots of the
/// transmit ring are full.
const FROM_GUEST: Duration = Duration::from_micros(400);
const FULL: u32 = 96;
/// A stream to the guest gathers until it has looked at what it has, for so
/// long at least and at most.
const TO_GUEST: [Duration; 2] = [Duration::from_micros(400), Duration::from_micros(900)];
/// How often that is looked at.
const STEP: Duration = Duration::from_micros(100);

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
    let mut nudges = [Nudges::new(TX_PATIENCE), Nudges::new(RX_PATIENCE)];
    let mut owed: Option<Instant> = None;
    let mut moved = queue.counts;
    while !stop.is_wanted() {
        let now = Instant::now();
        queue.wire_mut().flush();
        let tx = queue.turn_tx(now)?;
        if tx.notify {
            owed.get_or_insert(now);
        }
        let rx = queue.turn_rx(now)?;
        if rx.notify {
            ports.rx().nudge();
            nudges[1].sent(now);
        }
        let before = std::mem::replace(&mut moved, queue.counts);
        let sends = moved.sent_bytes - before.sent_bytes >= STREAM;
        let held = owed.map(|since| HOLD.saturating_sub(now.duration_since(since)));
        if let Some(left) = held
            && (sends || rx.notify || left.is_zero())
        {
            owed = None;
            ports.tx.nudge();
            nudges[0].sent(now);
        }
        let patience = insist(queue, ports, &mut nudges, now);
        if moved.received_bytes - before.received_bytes >= STREAM {
            let [least, most] = TO_GUEST;
            gather(queue, stop, most, |queue, so_far| {
                so_far >= least && queue.rx_is_seen()
            })?;
            continue;
        }
        if sends {
            gather(queue, stop, FROM_GUEST, |_, _| false)?;
            continue;
        }
        let patience = [patience, owed.and(held)].into_iter().flatten().min();
        if tx.worked || rx.worked || queue.rest_tx()? || queue.rest_rx()? {
            continue;
        }
        sleep(queue, ports, stop, now, patience).map_err(QueueError::Wire)?;
        ports.clear();
    }
    if owed.is_some() || nudges.iter().any(Nudges::is_open) {
        ports.notify_all();
    }
    Ok(())
}

/// Lets a stream gather, so that it moves in large batches and neither side
/// notifies the other for every packet.
fn gather<M: SharedMemory, G: Grants, W: Wire>(
    queue: &Queue<M, G, W>,
    stop: &Stop,
    most: Duration,
    is_enough: impl Fn(&Queue<M, G, W>, Duration) -> bool,
) -> Result<(), QueueError> {
    let begin = Instant::now();
    while begin.elapsed() < most && queue.waiting_in_tx()? < FULL && !stop.is_wanted() {
        if is_enough(queue, begin.elapsed()) {
            break;
        }
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(STEP.into()), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(QueueError::Wire(errno.into())),
        }
    }
    Ok(())
}

/// Notifies a guest in earnest that was nudged and has not looked; how long it
/// still has time to.
fn insist<M: SharedMemory, G: Grants, W: Wire>(
    queue: &Queue<M, G, W>,
    ports: &Ports,
    [tx, rx]: &mut [Nudges; 2],
    now: Instant,
) -> Option<Duration> {
    let looks = [
        (tx.look(now, || queue.tx_is_seen()), &ports.tx),
        (rx.look(now, || queue.rx_is_seen()), ports.rx()),
    ];
    let left = looks.into_iter().filter_map(|(heard, port)| match heard {
        Heard::Yes => None,
        Heard::NotYet(left) => Some(left),
        Heard::No => {
            port.notify();
            None
        }
    });
    left.min()
}

fn sleep<M: SharedMemory, G: Grants, W: Wire>(
    queue: &Queue<M, G, W>,
    ports: &Ports,
    stop: &Stop,
    now: Instant,
    patience: Option<Duration>,
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
    let long = [until, look_again].into_iter().flatten().min();
    // A little later rather than a little too early, again and again.
    let long = long.map(|time| time + Duration::from_millis(1));
    let timeout = [long, patience].into_iter().flatten().min();
    match ppoll(&mut fds, timeout.map(TimeSpec::from), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
