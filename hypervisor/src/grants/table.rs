//! The granting side: a domain's grant table, and what of it is in use.

use super::{
    Access, FrameRefused, GrantError, GrantMemory, Use,
    entry::Place,
    pins::{Active, Part},
};
use crate::{events::DomainKey, shared_words::SharedWords};
use guest_abi::{
    addr::{DomId, GrantRef, MachineAddr, Mfn, PAGE_SIZE},
    grant_table::{GNTTAB_NR_RESERVED_ENTRIES, GrantEntryV1, GrantEntryV2FullPage},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Frames that a table has from the start.
const INITIAL_FRAMES: u32 = 1;

/// Bytes of a status word of version 2.
const STATUS_BYTES: u32 = u16::BITS / 8;

/// How the table's entries are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Version {
    #[default]
    V1,
    V2,
}

impl Version {
    #[allow(clippy::cast_possible_truncation)] // 8 and 16
    const fn entry_bytes(self) -> u32 {
        match self {
            Version::V1 => size_of::<GrantEntryV1>() as u32,
            Version::V2 => size_of::<GrantEntryV2FullPage>() as u32,
        }
    }

    const fn entries_per_frame(self) -> u32 {
        PAGE_BYTES / self.entry_bytes()
    }

    /// Status frames for that many frames of entries.
    fn status_frames(self, frames: u32) -> u32 {
        match self {
            Version::V1 => 0,
            Version::V2 => {
                let words = frames.saturating_mul(self.entries_per_frame());
                words.div_ceil(PAGE_BYTES / STATUS_BYTES)
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // 4096
const PAGE_BYTES: u32 = PAGE_SIZE as u32;

/// Where element `index` of an array that lies in `frames` is, each element of `bytes`.
fn element(frames: &[Mfn], index: u32, bytes: u32) -> Option<MachineAddr> {
    let in_frame = PAGE_BYTES / bytes;
    let frame = frames.get(usize::try_from(index / in_frame).ok()?)?;
    frame
        .addr()?
        .checked_add(u64::from(index % in_frame * bytes))
}

#[derive(Default)]
struct State {
    version: Version,
    frames: Vec<Mfn>,
    /// Of version 2; kept, unused, while the version is 1.
    status: Vec<Mfn>,
    /// The grants in use; one that is not in use is not in here.
    active: HashMap<GrantRef, Active>,
    dying: bool,
}

impl State {
    fn entries(&self) -> u32 {
        u32::try_from(self.frames.len())
            .unwrap_or(u32::MAX)
            .saturating_mul(self.version.entries_per_frame())
    }

    fn place(&self, dom: DomId, gref: GrantRef) -> Result<Place, GrantError> {
        let entry = element(&self.frames, gref.0, self.version.entry_bytes());
        let place = entry.and_then(|entry| match self.version {
            Version::V1 => Some(Place::V1(entry)),
            Version::V2 => {
                let status = element(&self.status, gref.0, STATUS_BYTES)?;
                Some(Place::V2 { entry, status })
            }
        });
        place.ok_or(GrantError::NoSuchGrant {
            dom,
            gref,
            entries: self.entries(),
        })
    }
}

/// A domain's grant table.
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
            let version = self.state().version;
            let frames = self.size().0;
            self.add_status(version.status_frames(frames.saturating_add(1)))?;
            let frame = self.memory.new_table_frame().ok_or(GrantError::NoMemory)?;
            self.state().frames.push(frame);
        }
        Ok(())
    }

    /// With `growing` held. Frames that there are stay, too, when the version changes: a
    /// guest may have them mapped (XSA-384).
    fn add_status(&self, count: u32) -> Result<(), GrantError> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        while self.state().status.len() < count {
            let frame = self.memory.new_table_frame().ok_or(GrantError::NoMemory)?;
            self.state().status.push(frame);
        }
        Ok(())
    }

    /// `GNTTABOP_get_version`: 1 or 2.
    #[must_use]
    pub fn version(&self) -> u32 {
        match self.state().version {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }

    /// `GNTTABOP_set_version`: lays the table out anew, empty but for the reserved entries. With
    /// `two` in version 2, else in version 1.
    ///
    /// # Errors
    /// [`GrantError::TableInUse`], and [`GrantError::NoMemory`]; then all is as before.
    pub fn set_version(&self, two: bool) -> Result<(), GrantError> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let version = if two { Version::V2 } else { Version::V1 };
        if self.state().version == version {
            return Ok(());
        }
        self.add_status(version.status_frames(self.size().0))?;
        let mut state = self.state();
        if !state.active.is_empty() {
            return Err(GrantError::TableInUse(state.active.len()));
        }
        let dom = self.key.dom;
        let reserved = || (0..GNTTAB_NR_RESERVED_ENTRIES).map(GrantRef);
        let kept: Vec<_> = reserved()
            .map(|gref| state.place(dom, gref).ok()?.whole_page(&*self.words))
            .collect();
        for frame in state.frames.iter().chain(&state.status) {
            self.clear(*frame);
        }
        state.version = version;
        for (gref, kept) in reserved().zip(kept) {
            if let (Some(kept), Ok(place)) = (kept, state.place(dom, gref)) {
                // One that version 1 cannot name is given up.
                let _ = place.restore(&*self.words, kept);
            }
        }
        Ok(())
    }

