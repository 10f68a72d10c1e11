//! A vCPU's timers, as pure state: when the next is due, and what it raises.
//!
//! - single-shot (`VCPUOP_set_singleshot_timer` and the older `set_timer_op`,
//!   which share it): raises `VIRQ_TIMER` once;
//! - periodic: raises it again and again, but neither wakes a blocked vCPU nor
//!   makes up for periods that it slept through, as in Xen;
//! - the time-out of a `SCHEDOP_poll`: ends the poll, raises nothing.

use guest_abi::{errno::Errno, vcpu::VCPU_SSHOTTMR_FUTURE};

/// The shortest period: 1 ms.
const MIN_PERIOD: u64 = 1_000_000;
/// The longest one.
const MAX_PERIOD: u64 = u64::MAX >> 2;
/// `set_timer_op` takes times further ahead (13 days) for a guest's mistake,
const FAR_AHEAD: u64 = 1 << 50;
/// and raises the timer after 100 ms instead.
const MISTAKE_DELAY: u64 = 100_000_000;

/// A refused timer operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimerError {
    /// With `VCPU_SSHOTTMR_future` a time that is past is refused.
    #[error("time {at} ns was past at {now} ns")]
    Past {
        /// The time asked for.
        at: u64,
        /// System time.
        now: u64,
    },
    /// Not a period between 1 ms and 2^62 ns.
    #[error("a timer's period must be between {MIN_PERIOD} and {MAX_PERIOD} ns, not {0}")]
    BadPeriod(u64),
}

impl TimerError {
    /// The number that Xen gives for this cause.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Past { .. } => Errno::ETIME,
            Self::BadPeriod(_) => Errno::EINVAL,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Periodic {
    period: u64,
    last: u64,
}

/// What became due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expired {
    /// Raise `VIRQ_TIMER` on the vCPU.
    pub timer: bool,
    /// The vCPU's poll has timed out.
    pub poll: bool,
}

/// The timers of one vCPU. All times are system time.
///
/// After each change call [`expire`](Self::expire): a time that is past
/// already is due at once.
#[derive(Debug, Default)]
pub struct Timers {
    singleshot: Option<u64>,
    periodic: Option<Periodic>,
    poll: Option<u64>,
}

impl Timers {
    /// Nothing set. (A new vCPU of Xen's has no periodic timer either.)
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `VCPUOP_set_singleshot_timer`.
    ///
    /// # Errors
    /// `ETIME` for a past time with `VCPU_SSHOTTMR_future`; the timer is then
    /// as it was.
    pub fn set_singleshot(&mut self, at: u64, flags: u32, now: u64) -> Result<(), TimerError> {
        if at < now && flags & VCPU_SSHOTTMR_FUTURE != 0 {
            return Err(TimerError::Past { at, now });
        }
        self.singleshot = Some(at);
        Ok(())
    }

    /// `VCPUOP_stop_singleshot_timer`.
    pub fn stop_singleshot(&mut self) {
        self.singleshot = None;
    }

    /// `HYPERVISOR_set_timer_op`: 0 stops the timer, a time that makes no
    /// sense is taken as 100 ms from now.
    pub fn set_timer_op(&mut self, at: u64, now: u64) {
        let negative = at >> 63 == 1;
        self.singleshot = match at {
            0 => None,
            _ if negative || at.saturating_sub(now) >= FAR_AHEAD => {
                Some(now.saturating_add(MISTAKE_DELAY))
            }
            _ => Some(at),
        };
    }

    /// `VCPUOP_set_periodic_timer`.
    ///
    /// # Errors
    /// `EINVAL` for a period under 1 ms or over 2^62 ns.
    pub fn set_periodic(&mut self, period: u64, now: u64) -> Result<(), TimerError> {
        if !(MIN_PERIOD..=MAX_PERIOD).contains(&period) {
            return Err(TimerError::BadPeriod(period));
        }
        self.periodic = Some(Periodic { period, last: now });
        Ok(())
    }

    /// `VCPUOP_stop_periodic_timer`.
    pub fn stop_periodic(&mut self) {
        self.periodic = None;
    }

    /// The vCPU begins a poll that ends at `at`; `None` if it has no time-out.
    pub fn begin_poll(&mut self, at: Option<u64>) {
        self.poll = at;
    }

    /// The vCPU's poll ended.
    pub fn end_poll(&mut self) {
        self.poll = None;
    }

