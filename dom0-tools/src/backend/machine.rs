//! The back half of the xenbus state machine, as a pure function.
//!
//! ```text
//!   back end                          front end
//!   Initialising  (tools made it)     Initialising
//!   InitWait      features written -->
//!                                 <-- Initialised   ring and port written
//!   Connected     ring mapped     -->
//!                                 <-- Connected
//!        ... served ...
//!   Closing       tools want it gone, or an error -->
//!                                 <-- Closing, then Closed
//!   Closed        ring unmapped
//! ```
//!
//! Law: what is done next follows from the two states in xenstore, `online`,
//! and what this process holds; never from what it remembers having done. So a
//! new process goes on where a killed one stopped, and a front end that jumps
//! between states gets no further than one step at a time.

use guest_abi::xenbus::XenbusState;

/// How a ring is taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// The front end has made it just now.
    Fresh,
    /// It has been in use, with a back end that has died.
    Again,
}

/// What the decision is made of.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The back end's node.
    pub mine: XenbusState,
    /// The front end's node.
    pub theirs: XenbusState,
    /// Whether the tools want the device to stay after its front end closes.
    pub online: bool,
    /// Whether this process has the device open.
    pub open: bool,
    /// Whether this process serves its ring.
    pub attached: bool,
    /// Whether opening or connecting failed, and the front end has not closed
    /// since.
    pub failed: bool,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Open the device and write what it can do.
    Open,
    /// Map the ring, bind the port, serve.
    Connect(Attach),
    /// Unmap the ring.
    Disconnect,
    /// Let the device go.
    Release,
    /// Write the back end's node.
    Say(XenbusState),
}

/// What is to be done next; `None` when all is as it should be.
#[must_use]
pub fn next(view: &View) -> Option<Step> {
    use XenbusState as S;
    match view.theirs {
        S::Closed | S::Unknown => close(view),
        S::Initialising => begin(view),
        // A front end does not wait in these: as if it were initialising.
        S::InitWait | S::Reconfiguring | S::Reconfigured => None,
        S::Initialised | S::Connected => connect(view),
        S::Closing => match view.mine {
            // Its ring may still hold requests.
            S::Connected | S::Closing if !view.attached && !view.failed => take_up_again(view),
            S::Connected => Some(Step::Say(S::Closing)),
            _ => None,
        },
    }
}

/// The front end has closed, or is gone.
fn close(view: &View) -> Option<Step> {
    use XenbusState as S;
    if view.attached {
        return Some(Step::Disconnect);
    }
    let fresh = view.mine == S::Initialising && view.theirs == S::Unknown && view.online;
    if fresh {
        return None; // The tools have not written the front end's part yet.
    }
    if view.open {
        return Some(Step::Release);
    }
    (view.mine != S::Closed && view.mine != S::Unknown).then_some(Step::Say(S::Closed))
}

/// The front end has not begun, or begins again.
fn begin(view: &View) -> Option<Step> {
    use XenbusState as S;
    if view.attached {
        return Some(Step::Disconnect);
    }
    match view.mine {
        // The tools want it gone, and no front end is there to agree.
        S::Closing if !view.online => close(view),
        S::Closed if !view.online => None,
        S::Closing | S::Unknown => None,
        _ if view.failed => None,
        _ if !view.open => Some(Step::Open),
        S::InitWait => None,
        _ => Some(Step::Say(S::InitWait)),
    }
}

/// The front end has its ring ready.
fn connect(view: &View) -> Option<Step> {
    use XenbusState as S;
    if view.failed {
        return None;
    }
    match view.mine {
        S::Connected | S::Closing if !view.attached => take_up_again(view),
        S::Initialising | S::InitWait if !view.open => Some(Step::Open),
        S::Initialising => Some(Step::Say(S::InitWait)),
        S::InitWait if !view.attached => Some(Step::Connect(Attach::Fresh)),
        S::InitWait => Some(Step::Say(S::Connected)),
        _ => None,
    }
}

