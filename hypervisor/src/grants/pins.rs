//! How often a grant is in use, and how.

use guest_abi::{
    addr::{DomId, Mfn},
    grant_table::{GTF_READING, GTF_WRITING},
};

/// No counter goes past this.
const MAX_USES: u16 = 0x7fff;

/// What a grant is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A mapping for the user's CPUs (or a Dom0 process).
    Host,
    /// A mapping for devices.
    Device,
    /// One `GNTTABOP_copy`.
    Copy,
}

/// One use of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// For what.
    pub how: Use,
    /// For writing too.
    pub write: bool,
}

/// A grant in use: the frame and the user are those of its first use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Active {
    pub(super) user: DomId,
    pub(super) frame: Mfn,
    /// Readers and writers, host (copies count there) and device.
    uses: [[u16; 2]; 2],
}

impl Active {
    pub(super) fn new(user: DomId, frame: Mfn) -> Self {
        Active {
            user,
            frame,
            uses: [[0; 2]; 2],
        }
    }

    fn counter(&mut self, access: Access) -> &mut u16 {
        let device = usize::from(access.how == Use::Device);
        &mut self.uses[device][usize::from(access.write)]
    }

    /// Whether one more use fits into the counters.
    pub(super) fn has_room(&self) -> bool {
        self.uses.iter().flatten().all(|count| *count < MAX_USES)
    }

    pub(super) fn is_written(&self) -> bool {
        self.uses.iter().any(|[_, writers]| *writers > 0)
    }

    pub(super) fn is_used(&self) -> bool {
        self.uses.iter().flatten().any(|count| *count > 0)
    }

    pub(super) fn add(&mut self, access: Access) {
        *self.counter(access) += 1;
    }

    /// Takes one use off and gives the marks that its end leaves without one.
    pub(super) fn remove(&mut self, access: Access) -> u16 {
        let counter = self.counter(access);
        debug_assert!(*counter > 0);
        *counter = counter.saturating_sub(1);
        let written = if access.write && !self.is_written() {
            GTF_WRITING
        } else {
            0
        };
        let read = if self.is_used() { 0 } else { GTF_READING };
        written | read
    }
}
