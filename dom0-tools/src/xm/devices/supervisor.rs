//! Keeps a domain's back ends alive.
//!
//! ```text
//!   unknown --found one--> running --ended--> resting --its time--> running
//!           --devices----> started                     (the pause doubles
//!           --none-------> idle                         up to 10 s)
//! ```
//!
//! Law: the first look takes over a process that an earlier monitor started;
//! a second one is never started beside it. A back end is restarted however it
//! ended, as long as there are devices for it: it takes up the rings again, and
//! the guest only waits.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use guest_abi::{addr::DomId, xenbus::XenbusState};

use super::{
    Device, Kind,
    process::{self, BackEnd},
};
use crate::xenstore::client::{Error, Nodes};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One that ran for so long was well.
const WELL: Duration = Duration::from_secs(30);
/// After so many quick ends its waiting devices are reported as failed.
const HOPELESS: u32 = 3;

/// The back ends of one domain.
#[derive(Debug)]
pub struct Supervisor {
    dom: DomId,
    name: String,
    slots: [Slot; 2],
}

#[derive(Debug)]
struct Slot {
    kind: Kind,
    state: State,
    pause: Duration,
    quick_ends: u32,
}

#[derive(Debug)]
enum State {
    Unknown,
    Idle,
    Running { process: BackEnd, since: Instant },
    Resting { until: Instant },
}

impl Supervisor {
    /// For a domain; nothing is started yet.
    #[must_use]
    pub fn new(dom: DomId, name: &str) -> Self {
        let slot = |kind| Slot {
            kind,
            state: State::Unknown,
            pause: FIRST_PAUSE,
            quick_ends: 0,
        };
        Self {
            dom,
            name: name.to_owned(),
            slots: Kind::ALL.map(slot),
        }
    }

    /// Starts what is missing. Gives what the log should say.
    ///
    /// # Errors
    /// The store's.
    pub fn tend(&mut self, store: &mut (impl Nodes + Sized)) -> Result<Vec<String>, Error> {
        let mut said = Vec::new();
        for slot in &mut self.slots {
            slot.tend(self.dom, &self.name, store, &mut said)?;
        }
        Ok(said)
    }

    /// Readable when one has ended.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            State::Running { process, .. } => Some(process.as_fd()),
            _ => None,
        })
    }

    /// When to look again although nothing happens.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let times = self.slots.iter().filter_map(|slot| match slot.state {
            State::Resting { until } => Some(until),
            _ => None,
        });
        times.min()
    }
}

impl Slot {
    fn tend(
        &mut self,
        dom: DomId,
        name: &str,
        store: &mut (impl Nodes + Sized),
        said: &mut Vec<String>,
    ) -> Result<(), Error> {
        if let State::Unknown = self.state {
            self.take_over(dom, said);
        }
        if let State::Running { process, since } = &mut self.state {
            let Some(status) = process.ended() else {
                return Ok(());
            };
            let (pid, lived) = (process.pid(), since.elapsed());
            let how = process::ending(status);
            said.push(format!("{} (process {pid}) {how}", self.kind.program()));
            self.rest(lived);
            self.report_hopeless(dom, name, store)?;
        }
        let waits = matches!(self.state, State::Resting { until } if Instant::now() < until);
        if waits {
            return Ok(());
        }
        if Device::all(store, dom, self.kind)?.is_empty() {
            self.state = State::Idle;
            return Ok(());
        }
        self.start(dom, name, said);
        Ok(())
    }

    fn take_over(&mut self, dom: DomId, said: &mut Vec<String>) {
        let mut found = BackEnd::find(self.kind, dom).into_iter();
        self.state = match found.next() {
            None => State::Idle,
            Some(process) => {
                said.push(format!(
                    "{} (process {}) runs already",
                    self.kind.program(),
                    process.pid()
                ));
                let since = Instant::now();
                State::Running { process, since }
            }
        };
        found.for_each(|mut more| more.stop());
    }

    fn start(&mut self, dom: DomId, name: &str, said: &mut Vec<String>) {
        match BackEnd::start(self.kind, dom, name) {
            Ok(process) => {
                let (program, pid) = (self.kind.program(), process.pid());
                said.push(format!("started {program} (process {pid})"));
                let since = Instant::now();
                self.state = State::Running { process, since };
            }
            Err(error) => {
                said.push(error.to_string());
                self.rest(Duration::ZERO);
            }
        }
    }

    fn rest(&mut self, lived: Duration) {
        if lived >= WELL {
            self.pause = FIRST_PAUSE;
            self.quick_ends = 0;
        }
        self.quick_ends = self.quick_ends.saturating_add(1);
        let until = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.state = State::Resting { until };
    }

    /// Who waits for a new device hears why it does not come.
    fn report_hopeless(
        &self,
        dom: DomId,
        name: &str,
        store: &mut (impl Nodes + Sized),
    ) -> Result<(), Error> {
        if self.quick_ends != HOPELESS {
            return Ok(());
        }
        let text = format!(
            "{} ends each time it is started; see {}",
            self.kind.program(),
            process::log_of(self.kind, name).display()
        );
        for device in Device::all(store, dom, self.kind)? {
            if device.back_state(store)? == Some(XenbusState::Initialising) {
                store.write(&format!("{}/error", device.error()), &text)?;
                store.write(&format!("{}/hotplug-error", device.back()), &text)?;
                store.write(&format!("{}/hotplug-status", device.back()), "error")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_and_a_long_life_resets_it() {
        let mut slot = Slot {
            kind: Kind::Vbd,
            state: State::Idle,
            pause: FIRST_PAUSE,
            quick_ends: 0,
        };
        let mut pauses = Vec::new();
        for _ in 0..9 {
            pauses.push(slot.pause.as_millis());
            slot.rest(Duration::ZERO);
        }
        assert_eq!(
            pauses,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(slot.quick_ends, 9);
        slot.rest(WELL);
        assert_eq!((slot.pause, slot.quick_ends), (FIRST_PAUSE * 2, 1));
        assert!(matches!(slot.state, State::Resting { until } if until > Instant::now()));
    }
}
