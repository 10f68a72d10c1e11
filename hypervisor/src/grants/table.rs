//! The granting side: a domain's grant table, and what of it is in use.

use super::{Access, FrameRefused, GrantError, GrantMemory, entry, pins::Active};
use crate::{events::DomainKey, shared_words::SharedWords};
use guest_abi::{
    addr::{DomId, GrantRef, MachineAddr, Mfn, PAGE_SIZE},
    grant_table::GrantEntryV1,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

const ENTRY_BYTES: u64 = size_of::<GrantEntryV1>() as u64;

/// Grants in one frame of a table.
#[allow(clippy::cast_possible_truncation)] // 512
pub const ENTRIES_PER_FRAME: u32 = (PAGE_SIZE / ENTRY_BYTES) as u32;

/// Frames that a table has from the start.
const INITIAL_FRAMES: u32 = 1;

#[derive(Default)]
struct State {
    frames: Vec<Mfn>,
    /// The grants in use; one that is not in use is not in here.
    active: HashMap<GrantRef, Active>,
    dying: bool,
}

impl State {
    fn entries(&self) -> u32 {
        u32::try_from(self.frames.len())
            .unwrap_or(u32::MAX)
            .saturating_mul(ENTRIES_PER_FRAME)
    }

    fn entry(&self, dom: DomId, gref: GrantRef) -> Result<MachineAddr, GrantError> {
        let missing = GrantError::NoSuchGrant {
            dom,
            gref,
            entries: self.entries(),
        };
        let frame = usize::try_from(gref.0 / ENTRIES_PER_FRAME).ok();
        let frame = frame
            .and_then(|index| self.frames.get(index))
            .ok_or(missing.clone())?;
        let offset = u64::from(gref.0 % ENTRIES_PER_FRAME) * ENTRY_BYTES;
        frame
            .addr()
            .and_then(|at| at.checked_add(offset))
            .ok_or(missing)
    }
}

/// A domain's grant table, version 1.
pub struct GrantTable {
    key: DomainKey,
    max_frames: u32,
    words: Arc<dyn SharedWords>,
    memory: Arc<dyn GrantMemory>,
    /// Held while frames are allocated, so that two do not allocate the same.
    growing: Mutex<()>,
    state: Mutex<State>,
}

impl GrantTable {
    /// A table with one frame, that may grow to `max_frames`.
    ///
    /// # Errors
    /// [`GrantError::NoMemory`].
    pub fn new(
        key: DomainKey,
        max_frames: u32,
        words: Arc<dyn SharedWords>,
        memory: Arc<dyn GrantMemory>,
    ) -> Result<Arc<Self>, GrantError> {
        let (growing, state) = (Mutex::default(), Mutex::default());
        let max_frames = max_frames.max(INITIAL_FRAMES);
        let table = GrantTable {
            key,
            max_frames,
            words,
            memory,
            growing,
            state,
        };
        table.grow(INITIAL_FRAMES)?;
        Ok(Arc::new(table))
    }

    /// Whose table it is.
    #[must_use]
    pub fn key(&self) -> DomainKey {
        self.key
    }

    /// The domain's memory.
    #[must_use]
    pub fn memory(&self) -> &dyn GrantMemory {
        &*self.memory
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `GNTTABOP_query_size`: frames now, and at most.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (
            u32::try_from(self.state().frames.len()).unwrap_or(u32::MAX),
            self.max_frames,
        )
    }

    /// `GNTTABOP_setup_table`: the first `nr_frames` frames, after growing to
    /// that many.
    ///
    /// # Errors
    /// [`GrantError::TooManyFrames`] and [`GrantError::NoMemory`].
    pub fn setup(&self, nr_frames: u32) -> Result<Vec<Mfn>, GrantError> {
        if nr_frames > self.max_frames {
            return Err(GrantError::TooManyFrames {
                asked: nr_frames,
                max: self.max_frames,
            });
        }
        self.grow(nr_frames)?;
        let count = usize::try_from(nr_frames).unwrap_or(usize::MAX);
        Ok(self.state().frames.iter().copied().take(count).collect())
    }

    /// Frames that were added before memory ran out stay: the hypervisor has
    /// promised them for the domain's life.
    fn grow(&self, nr_frames: u32) -> Result<(), GrantError> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        while self.size().0 < nr_frames {
            let frame = self.memory.new_table_frame().ok_or(GrantError::NoMemory)?;
            self.state().frames.push(frame);
        }
        Ok(())
    }

    /// Writes a grant on the domain's behalf, as the toolstack does for the
    /// reserved entries of the console and xenstore rings.
    ///
    /// # Errors
    /// [`GrantError::NoSuchGrant`], [`GrantError::Busy`] for one in use, and
    /// [`GrantError::NotRam`] for a frame that version 1 cannot name.
    pub fn seed(&self, gref: GrantRef, user: DomId, frame: Mfn) -> Result<(), GrantError> {
        let state = self.state();
        let at = state.entry(self.key.dom, gref)?;
        if state.active.contains_key(&gref) {
            return Err(GrantError::Busy(gref));
        }
        let short = u32::try_from(frame.0).map_err(|_| GrantError::NotRam(frame))?;
        self.words
            .store_u64(at, entry::Captured::permit(user, short).word());
        Ok(())
    }

    /// `GNTTABOP_swap_grant_ref`.
    ///
    /// # Errors
    /// [`GrantError::NoSuchGrant`], and [`GrantError::Busy`] for one in use.
    pub fn swap(&self, a: GrantRef, b: GrantRef) -> Result<(), GrantError> {
        let state = self.state();
        let (at_a, at_b) = (state.entry(self.key.dom, a)?, state.entry(self.key.dom, b)?);
        if a == b {
            return Ok(());
        }
        if let Some(busy) = [a, b]
            .into_iter()
            .find(|gref| state.active.contains_key(gref))
        {
            return Err(GrantError::Busy(busy));
        }
        let word = self.words.swap_u64(at_b, self.words.load_u64(at_a));
        self.words.store_u64(at_a, word);
        Ok(())
    }

    /// Begins a use of a grant by the domain `user`.
    ///
    /// # Errors
    /// A [`GrantError`]; then everything is as before.
    pub fn acquire(
        self: &Arc<Self>,
        gref: GrantRef,
        user: DomId,
        access: Access,
    ) -> Result<Granted, GrantError> {
        let frame = self.pin(gref, user, access)?;
        // From here on the pin goes back by itself.
        let pin = Pin {
            table: self.clone(),
            gref,
            access,
        };
        let frame = FrameRef::take(self, frame, access.write)?;
        Ok(Granted { frame, pin })
    }

    fn pin(&self, gref: GrantRef, user: DomId, access: Access) -> Result<Mfn, GrantError> {
        let mut state = self.state();
        if state.dying {
            return Err(GrantError::Dying(self.key.dom));
        }
        let at = state.entry(self.key.dom, gref)?;
        let mut active = match state.active.get(&gref) {
            Some(active) if active.user != user => {
                return Err(GrantError::InUseBy {
                    gref,
                    user: active.user,
                });
            }
            Some(active) if !active.has_room() => return Err(GrantError::TooManyUses(gref)),
            Some(active) if access.write && !active.is_written() => {
                entry::mark(&*self.words, at, gref, None, access)?;
                *active
            }
            Some(active) => *active,
            None => {
                let captured = entry::mark(&*self.words, at, gref, Some(user), access)?;
                Active::new(user, captured.frame())
            }
        };
        active.add(access);
        state.active.insert(gref, active);
        Ok(active.frame)
    }

    fn unpin(&self, gref: GrantRef, access: Access) {
        let mut state = self.state();
        let Ok(at) = state.entry(self.key.dom, gref) else {
            return;
        };
        let Some(active) = state.active.get_mut(&gref) else {
            return;
        };
        let unused = active.remove(access);
        if !active.is_used() {
            state.active.remove(&gref);
        }
        entry::unmark(&*self.words, at, unused);
    }

    /// Whether `frame` is RAM of the domain at this moment.
    ///
    /// # Errors
    /// [`GrantError::NotRam`].
    pub fn owns(self: &Arc<Self>, frame: Mfn) -> Result<(), GrantError> {
        FrameRef::take(self, frame, false).map(drop)
    }

    /// How many grants are in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.state().active.len()
    }

    /// The frames that somebody else may write now, by a grant in use.
    #[must_use]
    pub fn written_by_others(&self) -> Vec<Mfn> {
        let state = self.state();
        let written = state.active.values().filter(|active| active.is_written());
        written.map(|active| active.frame).collect()
    }

    /// The domain is being destroyed: no use of its grants begins any more.
    /// Those that there are end with their users.
    pub fn destroy(&self) {
        self.state().dying = true;
    }
}