fn take_up_again(view: &View) -> Option<Step> {
    Some(if view.open {
        Step::Connect(Attach::Again)
    } else {
        Step::Open
    })
}

#[cfg(test)]
mod tests {
    use XenbusState as S;
    use proptest::prelude::*;

    use super::*;

    fn fresh() -> View {
        View {
            mine: S::Initialising,
            theirs: S::Initialising,
            online: true,
            open: false,
            attached: false,
            failed: false,
        }
    }

    /// Does all steps; which they were.
    fn settle(view: &mut View) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(step) = next(view) {
            match step {
                Step::Open => view.open = true,
                Step::Connect(_) => view.attached = true,
                Step::Disconnect => view.attached = false,
                Step::Release => view.open = false,
                Step::Say(state) => view.mine = state,
            }
            steps.push(step);
            assert!(steps.len() < 10, "{steps:?}");
        }
        steps
    }

    #[test]
    fn a_device_lives_and_goes() {
        let mut view = fresh();
        assert_eq!(settle(&mut view), [Step::Open, Step::Say(S::InitWait)]);
        view.theirs = S::Initialised;
        let connected = [Step::Connect(Attach::Fresh), Step::Say(S::Connected)];
        assert_eq!(settle(&mut view), connected);
        view.theirs = S::Connected;
        assert_eq!(settle(&mut view), []);
        // As `xm block-detach` does.
        (view.mine, view.online) = (S::Closing, false);
        assert_eq!(settle(&mut view), []);
        view.theirs = S::Closing;
        assert_eq!(settle(&mut view), []);
        view.theirs = S::Closed;
        let closed = [Step::Disconnect, Step::Release, Step::Say(S::Closed)];
        assert_eq!(settle(&mut view), closed);
    }

    #[test]
    fn a_front_end_may_begin_again() {
        let mut view = View {
            mine: S::Closed,
            ..fresh()
        };
        assert_eq!(settle(&mut view), [Step::Open, Step::Say(S::InitWait)]);
        // A kernel that starts anew without having closed.
        let mut view = View {
            mine: S::Connected,
            open: true,
            attached: true,
            ..fresh()
        };
        assert_eq!(
            settle(&mut view),
            [Step::Disconnect, Step::Say(S::InitWait)]
        );
    }

    #[test]
    fn a_new_process_takes_up_a_ring_in_use() {
        for mine in [S::Connected, S::Closing] {
            for theirs in [S::Connected, S::Initialised, S::Closing] {
                let mut view = View {
                    mine,
                    theirs,
                    ..fresh()
                };
                let steps = settle(&mut view);
                assert_eq!(steps[..2], [Step::Open, Step::Connect(Attach::Again)]);
            }
        }
    }

    #[test]
    fn a_device_without_driver_can_be_removed() {
        let mut view = View {
            mine: S::Closing,
            online: false,
            open: true,
            ..fresh()
        };
        assert_eq!(settle(&mut view), [Step::Release, Step::Say(S::Closed)]);
    }

    fn state() -> impl Strategy<Value = XenbusState> {
        (0..9_u32).prop_map(|number| S::from_number(number).unwrap())
    }

    proptest! {
        /// However the states jump, there is rest after a few steps, and a
        /// ring is served only while the front end may use it.
        #[test]
        fn every_view_settles(
            jumps in prop::collection::vec((state(), state(), any::<[bool; 3]>()), 1..20)
        ) {
            let mut view = fresh();
            for (mine, theirs, [online, by_tools, failed]) in jumps {
                (view.theirs, view.online) = (theirs, online);
                if by_tools {
                    view.mine = mine;
                }
                view.failed = failed && !view.attached;
                let _ = settle(&mut view);
                if matches!(theirs, S::Closed | S::Unknown | S::Initialising) {
                    prop_assert!(!view.attached);
                }
                prop_assert!(view.open || !view.attached);
            }
        }
    }
}