    fn clear(&self, frame: Mfn) {
        for offset in (0..PAGE_SIZE).step_by(8) {
            if let Some(at) = frame.addr().and_then(|at| at.checked_add(offset)) {
                self.words.store_u64(at, 0);
            }
        }
    }

    /// `GNTTABOP_get_status_frames`: the first `nr_frames` of those that hold the marks of version 2.
    ///
    /// # Errors
    /// [`GrantError::TooManyFrames`]: in version 1 there are none.
    pub fn status_frames(&self, nr_frames: u32) -> Result<Vec<Mfn>, GrantError> {
        let state = self.state();
        let max = state
            .version
            .status_frames(u32::try_from(state.frames.len()).unwrap_or(u32::MAX));
        if nr_frames > max {
            return Err(GrantError::TooManyFrames {
                asked: nr_frames,
                max,
            });
        }
        let count = usize::try_from(nr_frames).unwrap_or(usize::MAX);
        Ok(state.status.iter().copied().take(count).collect())
    }

    /// Writes a grant on the domain's behalf, as the toolstack does for the
    /// reserved entries of the console and xenstore rings.
    ///
    /// # Errors
    /// [`GrantError::NoSuchGrant`], [`GrantError::Busy`] for one in use, and
    /// [`GrantError::NotRam`] for a frame that version 1 cannot name.
    pub fn seed(&self, gref: GrantRef, user: DomId, frame: Mfn) -> Result<(), GrantError> {
        let state = self.state();
        let place = state.place(self.key.dom, gref)?;
        if state.active.contains_key(&gref) {
            return Err(GrantError::Busy(gref));
        }
        let permitted = place.permit(&*self.words, user, frame);
        permitted.then_some(()).ok_or(GrantError::NotRam(frame))
    }

    /// `GNTTABOP_swap_grant_ref`.
    ///
    /// # Errors
    /// [`GrantError::NoSuchGrant`], and [`GrantError::Busy`] for one in use.
    pub fn swap(&self, a: GrantRef, b: GrantRef) -> Result<(), GrantError> {
        let state = self.state();
        let (at_a, at_b) = (state.place(self.key.dom, a)?, state.place(self.key.dom, b)?);
        if a == b {
            return Ok(());
        }
        if let Some(busy) = [a, b]
            .into_iter()
            .find(|gref| state.active.contains_key(gref))
        {
            return Err(GrantError::Busy(busy));
        }
        at_a.swap(at_b, &*self.words);
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
        let (frame, part) = self.pin(gref, user, access)?;
        // From here on the pin goes back by itself.
        let pin = Pin {
            table: self.clone(),
            gref,
            access,
        };
        let frame = FrameRef::take(self, frame, access.write)?;
        Ok(Granted { frame, part, pin })
    }

    fn pin(&self, gref: GrantRef, user: DomId, access: Access) -> Result<(Mfn, Part), GrantError> {
        let mut state = self.state();
        if state.dying {
            return Err(GrantError::Dying(self.key.dom));
        }
        let place = state.place(self.key.dom, gref)?;
        let mut active = match state.active.get(&gref) {
            Some(active) if active.user != user => {
                return Err(GrantError::InUseBy {
                    gref,
                    user: active.user,
                });
            }
            Some(active) if !active.has_room() => return Err(GrantError::TooManyUses(gref)),
            Some(active) if access.how != Use::Copy && !active.part.is_whole() => {
                return Err(GrantError::PartOnly(gref));
            }
            Some(active) if access.write && !active.is_written() => {
                place.mark(&*self.words, gref, None, access)?;
                *active
            }
            Some(active) => *active,
            None => Active::new(user, place.mark(&*self.words, gref, Some(user), access)?),
        };
        active.add(access);
        state.active.insert(gref, active);
        Ok((active.frame, active.part))
    }

    fn unpin(&self, gref: GrantRef, access: Access) {
        let mut state = self.state();
        let Ok(place) = state.place(self.key.dom, gref) else {
            return;
        };
        let Some(active) = state.active.get_mut(&gref) else {
            return;
        };
        let unused = active.remove(access);
        if !active.is_used() {
            state.active.remove(&gref);
        }
        place.unmark(&*self.words, unused);
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
    part: Part,
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

    /// The machine address of `len` bytes of the page, all of which are granted.
    pub(super) fn at(&self, offset: u16, len: usize) -> Result<MachineAddr, GrantError> {
        if !self.part.holds(offset, len) {
            let gref = self.pin.gref;
            return Err(GrantError::OutsidePart { gref, offset, len });
        }
        self.frame.at(offset)
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