/// A pin in a table's `active`; dropped, it ends.
struct Pin {
    table: Arc<GrantTable>,
    gref: GrantRef,
    access: Access,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.table.unpin(self.gref, self.access);
    }
}

/// A reference on a frame of a domain's; dropped, it ends.
pub(super) struct FrameRef {
    table: Arc<GrantTable>,
    frame: Mfn,
    write: bool,
}

impl FrameRef {
    pub(super) fn take(
        table: &Arc<GrantTable>,
        frame: Mfn,
        write: bool,
    ) -> Result<Self, GrantError> {
        table
            .memory
            .get_frame(frame, write)
            .map_err(|refused| match refused {
                FrameRefused::NotOwned => GrantError::NotRam(frame),
                FrameRefused::NotWritable => GrantError::NotWritable(frame),
            })?;
        Ok(FrameRef {
            table: table.clone(),
            frame,
            write,
        })
    }

    pub(super) fn table(&self) -> &GrantTable {
        &self.table
    }

    pub(super) fn frame(&self) -> Mfn {
        self.frame
    }

    /// The machine address of a byte of the frame.
    pub(super) fn at(&self, offset: u16) -> Result<MachineAddr, GrantError> {
        let at = self.frame.addr();
        at.and_then(|at| at.checked_add(offset.into()))
            .ok_or(GrantError::NotRam(self.frame))
    }
}

impl Drop for FrameRef {
    fn drop(&mut self) {
        self.table.memory.put_frame(self.frame, self.write);
    }
}

/// One use of one grant. Dropping it ends the use: first the reference on the
/// frame goes (fields are dropped in their order), then the mark that keeps
/// the granting domain from taking the grant back.
#[must_use]
pub struct Granted {
    frame: FrameRef,
    pin: Pin,
}

impl Granted {
    /// The frame, in the granting domain's machine memory.
    #[must_use]
    pub fn frame(&self) -> Mfn {
        self.frame.frame
    }

    /// Whether it may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.pin.access.write
    }

    /// The granting domain.
    #[must_use]
    pub fn granter(&self) -> &Arc<GrantTable> {
        &self.pin.table
    }

    pub(super) fn frame_ref(&self) -> &FrameRef {
        &self.frame
    }
}

impl std::fmt::Debug for Granted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Pin {
            table,
            gref,
            access,
        } = &self.pin;
        write!(
            f,
            "{:?} of {:?} {:?} {access:?}",
            self.frame.frame, table.key, gref
        )
    }
}
