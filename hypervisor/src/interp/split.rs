//! Locked operands across two cache lines, for an interpreter that is alone.
//!
//! Law: such an operand is changed by one vCPU of the process at a time, by way
//! of a copy. An ordinary access of another vCPU may see it half done, which
//! on a processor it could not; kernels and C libraries align what they lock.
//! (The host's own locked instruction would hold up the whole machine, and on
//! hosts that forbid it, end this process.)

use super::host::{HostPtr, Memory};
use std::sync::{Mutex, MutexGuard, PoisonError};

static BUS: Mutex<()> = Mutex::new(());

/// Held while such an instruction is executed.
pub fn lock_bus() -> MutexGuard<'static, ()> {
    BUS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The operand's copy, and where it came from.
#[derive(Debug, Default)]
pub struct SplitOperand {
    copy: Box<Copy>,
    places: Vec<(HostPtr, u64)>,
}

#[derive(Debug, Default)]
#[repr(align(16))]
struct Copy([u8; 16]);

impl SplitOperand {
    /// Copies the operand, which lies in these pieces, and says where to.
    pub fn bring_in(&mut self, places: Vec<(HostPtr, u64)>) -> HostPtr {
        let from = bytes(&places).map(u8::load);
        for (to, byte) in self.copy.0.iter_mut().zip(from) {
            *to = byte;
        }
        self.places = places;
        HostPtr::from_buffer(&mut self.copy.0)
    }

    /// Writes the copy back.
    pub fn write_back(mut self) {
        let copy = HostPtr::from_buffer(&mut self.copy.0);
        for (offset, to) in (0..).zip(bytes(&self.places)) {
            u8::load(copy.plus(offset)).store(to);
        }
    }
}

fn bytes(places: &[(HostPtr, u64)]) -> impl Iterator<Item = HostPtr> {
    places
        .iter()
        .flat_map(|(start, count)| (0..*count).map(|offset| start.plus(offset)))
}