    /// When to look next. A blocked or polling vCPU is not woken for its
    /// periodic timer.
    #[must_use]
    pub fn next_deadline(&self, blocked: bool) -> Option<u64> {
        let periodic = self.periodic.filter(|_| !blocked).map(Periodic::due);
        [self.singleshot, periodic, self.poll]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes what is due at `now`.
    pub fn expire(&mut self, now: u64) -> Expired {
        let due = |at: &mut Option<u64>| at.take_if(|at| *at <= now).is_some();
        let singleshot = due(&mut self.singleshot);
        let poll = due(&mut self.poll);
        let periodic = self.periodic.as_mut().filter(|it| it.due() <= now);
        let ticked = periodic.map(|it| it.last = now).is_some();
        Expired {
            timer: singleshot || ticked,
            poll,
        }
    }
}

impl Periodic {
    fn due(self) -> u64 {
        self.last.saturating_add(self.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMER: Expired = Expired {
        timer: true,
        poll: false,
    };
    const NOTHING: Expired = Expired {
        timer: false,
        poll: false,
    };

    #[test]
    fn a_singleshot_fires_once() {
        let mut timers = Timers::new();
        timers.set_singleshot(500, 0, 100).unwrap();
        assert_eq!(timers.next_deadline(true), Some(500));
        assert_eq!(timers.expire(499), NOTHING);
        assert_eq!(timers.expire(500), TIMER);
        assert_eq!(timers.expire(501), NOTHING);
        assert_eq!(timers.next_deadline(false), None);
        timers.set_singleshot(600, 0, 501).unwrap();
        timers.stop_singleshot();
        assert_eq!(timers.expire(700), NOTHING);
    }

    #[test]
    fn a_past_singleshot_fires_at_once_or_is_refused() {
        let mut timers = Timers::new();
        timers.set_singleshot(900, 0, 100).unwrap();
        let refused = timers
            .set_singleshot(50, VCPU_SSHOTTMR_FUTURE, 100)
            .unwrap_err();
        assert_eq!(refused.errno(), Errno::ETIME);
        assert_eq!(timers.next_deadline(true), Some(900), "the old one stands");
        timers
            .set_singleshot(100, VCPU_SSHOTTMR_FUTURE, 100)
            .unwrap();
        timers.set_singleshot(50, 0, 100).unwrap();
        assert_eq!(timers.expire(100), TIMER);
        timers
            .set_singleshot(u64::MAX, VCPU_SSHOTTMR_FUTURE, 100)
            .unwrap();
        assert_eq!(timers.expire(u64::MAX >> 1), NOTHING);
    }

    #[test]
    fn set_timer_op_mends_nonsense() {
        let mut timers = Timers::new();
        let mut set = |at| {
            timers.set_timer_op(at, 1000);
            timers.next_deadline(true)
        };
        let mended = Some(1000 + MISTAKE_DELAY);
        assert_eq!(set(2000), Some(2000));
        assert_eq!(set(1), Some(1), "the past is due at once");
        assert_eq!(set(0), None);
        assert_eq!(set(1000 + FAR_AHEAD - 1), Some(1000 + FAR_AHEAD - 1));
        assert_eq!(set(1000 + FAR_AHEAD), mended);
        assert_eq!(set(1 << 63), mended);
        assert_eq!(set(u64::MAX), mended);
    }

    #[test]
    fn a_period_does_not_make_up_for_sleep() {
        let mut timers = Timers::new();
        for bad in [0, MIN_PERIOD - 1, MAX_PERIOD + 1, u64::MAX] {
            assert_eq!(
                timers.set_periodic(bad, 0).unwrap_err().errno(),
                Errno::EINVAL
            );
        }
        let ms = MIN_PERIOD;
        timers.set_periodic(ms, 10).unwrap();
        assert_eq!(timers.next_deadline(true), None);
        assert_eq!(timers.next_deadline(false), Some(10 + ms));
        assert_eq!(timers.expire(9 + ms), NOTHING);
        assert_eq!(timers.expire(100 * ms), TIMER);
        assert_eq!(timers.expire(100 * ms), NOTHING);
        assert_eq!(timers.next_deadline(false), Some(101 * ms));
        timers.stop_periodic();
        assert_eq!(timers.expire(u64::MAX), NOTHING);
    }

    #[test]
    fn a_poll_times_out_without_a_virq() {
        let mut timers = Timers::new();
        timers.begin_poll(Some(300));
        timers.set_singleshot(200, 0, 0).unwrap();
        assert_eq!(timers.next_deadline(true), Some(200));
        assert_eq!(timers.expire(250), TIMER);
        assert_eq!(
            timers.expire(300),
            Expired {
                timer: false,
                poll: true
            }
        );
        timers.begin_poll(Some(400));
        timers.end_poll();
        timers.begin_poll(None);
        assert_eq!(timers.expire(1000), NOTHING);
    }

    proptest! {
        /// Whoever sleeps until the next deadline misses nothing and never
        /// spins: at the deadline something is due, before it nothing.
        #[test]
        fn deadlines_are_exact(
            shot in prop::option::of(0u64..1 << 40),
            period in prop::option::of(MIN_PERIOD..1 << 32),
            poll in prop::option::of(0u64..1 << 40),
        ) {
            let mut timers = Timers::new();
            let _ = shot.map(|at| timers.set_singleshot(at, 0, 0));
            let _ = period.map(|period| timers.set_periodic(period, 0));
            timers.begin_poll(poll);
            for _ in 0..20 {
                let Some(at) = timers.next_deadline(false) else { break };
                if at > 0 {
                    prop_assert_eq!(timers.expire(at - 1), NOTHING);
                }
                prop_assert_ne!(timers.expire(at), NOTHING);
            }
        }
    }
}
