//! A stretch as the interpreter executes it alone: where it leads, and where it can be
//! stopped by a breakpoint.

use super::twin::{Twin, is_comparable, reads_undefined, undefined_flags};
use crate::{
    cpu::{Context, Trap},
    interp::Exit,
};
use guest_abi::addr::Mfn;
use std::collections::HashSet;

/// The vector of a single step.
pub(super) const DEBUG: u8 = 1;

/// Whether it is the trap of a step that went well.
pub(super) fn is_step(trap: Trap) -> bool {
    matches!(trap, Trap::Exception { vector: DEBUG, .. })
}

/// See the module. Steps are instructions, or elements of repeated ones.
pub(super) struct Path {
    /// The state before each step, and the last one.
    states: Vec<Context>,
    /// Flags that are undefined in each.
    undefined: Vec<u64>,
    /// What the last state trapped with; without a trap, it is before something that
    /// can't be compared, or far enough.
    pub trap: Option<Trap>,
}

impl Path {
    /// Goes at most so far from a context.
    pub fn walk(twin: &mut Twin, from: &Context, root: Mfn, most: usize) -> Self {
        let mut path = Path {
            states: vec![*from],
            undefined: vec![0],
            trap: None,
        };
        let (mut at, mut undefined) = (*from, 0);
        while path.steps() < most {
            let next = twin.instruction(&at, root).filter(is_comparable);
            let Some(next) = next.filter(|next| !reads_undefined(next, undefined)) else {
                break;
            };
            let (after, exit) = twin.step(&at, root);
            match exit {
                Exit::Trap(trap) if is_step(trap) => {}
                Exit::Trap(trap) => {
                    path.trap = Some(trap);
                    break;
                }
                _ => break,
            }
            (at, undefined) = (after, undefined_flags(&next, undefined));
            path.states.push(at);
            path.undefined.push(undefined);
        }
        path
    }

    /// How many steps it has.
    pub fn steps(&self) -> usize {
        self.states.len() - 1
    }

    /// A state, and the flags that are undefined there.
    pub fn state(&self, step: usize) -> (&Context, u64) {
        (&self.states[step], self.undefined[step])
    }

    /// Where to stop others on the same way: after how many steps. That is at the trap, or
    /// at the last address where the path comes for the first time, so that a breakpoint
    /// there is met then and not before. `None` if that is where it begins.
    pub fn stop(&self) -> Option<usize> {
        if self.trap.is_some() {
            return Some(self.steps());
        }
        let mut seen = HashSet::new();
        let first = (0..)
            .zip(&self.states)
            .filter(|(_, at)| seen.insert(at.rip));
        first.last().map(|(step, _)| step).filter(|step| *step > 0)
    }
}
