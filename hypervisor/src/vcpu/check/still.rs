//! The other vCPUs of a domain stand still while a stretch of one is checked: what it
//! reads changes only by what it writes itself.
//!
//! Protocol. Who checks takes the domain's turn and asks each other vCPU with
//! [`request::STILL`]. A vCPU that finds the request, between two entries of the guest,
//! has the VM see the page-table words that it has queued, says that it stands, and
//! waits for the end. Who checks waits for all of them, but not long, and not while
//! somebody wants something of itself: another vCPU may be waiting for that in the
//! middle of a hypercall. Then nothing is checked this time.
//!
//! Law: a vCPU that stands holds no lock, and is not in the guest. So whoever waits for
//! vCPUs to leave the guest does not wait for it.

use crate::{
    domain::Domain,
    engine::EngineKind,
    vcpu::{Crash, Vcpu, request},
};
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A vCPU in a long hypercall is not waited for.
const PATIENCE: Duration = Duration::from_millis(20);
/// So often is looked whether somebody wants something.
const LOOK: Duration = Duration::from_micros(500);

#[derive(Debug, Default)]
struct Turn {
    /// Somebody checks.
    taken: bool,
    /// Whose turn it is: they are counted.
    number: u64,
    /// vCPUs that stand still for this turn.
    standing: usize,
}

/// Who stands still in a domain.
#[derive(Debug, Default)]
pub struct Stillness {
    turn: Mutex<Turn>,
    changed: Condvar,
}

impl Stillness {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> bool {
        let mut turn = self.lock();
        if turn.taken {
            return false;
        }
        *turn = Turn {
            taken: true,
            number: turn.number + 1,
            standing: 0,
        };
        true
    }

    fn give_back(&self) {
        self.lock().taken = false;
        self.changed.notify_all();
    }

    /// Waits until so many stand; `false` if that takes too long, or `hurry` says so.
    fn wait_for(&self, others: usize, hurry: impl Fn() -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        let mut turn = self.lock();
        while turn.standing < others {
            if hurry() || Instant::now() >= end {
                return false;
            }
            turn = self
                .changed
                .wait_timeout(turn, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        !hurry()
    }

    /// Stands still until the turn is over.
    fn stand(&self) {
        let mut turn = self.lock();
        let number = turn.number;
        turn.standing += usize::from(turn.taken);
        self.changed.notify_all();
        while turn.taken && turn.number == number {
            turn = self
                .changed
                .wait(turn)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// While it lasts, the other vCPUs stand still.
pub(super) struct Held {
    domain: Arc<Domain>,
    /// There are others.
    pub others: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.others {
            self.domain.stillness.give_back();
        }
    }
}

impl Vcpu {
    /// Lets the other vCPUs stand still; `None` if that can't be now.
    pub(super) fn hold_others(&self) -> Option<Held> {
        let domain = &self.domain;
        let others: Vec<_> = domain
            .vcpus
            .iter()
            .filter(|vcpu| vcpu.id != self.shared.id && vcpu.has_thread())
            .collect();
        if !others.is_empty() && !domain.stillness.take() {
            return None;
        }
        let held = Held {
            domain: Arc::clone(domain),
            others: !others.is_empty(),
        };
        for vcpu in &others {
            vcpu.request(request::STILL);
        }
        let hurry = || self.shared.has_requests();
        (others.is_empty() || domain.stillness.wait_for(others.len(), hurry)).then_some(held)
    }

    /// Another vCPU is checked: stands still meanwhile.
    ///
    /// # Errors
    /// The engine's.
    pub(in crate::vcpu) fn stand_still(&mut self) -> Result<(), Crash> {
        if self.engine.kind() == EngineKind::Kvm && !self.writes.get_mut().is_empty() {
            self.write_tables()?;
        }
        self.domain.stillness.stand();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_waits_for_all_others() {
        let stillness = Arc::new(Stillness::default());
        assert!(stillness.take());
        assert!(!stillness.take(), "one at a time");
        let standing: Vec<_> = (0..2)
            .map(|_| {
                let stillness = Arc::clone(&stillness);
                std::thread::spawn(move || stillness.stand())
            })
            .collect();
        while stillness.lock().standing < 2 {
            std::thread::yield_now();
        }
        assert!(stillness.wait_for(2, || false));
        assert!(!stillness.wait_for(3, || false), "a third does not come");
        assert!(!stillness.wait_for(3, || true), "nobody is kept waiting");
        assert!(standing.iter().all(|thread| !thread.is_finished()));
        stillness.give_back();
        standing.into_iter().for_each(|it| it.join().unwrap());
        assert!(stillness.take(), "the next turn");
        assert_eq!(stillness.lock().standing, 0);
        stillness.give_back();
        stillness.stand();
    }
}
