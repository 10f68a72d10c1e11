//! How often a grant is in use, and how.

use super::GrantError;
use guest_abi::{
    addr::{DomId, GrantRef, Mfn},
    grant_table::{
        GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_SUB_PAGE, GTF_TYPE_MASK, GTF_WRITING,
    },
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

impl Access {
    /// Whether a grant with these flags, for the domain `granted`, allows this use. `user` is
    /// given at the first use only: later ones rest on what was checked then. Transitive grants
    /// are no type that we know.
    pub(super) fn check(
        self,
        gref: GrantRef,
        user: Option<DomId>,
        (flags, granted): (u16, DomId),
    ) -> Result<(), GrantError> {
        if let Some(caller) = user {
            let sub_page = if self.how == Use::Copy {
                0
            } else {
                GTF_SUB_PAGE
            };
            if flags & (GTF_TYPE_MASK | sub_page) != GTF_PERMIT_ACCESS || granted != caller {
                return Err(GrantError::NotGranted {
                    gref,
                    flags,
                    granted,
                    caller,
                });
            }
        }
        if self.write && flags & GTF_READONLY != 0 {
            return Err(GrantError::ReadOnly(gref));
        }
        Ok(())
    }
}

/// The bytes of a page that a grant is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The first one.
    offset: u16,
    /// How many.
    length: u16,
}

impl Part {
    /// All of a page.
    pub(super) const WHOLE: Self = Part {
        offset: 0,
        length: 4096,
    };

    /// As an entry says; what lies past the page's end is in no copy anyway.
    pub(super) fn new(offset: u16, length: u16) -> Self {
        Part { offset, length }
    }

    pub(super) fn is_whole(self) -> bool {
        self == Self::WHOLE
    }

    /// Whether `length` bytes from `offset` on are in it.
    pub(super) fn holds(self, offset: u16, length: usize) -> bool {
        let end = usize::from(self.offset) + usize::from(self.length);
        offset >= self.offset && usize::from(offset) + length <= end
    }
}

/// A grant in use: the frame, the part and the user are those of its first use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Active {
    pub(super) user: DomId,
    pub(super) frame: Mfn,
    pub(super) part: Part,
    /// Readers and writers, host (copies count there) and device.
    uses: [[u16; 2]; 2],
}

impl Active {
    pub(super) fn new(user: DomId, (frame, part): (Mfn, Part)) -> Self {
        Active {
            user,
            frame,
            part,
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
