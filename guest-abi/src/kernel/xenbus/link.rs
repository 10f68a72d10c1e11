//! What a front end does when its back end's state changes.

use crate::xenbus::XenbusState;

/// How far a front end is with its back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The back end has yet to say that it is ready for us.
    Waiting,
    /// It was told where the rings are.
    Told,
    /// Both are connected.
    Live,
    /// The device was removed.
    Gone,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Make fresh rings and tell the back end: it starts, for the first time
    /// or again.
    SetUp,
    /// Read what the back end tells and begin.
    GoLive,
    /// Read again what it tells: it may have changed (a disk's size).
    Refresh,
    /// Say `Closed`: the back end ends, or serves whoever was here before us.
    Close,
    /// Say `Initialising`: the back end has ended, and the device stays.
    Ask,
    /// Fail what is under way: the device is being removed.
    GiveUp,
}

impl Phase {
    /// The step after the back end came to `state`; `online` is its node of
    /// that name: whether the device is to stay.
    ///
    /// ```
    /// use guest_abi::{kernel::xenbus::{Phase, Step}, xenbus::XenbusState};
    /// // A back end that was started again:
    /// assert_eq!(Phase::Live.step(XenbusState::InitWait, true), Step::SetUp);
    /// // A device that is unplugged:
    /// assert_eq!(Phase::Live.step(XenbusState::Closed, false), Step::GiveUp);
    /// ```
    #[must_use]
    pub fn step(self, state: XenbusState, online: bool) -> Step {
        use XenbusState::{Closed, Closing, Connected, InitWait, Unknown};
        match (self, state) {
            (Self::Gone, _) => Step::Nothing,
            (Self::Waiting | Self::Live, InitWait) => Step::SetUp,
            (Self::Told, Connected) => Step::GoLive,
            (Self::Live, Connected) => Step::Refresh,
            (Self::Waiting, Connected) | (_, Closing) => Step::Close,
            (_, Closed) if online => Step::Ask,
            (_, Closed | Unknown) if !online => Step::GiveUp,
            _ => Step::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::*;

    fn run(states: &[XenbusState]) -> Phase {
        states.iter().fold(Phase::Waiting, |phase, &state| {
            match phase.step(state, true) {
                Step::Nothing | Step::Refresh => phase,
                Step::SetUp => Phase::Told,
                Step::GoLive => Phase::Live,
                Step::Close | Step::Ask => Phase::Waiting,
                Step::GiveUp => Phase::Gone,
            }
        })
    }

    #[test]
    fn the_usual_way() {
        assert_eq!(run(&[Initialising, InitWait]), Phase::Told);
        assert_eq!(run(&[InitWait, InitWait, Connected]), Phase::Live);
    }

    #[test]
    fn back_ends_come_again() {
        let again = [Closing, Closed, InitWait, Connected];
        assert_eq!(run(&again), Phase::Live);
        assert_eq!(run(&[InitWait, Connected, Closing]), Phase::Waiting);
        let restarted = [InitWait, Connected, Initialising, InitWait, Connected];
        assert_eq!(run(&restarted), Phase::Live);
        // It found its ring again and only says so.
        assert_eq!(run(&[InitWait, Connected, Connected]), Phase::Live);
        // It serves the kernel that was here before us.
        assert_eq!(run(&[Connected, Closed, InitWait]), Phase::Told);
    }

    #[test]
    fn a_device_that_is_removed_is_gone_for_good() {
        for state in [Closed, Unknown] {
            assert_eq!(Phase::Live.step(state, false), Step::GiveUp);
            assert_eq!(Phase::Gone.step(state, false), Step::Nothing);
        }
        assert_eq!(Phase::Gone.step(InitWait, true), Step::Nothing);
    }
}
